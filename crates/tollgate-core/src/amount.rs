//! Amounts and limits: whole numbers that every store can keep exactly.

use std::fmt;

/// The largest amount, limit or sum: 2^53 - 1, the largest integer that a Lua number holds exactly.
pub const MAX_AMOUNT: u64 = (1 << 53) - 1;

/// How much of a unit: a cost, a limit or a sum, from 0 to [`MAX_AMOUNT`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(u64);

/// The number does not fit into an [`Amount`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be at most {MAX_AMOUNT} (2^53 - 1)")]
pub struct AmountTooLarge;

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// The most that can be counted.
    pub const MAX: Self = Self(MAX_AMOUNT);

    /// The plain number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The sum, or [`Amount::MAX`] where it would be larger.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        let sum = self.0 + other.0;
        if sum > MAX_AMOUNT { Self::MAX } else { Self(sum) }
    }

    /// The difference, or zero where it would be negative.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl TryFrom<u64> for Amount {
    type Error = AmountTooLarge;

    fn try_from(value: u64) -> Result<Self, AmountTooLarge> {
        if value > MAX_AMOUNT { Err(AmountTooLarge) } else { Ok(Self(value)) }
    }
}

impl From<u32> for Amount {
    fn from(value: u32) -> Self {
        Self(u64::from(value))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The limit of a quota in one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// At most this much. Zero is legal and means never.
    Finite(Amount),
    /// No limit. Usage is counted nevertheless, so a limit that is set later knows the past usage.
    Unlimited,
}

impl Limit {
    /// The largest sum this limit lets into a window. An unlimited quota ends where counting does.
    pub const fn ceiling(self) -> Amount {
        match self {
            Self::Finite(amount) => amount,
            Self::Unlimited => Amount::MAX,
        }
    }
}

/// A unit, as a stable number derived from its name. So every node and every version of a policy writes the same unit
/// into the same column of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnitId(u32);

impl UnitId {
    /// The id of the unit called `name`. Two names of one policy must not share an id; the policy
    /// compiler refuses them.
    pub const fn of(name: &str) -> Self {
        Self(stable_id(name.as_bytes()))
    }

    /// The id with this number, which was [`UnitId::get`] of one.
    pub const fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// The number stores write down.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// FNV-1a, 32 bits: small, `const`, and the same on every node for ever.
pub(crate) const fn stable_id(bytes: &[u8]) -> u32 {
    let mut hash = 0x811c_9dc5_u32;
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u32).wrapping_mul(0x0100_0193);
        i += 1;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_end_at_two_to_the_53() {
        assert_eq!(Amount::try_from(MAX_AMOUNT), Ok(Amount::MAX));
        assert_eq!(Amount::try_from(MAX_AMOUNT + 1), Err(AmountTooLarge));
        assert_eq!(Amount::MAX.saturating_add(Amount::from(1)), Amount::MAX);
        assert_eq!(Amount::ZERO.saturating_sub(Amount::from(1)), Amount::ZERO);
    }

    #[test]
    fn unit_ids_never_change() {
        // Written into counters: a change here would orphan every counter in use.
        assert_eq!(UnitId::of("requests").get(), 0x66ad_5ad3);
        assert_eq!(UnitId::of("tokens").get(), 0xfceb_c453);
    }
}
