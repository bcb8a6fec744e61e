//! Metrics of the health of the stores, and of the node's files.

use metrics::Gauge;
use metrics_exporter_prometheus::PrometheusRecorder;
use tollgate_core::store::StoreHealth;

use super::{Metrics, gauge};

pub(super) const STORE_UP: &str = "tollgate_store_up";
pub(super) const ACCOUNT_STORE_UP: &str = "tollgate_account_store_up";
pub(super) const EVICTING: &str = "tollgate_store_evicting";
pub(super) const CLOCK_SKEW: &str = "tollgate_store_clock_skew_seconds";
pub(super) const RELOAD_FAILED: &str = "tollgate_reload_failed";

/// The kinds of reloaded files, as values of labels.
pub(super) const RELOADED: [&str; 4] = ["policies", "service_tokens", "admin_tokens", "certificates"];

pub(super) struct HealthMetrics {
    counters: StoreGauges,
    accounts: StoreGauges,
}

struct StoreGauges {
    up: Gauge,
    evicting: Gauge,
    skew: Gauge,
}

impl HealthMetrics {
    pub(super) fn new(recorder: &PrometheusRecorder, store: &'static str) -> Self {
        let gauges = |up, data| StoreGauges {
            up,
            evicting: gauge(recorder, EVICTING, &[("data", data)]),
            skew: gauge(recorder, CLOCK_SKEW, &[("data", data)]),
        };
        for kind in RELOADED {
            gauge(recorder, RELOAD_FAILED, &[("kind", kind)]).set(0.0);
        }
        Self {
            counters: gauges(gauge(recorder, STORE_UP, &[("store", store)]), "counters"),
            accounts: gauges(gauge(recorder, ACCOUNT_STORE_UP, &[]), "accounts"),
        }
    }
}

impl StoreGauges {
    fn set(&self, health: &StoreHealth) {
        let one_if = |yes: bool| if yes { 1.0 } else { 0.0 };
        self.up.set(one_if(health.is_whole()));
        self.evicting.set(one_if(health.eviction.is_some()));
        #[expect(clippy::cast_precision_loss, reason = "exact for longer than clocks are off")]
        self.skew.set(health.clock_skew_ms.unwrap_or(0) as f64 / 1_000.0);
    }
}

impl Metrics {
    /// Sets the health of the store of counters.
    pub fn set_counter_store_health(&self, health: &StoreHealth) {
        self.health.counters.set(health);
    }

    /// Sets the health of the store of accounts.
    pub fn set_account_store_health(&self, health: &StoreHealth) {
        self.health.accounts.set(health);
    }

    /// Sets whether the last reload failed, so that the previous contents stay in force.
    pub(super) fn set_reload_failed(&self, kind: &'static str, failed: bool) {
        gauge(&self.recorder, RELOAD_FAILED, &[("kind", kind)]).set(if failed { 1.0 } else { 0.0 });
    }
}
