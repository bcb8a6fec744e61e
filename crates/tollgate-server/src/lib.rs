//! The Tollgate node. [`run::run`] is all of it: listeners in, a running node out, until it is told to
//! stop; the binary and the tests call the same function.

mod abuse;
mod admin;
pub mod auth;
pub mod cli;
mod directory;
mod doctor;
mod escape;
mod failure_code;
mod files;
mod grpc;
mod incidents;
mod page;
pub mod policies;
mod probe;
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
mod workers;

pub use rest::openapi_json;
