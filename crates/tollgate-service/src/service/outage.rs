//! Decisions that the store did not make.

use std::{sync::Arc, time::Duration};

use tollgate_core::{
    claim::{ApplyResult, Claims, Mode},
    store::StoreError,
    time::Timestamp,
};
use tollgate_policy::{ClaimSet, decision::Decision};
use tollgate_store::failure::Fallback;

use super::{CallError, DecisionService, counters::PERIOD_ATTEMPTS, is_outage};

/// Decisions during an outage of the store.
pub struct OutagePolicy {
    /// How long a call waits for accounts and counters in all.
    pub patience: Duration,
    /// Decides for quotas that are not to wait for the store.
    pub fallback: Option<Arc<Fallback>>,
}

impl DecisionService {
    /// Decides as the quotas ask for while the store cannot answer, or passes the store's `error` on.
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
                    self.metrics.decided_without_store(decision.decided_by, decision.is_allowed(), &error);
                    return Ok(decision);
                }
                Some(Ok(ApplyResult::OutsidePeriod(at))) => now = at,
                Some(Err(full)) => return Err(full.into()),
                None => break,
            }
        }
        self.metrics.denied_without_store(&error);
        Err(error.into())
    }
}
