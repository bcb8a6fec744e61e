//! Runs a node: builds it, serves calls, and drains it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpSocket},
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tollgate_api::v1::rate_limit_service_server::RateLimitServiceServer;
use tollgate_core::store::Store;
use tollgate_service::{
    admin::Admin,
    directory::Accounts,
    metrics::{Metrics, StoreConnections},
    refusals::Refusals,
    service::{Counters, DecisionService, OutagePolicy, RetentionTimes, ServiceParts},
};
use tollgate_store::{
    accounts::{AccountStore, memory::MemoryAccounts, redis::RedisAccounts},
    clock::{Clock, SystemClock},
    failure::Fallback,
    memory::MemoryStore,
    redis::{RedisClient, RedisClientStatus, RedisConfig, RedisStore},
    refusals::{RefusalLog, memory::MemoryRefusals, redis::RedisRefusals},
};
use tonic::server::NamedService;
use tonic_health::ServingStatus;

pub use crate::error::RunError;
use crate::{
    auth::Authenticator,
    grpc,
    lifecycle::Lifecycle,
    policies::{PolicyFiles, Source},
    probe::{Probe, ProbeTarget},
    reload::{FileWatcher, Reload},
    rest,
    serve::Servers,
    settings::{Settings, StoreSettings},
    workers::Workers,
};

/// The size of the system's send buffer of a connection, in bytes; Linux doubles it for its own use (tcp(7),
/// socket(7)).
const SEND_BUFFER_BYTES: u32 = 128 << 10;
/// The maximum number of connections that wait to be accepted.
const BACKLOG: u32 = 1_024;
/// The maximum time for writing queued data when the node stops.
const FINAL_WRITE_TIMEOUT: Duration = Duration::from_secs(3);
/// The interval of probes of the stores, for `/readyz`, gRPC health and the metrics.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// The interval of attempts to charge the store for admissions during an outage.
const REPLAY_INTERVAL: Duration = Duration::from_millis(200);
/// The interval of cleanups.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(5);

/// The maximum number of accounts whose refusals are kept in memory.
const MAX_LOGGED_ACCOUNTS: usize = 10_000;

/// The listeners of a node.
pub struct Listeners {
    /// For REST.
    pub http: TcpListener,
    /// For gRPC.
    pub grpc: TcpListener,
    /// For health and metrics, if they have their own listener.
    pub ops: Option<TcpListener>,
}

impl Listeners {
    /// Listens at the addresses of the settings.
    pub fn bind(settings: &Settings) -> Result<Self, RunError> {
        let bind = |name, address| listen(address).map_err(|error| RunError::Listen { name, address, error });
        Ok(Self {
            http: bind("http-listen", settings.http_listen)?,
            grpc: bind("grpc-listen", settings.grpc_listen)?,
            ops: match settings.ops_listen {
                Some(address) => Some(bind("ops-listen", address)?),
                None => None,
            },
        })
    }
}

/// Listens at an address.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // As in the standard library, so that a node can start just after another one has stopped.
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit this size, and the system does not increase it; otherwise it would buffer megabytes
    // for a client that reads nothing.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The stores and the clock of a node.
pub struct Backend {
    /// Keeps the counters.
    pub store: Arc<dyn Store>,
    /// Keeps accounts and keys.
    pub accounts: Arc<dyn AccountStore>,
    /// Keeps the last refusals.
    pub refusals: Arc<dyn RefusalLog>,
    /// Predicts the current calendar period, and tells whether a key has expired.
    pub clock: Arc<dyn Clock>,
    /// For the metrics: `memory` or `redis`.
    pub kind: &'static str,
    client: Option<RedisClient>,
    fallback: Option<Arc<Fallback>>,
    sweep: Option<Box<dyn Fn() + Send + Sync>>,
    workers: Workers,
    /// Whether accounts are in another Redis than counters.
    has_own_account_store: bool,
}

impl Backend {
    /// The backend of the settings. Does not wait for Redis.
    pub fn from_settings(settings: &Settings) -> Result<Self, RunError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let workers = Workers::start(settings.threads).map_err(RunError::Threads)?;
        let open =
            |config: &RedisConfig| RedisClient::open(RedisConfig { runtimes: workers.handles(), ..config.clone() });
        let accounts_client = settings.accounts.redis.as_deref().map(open).transpose()?;
        let has_own_account_store = accounts_client.is_some();
        let accounts = |client: Option<RedisClient>| -> Arc<dyn AccountStore> {
            match accounts_client.or(client) {
                Some(client) => Arc::new(RedisAccounts::on(client)),
                None => Arc::new(MemoryAccounts::new(settings.accounts.max_in_memory)),
            }
        };
        match &settings.store {
            StoreSettings::Memory { max_scopes, max_caller_named } => {
                let store = MemoryStore::new(SystemClock, *max_scopes).with_max_caller_named(*max_caller_named);
                let store = Arc::new(store);
                let sweep = Box::new({
                    let store = Arc::clone(&store);
                    move || store.sweep()
                });
                let (accounts, refusals) = (accounts(None), memory_refusals());
                Ok(Self {
                    store,
                    accounts,
                    refusals,
                    clock,
                    kind: "memory",
                    client: None,
                    fallback: None,
                    sweep: Some(sweep),
                    workers,
                    has_own_account_store,
                })
            }
            StoreSettings::Redis(config) => {
                let client = open(config)?;
                let store = Arc::new(RedisStore::on(client.clone()));
                let accounts = accounts(Some(client.clone()));
                let refusals = Arc::new(RedisRefusals::on(client.clone()));
                let nodes = settings.node_count;
                let fallback = Fallback::new(Arc::clone(&clock), nodes, settings.local_max_scopes);
                let fallback = Arc::new(fallback.with_max_caller_named(config.max_caller_named));
                let sweep = Box::new({
                    let fallback = Arc::clone(&fallback);
                    move || fallback.sweep()
                });
                let (kind, client, fallback, sweep) = ("redis", Some(client), Some(fallback), Some(sweep as _));
                Ok(Self {
                    store,
                    accounts,
                    refusals,
                    clock,
                    kind,
                    client,
                    fallback,
                    sweep,
                    workers,
                    has_own_account_store,
                })
            }
        }
    }

    /// A backend for tests, with accounts and refusals in memory.
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, kind: &'static str) -> Result<Self, RunError> {
        let accounts = Arc::new(MemoryAccounts::new(100_000));
        let (refusals, workers) = (memory_refusals(), Workers::start(1).map_err(RunError::Threads)?);
        let (client, fallback, sweep, has_own_account_store) = (None, None, None, false);
        Ok(Self { store, accounts, refusals, clock, kind, client, fallback, sweep, workers, has_own_account_store })
    }
}

impl Backend {
    fn observe(&self, metrics: &Metrics) {
        if let Some(client) = &self.client {
            let client = client.clone();
            metrics.observe_store_connections(move || store_connections(&client));
        }
        if let Some(fallback) = &self.fallback {
            let fallback = Arc::clone(fallback);
            metrics.observe_replayed(move || fallback.replayed());
        }
    }

    /// The probes of the store of counters, and of the store of accounts if it is another store.
    fn probes(&self, metrics: &Arc<Metrics>) -> (Probe, Option<Probe>) {
        let probe = |target| Probe::new(target, Arc::clone(metrics));
        let (store, has_own_account_store) = (Arc::clone(&self.store), self.has_own_account_store);
        let accounts = has_own_account_store.then(|| probe(ProbeTarget::Accounts(Arc::clone(&self.accounts))));
        (probe(ProbeTarget::Counters { store, with_accounts: !has_own_account_store }), accounts)
    }
}

/// The state of the connections to Redis.
fn store_connections(client: &RedisClient) -> StoreConnections {
    let RedisClientStatus { servers, resting, connections, faults } = client.status();
    let faults = faults.into_iter().map(|(fault, count)| (fault.name(), count)).collect();
    StoreConnections { servers, breakers_open: resting, connections, in_flight: client.in_flight(), faults }
}

fn memory_refusals() -> Arc<dyn RefusalLog> {
    Arc::new(MemoryRefusals::new(MAX_LOGGED_ACCOUNTS))
}

/// Runs a node on `listeners` until `shutdown` ends, then drains it within the timeout. `serving` is called when its
/// policies and credentials are loaded and it accepts calls.
pub async fn run(
    settings: Settings,
    backend: Backend,
    listeners: Listeners,
    serving: impl FnOnce(),
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let metrics = Arc::new(Metrics::new(backend.kind)?);
    backend.observe(&metrics);
    let (counters_probe, accounts_probe) = backend.probes(&metrics);
    let embedded = settings.policy.is_empty() && matches!(settings.store, StoreSettings::Memory { .. });
    let source = if settings.policy.is_empty() { Source::Embedded } else { Source::Paths(settings.policy.clone()) };
    let mut background = JoinSet::new();
    // Before the files are read, so that no hangup is missed.
    let hangups = watch_hangups(&mut background)?;
    let auth = Authenticator::new(settings.auth.clone(), Arc::clone(&backend.clock), &metrics);
    let auth = Arc::new(auth.map_err(RunError::Credentials)?);
    let policies = PolicyFiles::load(source, embedded, Arc::clone(&metrics))
        .map_err(|errors| RunError::Policies(crate::policies::failure(&errors).text))?;
    let policies = Arc::new(policies);
    let accounts =
        Arc::new(Accounts::new(Arc::clone(&backend.accounts), settings.accounts.cache, Arc::clone(&metrics)));
    let refusals = Arc::new(Refusals::new(backend.refusals, Arc::clone(&metrics)));
    let service = Arc::new(DecisionService::new(ServiceParts {
        domains: Arc::clone(policies.domains()),
        counters: Counters::new(Arc::clone(&backend.store), Arc::clone(&metrics)),
        accounts: Arc::clone(&accounts),
        clock: Arc::clone(&backend.clock),
        metrics: Arc::clone(&metrics),
        refusals: Arc::clone(&refusals),
        outage: OutagePolicy { store_timeout: store_timeout(&settings), fallback: backend.fallback.clone() },
        retention: RetentionTimes {
            reservation_ms: settings.reservation_ttl_ms,
            request_id_ms: settings.request_id_ttl_ms,
        },
    }));
    let (store, fallback) = (Arc::clone(&backend.store), backend.fallback.clone());
    let (domains, cache) = (Arc::clone(policies.domains()), Arc::clone(&accounts));
    let admin = Arc::new(Admin::new(domains, backend.accounts, Arc::clone(&store), cache, backend.clock));
    let (lifecycle, stage) = watch::channel(Lifecycle::Running);
    let health = Arc::new(rest::Health {
        counters: counters_probe,
        accounts: accounts_probe,
        policies: Arc::clone(&policies),
        has_fallback: fallback.is_some(),
        auth: Arc::clone(&auth),
        metrics: Arc::clone(&metrics),
        stage: stage.clone(),
    });
    tracing::info!(store = backend.kind, domains = ?policies.domains().load().names(), "node starts");

    let (reporter, health_service) = tonic_health::server::health_reporter();
    // Before calls arrive, so that a client that gets a response knows that the node watches its files.
    watch_files(&mut background, &policies, &auth, &hangups);
    // Before calls arrive, so that the accounts that they read are cached.
    let (changes, ()) = tokio::join!(accounts.subscribe(), health.probe());
    background.spawn(accounts.run_invalidation(changes));
    background.spawn(Arc::clone(&refusals).run_writer());
    if let Some(fallback) = fallback.clone() {
        background.spawn(replay(fallback, Arc::clone(&store)));
    }
    background.spawn(report_health(Arc::clone(&health), reporter));
    background.spawn(clean_up(Arc::clone(&metrics), Arc::clone(&auth), backend.sweep));

    let (drain_delay, drain_timeout) = (settings.drain_delay, settings.drain_timeout);
    let workers = backend.workers;
    let (connections, servers_stage) = (Arc::default(), stage.clone());
    let server_builder =
        Servers { settings, service, admin, auth, health, metrics, stage: servers_stage, workers, connections };
    let mut servers = JoinSet::new();
    servers.spawn(server_builder.grpc(listeners.grpc, health_service)?.serve(stage.clone()));
    servers.spawn(server_builder.rest(listeners.http)?.serve(stage));
    // The listener for operators stops last, so that they can observe the draining.
    let (_running, never) = watch::channel(Lifecycle::Running);
    if let Some(ops) = listeners.ops {
        background.spawn(server_builder.ops(ops)?.serve(never));
    }
    serving();

    let failed_server = tokio::select! {
        () = shutdown => None,
        result = servers.join_next() => Some(result),
    };
    if failed_server.is_none() {
        tracing::info!(delay = ?drain_delay, "node drains");
        let _ = lifecycle.send(Lifecycle::Draining);
        // In this time, clients that watch the health of the node move to other nodes.
        tokio::time::sleep(drain_delay).await;
    }
    let _ = lifecycle.send(Lifecycle::Stopping);
    let drained = tokio::time::timeout(drain_timeout, async {
        let mut result = failed_server.flatten().map_or(Ok(()), flatten);
        while let Some(server_result) = servers.join_next().await {
            result = result.and(flatten(server_result));
        }
        result
    });
    let result = drained.await.unwrap_or_else(|_| {
        tracing::warn!(timeout = ?drain_timeout, "calls that have not finished are dropped");
        Ok(())
    });
    // Even if a server failed, queued data must not be lost.
    write_queued_data(&refusals, fallback.as_deref(), &*store).await;
    tracing::info!("node stopped");
    result
}

/// Writes queued refusals, and charges the store for admissions during an outage.
async fn write_queued_data(refusals: &Refusals, fallback: Option<&Fallback>, store: &dyn Store) {
    let writes = async {
        refusals.flush().await;
        if let Some(fallback) = fallback {
            fallback.replay(store).await;
        }
    };
    if tokio::time::timeout(FINAL_WRITE_TIMEOUT, writes).await.is_err() {
        tracing::warn!(timeout = ?FINAL_WRITE_TIMEOUT, "queued refusals or charges are lost");
    }
}

/// Receives every SIGHUP from now on.
fn watch_hangups(background: &mut JoinSet<()>) -> Result<watch::Receiver<()>, RunError> {
    let mut hangup = signal(SignalKind::hangup()).map_err(|error| RunError::Serve(format!("signals: {error}")))?;
    let (sender, hangups) = watch::channel(());
    background.spawn(async move {
        while let Some(()) = hangup.recv().await {
            let _ = sender.send(());
        }
    });
    Ok(hangups)
}

/// Reloads files when they change, and on each of `hangups`.
fn watch_files(
    background: &mut JoinSet<()>,
    policies: &Arc<PolicyFiles>,
    auth: &Arc<Authenticator>,
    hangups: &watch::Receiver<()>,
) {
    let after: Arc<dyn Fn() + Send + Sync> = Arc::new({
        let (auth, policies) = (Arc::clone(auth), Arc::clone(policies));
        move || auth.warn_of_unknown_domains(&policies.domains().load().names())
    });
    after();
    let policies = Arc::clone(policies) as Arc<dyn Reload>;
    for part in std::iter::once(policies).chain(auth.reloadable_files()) {
        background.spawn(FileWatcher::new(part, Arc::clone(&after)).run(hangups.clone()));
    }
}

fn flatten(result: Result<(), tokio::task::JoinError>) -> Result<(), RunError> {
    result.map_err(|error| RunError::Serve(error.to_string()))
}

/// The maximum time that a call waits for the stores of accounts and counters in total. A little longer than the
/// deadline of one store, so that the store's deadline takes effect first.
fn store_timeout(settings: &Settings) -> Duration {
    match &settings.store {
        StoreSettings::Memory { .. } => settings.call_timeout,
        StoreSettings::Redis(config) => config.deadline + Duration::from_millis(10),
    }
}

/// Charges the store for admissions during an outage, as soon as it recovers.
async fn replay(fallback: Arc<Fallback>, store: Arc<dyn Store>) {
    let mut ticks = tokio::time::interval(REPLAY_INTERVAL);
    loop {
        ticks.tick().await;
        fallback.replay(&*store).await;
    }
}

/// Probes the stores, and sets the status of the gRPC health service.
async fn report_health(health: Arc<rest::Health>, reporter: tonic_health::server::HealthReporter) {
    let (mut ticks, mut is_draining, mut last_status) = (tokio::time::interval(PROBE_INTERVAL), false, None);
    loop {
        let probe = async {
            ticks.tick().await;
            health.probe().await;
        };
        tokio::select! {
            () = probe => {}
            // Draining is reported at once.
            () = Lifecycle::Draining.reached(health.stage.clone()), if !is_draining => is_draining = true,
        }
        let ready = !is_draining && health.can_decide();
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        // Only changes are reported to watchers.
        if last_status.replace(status) == Some(status) {
            continue;
        }
        // The empty name stands for the whole node.
        for service in ["", RateLimitServiceServer::<grpc::Api>::NAME] {
            reporter.set_service_status(service, status).await;
        }
    }
}

async fn clean_up(metrics: Arc<Metrics>, auth: Arc<Authenticator>, sweep: Option<Box<dyn Fn() + Send + Sync>>) {
    let mut ticks = tokio::time::interval(CLEANUP_INTERVAL);
    loop {
        ticks.tick().await;
        metrics.upkeep();
        auth.sweep();
        if let Some(sweep) = &sweep {
            sweep();
        }
    }
}
