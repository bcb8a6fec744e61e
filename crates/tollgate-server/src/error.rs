//! Why a node does not start, or stops by itself.

use std::net::SocketAddr;

/// A node could not be built, or stopped serving by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A policy is wrong: everything that is, a line each.
    #[error("{0}")]
    Policies(String),
    /// A file of tokens or certificates is wrong: everything that is, a line each.
    #[error("{0}")]
    Credentials(String),
    /// There are no threads to be had.
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
    /// The description of the API cannot be written.
    #[error("description of the API: {0}")]
    Description(#[from] serde_json::Error),
    /// An address cannot be listened on.
    #[error("{name}: cannot listen on {address}: {error}")]
    Listen {
        /// The setting.
        name: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why not.
        error: std::io::Error,
    },
    /// A server failed.
    #[error("{0}")]
    Serve(String),
}
