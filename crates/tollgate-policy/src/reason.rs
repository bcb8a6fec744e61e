//! Reasons for refusals.

/// Why a call is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A quota has not enough capacity now.
    QuotaExceeded,
    /// The cost is above a limit itself, so the call can never be allowed.
    CostAboveLimit,
    /// The caller, or its address, is blocked for a while.
    Blocked,
    /// The upload is larger than the resource accepts.
    UploadTooLarge,
    /// The policy does not have the resource.
    UnknownResource,
    /// The API key is invalid.
    InvalidKey(InvalidKey),
}

/// Why an API key is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidKey {
    /// There is no such key.
    Unknown,
    /// It was revoked.
    Revoked,
    /// It has expired.
    Expired,
}

impl Reason {
    /// Every reason, in the order of the documentation.
    pub const ALL: [Self; 8] = [
        Self::QuotaExceeded,
        Self::CostAboveLimit,
        Self::Blocked,
        Self::UploadTooLarge,
        Self::UnknownResource,
        Self::InvalidKey(InvalidKey::Unknown),
        Self::InvalidKey(InvalidKey::Revoked),
        Self::InvalidKey(InvalidKey::Expired),
    ];

    /// Its index in [`Reason::ALL`].
    pub const fn index(self) -> usize {
        match self {
            Self::QuotaExceeded => 0,
            Self::CostAboveLimit => 1,
            Self::Blocked => 2,
            Self::UploadTooLarge => 3,
            Self::UnknownResource => 4,
            Self::InvalidKey(InvalidKey::Unknown) => 5,
            Self::InvalidKey(InvalidKey::Revoked) => 6,
            Self::InvalidKey(InvalidKey::Expired) => 7,
        }
    }

    /// Its name in policy files, in dialects, and in the API: `quota_exceeded`, `unknown_key`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::QuotaExceeded => "quota_exceeded",
            Self::CostAboveLimit => "cost_above_limit",
            Self::Blocked => "blocked",
            Self::UploadTooLarge => "upload_too_large",
            Self::UnknownResource => "unknown_resource",
            Self::InvalidKey(InvalidKey::Unknown) => "unknown_key",
            Self::InvalidKey(InvalidKey::Revoked) => "revoked_key",
            Self::InvalidKey(InvalidKey::Expired) => "expired_key",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_position_as_index() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), index, "{}", reason.name());
        }
    }
}
