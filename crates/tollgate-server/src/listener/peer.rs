//! The peer of a connection.

use std::net::{IpAddr, SocketAddr};

use super::{activity::Activity, certificate::CertificateName};

/// The peer of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Its address, or, behind a load balancer that uses the PROXY protocol, that of the client.
    pub(crate) address: SocketAddr,
    /// The network that its connections are counted by; `None` for a trusted proxy.
    pub(crate) source: Option<IpAddr>,
    /// The identity in the client's certificate, if it sent one.
    pub(crate) certificate: Vec<CertificateName>,
    /// The activity on its connection.
    pub(crate) connection: Activity,
}
