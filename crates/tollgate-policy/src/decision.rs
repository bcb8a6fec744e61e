//! Decisions: the statuses of all claims of a call, merged into one verdict.

use std::sync::Arc;

use smallvec::SmallVec;
use tollgate_core::{
    amount::{Amount, Limit},
    claim::{ClaimStatus, ClaimsDecision, Fit},
    time::Timestamp,
    window::Window,
};

use crate::policy::{AbuseRule, ActiveQuota, Block, DecisionSource, Quota, block_of};

/// Whether a call is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is allowed.
    Allowed,
    /// It is refused now, and would be allowed from this time on if nobody else calls in between. If a slot is missing, the
    /// time is that of the advised next attempt.
    RetryAt(Timestamp),
    /// It can never be allowed: its cost is above a limit itself.
    Never,
}

/// The status of one quota in a decision.
#[derive(Clone, Copy, Debug)]
pub struct QuotaStatus<'a> {
    /// The quota.
    pub quota: &'a Quota,
    /// The limit in force.
    pub limit: Limit,
    /// The usage in the window now, including this call if it was charged.
    pub used: Amount,
    /// See [`ClaimStatus::resets_at`].
    pub resets_at: Timestamp,
    /// For a pool, what remains of the caller's fair share.
    pub pool_remaining: Option<Amount>,
    /// Whether the call fitted; of slots with the advised time. A shadow quota does not deny a call that did not.
    pub fit: Fit,
}

/// A decision about a call: the verdict, and the status of every quota that applies.
#[derive(Clone, Debug)]
pub struct Decision<'a> {
    /// The verdict of all quotas together.
    pub verdict: Verdict,
    /// The store's time.
    pub decided_at: Timestamp,
    /// Every quota, in the order of the policy.
    pub quotas: SmallVec<[QuotaStatus<'a>; 4]>,
    /// Which of them is binding: of those that deny, the one that denies for longest; if none denies,
    /// the one with the smallest part of its limit left. `None` if no quota applies.
    pub binding: Option<usize>,
    /// The active block: of several, the one that ends last. It refuses the call whatever the quotas say, and the
    /// verdict's wait includes it.
    pub block: Option<Block<'a>>,
    /// The block of a shadow rule that would be active.
    pub shadow_block: Option<Block<'a>>,
    /// The origin of the decision.
    pub decided_by: DecisionSource,
}

impl QuotaStatus<'_> {
    /// Whether it denies the call.
    pub fn denies(&self) -> bool {
        self.fit != Fit::Now && !self.quota.shadow
    }

    /// Whether the platform's customers see the quota in answers. Shadows refuse nothing and are not shown there.
    pub(crate) fn is_shown(&self) -> bool {
        self.quota.visible && !self.quota.shadow
    }

    /// Whether it is a shadow quota that would have denied the call.
    pub fn would_deny(&self) -> bool {
        self.fit != Fit::Now && self.quota.shadow
    }

    /// When the quota's window is empty if nobody calls. `None` for slots: they are free when calls end, which is not
    /// known.
    pub fn window_reset(&self) -> Option<Timestamp> {
        (!matches!(self.quota.window, Window::Concurrent)).then_some(self.resets_at)
    }

    /// The amount that could be admitted now; `None` if unlimited.
    pub fn remaining(&self) -> Option<Amount> {
        match self.limit {
            Limit::Finite(limit) => {
                let left = limit.saturating_sub(self.used);
                Some(self.pool_remaining.map_or(left, |remaining| remaining.min(left)))
            }
            Limit::Unlimited => None,
        }
    }
}

impl<'a> Decision<'a> {
    /// Merges the statuses of the claims, which are in the order of `quotas` followed by `guards`.
    pub(crate) fn merge(
        quotas: &[ActiveQuota<'a>],
        guards: impl IntoIterator<Item = &'a AbuseRule>,
        applied: &ClaimsDecision,
    ) -> Self {
        let of_guards = applied.statuses.iter().skip(quotas.len());
        let blocks = guards.into_iter().zip(of_guards).filter_map(|(rule, guard)| block_of(rule, guard));
        let (mut block, mut shadow_block): (Option<Block<'a>>, Option<Block<'a>>) = (None, None);
        for next in blocks {
            let longest = if next.rule.shadow { &mut shadow_block } else { &mut block };
            *longest = longest.filter(|longest| longest.until >= next.until).or(Some(next));
        }
        let status = |(active, status): (&ActiveQuota<'a>, &ClaimStatus)| {
            let ClaimStatus { used, resets_at, fit } = *status;
            let fit = active.quota.advised(fit, applied.decided_at);
            QuotaStatus { quota: active.quota, limit: active.limit, used, resets_at, pool_remaining: None, fit }
        };
        let quotas: SmallVec<[QuotaStatus<'a>; 4]> = quotas.iter().zip(&applied.statuses).map(status).collect();
        let blocked = block.map(|block| Fit::At(block.until));
        // A call that the store refused is refused, even if only a shadow has no more slots.
        let refused = |quota: &QuotaStatus<'_>| !quota.quota.shadow && quota.fit != Fit::Now;
        let by_shadow = !applied.allowed && block.is_none() && !quotas.iter().any(refused);
        let counts = |quota: &&QuotaStatus<'_>| by_shadow || !quota.quota.shadow;
        let verdict = quotas.iter().filter(counts).map(|quota| quota.fit).chain(blocked).fold(
            Verdict::Allowed,
            |verdict, fit| match (verdict, fit) {
                (Verdict::Never, _) | (_, Fit::Never) => Verdict::Never,
                (Verdict::RetryAt(a), Fit::At(b)) => Verdict::RetryAt(a.max(b)),
                (Verdict::Allowed, Fit::At(at)) => Verdict::RetryAt(at),
                (verdict, Fit::Now) => verdict,
            },
        );
        let binding = binding(&quotas, is_enforced);
        Self {
            verdict,
            decided_at: applied.decided_at,
            quotas,
            binding,
            block,
            shadow_block,
            decided_by: DecisionSource::Store,
        }
    }

    /// Sets what remains of the caller's fair share of each pool, given with the index of its quota.
    #[must_use]
    pub(crate) fn with_pools_remaining(mut self, pools_remaining: &[(usize, Amount)]) -> Self {
        for (at, remaining) in pools_remaining {
            if let Some(status) = self.quotas.get_mut(*at) {
                status.pool_remaining = Some(*remaining);
            }
        }
        if !pools_remaining.is_empty() {
            self.binding = binding(&self.quotas, is_enforced);
        }
        self
    }

    /// The decision about a call that no quota applies to.
    pub fn unlimited(now: Timestamp) -> Self {
        Self {
            verdict: Verdict::Allowed,
            decided_at: now,
            quotas: SmallVec::new(),
            binding: None,
            block: None,
            shadow_block: None,
            decided_by: DecisionSource::Store,
        }
    }

    /// Whether the call may pass.
    pub fn is_allowed(&self) -> bool {
        self.verdict == Verdict::Allowed
    }

    /// The names of the shadow quotas and shadow rules that would have refused the call.
    pub fn shadow_refusals(&self) -> impl Iterator<Item = &'a Arc<str>> {
        let rule = self.shadow_block.map(|block| &block.rule.name);
        self.quotas.iter().filter(|status| status.would_deny()).map(|status| &status.quota.name).chain(rule)
    }

    /// The binding quota.
    pub fn binding_quota(&self) -> Option<&QuotaStatus<'a>> {
        self.binding.and_then(|at| self.quotas.get(at))
    }

    /// How long to wait until the same call is admitted, if nobody else calls. For a slot it is only advice: a slot is free
    /// when another call ends. `None` if it was allowed, and if it can never be admitted.
    pub fn retry_after_ms(&self) -> Option<u64> {
        match self.verdict {
            Verdict::RetryAt(at) => Some(at.ms_since(self.decided_at)),
            Verdict::Allowed | Verdict::Never => None,
        }
    }
}

/// Shadow quotas do not appear in rendered answers.
fn is_enforced(status: &QuotaStatus<'_>) -> bool {
    !status.quota.shadow
}

/// The index of the binding quota of those that count: see [`Decision::binding`].
pub(crate) fn binding(quotas: &[QuotaStatus<'_>], counts: impl Fn(&QuotaStatus<'_>) -> bool) -> Option<usize> {
    let denied_until = |quota: &QuotaStatus<'_>| match quota.fit {
        Fit::Now => None,
        Fit::At(at) => Some(at.as_ms()),
        Fit::Never => Some(u64::MAX),
    };
    let counting = || quotas.iter().enumerate().filter(|(_, quota)| counts(quota));
    let denying = counting().filter_map(|(at, quota)| denied_until(quota).map(|until| (at, until)));
    // Of equal ones the first, in the order of the policy.
    let longest = denying.reduce(|best, next| if next.1 > best.1 { next } else { best });
    longest.map(|(at, _)| at).or_else(|| {
        let tighter = |best: usize, next: usize| {
            let (a, b) = (left(&quotas[best]), left(&quotas[next]));
            // a.0/a.1 > b.0/b.1, in whole numbers.
            if u128::from(a.0) * u128::from(b.1) > u128::from(b.0) * u128::from(a.1) { next } else { best }
        };
        counting().map(|(at, _)| at).reduce(tighter)
    })
}

/// The remaining fraction, as remaining amount and limit. An unlimited quota has all of one remaining, a limit of zero
/// has nothing.
fn left(quota: &QuotaStatus<'_>) -> (u64, u64) {
    match (quota.limit, quota.remaining()) {
        (Limit::Finite(limit), Some(remaining)) if limit > Amount::ZERO => (remaining.get(), limit.get()),
        (Limit::Finite(_), _) => (0, 1),
        (Limit::Unlimited, _) => (1, 1),
    }
}
