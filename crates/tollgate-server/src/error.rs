//! The errors that keep a node from starting, or stop it.

use std::net::SocketAddr;

/// A node could not be built, or stopped serving by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// All errors in the policy files, one per line.
    #[error("{0}")]
    Policies(String),
    /// All errors in the files of tokens and certificates, one per line.
    #[error("{0}")]
    Credentials(String),
    /// A thread cannot be started.
    #[error("threads: {0}")]
    Threads(std::io::Error),
    /// The store cannot be set up.
    #[error("{0}")]
    Store(#[from] tollgate_core::store::StoreError),
    /// The metrics cannot be set up.
    #[error("metrics: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    /// The reflection service cannot be set up.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The OpenAPI document cannot be serialized.
    #[error("OpenAPI document: {0}")]
    OpenApi(#[from] serde_json::Error),
    /// An address cannot be listened on.
    #[error("{name}: cannot listen on {address}: {error}")]
    Listen {
        /// The setting.
        name: &'static str,
        /// The address.
        address: SocketAddr,
        /// The error of the operating system.
        error: std::io::Error,
    },
    /// A server failed.
    #[error("{0}")]
    Serve(String),
}
