//! The store of the counters, with claims in the calendar period of its clock.

use std::{sync::Arc, time::Instant};

use tollgate_core::{
    claim::{ApplyResult, Claim, Claims, ClaimsDecision, Mode, Partition},
    store::{Store, StoreError},
    time::Timestamp,
};

use crate::{metrics::Metrics, service::CallError};

/// How often the store is asked about one call. A node whose clock is behind the store's learns it from the first
/// answer.
pub(super) const PERIOD_ATTEMPTS: usize = 3;

/// The answer of a store about the periods of claims.
pub(super) enum Period<T> {
    /// Its clock is in these periods.
    Inside(T),
    /// Its clock is in others; nothing was done. The time by its clock.
    Outside(Timestamp),
}

/// The store of the counters, with the time that each answer took.
pub struct Counters {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
}

impl Counters {
    /// The counters of `store`, measured in `metrics`.
    pub fn new(store: Arc<dyn Store>, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics }
    }

    /// The store itself, for calls that are not measured.
    pub(super) fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Measures a call to the store.
    pub(super) async fn measure<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let started = Instant::now();
        let answer = call.await;
        self.metrics.store_answered(started.elapsed(), &answer);
        answer
    }

    /// Applies the claims of a moment, which `claims_at` makes. `None` if there are none.
    pub(super) async fn apply(
        &self,
        home: Partition,
        claims_at: impl Fn(Timestamp) -> Claims,
        mode: Mode,
        now: Timestamp,
    ) -> Result<Option<ClaimsDecision>, CallError> {
        in_period(now, |now| {
            let claims = claims_at(now);
            async move {
                if claims.is_empty() {
                    return Ok(Period::Inside(None));
                }
                match self.measure(self.store.apply_at(home, &claims, mode)).await? {
                    ApplyResult::Applied(applied) => Ok(Period::Inside(Some(applied))),
                    ApplyResult::OutsidePeriod(at) => Ok(Period::Outside(at)),
                }
            }
        })
        .await
    }

    /// Charges claims whatever their limits.
    pub(super) async fn force(&self, claims: &[Claim]) -> Result<ApplyResult, StoreError> {
        self.store.apply(claims, Mode::Force).await
    }
}

/// Asks with the time `now`, and with the store's time where its clock is in another calendar period.
pub(super) async fn in_period<T, F>(mut now: Timestamp, ask: impl Fn(Timestamp) -> F) -> Result<T, CallError>
where
    F: Future<Output = Result<Period<T>, CallError>>,
{
    for _ in 0..PERIOD_ATTEMPTS {
        match ask(now).await? {
            Period::Inside(answer) => return Ok(answer),
            Period::Outside(at) => now = at,
        }
    }
    Err(StoreError::Refused("its clock moves from one calendar period to the next at every call".into()).into())
}
