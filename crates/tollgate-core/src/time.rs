//! Points in time, as whole milliseconds. Nothing here reads a clock.

use std::fmt;

/// Milliseconds since 1970-01-01T00:00:00Z, below 2^48 (the year 10889).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    const MAX_MS: u64 = (1 << 48) - 1;

    /// The time `ms` milliseconds after the epoch; later than the year 10889 counts as that year.
    pub const fn from_ms(ms: u64) -> Self {
        Self(if ms > Self::MAX_MS { Self::MAX_MS } else { ms })
    }

    /// Milliseconds since the epoch.
    pub const fn as_ms(self) -> u64 {
        self.0
    }

    /// This time moved forward by `ms`.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self::from_ms(self.0.saturating_add(ms))
    }

    /// This time moved back by `ms`, at most to the epoch.
    #[must_use]
    pub const fn minus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_sub(ms))
    }

    /// How many milliseconds `self` lies after `earlier`; 0 if it does not.
    pub const fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with milliseconds: `2025-05-07T00:00:00.000Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = i64::try_from(self.0).unwrap_or(i64::MAX);
        let at = jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX);
        write!(f, "{at:.3}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displays_as_rfc_3339_with_milliseconds() {
        assert_eq!(Timestamp::from_ms(1_746_576_000_000).to_string(), "2025-05-07T00:00:00.000Z");
        assert!(Timestamp::from_ms(u64::MAX).to_string().starts_with("9999-"));
    }
}
