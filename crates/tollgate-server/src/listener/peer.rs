//! Who is at the other end of a connection.

use std::net::{IpAddr, SocketAddr};

use super::{activity::Activity, certificate::CertificateName};

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Its address, or, behind a balancer that names it by the PROXY protocol, that of the client.
    pub(crate) address: SocketAddr,
    /// The address that its connections are counted by; none for that of a trusted proxy.
    pub(crate) source: Option<IpAddr>,
    /// What the client's certificate says, if it showed one.
    pub(crate) certificate: Vec<CertificateName>,
    /// What goes on on its connection.
    pub(crate) connection: Activity,
}
