//! Claims: the counters that a call needs, and the store's answers about them.

use std::{
    cmp::Ordering,
    hash::{Hash, Hasher},
};

use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use crate::{
    amount::{Amount, Limit, UnitId},
    time::Timestamp,
    window::{WindowId, WindowInstance},
};

/// The most claims one request to a store may carry.
pub const MAX_CLAIMS: usize = 64;

/// A group of ledgers that share a slot of a Redis Cluster. 96 bits of a SHA-256 over length-prefixed names, so no name
/// can forge another's partition.
#[derive(Clone, Copy, Debug)]
pub struct Partition {
    bytes: [u8; 12],
    owner: Owner,
}

/// Whose share of a store a partition counts against: the first name of the partition, such as a domain. It is no part of
/// the partition's identity, and unknown ([`Owner::default`]) where that was made from bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Owner(u32);

impl Owner {
    /// FNV-1a, 32 bits. Two owners of one hash share a share.
    fn of(name: &str) -> Self {
        let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        Self(hash.max(1))
    }
}

impl PartialEq for Partition {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Partition {}

impl Hash for Partition {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bytes.hash(state);
    }
}

impl PartialOrd for Partition {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Partition {
    fn cmp(&self, other: &Self) -> Ordering {
        self.bytes.cmp(&other.bytes)
    }
}

impl Partition {
    /// The partition named by `parts`, in their order.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut parts = parts.into_iter().peekable();
        let owner = parts.peek().map_or_else(Owner::default, |first| Owner::of(first));
        Self { bytes: digest(parts), owner }
    }

    /// Whose share it counts against.
    pub const fn owner(self) -> Owner {
        self.owner
    }

    /// The bytes stores build their keys from.
    pub const fn bytes(self) -> [u8; 12] {
        self.bytes
    }

    /// The partition of these bytes, which were [`Partition::bytes`] of one.
    pub const fn from_bytes(bytes: [u8; 12]) -> Self {
        Self { bytes, owner: Owner(0) }
    }
}

/// One scope's counters: a partition, and the scope's values within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LedgerKey {
    /// Where the ledger lives.
    pub partition: Partition,
    scope: [u8; 8],
}

impl LedgerKey {
    /// The ledger of the scope named by `parts` within `partition`: 63 bits of a SHA-256 over the
    /// length-prefixed parts, enough within one partition.
    pub fn of<'a>(partition: Partition, parts: impl IntoIterator<Item = &'a str>) -> Self {
        Self { partition, scope: closed(digest(parts)) }
    }

    /// The same for a ledger whose name callers choose. A partition has a bounded number of these, and all caller-named
    /// ledgers of one call are in one partition.
    pub fn caller_named<'a>(partition: Partition, parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut key = Self::of(partition, parts);
        key.scope[0] |= CALLER_NAMED;
        key
    }

    /// Whether it is one of [`LedgerKey::caller_named`].
    pub const fn is_caller_named(&self) -> bool {
        self.scope[0] & CALLER_NAMED != 0
    }

    /// The ledger of these bytes, which were [`LedgerKey::scope_bytes`] of one in `partition`.
    pub const fn from_bytes(partition: Partition, scope: [u8; 8]) -> Self {
        Self { partition, scope }
    }

    /// Another ledger of the same partition, named by this one and `parts`.
    #[must_use]
    pub fn beside<'a>(self, parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut names: SmallVec<[&[u8]; 4]> = SmallVec::from_slice(&[&self.scope[..]]);
        for part in parts {
            names.push(part.as_bytes());
        }
        Self { partition: self.partition, scope: closed(digest(names)) }
    }

    /// The bytes that stores append to the partition's to build their keys.
    pub const fn scope_bytes(self) -> [u8; 8] {
        self.scope
    }
}

/// The bit of a scope's first byte that marks caller-named ledgers.
const CALLER_NAMED: u8 = 0x80;

const fn closed(mut scope: [u8; 8]) -> [u8; 8] {
    scope[0] &= !CALLER_NAMED;
    scope
}

fn digest<const N: usize>(parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> [u8; N] {
    let mut hasher = Sha256::new();
    for part in parts {
        let part = part.as_ref();
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let full = hasher.finalize();
    let mut cut = [0; N];
    cut.iter_mut().zip(full).for_each(|(to, from)| *to = from);
    cut
}

/// One counter, the limit that is enforced there, and the cost of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Whose counters.
    pub ledger: LedgerKey,
    /// Over which window.
    pub span: WindowInstance,
    /// Of which unit.
    pub unit: UnitId,
    /// The cost of the call. Zero adds nothing and is never refused.
    pub cost: Amount,
    /// The limit in force.
    pub limit: Limit,
    /// Whether the cost is charged, or only judged.
    pub effect: Effect,
}

/// The claims of one request. Few calls have more than four, which need no memory of their own.
pub type Claims = SmallVec<[Claim; 4]>;

/// The effect of a claim on its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The cost is charged as the [`Mode`] defines.
    Charge,
    /// The cost has to fit like any other, and is never charged, in whatever mode: a guard that one
    /// call sets and others run into.
    CheckOnly,
}

/// The behaviour of a quota during an outage of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// The call is not decided.
    #[default]
    Deny,
    /// The call may pass, unless its cost is above the limit itself.
    Allow,
    /// Each node enforces the quota locally, in its memory, with its share of the limit.
    Local,
}

impl Claim {
    /// The amount that this claim adds to its counter when the claims are charged. Slots are held, not charged.
    pub const fn charge(&self) -> Amount {
        match (self.effect, self.span) {
            (Effect::CheckOnly, _) | (_, WindowInstance::Slots) => Amount::ZERO,
            (Effect::Charge, _) => self.cost,
        }
    }
}

/// How a list of claims is processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Charge every claim ([`Effect::Charge`]) if every claim fits, otherwise none.
    Try,
    /// Charge every claim regardless of the limits, up to [`Amount::MAX`].
    Force,
    /// Return the decision of [`Mode::Try`], and charge nothing.
    Peek,
    /// A part of a call that is charged only if all its parts fit: as [`Mode::Peek`], but it notices that the clock has
    /// stepped back, as a refused call does.
    Judge,
}

/// Whether a claim fits under its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It does.
    Now,
    /// Not now, but from this moment on, if nothing else is charged.
    At(Timestamp),
    /// Not ever: the cost is above the limit itself.
    Never,
}

/// The counter of one claim, after the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimStatus {
    /// The usage in the window now, including this call if it was charged.
    pub used: Amount,
    /// When the counter is back at zero if nothing else is charged: for a trailing window once its
    /// last event has left, for a calendar window at the end of the period.
    pub resets_at: Timestamp,
    /// Whether the claim fitted.
    pub fit: Fit,
}

/// The decision of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimsDecision {
    /// The store's own time, by which it decided.
    pub decided_at: Timestamp,
    /// Whether every claim fitted.
    pub allowed: bool,
    /// One status for each claim, in the claims' order.
    pub statuses: SmallVec<[ClaimStatus; 4]>,
}

/// A store's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApplyResult {
    /// It decided.
    Applied(ClaimsDecision),
    /// By the store's time a calendar period of the claims is not the current one. Nothing was
    /// charged; ask again with the periods of this time.
    OutsidePeriod(Timestamp),
}

/// The id of a reservation within its partition: 128 random bits, so that it cannot be guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReservationId(pub [u8; 16]);

/// A counter that a reservation was charged on, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// Whose counter.
    pub ledger: LedgerKey,
    /// Over which window.
    pub window: WindowId,
    /// Of which unit.
    pub unit: UnitId,
    /// The number of the entry that holds the amount.
    pub number: u64,
    /// How much was charged; zero where the call did not speak of the unit.
    pub amount: Amount,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_forge_each_other() {
        assert_ne!(Partition::of(["a", "bc"]), Partition::of(["ab", "c"]));
        assert_ne!(Partition::of(["a"]), Partition::of(["a", ""]));
        let partition = Partition::of(["a"]);
        assert_ne!(LedgerKey::of(partition, ["x", "y"]), LedgerKey::of(partition, ["xy"]));
    }
}
