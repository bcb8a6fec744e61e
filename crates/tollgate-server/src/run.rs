//! A node's life: built, served, drained.

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

/// The system's buffer for unread answers on a connection, in bytes; Linux doubles it for its own use (tcp(7),
/// socket(7)).
const SEND_BUFFER_BYTES: u32 = 128 << 10;
/// Connections that wait to be taken in.
const BACKLOG: u32 = 1_024;
/// How long a stopping node may take to write waiting data.
const LAST_WRITES: Duration = Duration::from_secs(3);
/// How often the stores are probed for `/readyz`, the health service and the metrics.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// How often the node tries to charge the store for admissions made without it.
const REPLAY_EVERY: Duration = Duration::from_millis(200);
/// How often an idle node tidies up.
const TIDY_EVERY: Duration = Duration::from_secs(5);

/// So many accounts have their refusals kept in memory.
const MAX_LOGGED_ACCOUNTS: usize = 10_000;

/// Where a node listens.
pub struct Listeners {
    /// For REST.
    pub http: TcpListener,
    /// For gRPC.
    pub grpc: TcpListener,
    /// For health and metrics, if not beside REST.
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
    // As the standard library does, so that a node may start where one has just stopped.
    socket.set_reuseaddr(true)?;
    // Its connections have this from it, and the system then lets none grow it: a client that reads nothing could make
    // it keep megabytes.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A store and the clock of the node beside it. Tests bring their own.
pub struct Backend {
    /// Keeps the counters.
    pub store: Arc<dyn Store>,
    /// Keeps accounts and keys.
    pub accounts: Arc<dyn AccountStore>,
    /// Keeps the last refusals.
    pub refusals: Arc<dyn RefusalLog>,
    /// Tells the node which calendar period it probably is, and whether a key has ended.
    pub clock: Arc<dyn Clock>,
    /// For the metrics: `memory` or `redis`.
    pub kind: &'static str,
    link: Option<RedisClient>,
    fallback: Option<Arc<Fallback>>,
    sweep: Option<Box<dyn Fn() + Send + Sync>>,
    workers: Workers,
    /// Whether accounts are in a Redis of their own.
    accounts_apart: bool,
}

impl Backend {
    /// The backend the settings ask for. Does not wait for Redis.
    pub fn of(settings: &Settings) -> Result<Self, RunError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let workers = Workers::start(settings.threads).map_err(RunError::Threads)?;
        let open =
            |config: &RedisConfig| RedisClient::open(RedisConfig { runtimes: workers.handles(), ..config.clone() });
        let elsewhere = settings.accounts.redis.as_deref().map(open).transpose()?;
        let accounts_apart = elsewhere.is_some();
        let accounts = |link: Option<RedisClient>| -> Arc<dyn AccountStore> {
            match elsewhere.or(link) {
                Some(link) => Arc::new(RedisAccounts::on(link)),
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
                let (accounts, refusals) = (accounts(None), in_memory());
                Ok(Self {
                    store,
                    accounts,
                    refusals,
                    clock,
                    kind: "memory",
                    link: None,
                    fallback: None,
                    sweep: Some(sweep),
                    workers,
                    accounts_apart,
                })
            }
            StoreSettings::Redis(config) => {
                let link = open(config)?;
                let store = Arc::new(RedisStore::on(link.clone()));
                let accounts = accounts(Some(link.clone()));
                let refusals = Arc::new(RedisRefusals::on(link.clone()));
                let nodes = settings.node_count;
                let fallback = Fallback::new(Arc::clone(&clock), nodes, settings.local_max_scopes);
                let fallback = Arc::new(fallback.with_max_caller_named(config.max_caller_named));
                let sweep = Box::new({
                    let fallback = Arc::clone(&fallback);
                    move || fallback.sweep()
                });
                let (kind, link, fallback, sweep) = ("redis", Some(link), Some(fallback), Some(sweep as _));
                Ok(Self { store, accounts, refusals, clock, kind, link, fallback, sweep, workers, accounts_apart })
            }
        }
    }

    /// A store and a clock of a test's own, with accounts and refusals in memory.
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, kind: &'static str) -> Result<Self, RunError> {
        let accounts = Arc::new(MemoryAccounts::new(100_000));
        let (refusals, workers) = (in_memory(), Workers::start(1).map_err(RunError::Threads)?);
        let (link, fallback, sweep, accounts_apart) = (None, None, None, false);
        Ok(Self { store, accounts, refusals, clock, kind, link, fallback, sweep, workers, accounts_apart })
    }
}

impl Backend {
    fn let_measure(&self, metrics: &Metrics) {
        if let Some(link) = &self.link {
            let link = link.clone();
            metrics.observe_store_connections(move || connections_of(&link));
        }
        if let Some(fallback) = &self.fallback {
            let fallback = Arc::clone(fallback);
            metrics.observe_replayed(move || fallback.replayed());
        }
    }

    /// The probes of the store of counters, and of the store of accounts if it is another one.
    fn probes(&self, metrics: &Arc<Metrics>) -> (Probe, Option<Probe>) {
        let probe = |probed| Probe::new(probed, Arc::clone(metrics));
        let (store, apart) = (Arc::clone(&self.store), self.accounts_apart);
        let accounts = apart.then(|| probe(ProbeTarget::Accounts(Arc::clone(&self.accounts))));
        (probe(ProbeTarget::Counters { store, with_accounts: !apart }), accounts)
    }
}

/// The state of the connections to Redis.
fn connections_of(link: &RedisClient) -> StoreConnections {
    let RedisClientStatus { servers, resting, connections, faults } = link.status();
    let faults = faults.into_iter().map(|(fault, met)| (fault.name(), met)).collect();
    StoreConnections { servers, breakers_open: resting, connections, in_flight: link.in_flight(), faults }
}

fn in_memory() -> Arc<dyn RefusalLog> {
    Arc::new(MemoryRefusals::new(MAX_LOGGED_ACCOUNTS))
}

/// Runs a node on `listeners` until `shutdown` ends, then drains it within the settings' bound. `serving` is called
/// once its policies and credentials are read and calls are taken in.
pub async fn run(
    settings: Settings,
    backend: Backend,
    listeners: Listeners,
    serving: impl FnOnce(),
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let metrics = Arc::new(Metrics::new(backend.kind)?);
    backend.let_measure(&metrics);
    let (counters, apart) = backend.probes(&metrics);
    let embedded = settings.policy.is_empty() && matches!(settings.store, StoreSettings::Memory { .. });
    let source = if settings.policy.is_empty() { Source::Embedded } else { Source::Paths(settings.policy.clone()) };
    let mut background = JoinSet::new();
    // Before the files are read, so that no hangup between the two is missed.
    let hung_up = hangups(&mut background)?;
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
    let (clock, known) = (Arc::clone(&backend.clock), Arc::clone(&accounts));
    let (store, fallback) = (Arc::clone(&backend.store), backend.fallback.clone());
    let admin =
        Arc::new(Admin::new(Arc::clone(policies.domains()), backend.accounts, Arc::clone(&store), known, clock));
    let (to, stage) = watch::channel(Lifecycle::Running);
    let health = Arc::new(rest::Health {
        counters,
        accounts: apart,
        policies: Arc::clone(&policies),
        has_fallback: fallback.is_some(),
        auth: Arc::clone(&auth),
        metrics: Arc::clone(&metrics),
        stage: stage.clone(),
    });
    tracing::info!(store = backend.kind, domains = ?policies.domains().load().names(), "node starts");

    let (reporter, health_service) = tonic_health::server::health_reporter();
    // Before calls arrive, so that a client that gets an answer may rely on the node seeing changes.
    watch_files(&mut background, &policies, &auth, &hung_up);
    // Before calls arrive, so that accounts that they read are cached.
    let (changes, ()) = tokio::join!(accounts.subscribe(), health.probe());
    background.spawn(accounts.run_invalidation(changes));
    background.spawn(Arc::clone(&refusals).run_writer());
    if let Some(fallback) = fallback.clone() {
        background.spawn(replay(fallback, Arc::clone(&store)));
    }
    background.spawn(report_health(Arc::clone(&health), reporter));
    background.spawn(tidy(Arc::clone(&metrics), Arc::clone(&auth), backend.sweep));

    let (drain_delay, drain_timeout) = (settings.drain_delay, settings.drain_timeout);
    let workers = backend.workers;
    let (connections, stage_of) = (Arc::default(), stage.clone());
    let servers_of = Servers { settings, service, admin, auth, health, metrics, stage: stage_of, workers, connections };
    let mut servers = JoinSet::new();
    servers.spawn(servers_of.grpc(listeners.grpc, health_service)?.serve(stage.clone()));
    servers.spawn(servers_of.rest(listeners.http)?.serve(stage));
    // Operators can watch the node drain: their listener ends last.
    let (_running, never) = watch::channel(Lifecycle::Running);
    if let Some(ops) = listeners.ops {
        background.spawn(servers_of.ops(ops)?.serve(never));
    }
    serving();

    let early = tokio::select! {
        () = shutdown => None,
        ended = servers.join_next() => Some(ended),
    };
    if early.is_none() {
        tracing::info!(delay = ?drain_delay, "node drains");
        let _ = to.send(Lifecycle::Draining);
        // By then, clients that watch its health send calls to other nodes.
        tokio::time::sleep(drain_delay).await;
    }
    let _ = to.send(Lifecycle::Stopping);
    let drained = tokio::time::timeout(drain_timeout, async {
        let mut result = early.flatten().map_or(Ok(()), flatten);
        while let Some(ended) = servers.join_next().await {
            result = result.and(flatten(ended));
        }
        result
    });
    let result = drained.await.unwrap_or_else(|_| {
        tracing::warn!(timeout = ?drain_timeout, "calls that have not finished are dropped");
        Ok(())
    });
    // Independent of the calls' results: waiting data must not be lost.
    let written = async {
        refusals.flush().await;
        if let Some(fallback) = &fallback {
            fallback.replay(&*store).await;
        }
    };
    if tokio::time::timeout(LAST_WRITES, written).await.is_err() {
        tracing::warn!(timeout = ?LAST_WRITES, "queued refusals or charges are lost");
    }
    tracing::info!("node stopped");
    result
}

/// Tells of every SIGHUP from now on.
fn hangups(background: &mut JoinSet<()>) -> Result<watch::Receiver<()>, RunError> {
    let mut hangup = signal(SignalKind::hangup()).map_err(|error| RunError::Serve(format!("signals: {error}")))?;
    let (hangups, hung_up) = watch::channel(());
    background.spawn(async move {
        while let Some(()) = hangup.recv().await {
            let _ = hangups.send(());
        }
    });
    Ok(hung_up)
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

fn flatten(ended: Result<(), tokio::task::JoinError>) -> Result<(), RunError> {
    ended.map_err(|error| RunError::Serve(error.to_string()))
}

/// How long a call waits for accounts and counters in all. A little longer than one of them may take, so that each
/// ends by its own bound.
fn store_timeout(settings: &Settings) -> Duration {
    match &settings.store {
        StoreSettings::Memory { .. } => settings.call_timeout,
        StoreSettings::Redis(config) => config.deadline + Duration::from_millis(10),
    }
}

/// Charges the store for admissions made without it, as soon as it answers.
async fn replay(fallback: Arc<Fallback>, store: Arc<dyn Store>) {
    let mut ticks = tokio::time::interval(REPLAY_EVERY);
    loop {
        ticks.tick().await;
        fallback.replay(&*store).await;
    }
}

/// Probes the stores, and keeps the gRPC health service in step with them and the lifecycle.
async fn report_health(health: Arc<rest::Health>, reporter: tonic_health::server::HealthReporter) {
    let (mut ticks, mut is_draining, mut last_status) = (tokio::time::interval(PROBE_EVERY), false, None);
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
        // Watchers receive only changes.
        if last_status.replace(status) == Some(status) {
            continue;
        }
        // The empty name means the node as a whole.
        for service in ["", RateLimitServiceServer::<grpc::Api>::NAME] {
            reporter.set_service_status(service, status).await;
        }
    }
}

async fn tidy(metrics: Arc<Metrics>, auth: Arc<Authenticator>, sweep: Option<Box<dyn Fn() + Send + Sync>>) {
    let mut ticks = tokio::time::interval(TIDY_EVERY);
    loop {
        ticks.tick().await;
        metrics.upkeep();
        auth.sweep();
        if let Some(sweep) = &sweep {
            sweep();
        }
    }
}
