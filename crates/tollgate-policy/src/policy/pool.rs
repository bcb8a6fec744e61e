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

use crate::policy::{ActiveQuota, Problem, ResolvedQuotas, Scope, Usage};

/// The maximum number of pools for one call.
pub const MAX_POOLS: usize = 3;

/// The number of priorities: from 1 (low) to 4 (critical).
pub const PRIORITIES: usize = 4;

/// The demand of a priority includes this fraction of its usage, an eighth, so that it can grow.
const GROWTH_DIVISOR: u64 = 8;

/// Unmet demand reserves capacity for this fraction of the window, an eighth.
const UNMET_WINDOW_DIVISOR: u32 = 8;

// The units of the counters in the store. No unit of a policy has a dot in its name, so they cannot clash.
const USED: [UnitId; PRIORITIES] =
    [UnitId::of("used.1"), UnitId::of("used.2"), UnitId::of("used.3"), UnitId::of("used.4")];
const UNMET: [UnitId; PRIORITIES] =
    [UnitId::of("wanted.1"), UnitId::of("wanted.2"), UnitId::of("wanted.3"), UnitId::of("wanted.4")];

/// How the callers of a quota share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The share of each priority, from the lowest on, in percent of the limit. It is guaranteed while all priorities
    /// demand theirs.
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

    /// The fair share of `priority` (counted from 0) of `limit`: the max-min fair share, weighted by the configured
    /// shares.
    ///
    /// ```text
    /// demand(i) = used(i) + max(used(i) / 8, unmet(i))
    /// left      = limit
    /// others    = all other priorities with a share above 0
    ///
    /// while some i in others has demand(i) <= left * share(i) / (share(own) + sum of share(others)):
    ///     left   = left - demand(i)
    ///     others = others without i
    ///
    /// fair share = left * share(own) / (share(own) + sum of share(others))     if others is not empty
    ///            = left                                                       otherwise
    /// ```
    ///
    /// With a limit of 1,000, shares of 10, 20, 30 and 40, and only these usages:
    ///
    /// | used by | fair share of priority 1 | fair share of priority 4 |
    /// | --- | --- | --- |
    /// | nobody | 1,000 | 1,000 |
    /// | 4: 80 | 1,000 - 90 = 910 | 1,000 |
    /// | 1: 100, 2: 200, 3: 300, 4: 400 | 1,000 x 10 / 100 = 100 | 1,000 x 40 / 100 = 400 |
    pub fn fair_share(&self, limit: Amount, priority: usize, pool: &PoolUse) -> Amount {
        let demand = |other: usize| {
            let used = pool.used[other].get();
            used.saturating_add(used.div_ceil(GROWTH_DIVISOR).max(pool.unmet[other].get()))
        };
        let mut left = limit.get();
        let mut others: SmallVec<[usize; PRIORITIES]> =
            (0..PRIORITIES).filter(|other| *other != priority && self.shares[*other] > 0).collect();
        let own_share = u128::from(self.shares[priority]);
        loop {
            let all_shares = own_share + others.iter().map(|other| u128::from(self.shares[*other])).sum::<u128>();
            let is_satisfied = |other: &usize| {
                u128::from(demand(*other)) * all_shares <= u128::from(left) * u128::from(self.shares[*other])
            };
            match others.iter().position(is_satisfied) {
                Some(at) => left = left.saturating_sub(demand(others.swap_remove(at))),
                None if others.is_empty() => return Amount::try_from(left).unwrap_or(limit),
                None => {
                    let share = u128::from(left) * own_share / all_shares;
                    return u64::try_from(share).ok().and_then(|share| Amount::try_from(share).ok()).unwrap_or(limit);
                }
            }
        }
    }
}

/// The claim of a call on one pool: the counters of the priorities, beside the counter of the quota.
#[derive(Clone, Debug)]
pub struct PoolClaim<'a> {
    /// The index of the quota among those of the call.
    pub quota: usize,
    pool: Pool,
    active: ActiveQuota<'a>,
    cost: Amount,
    priority: usize,
    /// The ledger of the usage of each priority.
    ledger: LedgerKey,
}

/// The outcome of a call for its pools.
#[derive(Debug, Default)]
pub struct PoolOutcome {
    /// The current state of the pools, in the order of the claims.
    pub pools: SmallVec<[PoolUse; 1]>,
    /// Only outdated numbers refused the call: ask the store again with those of `pools`.
    pub retry: bool,
    /// The indexes of the pool claims with unmet demand: they were within their fair share, and were refused only
    /// because the pool was full.
    pub unmet: SmallVec<[usize; 1]>,
}

impl<'a> ResolvedQuotas<'a> {
    /// The pool claims of a call with this usage. `ledgers` are the counters of its quotas.
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
                ledger: ledger.beside(["pool", &*active.quota.unit.name, &window]),
            })
        });
        pool_claims.collect()
    }
}

/// The number of claims for one pool: the usage of each priority, and the unmet demand of each other priority.
fn claim_count(window: &Window) -> usize {
    if unmet_window(window).is_some() { 2 * PRIORITIES - 1 } else { PRIORITIES }
}

/// The window in which unmet demand is remembered. `None` for windows in which all capacity returns at once.
fn unmet_window(window: &Window) -> Option<SlidingWindow> {
    match window {
        Window::Sliding(sliding) => {
            SlidingWindow::from_ms(u64::from(sliding.ms() / UNMET_WINDOW_DIVISOR).max(100)).ok()
        }
        Window::Calendar(_) | Window::Concurrent => None,
    }
}

impl PoolClaim<'_> {
    /// The key of the pool in a cache of pools.
    pub fn key(&self) -> LedgerKey {
        self.ledger
    }

    /// The counter of the usage of its own priority, which is charged together with the quota.
    pub fn own_counter(&self) -> (LedgerKey, UnitId) {
        (self.ledger, USED[self.priority])
    }

    /// The priority of the call, counted from 0.
    pub fn priority(&self) -> usize {
        self.priority
    }

    /// The claims beside that of the quota. `known` is the last known state of the pool; without it, only the limit of
    /// the quota applies.
    pub fn claims(&self, known: Option<&PoolUse>, now: Timestamp) -> impl Iterator<Item = Claim> {
        let fair_share =
            known.zip(self.enforced_limit()).map(|(known, limit)| self.pool.fair_share(limit, self.priority, known));
        let span = self.active.quota.window.span_at(now);
        let usage = (0..PRIORITIES).map(move |priority| {
            let own = priority == self.priority;
            Claim {
                ledger: self.ledger,
                span,
                unit: USED[priority],
                cost: if own { self.cost } else { Amount::ZERO },
                limit: fair_share.filter(|_| own).map_or(Limit::Unlimited, Limit::Finite),
                // The counters of other priorities are only checked, so that a reservation does not record them.
                effect: if own { Effect::Charge } else { Effect::CheckOnly },
            }
        });
        let others = (0..PRIORITIES).filter(|priority| *priority != self.priority);
        let check_only = |claim| Claim { effect: Effect::CheckOnly, ..claim };
        usage.chain(others.filter_map(move |priority| self.unmet_claim(priority, Amount::ZERO).map(check_only)))
    }

    /// The claim that records the cost as unmet demand. It has no limit, so it is always charged. `None` if unmet
    /// demand is not recorded in this pool.
    pub fn unmet_demand(&self) -> Option<Claim> {
        self.unmet_claim(self.priority, self.cost)
    }

    /// The window in which unmet demand is remembered. `None` if all capacity of the pool returns at once.
    pub fn unmet_window(&self) -> Option<SlidingWindow> {
        unmet_window(&self.active.quota.window)
    }

    fn unmet_claim(&self, priority: usize, cost: Amount) -> Option<Claim> {
        let span = WindowInstance::Sliding(self.unmet_window()?);
        let (ledger, unit) = (self.ledger.beside(["wanted"]), UNMET[priority]);
        Some(Claim { ledger, span, unit, cost, limit: Limit::Unlimited, effect: Effect::Charge })
    }

    /// The limit that the store enforces.
    fn enforced_limit(&self) -> Option<Amount> {
        match self.active.limit {
            Limit::Finite(limit) if !self.active.quota.shadow => Some(limit),
            Limit::Finite(_) | Limit::Unlimited => None,
        }
    }

    /// When a fair share that was full has capacity again. A cost above the fair share may fit later: the fair share
    /// grows until no other priority uses or demands anything of the pool.
    fn next_fit(&self, own: &ClaimStatus, statuses: &[ClaimStatus], quota: &ClaimStatus, limit: Amount) -> Fit {
        match own.fit {
            Fit::At(at) => Fit::At(at),
            Fit::Now | Fit::Never if self.cost > limit => Fit::Never,
            Fit::Now | Fit::Never => {
                Fit::At(statuses.iter().map(|status| status.resets_at).fold(quota.resets_at, Ord::max))
            }
        }
    }

    /// The number of [`PoolClaim::claims`].
    pub(crate) fn claim_count(&self) -> usize {
        claim_count(&self.active.quota.window)
    }

    /// The state of the pool, from the statuses of [`PoolClaim::claims`].
    fn pool_use(&self, statuses: &[ClaimStatus]) -> PoolUse {
        let used = |priority: usize| statuses.get(priority).map_or(Amount::ZERO, |status| status.used);
        let unmet = |priority: usize| {
            // There is no claim for its own unmet demand.
            let skipped = usize::from(priority > self.priority);
            let at = (PRIORITIES + priority).checked_sub(skipped).filter(|_| priority != self.priority);
            at.and_then(|at| statuses.get(at)).map_or(Amount::ZERO, |status| status.used)
        };
        PoolUse { used: array::from_fn(used), unmet: array::from_fn(unmet) }
    }
}

/// What remains of the caller's fair share of each pool, with the index of the quota among those of the call.
pub(crate) type PoolsRemaining = SmallVec<[(usize, Amount); 1]>;

/// Reads the statuses of the claims of `pool_claims`, which are the last ones of `applied`, and removes them. If the
/// fair share was full, the status of the quota gets the wait for it.
///
/// `can_retry` says whether the store can be asked once more. If not, the numbers that it used are final.
pub(crate) fn read_outcome(
    pool_claims: &[PoolClaim<'_>],
    mode: Mode,
    can_retry: bool,
    applied: &mut ClaimsDecision,
) -> (PoolOutcome, PoolsRemaining) {
    let (mut outcome, mut remaining) = (PoolOutcome::default(), PoolsRemaining::new());
    let count: usize = pool_claims.iter().map(PoolClaim::claim_count).sum();
    let statuses: SmallVec<[ClaimStatus; 4]> =
        applied.statuses.drain(applied.statuses.len().saturating_sub(count)..).collect();
    let mut unread = &statuses[..];
    let others_fit = applied.statuses.iter().all(|status| status.fit == Fit::Now);
    outcome.retry = can_retry && !applied.allowed && others_fit;
    let charged = mode == Mode::Force || (mode == Mode::Try && applied.allowed);
    for (at, pool_claim) in pool_claims.iter().enumerate() {
        let (statuses, rest) = unread.split_at(pool_claim.claim_count().min(unread.len()));
        unread = rest;
        let pool = pool_claim.pool_use(statuses);
        outcome.pools.push(pool);
        let (Some(own), Some(quota)) = (statuses.get(pool_claim.priority), applied.statuses.get_mut(pool_claim.quota))
        else {
            continue;
        };
        let Limit::Finite(limit) = pool_claim.active.limit else { continue };
        let fair_share = pool_claim.pool.fair_share(limit, pool_claim.priority, &pool);
        let pool_remaining = limit.saturating_sub(quota.used).min(fair_share.saturating_sub(own.used));
        remaining.push((pool_claim.quota, pool_remaining));
        let used_before = own.used.saturating_sub(if charged { pool_claim.cost } else { Amount::ZERO });
        let within_share = pool_claim.cost == Amount::ZERO || used_before.saturating_add(pool_claim.cost) <= fair_share;
        // The store refused by an older fair share, and the call is within the current one.
        let is_outdated = own.fit != Fit::Now && within_share;
        outcome.retry &= own.fit == Fit::Now || is_outdated;
        if quota.fit != Fit::Now && within_share && pool_claim.cost <= limit {
            outcome.unmet.push(at);
        }
        let refused = own.fit != Fit::Now || (pool_claim.active.quota.shadow && !within_share);
        // If another claim refuses the call anyway, an outdated refusal must not add to its wait.
        if refused && (others_fit || !is_outdated) {
            quota.fit = later_fit(quota.fit, pool_claim.next_fit(own, statuses, quota, limit));
        }
    }
    let is_pooled = |at: usize| pool_claims.iter().any(|claim| claim.quota == at && !claim.active.quota.shadow);
    let only_pools_refuse =
        applied.statuses.iter().enumerate().all(|(at, status)| status.fit == Fit::Now || is_pooled(at));
    if mode != Mode::Try || applied.allowed || !only_pools_refuse {
        outcome.unmet.clear();
    }
    (outcome, remaining)
}

/// The later of two moments at which a claim fits.
pub(super) fn later_fit(a: Fit, b: Fit) -> Fit {
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

    /// The fair share of a priority, from 1 to 4, of a limit of 1,000.
    fn fair_share(priority: usize, used: [u32; 4], unmet: [u32; 4]) -> u64 {
        let pool = Pool { shares: [10, 20, 30, 40] };
        let pool_use = PoolUse { used: used.map(Amount::from), unmet: unmet.map(Amount::from) };
        pool.fair_share(Amount::from(1_000), priority - 1, &pool_use).get()
    }

    #[test]
    fn a_priority_that_is_alone_gets_the_whole_pool() {
        for priority in 1..=4 {
            assert_eq!(fair_share(priority, [0; 4], [0; 4]), 1_000);
        }
    }

    #[test]
    fn at_saturation_each_priority_gets_its_share() {
        for (priority, share) in [(1, 100), (2, 200), (3, 300), (4, 400)] {
            assert_eq!(fair_share(priority, [100, 200, 300, 400], [0; 4]), share);
            assert_eq!(
                fair_share(priority, [400, 300, 200, 100], [400; 4]),
                share,
                "the current usage does not change the shares"
            );
        }
        // If only two priorities have demand, each gets its part in proportion to its share.
        assert_eq!((fair_share(1, [0, 900, 0, 0], [0; 4]), fair_share(2, [900, 0, 0, 0], [0; 4])), (333, 666));
    }

    #[test]
    fn unused_shares_are_lent_and_an_eighth_of_the_usage_is_reserved_for_growth() {
        assert_eq!(fair_share(1, [0, 0, 0, 80], [0; 4]), 1_000 - 90);
        assert_eq!(fair_share(1, [0, 8, 80, 80], [0; 4]), 1_000 - 9 - 90 - 90);
        assert_eq!(fair_share(4, [80, 0, 0, 0], [0; 4]), 1_000 - 90);
        assert_eq!(fair_share(1, [0, 0, 0, 80], [0, 0, 0, 50]), 1_000 - 130, "unmet demand is reserved");
        // If all grow alike, the lowest priority is the first that is limited.
        assert_eq!(fair_share(1, [260; 4], [0; 4]), 138);
        assert!(fair_share(2, [260; 4], [0; 4]) >= 200 && fair_share(4, [260; 4], [0; 4]) >= 400);
    }

    #[test]
    fn a_priority_without_a_share_gets_what_the_others_leave() {
        let pool = Pool { shares: [0, 0, 0, 100] };
        let pool_use = |used: [u32; 4]| PoolUse { used: used.map(Amount::from), ..PoolUse::default() };
        assert_eq!(pool.fair_share(Amount::from(100), 0, &pool_use([100, 0, 0, 0])).get(), 100);
        assert_eq!(pool.fair_share(Amount::from(100), 0, &pool_use([50, 0, 0, 48])).get(), 46);
        assert_eq!(pool.fair_share(Amount::from(100), 0, &pool_use([0, 0, 0, 100])).get(), 0);
        assert_eq!(pool.fair_share(Amount::from(100), 3, &pool_use([100, 0, 0, 0])).get(), 100);
    }
}
