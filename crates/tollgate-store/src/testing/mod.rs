//! Shared by tests of stores: the conformance suite, and private Redis servers. Compiled only with the feature
//! `testing`.

#![expect(clippy::expect_used, clippy::panic, reason = "test code: to stop at the first surprise is what it is for")]

pub mod accounts;
pub mod conformance;
mod property;
mod server;
pub mod stored;
pub mod topologies;

pub use property::check_property;
pub use server::{PATIENCE, Program, RedisServer, patient};
