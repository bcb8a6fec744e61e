//! Decisions during an outage of the store.

use std::{sync::Arc, time::Duration};

use tollgate_core::{
    claim::{ApplyResult, Claims, Mode},
    store::StoreError,
    time::Timestamp,
};
use tollgate_policy::{ClaimSet, decision::Decision};
use tollgate_store::failure::Fallback;

use super::{CallError, DecisionService, counters::PERIOD_ATTEMPTS, is_outage};

/// The behaviour during an outage of the store.
pub struct OutagePolicy {
    /// The maximum time that a call waits for the stores of accounts and counters in total.
    pub store_timeout: Duration,
    /// Decides without the store, for quotas whose `on_failure` allows it.
    pub fallback: Option<Arc<Fallback>>,
}

impl DecisionService {
    /// Decides by the quotas' `on_failure`; returns the store's `error` if one of them denies.
    pub(super) fn decide_locally<'a>(
        &self,
        claims: &ClaimSet<'_, 'a>,
        mode: Mode,
        mut now: Timestamp,
        error: StoreError,
    ) -> Result<Decision<'a>, CallError> {
        let Some(fallback) = self.outage.fallback.as_ref().filter(|_| is_outage(&error)) else {
            return Err(error.into());
        };
        let on_failure = claims.on_failure();
        for _ in 0..PERIOD_ATTEMPTS {
            let quotas: Claims = claims.quota_claims(now).collect();
            match fallback.decide(&quotas, &on_failure, mode) {
                Some(Ok(ApplyResult::Applied(applied))) => {
                    let decision = claims.decide_locally(mode, |limit| fallback.share(limit), applied);
                    self.metrics.count_fallback_decision(decision.decided_by, decision.is_allowed(), &error);
                    return Ok(decision);
                }
                Some(Ok(ApplyResult::OutsidePeriod(time))) => now = time,
                Some(Err(error)) => return Err(error.into()),
                None => break,
            }
        }
        self.metrics.count_undecided(&error);
        Err(error.into())
    }
}
