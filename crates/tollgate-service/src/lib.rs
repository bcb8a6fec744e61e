//! The application: how a node processes a call, a reservation, a report, and a change of an account.
//!
//! It may know `tollgate-core`, `tollgate-policy`, and the ports of `tollgate-store` (accounts, the log of refusals,
//! the clock). It must not know a protocol (no axum, no tonic, no protobuf, no header), how callers authenticate
//! themselves, a file, or which store implements a port.

pub mod admin;
pub mod blocks;
pub mod directory;
pub mod domains;
pub mod incidents;
pub mod metrics;
pub mod page_token;
pub mod refusals;
pub mod scope;
pub mod service;
