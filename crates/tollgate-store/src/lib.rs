//! Stores: where the counters live. [`memory`] is the embedded default and runs the core's
//! algorithm; [`redis`] shares the counters between any number of nodes and runs the scripts of
//! `lua/`. Neither knows an account, a policy or a protocol.

pub mod clock;
pub mod memory;
pub mod redis;
#[cfg(feature = "testing")]
pub mod testing;
