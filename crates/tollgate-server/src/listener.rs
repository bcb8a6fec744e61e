//! Listeners: they accept connections, bound them, and assign them to threads.

mod activity;
mod certificate;
mod close_reason;
mod connection;
mod connections;
mod gather;
mod handshakes;
mod peer;
mod proxy;
mod server;
mod thread_memory;

pub use self::connections::ConnectionBounds;
pub(crate) use self::{
    activity::{Activity, Streaming},
    certificate::CertificateName,
    connections::ConnectionTable,
    peer::Peer,
    server::Server,
};
