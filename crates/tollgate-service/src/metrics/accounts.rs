//! The node's cache of accounts, and the feed of their changes.

use std::sync::atomic::{AtomicBool, Ordering};

use metrics::{Counter, Gauge};
use metrics_exporter_prometheus::PrometheusRecorder;

use super::{Metrics, counter, gauge};

pub(super) const LOOKUPS: &str = "tollgate_account_lookups_total";
pub(super) const INVALIDATIONS: &str = "tollgate_account_invalidations_total";
pub(super) const FEED_UP: &str = "tollgate_account_feed_up";
pub(super) const STORE_ERRORS: &str = "tollgate_account_store_errors_total";
pub(super) const OVERLOADED: &str = "tollgate_account_lookups_refused_total";
pub(super) const OVERRIDES_LEFT_OUT: &str = "tollgate_overrides_ignored_total";

pub(super) struct AccountMetrics {
    lookups: [Counter; 3],
    invalidations: Counter,
    feed_up: Gauge,
    /// The same, to be read.
    heard: AtomicBool,
    store_errors: Counter,
    overloaded: Counter,
    overrides_left_out: Counter,
}

/// How something was found of an account.
#[derive(Clone, Copy, Debug)]
pub enum CacheResult {
    /// The node remembered it.
    Hit,
    /// It was read from the store.
    Miss,
    /// It was read from the store, because the cache cannot be trusted now.
    Bypass,
}

impl AccountMetrics {
    pub(super) fn new(recorder: &PrometheusRecorder) -> Self {
        Self {
            lookups: ["hit", "miss", "bypass"].map(|result| counter(recorder, LOOKUPS, &[("result", result)])),
            invalidations: counter(recorder, INVALIDATIONS, &[]),
            feed_up: gauge(recorder, FEED_UP, &[]),
            heard: AtomicBool::new(false),
            store_errors: counter(recorder, STORE_ERRORS, &[]),
            overloaded: counter(recorder, OVERLOADED, &[]),
            overrides_left_out: counter(recorder, OVERRIDES_LEFT_OUT, &[]),
        }
    }
}

impl Metrics {
    /// Counts a look-up.
    pub fn account_cache(&self, result: CacheResult) {
        let [hit, miss, bypass] = &self.accounts.lookups;
        match result {
            CacheResult::Hit => hit,
            CacheResult::Miss => miss,
            CacheResult::Bypass => bypass,
        }
        .increment(1);
    }

    /// Counts a change that the node heard of.
    pub fn account_invalidated(&self) {
        self.accounts.invalidations.increment(1);
    }

    /// Sets whether the node hears of changes.
    pub fn account_feed(&self, up: bool) {
        self.accounts.heard.store(up, Ordering::Relaxed);
        self.accounts.feed_up.set(if up { 1.0 } else { 0.0 });
    }

    /// Whether changes of accounts are heard now.
    pub fn is_subscribed_to_accounts(&self) -> bool {
        self.accounts.heard.load(Ordering::Relaxed)
    }

    /// Counts a look-up that the store did not answer.
    pub fn account_store_failed(&self) {
        self.accounts.store_errors.increment(1);
    }

    /// Counts a look-up that was refused for overload.
    pub fn account_lookup_refused(&self) {
        self.accounts.overloaded.increment(1);
    }

    /// Counts overrides that do not fit the policy any more.
    pub fn overrides_left_out(&self, count: usize) {
        self.accounts.overrides_left_out.increment(count as u64);
    }
}
