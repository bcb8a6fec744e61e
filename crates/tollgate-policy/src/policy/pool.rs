//! Pools: counters that callers of several priorities share, such as an upstream's capacity for a model.
//!
//! The quota itself counts the usage of all callers, and its limit is never exceeded. In the same atomic step, each
//! priority has a counter of its own, limited to its **fair share**: the part of the limit that it may use, given the
//! current demand of the other priorities. The fair share is computed from the numbers of the last answer, so usually
//! one request to the store is enough.

use std::array;

use smallvec::SmallVec;
use tollgate_core::{
    amount::{Amount, Limit, UnitId},
    claim::{Claim, ClaimStatus, ClaimsDecision, Effect, Fit, LedgerKey, Mode},
    time::Timestamp,
    window::{SlidingWindow, Window, WindowInstance},
};

use crate::policy::{ActiveQuota, Problem, Resolved, Scope, Usage};

/// The maximum number of pools for one call.
pub const MAX_POOLS: usize = 3;

/// From 1 (low) to 4 (critical).
pub const PRIORITIES: usize = 4;

/// A priority that is not at its share has an eighth of its use kept free, to grow.
const GROWTH_PART: u64 = 8;

/// Refused demand reserves capacity for an eighth of the window.
const UNMET_PART: u32 = 8;

// No unit of a policy has a dot in its name.
const USED: [UnitId; PRIORITIES] =
    [UnitId::of("used.1"), UnitId::of("used.2"), UnitId::of("used.3"), UnitId::of("used.4")];
const UNMET: [UnitId; PRIORITIES] =
    [UnitId::of("wanted.1"), UnitId::of("wanted.2"), UnitId::of("wanted.3"), UnitId::of("wanted.4")];

/// How the callers of a quota share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The shares of the priorities, from the lowest on, in percent of the limit while all of them demand theirs.
    pub shares: [u8; PRIORITIES],
}

/// The usage and the unmet demand of a pool at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUse {
    /// The usage in the window, by priority.
    pub used: [Amount; PRIORITIES],
    /// The demand that was refused recently although it was within the fair share, by priority.
    pub unmet: [Amount; PRIORITIES],
}

impl Pool {
    /// The problem with this pool on counters of `scope` over `window`, if there is one.
    pub(super) fn problem_in(self, scope: &Scope, window: &Window) -> Option<Problem> {
        let sum = self.shares.iter().map(|share| u32::from(*share)).sum::<u32>();
        if scope.within_account() {
            Some(Problem::PrivatePool(scope.to_string()))
        } else if matches!(window, Window::Concurrent) {
            Some(Problem::PoolOfSlots)
        } else {
            (sum == 0 || sum > 100).then_some(Problem::Shares(sum))
        }
    }

    /// The fair share of `priority` (counted from 0) of `limit`. The demand of another priority is its usage and an
    /// eighth more, or its usage and its unmet demand, whichever is larger. If all demands fit into the limit, the fair
    /// share is everything that the others leave. Otherwise the limit is divided in proportion to the configured
    /// shares; a priority that demands less than its part gets its demand, and the rest is divided again among the
    /// others.
    pub fn fair_share(&self, limit: Amount, priority: usize, at: &PoolUse) -> Amount {
        let demand = |other: usize| {
            let used = at.used[other].get();
            used.saturating_add(used.div_ceil(GROWTH_PART).max(at.unmet[other].get()))
        };
        let mut left = limit.get();
        let mut open: SmallVec<[usize; PRIORITIES]> =
            (0..PRIORITIES).filter(|other| *other != priority && self.shares[*other] > 0).collect();
        let own = u128::from(self.shares[priority]);
        loop {
            let together = own + open.iter().map(|other| u128::from(self.shares[*other])).sum::<u128>();
            let level = |other: usize| u128::from(left) * u128::from(self.shares[other]);
            let content = open.iter().position(|other| u128::from(demand(*other)) * together <= level(*other));
            match content {
                Some(at) => left = left.saturating_sub(demand(open.swap_remove(at))),
                None if open.is_empty() => return Amount::try_from(left).unwrap_or(limit),
                None => {
                    let due = u128::from(left) * own / together;
                    return u64::try_from(due).ok().and_then(|due| Amount::try_from(due).ok()).unwrap_or(limit);
                }
            }
        }
    }
}

/// The claims of a call on one pool: the counters besides that of the quota.
#[derive(Clone, Debug)]
pub struct PoolClaim<'a> {
    /// The index of the quota among those of the call.
    pub quota: usize,
    pool: Pool,
    active: ActiveQuota<'a>,
    cost: Amount,
    priority: usize,
    uses: LedgerKey,
}

/// The part of a store's answer that concerns the pools of a call.
#[derive(Debug, Default)]
pub struct PoolOutcome {
    /// The current state of the pools, in the order of the claims.
    pub pools: SmallVec<[PoolUse; 1]>,
    /// The call was refused only by numbers that are no longer true: ask again with these.
    pub again: bool,
    /// The pool claims that were within their fair share and were refused only because the pool was full.
    pub unmet: SmallVec<[usize; 1]>,
}

impl<'a> Resolved<'a> {
    /// The claims of a call with this usage on pools. `ledgers` are the counters of its quotas.
    pub(crate) fn pool_claims(&self, usage: &Usage, ledgers: &[LedgerKey]) -> SmallVec<[PoolClaim<'a>; 1]> {
        let pooled = self.quotas().iter().enumerate().zip(ledgers);
        let pool_claims = pooled.filter_map(|((quota, active), ledger)| {
            let pool = active.quota.pool?;
            let window = match &active.quota.window {
                Window::Sliding(sliding) => format!("sliding {}", sliding.ms()),
                Window::Calendar(calendar) => format!("calendar {} {}", calendar.unit().name(), calendar.zone()),
                Window::Concurrent => "concurrent".to_owned(),
            };
            Some(PoolClaim {
                quota,
                pool,
                active: *active,
                cost: usage.of(active.quota.unit.id),
                priority: usize::from(self.tier().priority.unwrap_or(1).clamp(1, 4)) - 1,
                uses: ledger.beside(["pool", &*active.quota.unit.name, &window]),
            })
        });
        pool_claims.collect()
    }
}

/// The number of claims for one pool: the usage of each priority, and the unmet demand of each other priority.
fn rows(window: &Window) -> usize {
    if unmet_window(window).is_some() { 2 * PRIORITIES - 1 } else { PRIORITIES }
}

/// How long unmet demand is remembered. `None` for windows in which capacity returns all at once.
fn unmet_window(window: &Window) -> Option<SlidingWindow> {
    match window {
        Window::Sliding(sliding) => SlidingWindow::from_ms(u64::from(sliding.ms() / UNMET_PART).max(100)).ok(),
        Window::Calendar(_) | Window::Concurrent => None,
    }
}

impl PoolClaim<'_> {
    /// The key of the pool in a cache of pools.
    pub fn key(&self) -> LedgerKey {
        self.uses
    }

    /// The counter of the usage of its priority, which is charged together with the quota.
    pub fn share(&self) -> (LedgerKey, UnitId) {
        (self.uses, USED[self.priority])
    }

    /// The priority of the caller, counted from 0.
    pub fn priority(&self) -> usize {
        self.priority
    }

    /// The claims beside that of the quota, when the pool was last seen as `known`.
    pub fn claims(&self, known: Option<&PoolUse>, now: Timestamp) -> impl Iterator<Item = Claim> {
        let fair_share =
            known.zip(self.enforced()).map(|(known, limit)| self.pool.fair_share(limit, self.priority, known));
        let span = self.active.quota.window.span_at(now);
        let uses = (0..PRIORITIES).map(move |priority| {
            let own = priority == self.priority;
            Claim {
                ledger: self.uses,
                span,
                unit: USED[priority],
                cost: if own { self.cost } else { Amount::ZERO },
                limit: fair_share.filter(|_| own).map_or(Limit::Unlimited, Limit::Finite),
                // The others' are only looked at, so that a reservation does not remember them.
                effect: if own { Effect::Charge } else { Effect::CheckOnly },
            }
        });
        let others = (0..PRIORITIES).filter(|priority| *priority != self.priority);
        let look = |claim| Claim { effect: Effect::CheckOnly, ..claim };
        uses.chain(others.filter_map(move |priority| self.unmet_claim(priority, Amount::ZERO).map(look)))
    }

    /// Records unmet demand: it is charged regardless of the limit.
    pub fn unmet_demand(&self) -> Option<Claim> {
        self.unmet_claim(self.priority, self.cost)
    }

    /// How long that is remembered. `None` where nothing gets free before all does.
    pub fn unmet_window(&self) -> Option<SlidingWindow> {
        unmet_window(&self.active.quota.window)
    }

    fn unmet_claim(&self, priority: usize, cost: Amount) -> Option<Claim> {
        let span = WindowInstance::Sliding(self.unmet_window()?);
        let (ledger, unit) = (self.uses.beside(["wanted"]), UNMET[priority]);
        Some(Claim { ledger, span, unit, cost, limit: Limit::Unlimited, effect: Effect::Charge })
    }

    /// The limit that the store judges by.
    fn enforced(&self) -> Option<Amount> {
        match self.active.limit {
            Limit::Finite(limit) if !self.active.quota.shadow => Some(limit),
            Limit::Finite(_) | Limit::Unlimited => None,
        }
    }

    /// When a fair share that was full will have capacity. A cost above the fair share may fit later: the share grows
    /// until no other priority uses or demands anything of the pool.
    fn fit_of(&self, own: &ClaimStatus, rows: &[ClaimStatus], quota: &ClaimStatus, limit: Amount) -> Fit {
        match own.fit {
            Fit::At(at) => Fit::At(at),
            Fit::Now | Fit::Never if self.cost > limit => Fit::Never,
            Fit::Now | Fit::Never => Fit::At(rows.iter().map(|row| row.resets_at).fold(quota.resets_at, Ord::max)),
        }
    }

    pub(crate) fn rows(&self) -> usize {
        rows(&self.active.quota.window)
    }

    fn read(&self, rows: &[ClaimStatus]) -> PoolUse {
        let used = |priority: usize| rows.get(priority).map_or(Amount::ZERO, |status| status.used);
        let unmet = |priority: usize| {
            let before = usize::from(priority > self.priority);
            let at = (PRIORITIES + priority).checked_sub(before).filter(|_| priority != self.priority);
            at.and_then(|at| rows.get(at)).map_or(Amount::ZERO, |status| status.used)
        };
        PoolUse { used: array::from_fn(used), unmet: array::from_fn(unmet) }
    }
}

/// The remaining part of each fair share, with the index of the quota among those of the call.
pub(crate) type RemainingShares = SmallVec<[(usize, Amount); 1]>;

/// Reads the statuses of the claims of `pool_claims`, which are the last ones of `applied`, and removes them. Updates the
/// statuses of quotas whose fair share was full, and returns the remaining part of each fair share.
///
/// `again` says whether the store can be asked once more. If not, the numbers that it used are final.
pub(crate) fn read_outcome(
    pool_claims: &[PoolClaim<'_>],
    mode: Mode,
    again: bool,
    applied: &mut ClaimsDecision,
) -> (PoolOutcome, RemainingShares) {
    let (mut found, mut remaining) = (PoolOutcome::default(), RemainingShares::new());
    let of_pools: usize = pool_claims.iter().map(PoolClaim::rows).sum();
    let rows: SmallVec<[ClaimStatus; 4]> =
        applied.statuses.drain(applied.statuses.len().saturating_sub(of_pools)..).collect();
    let mut rest = &rows[..];
    let others_fit = applied.statuses.iter().all(|status| status.fit == Fit::Now);
    found.again = again && !applied.allowed && others_fit;
    let charged = mode == Mode::Force || (mode == Mode::Try && applied.allowed);
    for (at, pool_claim) in pool_claims.iter().enumerate() {
        let (mine, others) = rest.split_at(pool_claim.rows().min(rest.len()));
        rest = others;
        let pool = pool_claim.read(mine);
        found.pools.push(pool);
        let (Some(own), Some(quota)) = (mine.get(pool_claim.priority), applied.statuses.get_mut(pool_claim.quota))
        else {
            continue;
        };
        let Limit::Finite(limit) = pool_claim.active.limit else { continue };
        let fair_share = pool_claim.pool.fair_share(limit, pool_claim.priority, &pool);
        remaining.push((pool_claim.quota, limit.saturating_sub(quota.used).min(fair_share.saturating_sub(own.used))));
        let before = own.used.saturating_sub(if charged { pool_claim.cost } else { Amount::ZERO });
        let is_due = pool_claim.cost == Amount::ZERO || before.saturating_add(pool_claim.cost) <= fair_share;
        let stale = own.fit != Fit::Now && is_due;
        found.again &= own.fit == Fit::Now || stale;
        if quota.fit != Fit::Now && is_due && pool_claim.cost <= limit {
            found.unmet.push(at);
        }
        let refused = own.fit != Fit::Now || (pool_claim.active.quota.shadow && !is_due);
        // Where something else refuses, numbers that are no longer true need not.
        if refused && (others_fit || !stale) {
            quota.fit = later(quota.fit, pool_claim.fit_of(own, mine, quota, limit));
        }
    }
    let pooled =
        |at: usize| pool_claims.iter().any(|pool_claim| pool_claim.quota == at && !pool_claim.active.quota.shadow);
    let by_pools = applied.statuses.iter().enumerate().all(|(at, status)| status.fit == Fit::Now || pooled(at));
    if mode != Mode::Try || applied.allowed || !by_pools {
        found.unmet.clear();
    }
    (found, remaining)
}

/// The later of two.
pub(super) fn later(a: Fit, b: Fit) -> Fit {
    match (a, b) {
        (Fit::Never, _) | (_, Fit::Never) => Fit::Never,
        (Fit::At(a), Fit::At(b)) => Fit::At(a.max(b)),
        (Fit::At(at), Fit::Now) | (Fit::Now, Fit::At(at)) => Fit::At(at),
        (Fit::Now, Fit::Now) => Fit::Now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share_of(priority: usize, used: [u32; 4], unmet: [u32; 4]) -> u64 {
        let pool = Pool { shares: [10, 20, 30, 40] };
        let at = PoolUse { used: used.map(Amount::from), unmet: unmet.map(Amount::from) };
        pool.fair_share(Amount::from(1_000), priority - 1, &at).get()
    }

    #[test]
    fn whoever_is_alone_has_it_all() {
        for priority in 1..=4 {
            assert_eq!(share_of(priority, [0; 4], [0; 4]), 1_000);
        }
    }

    #[test]
    fn at_saturation_each_has_its_share() {
        for (priority, share) in [(1, 100), (2, 200), (3, 300), (4, 400)] {
            assert_eq!(share_of(priority, [100, 200, 300, 400], [0; 4]), share);
            assert_eq!(share_of(priority, [400, 300, 200, 100], [400; 4]), share, "whatever each uses now");
        }
        // Of two that demand, each in proportion to its share.
        assert_eq!((share_of(1, [0, 900, 0, 0], [0; 4]), share_of(2, [900, 0, 0, 0], [0; 4])), (333, 666));
    }

    #[test]
    fn what_is_not_wanted_is_lent_and_a_little_is_kept_to_grow() {
        assert_eq!(share_of(1, [0, 0, 0, 80], [0; 4]), 1_000 - 90);
        assert_eq!(share_of(1, [0, 8, 80, 80], [0; 4]), 1_000 - 9 - 90 - 90);
        assert_eq!(share_of(4, [80, 0, 0, 0], [0; 4]), 1_000 - 90);
        assert_eq!(share_of(1, [0, 0, 0, 80], [0, 0, 0, 50]), 1_000 - 130, "unmet demand is reserved");
        // As all grow alike, the lowest is the first that is held back.
        assert_eq!(share_of(1, [260; 4], [0; 4]), 138);
        assert!(share_of(2, [260; 4], [0; 4]) >= 200 && share_of(4, [260; 4], [0; 4]) >= 400);
    }

    #[test]
    fn a_priority_without_a_share_has_what_the_others_leave() {
        let pool = Pool { shares: [0, 0, 0, 100] };
        let at = |used: [u32; 4]| PoolUse { used: used.map(Amount::from), ..PoolUse::default() };
        assert_eq!(pool.fair_share(Amount::from(100), 0, &at([100, 0, 0, 0])).get(), 100);
        assert_eq!(pool.fair_share(Amount::from(100), 0, &at([50, 0, 0, 48])).get(), 46);
        assert_eq!(pool.fair_share(Amount::from(100), 0, &at([0, 0, 0, 100])).get(), 0);
        assert_eq!(pool.fair_share(Amount::from(100), 3, &at([100, 0, 0, 0])).get(), 100);
    }
}
