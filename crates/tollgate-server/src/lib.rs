//! The Tollgate node. [`run::run`] is all of it: listeners in, a running node out, until it is told to
//! stop; the binary and the tests call the same function.

mod abuse;
mod admin;
pub mod auth;
pub mod cli;
mod dialect;
mod directory;
mod doctor;
mod escape;
mod failure_code;
mod files;
mod grpc;
mod incidents;
mod key;
mod page;
pub mod policies;
pub mod policy_file;
mod probe;
mod redaction;
mod refusals;
mod reload;
mod rest;
pub mod run;
pub mod serve;
mod service;
pub mod settings;
mod shares;
pub mod telemetry;
pub mod tls;
mod uploads;
mod workers;

pub use rest::openapi_json;
