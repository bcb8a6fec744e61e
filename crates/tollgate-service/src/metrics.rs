//! Metrics. Every metric is declared here, with its help. Values of labels come from policies, never from callers.

mod accounts;
mod domain;
mod failure;
mod health;
mod page;
mod reservations;
mod shadow;

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use metrics::{Counter, Gauge, Histogram, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tollgate_policy::AUTHENTICATION;
use tollgate_store::failure::ReplayStatus;

pub(crate) use self::domain::UNKNOWN_RESOURCE;
use self::{accounts::AccountMetrics, failure::FailureMetrics, health::HealthMetrics, page::Page};
pub use self::{accounts::CacheResult, domain::DomainMetrics, reservations::ReservationMetrics};

/// Upper bounds of the latency buckets, in seconds, from 50 µs.
const LATENCIES: [f64; 14] =
    [50e-6, 100e-6, 200e-6, 400e-6, 800e-6, 1.5e-3, 3e-3, 6e-3, 12e-3, 25e-3, 50e-3, 0.1, 0.25, 1.0];

const DECISIONS: &str = "tollgate_decisions_total";
const SHADOW_REFUSALS: &str = "tollgate_shadow_refusals_total";
const RESERVATIONS: &str = "tollgate_reservations_total";
const UNITS_LEFT_OUT: &str = "tollgate_units_left_out_total";
const DEBT: &str = "tollgate_settlement_debt_total";
const DECISION_SECONDS: &str = "tollgate_decision_duration_seconds";
const STORE_SECONDS: &str = "tollgate_store_duration_seconds";
const STORE_ERRORS: &str = "tollgate_store_errors_total";
const STORE_IN_FLIGHT: &str = "tollgate_store_in_flight";
const STORE_CONNECTIONS: &str = "tollgate_store_connections";
const STORE_FAULTS: &str = "tollgate_store_faults_total";
const STORE_SERVERS: &str = "tollgate_store_servers";
const STORE_BREAKERS_OPEN: &str = "tollgate_store_breakers_open";
const KEY_REFUSALS: &str = "tollgate_key_refusals_total";
const BAD_REQUESTS: &str = "tollgate_bad_requests_total";
const REPORTS: &str = "tollgate_outcome_reports_total";
const BLOCKS: &str = "tollgate_blocks_total";
const REFUSALS_DROPPED: &str = "tollgate_refusal_log_dropped_total";
const REFUSALS_WAITING: &str = "tollgate_refusal_log_waiting";
const POLICY_GENERATION: &str = "tollgate_policy_generation";
const POLICY_FINGERPRINT: &str = "tollgate_policy_fingerprint";
const POLICY_RELOADS: &str = "tollgate_policy_reloads_total";
const CREDENTIAL_RELOADS: &str = "tollgate_credential_reloads_total";
const RELOAD_STUCK: &str = "tollgate_reload_stuck";
const CERTIFICATE_ENDS: &str = "tollgate_tls_certificate_expiry_timestamp_seconds";
const AUTH_FAILURES: &str = "tollgate_auth_failures_total";
const REQUESTS_REFUSED: &str = "tollgate_requests_refused_total";
const CONNECTIONS: &str = "tollgate_connections";
const CONNECTIONS_CUT: &str = "tollgate_connections_closed_total";
const BUILD_INFO: &str = "tollgate_build_info";

/// The protocols and reasons of refused requests.
const REFUSED_FOR: [(&str, &str); 8] = [
    ("http", "calls"),
    ("http", "end_user_calls"),
    ("http", "open_pages"),
    ("http", "slow_body"),
    ("http", "unread_bodies"),
    ("grpc", "slow_body"),
    ("grpc", "unread_bodies"),
    ("grpc", "streams"),
];

/// The metrics of one node. Several nodes in one process have separate metrics.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    decision_seconds: Histogram,
    store_seconds: Histogram,
    store_errors: StoreErrors,
    /// Calls to the store in progress.
    store_in_flight: Gauge,
    health: HealthMetrics,
    store_was_up: AtomicBool,
    store_connections: OnceLock<Source<StoreConnections>>,
    replayed: OnceLock<Source<ReplayStatus>>,
    failures: FailureMetrics,
    key_refusals: [Counter; 3],
    bad_requests: Counter,
    refusals_waiting: Gauge,
    accounts: AccountMetrics,
    page: Page,
}

struct StoreErrors {
    unreachable: Counter,
    indeterminate: Counter,
    overloaded: Counter,
    counter_cap_reached: Counter,
    refused: Counter,
}

/// Reads a state when the metrics are rendered.
type Source<T> = Box<dyn Fn() -> T + Send + Sync>;

/// The state of the connections to the store.
pub struct StoreConnections {
    /// The number of servers.
    pub servers: usize,
    /// The number of servers whose circuit breaker is open.
    pub breakers_open: usize,
    /// The number of open connections.
    pub connections: usize,
    /// The number of requests without a reply yet.
    pub in_flight: usize,
    /// The number of occurrences of each fault since the start, by name.
    pub faults: Vec<(&'static str, u64)>,
}

impl Metrics {
    /// The metrics of a node with this kind of store.
    pub fn new(store: &'static str) -> Result<Self, BuildError> {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_duration_seconds".to_owned()), &LATENCIES)?
            .build_recorder();
        let handle = recorder.handle();
        describe(&recorder);
        let error = |kind| counter(&recorder, STORE_ERRORS, &[("store", store), ("error", kind)]);
        let refusal = |reason| counter(&recorder, KEY_REFUSALS, &[("reason", reason)]);
        let metrics = Self {
            decision_seconds: histogram(&recorder, DECISION_SECONDS, &[]),
            store_seconds: histogram(&recorder, STORE_SECONDS, &[("store", store)]),
            store_errors: StoreErrors {
                unreachable: error("unreachable"),
                indeterminate: error("indeterminate"),
                overloaded: error("overloaded"),
                counter_cap_reached: error("counter_cap_reached"),
                refused: error("refused"),
            },
            store_in_flight: gauge(&recorder, STORE_IN_FLIGHT, &[("store", store)]),
            health: HealthMetrics::new(&recorder, store),
            store_was_up: AtomicBool::new(true),
            store_connections: OnceLock::new(),
            replayed: OnceLock::new(),
            failures: FailureMetrics::new(&recorder),
            key_refusals: [refusal("unknown"), refusal("revoked"), refusal("expired")],
            bad_requests: counter(&recorder, BAD_REQUESTS, &[]),
            refusals_waiting: gauge(&recorder, REFUSALS_WAITING, &[]),
            accounts: AccountMetrics::new(&recorder),
            page: Page::new(),
            handle,
            recorder,
        };
        gauge(&metrics.recorder, BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))]).set(1.0);
        // All series exist from the start, so that Prometheus sees the first increase.
        for result in ["success", "failure"] {
            counter(&metrics.recorder, POLICY_RELOADS, &[("result", result)]).increment(0);
            for kind in health::RELOADED.iter().filter(|kind| **kind != "policies") {
                counter(&metrics.recorder, CREDENTIAL_RELOADS, &[("kind", kind), ("result", result)]).increment(0);
            }
        }
        for (protocol, reason) in REFUSED_FOR {
            counter(&metrics.recorder, REQUESTS_REFUSED, &[("protocol", protocol), ("reason", reason)]).increment(0);
        }
        Ok(metrics)
    }

    /// The current metrics in the format of Prometheus, rendered at a limited rate.
    pub async fn page(&self) -> Bytes {
        self.page.current(|| self.render()).await
    }

    /// Renders the current metrics.
    pub fn render(&self) -> String {
        if let Some(read) = self.store_connections.get() {
            self.set_store_connections(&read());
        }
        if let Some(read) = self.replayed.get() {
            self.set_replayed(read());
        }
        self.handle.render()
    }

    /// Moves the samples of histograms into their buckets, so that their memory stays bounded even if they are never
    /// scraped.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// Records the time of a decision.
    pub fn record_latency(&self, time: Duration) {
        self.decision_seconds.record(time);
    }

    /// Counts a call that was not decided, if the call itself is invalid.
    pub fn record_call_error(&self, is_caller_error: bool) {
        if is_caller_error {
            self.bad_requests.increment(1);
        }
    }

    /// Counts a call that was refused because its key is invalid.
    pub fn count_invalid_key(&self, invalid_key: tollgate_policy::reason::InvalidKey) {
        use tollgate_policy::reason::InvalidKey;
        let [unknown, revoked, expired] = &self.key_refusals;
        match invalid_key {
            InvalidKey::Unknown => unknown,
            InvalidKey::Revoked => revoked,
            InvalidKey::Expired => expired,
        }
        .increment(1);
    }

    /// Records a call to the store. Logs when the store becomes unavailable, and when it recovers.
    pub fn record_store_reply<T>(&self, time: Duration, result: &Result<T, tollgate_core::store::StoreError>) {
        use tollgate_core::store::StoreError;
        self.store_seconds.record(time);
        let Err(error) = result else { return self.set_store_up(true, "") };
        match error {
            StoreError::Unreachable(_) => &self.store_errors.unreachable,
            StoreError::Indeterminate(_) => &self.store_errors.indeterminate,
            StoreError::Overloaded(_) => &self.store_errors.overloaded,
            StoreError::CounterCapReached(_) => &self.store_errors.counter_cap_reached,
            StoreError::Refused(_) => &self.store_errors.refused,
        }
        .increment(1);
        if !matches!(error, StoreError::Overloaded(_) | StoreError::CounterCapReached(_)) {
            self.set_store_up(false, &error.to_string());
        }
    }

    fn set_store_up(&self, up: bool, error: &str) {
        if self.store_was_up.load(Ordering::Relaxed) == up {
            return;
        }
        if self.store_was_up.swap(up, Ordering::Relaxed) != up {
            if up {
                tracing::info!("the store answers again");
            } else {
                tracing::warn!(error, "the store does not answer");
            }
        }
    }

    /// Reads the state of the connections to the store with `read` whenever the metrics are rendered.
    pub fn observe_store_connections(&self, read: impl Fn() -> StoreConnections + Send + Sync + 'static) {
        let _ = self.store_connections.set(Box::new(read));
    }

    /// Reads the results of admissions without the store with `read` whenever the metrics are rendered.
    pub fn observe_replayed(&self, read: impl Fn() -> ReplayStatus + Send + Sync + 'static) {
        let _ = self.replayed.set(Box::new(read));
    }

    fn set_store_connections(&self, state: &StoreConnections) {
        for (fault, count) in &state.faults {
            counter(&self.recorder, STORE_FAULTS, &[("fault", fault)]).absolute(*count);
        }
        let StoreConnections { servers, breakers_open, connections, in_flight, .. } = state;
        #[expect(clippy::cast_precision_loss, reason = "a handful of servers and connections, and a bounded queue")]
        for (name, number) in
            [(STORE_SERVERS, servers), (STORE_BREAKERS_OPEN, breakers_open), (STORE_CONNECTIONS, connections)]
        {
            gauge(&self.recorder, name, &[]).set(*number as f64);
        }
        #[expect(clippy::cast_precision_loss, reason = "a bounded queue")]
        self.store_in_flight.set(*in_flight as f64);
    }

    /// Counts refusals that are missing in the log.
    pub fn count_dropped_refusals(&self, reason: &'static str, number: u64) {
        counter(&self.recorder, REFUSALS_DROPPED, &[("reason", reason)]).increment(number);
    }

    /// Sets the number of queued refusals.
    pub fn set_queued_refusals(&self, number: usize) {
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        self.refusals_waiting.set(number as f64);
    }

    /// Counts a block of an address for which no domain is known.
    pub fn count_address_block(&self) {
        counter(&self.recorder, BLOCKS, &[("domain", ""), ("rule", AUTHENTICATION)]).increment(1);
    }

    /// Records that a domain's policy was loaded.
    pub fn count_policy_load(&self, domain: &str, fingerprint: u64) {
        gauge(&self.recorder, POLICY_GENERATION, &[("domain", domain)]).increment(1.0);
        #[expect(clippy::cast_precision_loss, reason = "48 bits")]
        gauge(&self.recorder, POLICY_FINGERPRINT, &[("domain", domain)]).set(fingerprint as f64);
    }

    /// Counts a reload of the policy files.
    pub fn count_policy_reload(&self, success: bool) {
        let result = if success { "success" } else { "failure" };
        counter(&self.recorder, POLICY_RELOADS, &[("result", result)]).increment(1);
        self.set_reload_failed("policies", !success);
    }

    /// Counts a reload of tokens or certificates.
    pub fn count_credential_reload(&self, kind: &'static str, success: bool) {
        let result = if success { "success" } else { "failure" };
        counter(&self.recorder, CREDENTIAL_RELOADS, &[("kind", kind), ("result", result)]).increment(1);
        self.set_reload_failed(kind, !success);
    }

    /// Sets whether a reload is stuck because a file system does not respond.
    pub fn set_reload_stuck(&self, kind: &'static str, stuck: bool) {
        gauge(&self.recorder, RELOAD_STUCK, &[("kind", kind)]).set(if stuck { 1.0 } else { 0.0 });
    }

    /// Sets when the node's certificate expires, in seconds since 1970.
    pub fn set_certificate_expiry(&self, time_s: i64) {
        #[expect(clippy::cast_precision_loss, reason = "exact for 285 million years")]
        gauge(&self.recorder, CERTIFICATE_ENDS, &[]).set(time_s as f64);
    }

    /// Counts a caller that failed to authenticate.
    pub fn count_auth_failure(&self, endpoint: &'static str, reason: &'static str) {
        counter(&self.recorder, AUTH_FAILURES, &[("endpoint", endpoint), ("reason", reason)]).increment(1);
    }

    /// Counts a request that was refused because of a bound of this node.
    pub fn count_refused_request(&self, protocol: &'static str, reason: &'static str) {
        counter(&self.recorder, REQUESTS_REFUSED, &[("protocol", protocol), ("reason", reason)]).increment(1);
    }

    /// The gauge of a listener's open connections.
    pub fn connections(&self, listener: &'static str) -> Gauge {
        gauge(&self.recorder, CONNECTIONS, &[("listener", listener)])
    }

    /// Counts a connection that the node closed or did not accept.
    pub fn count_closed_connection(&self, listener: &'static str, reason: &'static str) {
        counter(&self.recorder, CONNECTIONS_CUT, &[("listener", listener), ("reason", reason)]).increment(1);
    }
}

fn describe(recorder: &PrometheusRecorder) {
    let counter = |name: &'static str, help: &'static str| recorder.describe_counter(name.into(), None, help.into());
    let gauge = |name: &'static str, help: &'static str| recorder.describe_gauge(name.into(), None, help.into());
    let seconds = |name: &'static str, help: &'static str| {
        recorder.describe_histogram(name.into(), Some(Unit::Seconds), help.into());
    };
    counter(
        DECISIONS,
        "Decisions by domain, tier, class of the resource, verdict, and the quota or abuse rule that refused (`upload`: the upload is too large; `other`: a quota that only an override defines)",
    );
    counter(
        SHADOW_REFUSALS,
        "Calls that a shadow quota or shadow abuse rule would have refused, by its name (`other`: a quota that only an override defines)",
    );
    counter(
        RESERVATIONS,
        "Reservation calls by domain and event: reserved, settled, cancelled, extended, unknown (no such reservation)",
    );
    counter(
        UNITS_LEFT_OUT,
        "Decided calls, without checks, that named no amount of a unit that a quota of the call counts, by domain and unit",
    );
    counter(DEBT, "Usage above the reserved amount, charged at settlement, by domain and unit");
    seconds(DECISION_SECONDS, "Time from a decoded call to its decision");
    seconds(STORE_SECONDS, "Time from a call to the store to its answer");
    counter(STORE_ERRORS, "Calls that the store did not decide, by error");
    gauge(STORE_IN_FLIGHT, "Calls to the store without an answer yet");
    gauge(STORE_CONNECTIONS, "Open connections to Redis, shared by all calls");
    gauge(health::STORE_UP, "1 if the node's last probe could charge on every server of the store, else 0");
    gauge(health::ACCOUNT_STORE_UP, "1 if the node's last probe could read and change accounts, else 0");
    gauge(
        health::EVICTING,
        "1 if a Redis server evicts keys when its memory is full (maxmemory-policy is not noeviction), else 0",
    );
    gauge(health::CLOCK_SKEW, "Clock of Redis minus clock of this node, in seconds");
    gauge(health::RELOAD_FAILED, "1 if the last reload failed, so that the contents read before stay in force, else 0");
    counter(failure::DECISIONS, "Calls answered while the store was unavailable, by failure mode and verdict");
    gauge(failure::WAITING, "Admissions made while the store was unavailable that are not yet charged to it");
    counter(
        failure::REPLAYED,
        "Admissions made while the store was unavailable that were charged to it later, or dropped",
    );
    counter(STORE_FAULTS, "Errors of Redis and of the connections to it, by fault");
    gauge(STORE_SERVERS, "Redis servers that this node is connected to");
    gauge(STORE_BREAKERS_OPEN, "Redis servers whose circuit breaker is open, because they did not answer");
    counter(KEY_REFUSALS, "Calls refused because their API key is invalid, by reason");
    counter(BAD_REQUESTS, "Calls refused because the request is wrong");
    counter(REPORTS, "Reported outcomes by domain, and by whether an abuse rule counted them as failures");
    counter(BLOCKS, "Blocks started, by domain and abuse rule");
    counter(
        REFUSALS_DROPPED,
        "Refusals missing in the refusal log: the queue was full, or the store did not accept them",
    );
    gauge(REFUSALS_WAITING, "Refusals waiting to be written to the refusal log");
    gauge(POLICY_GENERATION, "Number of times that the domain's policy was loaded");
    gauge(POLICY_FINGERPRINT, "Fingerprint of the domain's policy: equal on all nodes with the same policy");
    counter(POLICY_RELOADS, "Reloads of the policy files, by result");
    counter(CREDENTIAL_RELOADS, "Reloads of the files with tokens and certificates, by kind and result");
    gauge(RELOAD_STUCK, "1 while a reload is stuck because a file system does not answer, else 0");
    counter(
        accounts::LOOKUPS,
        "Lookups of accounts, keys and secrets: in the cache (hit), in the store (miss), in the store because the cache is stale (bypass)",
    );
    counter(accounts::INVALIDATIONS, "Account changes received from the store");
    gauge(
        accounts::FEED_UP,
        "1 if the node is subscribed to account changes, else 0: then every call reads its account from the store",
    );
    counter(accounts::STORE_ERRORS, "Account lookups that the store did not answer");
    counter(
        accounts::OVERLOADED,
        "Account lookups refused: too many new accounts, or too many calls to the account store",
    );
    counter(accounts::OVERRIDES_LEFT_OUT, "Stored overrides ignored because they no longer fit the policy");
    gauge(CERTIFICATE_ENDS, "Expiry of the node's certificate, in seconds since 1970");
    counter(REQUESTS_REFUSED, "Requests refused by a resource bound of this node, by protocol and reason");
    counter(AUTH_FAILURES, "Callers that failed to authenticate, by endpoint and reason");
    gauge(CONNECTIONS, "Open connections, by listener");
    counter(CONNECTIONS_CUT, "Connections that the node closed or did not accept, by listener and reason");
    gauge(BUILD_INFO, "1, with the version of the build");
}

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> metrics::Key {
    let labels = labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned()));
    metrics::Key::from_parts(name, labels.collect::<Vec<_>>())
}

fn metadata() -> Metadata<'static> {
    Metadata::new(module_path!(), Level::INFO, None)
}

fn counter(recorder: &PrometheusRecorder, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
    recorder.register_counter(&key(name, labels), &metadata())
}

fn gauge(recorder: &PrometheusRecorder, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
    recorder.register_gauge(&key(name, labels), &metadata())
}

fn histogram(recorder: &PrometheusRecorder, name: &'static str, labels: &[(&'static str, &str)]) -> Histogram {
    recorder.register_histogram(&key(name, labels), &metadata())
}
