//! Why a node closes or does not accept connections.

/// Why the node closed or did not accept a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum CloseReason {
    /// The TLS handshake failed, or took too long.
    Handshake = 1,
    /// There was no call for the idle timeout.
    Idle,
    /// Neither a request nor the preface of HTTP/2 arrived in time.
    Silent,
    /// A response was not read in time.
    Unread,
    /// It exceeded the memory bound of a connection, or had the most memory on a thread that exceeded its bound.
    Memory,
    /// It was closed for a new connection.
    Displaced,
    /// The maximum number of connections is open, and all have calls in progress.
    TooMany,
    /// The header of the PROXY protocol is missing or malformed.
    ProxyHeader,
}

impl CloseReason {
    const ALL: [Self; 8] = [
        Self::Handshake,
        Self::Idle,
        Self::Silent,
        Self::Unread,
        Self::Memory,
        Self::Displaced,
        Self::TooMany,
        Self::ProxyHeader,
    ];

    /// The reason with this number.
    pub(super) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u8 == number)
    }

    /// Its name in metrics and logs.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Idle => "idle",
            Self::Silent => "no_request",
            Self::Unread => "unread_answer",
            Self::Memory => "memory",
            Self::Displaced => "displaced",
            Self::TooMany => "too_many",
            Self::ProxyHeader => "proxy_header",
        }
    }
}
