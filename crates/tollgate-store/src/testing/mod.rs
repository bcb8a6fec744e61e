//! What tests of stores share: the conformance suite, and Redis servers of their own. Compiled only
//! with the feature `testing`.

pub mod conformance;
mod server;

pub use server::RedisServer;
