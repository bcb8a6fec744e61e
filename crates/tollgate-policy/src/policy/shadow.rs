//! Shadow mode: quotas, or a whole policy, that count and report the calls that they would refuse, and refuse none.
//!
//! The store gets no limit for a shadow quota, so the quota never refuses and is charged whenever the call is allowed.
//! The usage in the store's answer, from the same step, is compared with the limit here.

use tollgate_core::{
    amount::{Amount, Limit},
    claim::{ClaimStatus, ClaimsDecision, Fit, Mode},
    reservation::MAX_SLOTS,
    window::Window,
};

use crate::policy::{AbuseRule, ActiveQuota, ResolvedQuotas, Usage, pool::later_fit};

impl ActiveQuota<'_> {
    /// The limit that a store enforces. A shadow quota has none, but the slots of one are limited by their storage.
    pub(crate) fn enforced_limit(&self) -> Limit {
        match self.quota.window {
            _ if !self.quota.shadow => self.limit,
            Window::Concurrent => Limit::Finite(Amount::from(MAX_SLOTS)),
            Window::Sliding(_) | Window::Calendar(_) => Limit::Unlimited,
        }
    }
}

impl ResolvedQuotas<'_> {
    /// Applies the limits of shadow quotas and shadow rules to the statuses in the store's answer. The store does not
    /// know these limits, so it cannot tell when there will be capacity. Instead, the status has the time when all
    /// current usage has left the window.
    pub(crate) fn apply_shadow_limits<'r>(
        &self,
        usage: &Usage,
        guards: impl IntoIterator<Item = &'r AbuseRule>,
        mode: Mode,
        applied: &mut ClaimsDecision,
    ) {
        let charged = match mode {
            Mode::Try => applied.allowed,
            Mode::Force => true,
            Mode::Peek | Mode::Judge => false,
        };
        let mut statuses = applied.statuses.iter_mut();
        for (active, status) in self.quotas().iter().zip(statuses.by_ref()) {
            if let (true, Limit::Finite(limit)) = (active.quota.shadow, active.limit) {
                let cost = usage.of(active.quota.unit.id);
                let used_before = status.used.saturating_sub(if charged { cost } else { Amount::ZERO });
                status.fit = later_fit(status.fit, shadow_fit(used_before, cost, limit, status));
            }
        }
        for (rule, status) in guards.into_iter().zip(statuses) {
            if rule.shadow && status.used > Amount::ZERO {
                status.fit = Fit::At(status.resets_at);
            }
        }
    }
}

/// Whether a cost fitted into a shadow quota.
fn shadow_fit(used_before: Amount, cost: Amount, limit: Amount, status: &ClaimStatus) -> Fit {
    if cost == Amount::ZERO || used_before.saturating_add(cost) <= limit {
        Fit::Now
    } else if cost > limit {
        Fit::Never
    } else {
        Fit::At(status.resets_at)
    }
}
