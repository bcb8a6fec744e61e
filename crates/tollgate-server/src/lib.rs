//! The Tollgate node: the front doors (gRPC and REST), authentication of services and administrators, listeners,
//! settings, files, the command line, and the wiring. [`run::run`] runs a node until it is stopped; the binary and the
//! tests call it.
//!
//! It may depend on every other crate. A front door must not depend on another one, nor decide anything itself; only
//! [`run`] chooses stores.

pub mod auth;
pub mod cli;
mod doctor;
mod error;
mod escape;
mod failure_code;
mod files;
mod grpc;
mod lifecycle;
pub mod listener;
mod logs;
pub mod policies;
mod probe;
mod reload;
mod request_body;
mod rest;
pub mod run;
pub mod serve;
pub mod settings;
mod shares;
pub mod tls;
mod workers;

pub use rest::openapi_json;
