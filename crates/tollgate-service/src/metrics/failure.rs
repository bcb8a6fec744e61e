//! Decisions without the store, counted and logged.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use metrics::Counter;
use metrics_exporter_prometheus::PrometheusRecorder;
use tollgate_core::store::StoreError;
use tollgate_policy::DecidedBy;
use tollgate_store::failure::ReplayStatus;

use super::{Metrics, counter, gauge};

pub(super) const DECISIONS: &str = "tollgate_failure_decisions_total";
pub(super) const WAITING: &str = "tollgate_failure_replay_waiting";
pub(super) const REPLAYED: &str = "tollgate_failure_replayed_total";
/// A line comes at most once in so long.
const EVERY: Duration = Duration::from_secs(10);

/// The counters of decisions without the store, by mode and verdict.
pub(super) struct FailureMetrics {
    /// Allowed and denied by `allow`, then by `local`, then not decided.
    counters: [Counter; 5],
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    last: Option<Instant>,
    unsaid: u64,
}

impl FailureMetrics {
    pub(super) fn new(recorder: &PrometheusRecorder) -> Self {
        let of = |mode, verdict| counter(recorder, DECISIONS, &[("mode", mode), ("verdict", verdict)]);
        let counters = [
            of("allow", "allowed"),
            of("allow", "denied"),
            of("local", "allowed"),
            of("local", "denied"),
            of("deny", "undecided"),
        ];
        Self { counters, log: Mutex::default() }
    }

    fn met(&self, which: usize, mode: &'static str, error: &StoreError) {
        self.counters[which].increment(1);
        // The holder of the lock is about to write a line.
        let Ok(mut log) = self.log.try_lock() else { return };
        if log.last.is_some_and(|last| last.elapsed() < EVERY) {
            log.unsaid += 1;
            return;
        }
        let unsaid = std::mem::take(&mut log.unsaid);
        log.last = Some(Instant::now());
        tracing::warn!(mode, %error, suppressed = unsaid, "a call was answered without the store");
    }
}

impl Metrics {
    /// Counts a decision that the store did not make.
    pub fn decided_without_store(&self, by: DecidedBy, allowed: bool, error: &StoreError) {
        let which = if by == DecidedBy::Local { 2 } else { 0 } + usize::from(!allowed);
        self.failures.met(which, by.name(), error);
    }

    /// Counts a call that was not decided.
    pub fn denied_without_store(&self, error: &StoreError) {
        self.failures.met(4, "deny", error);
    }

    pub(super) fn set_replayed(&self, replayed: ReplayStatus) {
        #[expect(clippy::cast_precision_loss, reason = "a bounded queue")]
        gauge(&self.recorder, WAITING, &[]).set(replayed.waiting as f64);
        counter(&self.recorder, REPLAYED, &[("result", "charged")]).absolute(replayed.charged);
        counter(&self.recorder, REPLAYED, &[("result", "dropped")]).absolute(replayed.dropped);
    }
}
