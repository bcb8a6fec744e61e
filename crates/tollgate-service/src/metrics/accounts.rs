//! Metrics of the cache of accounts, and of the subscription to their changes.

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
    /// The value of `feed_up`, which cannot be read.
    subscribed: AtomicBool,
    store_errors: Counter,
    overloaded: Counter,
    ignored_overrides: Counter,
}

/// The result of a lookup in the cache of accounts.
#[derive(Clone, Copy, Debug)]
pub enum CacheResult {
    /// The entry is in the cache.
    Hit,
    /// The entry is not in the cache.
    Miss,
    /// The cache is stale and was not used.
    Bypass,
}

impl AccountMetrics {
    pub(super) fn new(recorder: &PrometheusRecorder) -> Self {
        Self {
            lookups: ["hit", "miss", "bypass"].map(|result| counter(recorder, LOOKUPS, &[("result", result)])),
            invalidations: counter(recorder, INVALIDATIONS, &[]),
            feed_up: gauge(recorder, FEED_UP, &[]),
            subscribed: AtomicBool::new(false),
            store_errors: counter(recorder, STORE_ERRORS, &[]),
            overloaded: counter(recorder, OVERLOADED, &[]),
            ignored_overrides: counter(recorder, OVERRIDES_LEFT_OUT, &[]),
        }
    }
}

impl Metrics {
    /// Counts a lookup.
    pub fn count_account_lookup(&self, result: CacheResult) {
        let [hit, miss, bypass] = &self.accounts.lookups;
        match result {
            CacheResult::Hit => hit,
            CacheResult::Miss => miss,
            CacheResult::Bypass => bypass,
        }
        .increment(1);
    }

    /// Counts a change that the node received.
    pub fn count_account_invalidation(&self) {
        self.accounts.invalidations.increment(1);
    }

    /// Sets whether the node is subscribed to changes.
    pub fn set_account_feed(&self, up: bool) {
        self.accounts.subscribed.store(up, Ordering::Relaxed);
        self.accounts.feed_up.set(if up { 1.0 } else { 0.0 });
    }

    /// Whether the node is subscribed to changes.
    pub fn is_subscribed_to_accounts(&self) -> bool {
        self.accounts.subscribed.load(Ordering::Relaxed)
    }

    /// Counts a lookup that failed because of the store.
    pub fn count_account_store_error(&self) {
        self.accounts.store_errors.increment(1);
    }

    /// Counts a lookup that was refused because of overload.
    pub fn count_refused_account_lookup(&self) {
        self.accounts.overloaded.increment(1);
    }

    /// Counts overrides that no longer fit the policy.
    pub fn count_ignored_overrides(&self, count: usize) {
        self.accounts.ignored_overrides.increment(count as u64);
    }
}
