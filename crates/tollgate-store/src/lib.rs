//! Stores. Counters live in [`memory`], the embedded default, which runs the core's algorithm, or in
//! [`redis`], shared between any number of nodes, which runs the scripts of `lua/`; [`accounts`] and their keys
//! likewise, and the log of refusals.
//!
//! They may know `tollgate-core`, Redis, and the wall clock (only [`clock`] reads it). They must not know a policy or a
//! protocol.

pub mod accounts;
pub mod breaker;
pub mod clock;
pub mod failure;
pub mod memory;
pub mod redis;
pub mod refusals;
#[cfg(feature = "testing")]
pub mod testing;
