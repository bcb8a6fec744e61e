//! The application: how a node processes calls, reservations, reports, and changes of accounts.
//!
//! It may depend on `tollgate-core`, `tollgate-policy`, and the ports of `tollgate-store` (accounts, the log of
//! refusals, the clock). It must not depend on a protocol (axum, tonic, protobuf, headers), on the authentication of
//! services, on files, or on a concrete store.

pub mod admin;
pub mod blocks;
pub mod directory;
pub mod domains;
pub mod gcra;
pub mod incidents;
pub mod metrics;
pub mod page_token;
pub mod refusals;
pub mod scope;
pub mod service;
