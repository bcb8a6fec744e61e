//! The Tollgate node. [`run::run`] is all of it: listeners in, a running node out, until it is told to
//! stop; the binary and the tests call the same function.

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
