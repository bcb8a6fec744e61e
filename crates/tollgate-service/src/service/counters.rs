//! The store of the counters. It measures the calls to the store, and repeats a call in the calendar period of the
//! store's clock.

use std::{sync::Arc, time::Instant};

use tollgate_core::{
    claim::{ApplyResult, Claim, Claims, ClaimsDecision, Mode, Partition},
    store::{Store, StoreError},
    time::Timestamp,
};

use crate::{metrics::Metrics, service::CallError};

/// The maximum number of attempts with the times that the store replied. A difference between the clocks of node and
/// store is corrected by the first reply.
pub(super) const PERIOD_ATTEMPTS: usize = 3;

/// The reply of a store to claims with calendar periods.
pub(super) enum PeriodReply<T> {
    /// The periods are current by its clock.
    Current(T),
    /// The periods are not current, and nothing was done. Contains the time of its clock.
    NotCurrent(Timestamp),
}

/// The store of the counters.
pub struct Counters {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
}

impl Counters {
    /// The counters of `store`; its replies are measured in `metrics`.
    pub fn new(store: Arc<dyn Store>, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics }
    }

    /// The store itself.
    pub(super) fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Measures a call to the store.
    pub(super) async fn measure<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let started = Instant::now();
        let reply = call.await;
        self.metrics.record_store_reply(started.elapsed(), &reply);
        reply
    }

    /// Applies the claims that `claims_at` returns for a time. `None` if there are no claims.
    pub(super) async fn apply(
        &self,
        home: Partition,
        claims_at: impl Fn(Timestamp) -> Claims,
        mode: Mode,
        now: Timestamp,
    ) -> Result<Option<ClaimsDecision>, CallError> {
        retry_in_period(now, |now| {
            let claims = claims_at(now);
            async move {
                if claims.is_empty() {
                    return Ok(PeriodReply::Current(None));
                }
                match self.measure(self.store.apply_at(home, &claims, mode)).await? {
                    ApplyResult::Applied(applied) => Ok(PeriodReply::Current(Some(applied))),
                    ApplyResult::OutsidePeriod(time) => Ok(PeriodReply::NotCurrent(time)),
                }
            }
        })
        .await
    }

    /// Charges claims without regard to their limits.
    pub(super) async fn charge_unconditionally(&self, claims: &[Claim]) -> Result<ApplyResult, StoreError> {
        self.store.apply(claims, Mode::Force).await
    }
}

/// Calls `request` with `now`; if the store's clock is in another calendar period, calls it again with the store's
/// time.
pub(super) async fn retry_in_period<T, F>(mut now: Timestamp, request: impl Fn(Timestamp) -> F) -> Result<T, CallError>
where
    F: Future<Output = Result<PeriodReply<T>, CallError>>,
{
    for _ in 0..PERIOD_ATTEMPTS {
        match request(now).await? {
            PeriodReply::Current(reply) => return Ok(reply),
            PeriodReply::NotCurrent(time) => now = time,
        }
    }
    Err(StoreError::Refused("its clock moves from one calendar period to the next at every call".into()).into())
}
