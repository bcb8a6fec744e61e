//! The health of the stores, by the node's probes, and of its files.

use metrics::Gauge;
use metrics_exporter_prometheus::PrometheusRecorder;
use tollgate_core::store::StoreHealth;

use super::{Metrics, gauge};

pub(super) const STORE_UP: &str = "tollgate_store_up";
pub(super) const ACCOUNT_STORE_UP: &str = "tollgate_account_store_up";
pub(super) const EVICTING: &str = "tollgate_store_evicting";
pub(super) const CLOCK_SKEW: &str = "tollgate_store_clock_skew_seconds";
pub(super) const RELOAD_FAILED: &str = "tollgate_reload_failed";

/// The kinds of files that a node reads, as metrics name them.
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
        let of = |up, data| StoreGauges {
            up,
            evicting: gauge(recorder, EVICTING, &[("data", data)]),
            skew: gauge(recorder, CLOCK_SKEW, &[("data", data)]),
        };
        for kind in RELOADED {
            gauge(recorder, RELOAD_FAILED, &[("kind", kind)]).set(0.0);
        }
        Self {
            counters: of(gauge(recorder, STORE_UP, &[("store", store)]), "counters"),
            accounts: of(gauge(recorder, ACCOUNT_STORE_UP, &[]), "accounts"),
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
    /// Notes whether the store of the counters can decide.
    pub fn set_counter_store_health(&self, health: &StoreHealth) {
        self.health.counters.set(health);
    }

    /// Notes whether the store of the accounts can be read and changed.
    pub fn set_account_store_health(&self, health: &StoreHealth) {
        self.health.accounts.set(health);
    }

    /// Records whether the last reload failed, so that older contents are in force than the files hold.
    pub(super) fn reload_ended(&self, kind: &'static str, success: bool) {
        gauge(&self.recorder, RELOAD_FAILED, &[("kind", kind)]).set(if success { 0.0 } else { 1.0 });
    }
}
