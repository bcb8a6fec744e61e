//! Why a node ends connections, or does not take them.

/// Why a connection was ended by the node, or not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum CloseReason {
    /// The TLS handshake failed, or took too long.
    Handshake = 1,
    /// There was no call for too long.
    Idle,
    /// Neither a request nor the preface of HTTP/2 came.
    Silent,
    /// An answer was not read for too long.
    Unread,
    /// It held more memory than one may, or the most where all held too much.
    Memory,
    /// It had no call in work, and another took its place.
    Displaced,
    /// All places are taken, and all their connections have calls in work.
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

    /// The reason of this number.
    pub(super) fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|cut| *cut as u8 == number)
    }

    /// As metrics and logs name it.
    pub(super) const fn reason(self) -> &'static str {
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
