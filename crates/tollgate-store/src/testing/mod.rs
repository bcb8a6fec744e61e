//! What tests of stores share: the conformance suite, and Redis servers of their own. Compiled only
//! with the feature `testing`.

#![expect(clippy::expect_used, clippy::panic, reason = "test code: to stop at the first surprise is what it is for")]

pub mod accounts;
pub mod conformance;
mod server;
pub mod stored;
pub mod topologies;

pub use server::{Program, RedisServer};
