//! Metrics and logs of decisions without the store.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use metrics::Counter;
use metrics_exporter_prometheus::PrometheusRecorder;
use tollgate_core::store::StoreError;
use tollgate_policy::DecisionSource;
use tollgate_store::failure::ReplayStatus;

use super::{Metrics, counter, gauge};

pub(super) const DECISIONS: &str = "tollgate_failure_decisions_total";
pub(super) const WAITING: &str = "tollgate_failure_replay_waiting";
pub(super) const REPLAYED: &str = "tollgate_failure_replayed_total";
/// The minimum interval between log lines.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The counters of decisions without the store, by mode and verdict.
pub(super) struct FailureMetrics {
    /// Allowed and denied by `allow`; allowed and denied by `local`; not decided.
    counters: [Counter; 5],
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    last: Option<Instant>,
    suppressed: u64,
}

impl FailureMetrics {
    pub(super) fn new(recorder: &PrometheusRecorder) -> Self {
        let decisions = |mode, verdict| counter(recorder, DECISIONS, &[("mode", mode), ("verdict", verdict)]);
        let counters = [
            decisions("allow", "allowed"),
            decisions("allow", "denied"),
            decisions("local", "allowed"),
            decisions("local", "denied"),
            decisions("deny", "undecided"),
        ];
        Self { counters, log: Mutex::default() }
    }

    fn record(&self, index: usize, mode: &'static str, error: &StoreError) {
        self.counters[index].increment(1);
        // If the lock is held, another thread is writing a line.
        let Ok(mut log) = self.log.try_lock() else { return };
        if log.last.is_some_and(|last| last.elapsed() < LOG_INTERVAL) {
            log.suppressed += 1;
            return;
        }
        let suppressed = std::mem::take(&mut log.suppressed);
        log.last = Some(Instant::now());
        tracing::warn!(mode, %error, suppressed = suppressed, "a call was answered without the store");
    }
}

impl Metrics {
    /// Counts a decision that was made without the store.
    pub fn count_fallback_decision(&self, source: DecisionSource, allowed: bool, error: &StoreError) {
        let index = if source == DecisionSource::Local { 2 } else { 0 } + usize::from(!allowed);
        self.failures.record(index, source.name(), error);
    }

    /// Counts a call that was not decided because of the store.
    pub fn count_undecided(&self, error: &StoreError) {
        self.failures.record(4, "deny", error);
    }

    pub(super) fn set_replayed(&self, replayed: ReplayStatus) {
        #[expect(clippy::cast_precision_loss, reason = "a bounded queue")]
        gauge(&self.recorder, WAITING, &[]).set(replayed.waiting as f64);
        counter(&self.recorder, REPLAYED, &[("result", "charged")]).absolute(replayed.charged);
        counter(&self.recorder, REPLAYED, &[("result", "dropped")]).absolute(replayed.dropped);
    }
}
