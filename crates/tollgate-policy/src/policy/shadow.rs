//! Shadow mode: quotas, or a whole policy, that count and say whom they would have refused, and refuse nobody.
//!
//! A store is asked without the limit of a shadow quota, so that it never denies and is charged whenever the
//! call passes. What it says was used, in the same step, is judged here by the limit.

use tollgate_core::{
    amount::{Amount, Limit},
    claim::{ClaimStatus, ClaimsDecision, Fit, Mode},
    reservation::MAX_SLOTS,
    window::Window,
};

use crate::policy::{AbuseRule, ActiveQuota, Resolved, Usage, pool::later};

impl ActiveQuota<'_> {
    /// The limit that a store judges by. Slots have no more room than [`MAX_SLOTS`].
    pub(crate) fn enforced(&self) -> Limit {
        match self.quota.window {
            _ if !self.quota.shadow => self.limit,
            Window::Concurrent => Limit::Finite(Amount::from(MAX_SLOTS)),
            Window::Sliding(_) | Window::Calendar(_) => Limit::Unlimited,
        }
    }
}

impl Resolved<'_> {
    /// Judges shadow quotas, and the guards of shadow rules, by what the store said of their claims. As a store
    /// does not say when there will be room under a limit that it does not know, a fit that is not now stands for
    /// the time when nothing of now counts any more.
    pub(crate) fn judge_shadow<'r>(
        &self,
        usage: &Usage,
        guards: impl IntoIterator<Item = &'r AbuseRule>,
        mode: Mode,
        applied: &mut ClaimsDecision,
    ) {
        let charged = match mode {
            Mode::Try => applied.allowed,
            Mode::Force => true,
            Mode::Peek => false,
        };
        let mut statuses = applied.statuses.iter_mut();
        for (active, status) in self.quotas().iter().zip(statuses.by_ref()) {
            if let (true, Limit::Finite(limit)) = (active.quota.shadow, active.limit) {
                let cost = usage.of(active.quota.unit.id);
                let before = status.used.saturating_sub(if charged { cost } else { Amount::ZERO });
                status.fit = later(status.fit, fit(before, cost, limit, status));
            }
        }
        for (rule, status) in guards.into_iter().zip(statuses) {
            if rule.shadow && status.used > Amount::ZERO {
                status.fit = Fit::At(status.resets_at);
            }
        }
    }
}

fn fit(before: Amount, cost: Amount, limit: Amount, status: &ClaimStatus) -> Fit {
    if cost == Amount::ZERO || before.saturating_add(cost) <= limit {
        Fit::Now
    } else if cost > limit {
        Fit::Never
    } else {
        Fit::At(status.resets_at)
    }
}
