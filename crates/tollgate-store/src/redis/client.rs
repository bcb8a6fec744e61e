//! The client of Redis: it finds the master, shares a few connections among all calls, and bounds their time and
//! number.

mod cluster;
mod dial;
mod facts;
mod fault;
mod masters;
mod node;
mod probe;
mod sentinel;
mod target;
mod unreadable;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{Arg, Cmd, Value, aio::PubSub};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, sleep, timeout_at},
};
use tollgate_core::store::StoreError;

use self::{
    cluster::Cluster, facts::Probe, fault::Remedy, node::Node, sentinel::Sentinels, target::Target,
    unreadable::UnreadableLog,
};
pub(super) use self::{dial::Dialer, fault::Failure, masters::masters, node::preferred_runtime};
pub use self::{fault::Fault, node::prefer_connection, target::RedisTls};

/// So many times one request follows a redirection or tries again; each time the server ran nothing.
const MOST_HOPS: usize = 5;
/// How long a request waits before it tries a slot on the move again.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(5);

/// The address of Redis, and the bounds. Without `Debug`, because it may contain passwords and keys.
#[derive(Clone)]
pub struct RedisConfig {
    /// `redis://[user:password@]host[:port][/db]`, `rediss://…` (TLS), `unix:///path`,
    /// `redis+sentinel://[user:password@]host[:port][,host…]/service[/db]`,
    /// `redis+cluster://[user:password@]host[:port][,host…]`, and `rediss+…` for TLS.
    pub url: String,
    /// The user, if the URL does not name it.
    pub user: Option<String>,
    /// The password, if the URL does not hold it.
    pub password: Option<String>,
    /// The user at the sentinels.
    pub sentinel_user: Option<String>,
    /// The password at the sentinels.
    pub sentinel_password: Option<String>,
    /// Certificates for TLS; without them the system's authorities are trusted.
    pub tls: Option<RedisTls>,
    /// The prefix of every key, so that several deployments can share a server.
    pub key_prefix: String,
    /// How many connections to each server the calls of this node share. Each carries any number of calls
    /// at once, in pipelines.
    pub connections: usize,
    /// The runtimes that connections live on, in turn; without any, the one that opens the link.
    pub runtimes: Vec<Handle>,
    /// How long a call may take in all, waiting included.
    pub deadline: Duration,
    /// How many calls may be under way at once; one more is refused at once.
    pub max_in_flight: usize,
    /// How many caller-named ledgers a partition may have.
    pub max_caller_named: u32,
    /// The number of replicas that must have a call's writes before it is answered; 0 for none.
    pub wait_replicas: usize,
    /// How long a call waits for them.
    pub wait: Duration,
}

impl RedisConfig {
    /// The default of [`Self::key_prefix`].
    pub const KEY_PREFIX: &str = "tg";
    /// The default of [`Self::deadline`], in milliseconds.
    pub const DEADLINE_MS: u64 = 250;
    /// The default of [`Self::max_in_flight`].
    pub const MAX_IN_FLIGHT: usize = 8_192;
    /// The default of [`Self::wait_replicas`].
    pub const WAIT_REPLICAS: usize = 0;
    /// The default of [`Self::wait`], in milliseconds.
    pub const WAIT_MS: u64 = 100;

    /// The usual settings for the server at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            user: None,
            password: None,
            sentinel_user: None,
            sentinel_password: None,
            tls: None,
            key_prefix: Self::KEY_PREFIX.into(),
            connections: 1,
            runtimes: Vec::new(),
            deadline: Duration::from_millis(Self::DEADLINE_MS),
            max_in_flight: Self::MAX_IN_FLIGHT,
            max_caller_named: tollgate_core::ledger::MAX_CALLER_NAMED,
            wait_replicas: Self::WAIT_REPLICAS,
            wait: Duration::from_millis(Self::WAIT_MS),
        }
    }
}

impl RedisConfig {
    /// Whether the URL and its options are valid.
    ///
    /// # Errors
    /// The mistake, without text that may be a password.
    pub fn check(&self) -> Result<(), String> {
        Target::of(self).and_then(|_| Dialer::of(self)).map(drop).map_err(|error| match error {
            StoreError::Refused(what) => what,
            other => other.to_string(),
        })
    }
}

/// Whether a command's writes must be on replicas before it is answered, if the configuration requires that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// A charge.
    Charge,
    /// Nothing of the kind.
    Nothing,
}

/// A script and its SHA-1, by which Redis knows it.
pub(crate) struct Script {
    code: String,
    sha: String,
}

impl Script {
    pub(crate) fn new(code: String) -> Self {
        let sha = redis::Script::new(&code).get_hash().to_owned();
        Self { code, sha }
    }

    /// The text.
    #[cfg(feature = "testing")]
    pub(crate) fn code(&self) -> &str {
        &self.code
    }
}

/// The client of one Redis, Sentinel group or Redis Cluster. Concurrent calls share pipelines on a few connections,
/// which reconnect by themselves, with a breaker for each server. Nothing is sent twice except commands that the server
/// says it did not run: an unknown script, a redirection, a slot that is being moved. Clones share everything.
///
/// Every answer or error comes within the deadline.
#[derive(Clone)]
pub struct RedisClient(Arc<Shared>);

struct Shared {
    route: Route,
    in_flight: Semaphore,
    faults: [AtomicU64; Fault::ALL.len()],
    unreadable: UnreadableLog,
    probe: Probe,
    dialer: Dialer,
    config: RedisConfig,
}

/// The current server or servers.
enum Route {
    Single(Arc<Node>),
    Sentinel(Sentinels),
    Cluster(Cluster),
}

/// The state of a client, for metrics.
#[derive(Clone, Debug)]
pub struct RedisClientStatus {
    /// How often each fault was met since the start.
    pub faults: Vec<(Fault, u64)>,
    /// How many servers the link talks to.
    pub servers: usize,
    /// The number of them whose breaker is open.
    pub resting: usize,
    /// How many connections to them are up.
    pub connections: usize,
}

impl RedisClient {
    /// The way to `config.url`. Does not wait for the server: it need not be there yet.
    ///
    /// Must be called within a Tokio runtime.
    pub fn open(config: RedisConfig) -> Result<Self, StoreError> {
        let (deadline, bounds) = (config.deadline, config.clone());
        let target = Target::of(&config)?;
        let in_cluster = matches!(target, Target::Cluster(_));
        let dialer = Dialer::of(&config)?;
        let of_nodes = dialer.clone();
        let connect = move |info| Node::new(info, &bounds, &of_nodes, in_cluster);
        let route = match target {
            Target::Single(info) => Route::Single(connect(info)),
            Target::Sentinel { sentinels, service, master } => {
                let certificates = target::certificates(config.tls.as_ref());
                Route::Sentinel(Sentinels::follow(sentinels, &service, &master, certificates, connect)?)
            }
            Target::Cluster(seeds) => Route::Cluster(Cluster::follow(seeds, deadline, dialer.clone(), connect)),
        };
        let in_flight = Semaphore::new(config.max_in_flight);
        let faults = [const { AtomicU64::new(0) }; Fault::ALL.len()];
        let (unreadable, probe) = (UnreadableLog::new(), Probe::new());
        Ok(Self(Arc::new(Shared { route, in_flight, faults, unreadable, probe, dialer, config })))
    }

    /// The prefix of every key.
    pub(crate) fn key_prefix(&self) -> &str {
        &self.0.config.key_prefix
    }

    /// How many caller-named ledgers a partition may have.
    pub(crate) fn max_caller_named(&self) -> u32 {
        self.0.config.max_caller_named
    }

    /// Whether keys live in slots, so that one script reaches only those of one hash tag.
    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self.0.route, Route::Cluster(_))
    }

    /// By when a call that comes now must have its answer.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.0.config.deadline
    }

    /// How many calls are under way.
    pub fn in_flight(&self) -> usize {
        self.0.config.max_in_flight - self.0.in_flight.available_permits()
    }

    /// The state of the client.
    pub fn status(&self) -> RedisClientStatus {
        let nodes = self.0.nodes();
        RedisClientStatus {
            faults: Fault::ALL.into_iter().zip(self.0.faults.iter().map(|met| met.load(Ordering::Relaxed))).collect(),
            servers: nodes.len(),
            resting: nodes.iter().filter(|node| node.is_resting()).count(),
            connections: nodes.iter().map(|node| node.connections()).sum(),
        }
    }

    /// The most calls that may be under way.
    pub(super) fn max_in_flight(&self) -> usize {
        self.0.config.max_in_flight
    }

    /// The runtimes that connections live on; none if that is the one that opened the link.
    pub(super) fn runtimes(&self) -> &[Handle] {
        &self.0.config.runtimes
    }

    /// A place among the calls under way.
    pub(super) fn acquire_permit(&self) -> Result<SemaphorePermit<'_>, StoreError> {
        self.0.permit()
    }

    /// Counts a fault that a script reported, and starts its remedy.
    pub(super) fn met(&self, failure: &Failure) {
        self.0.met(failure);
    }

    /// Logs that a call failed because of the values of these keys.
    pub(crate) fn log_unreadable(&self, keys: &[&[String]], error: &str) {
        self.0.unreadable.write(keys.iter().copied().flatten().map(String::as_bytes), error);
    }

    /// Runs one command. In a cluster it goes to the slot of its first key.
    pub async fn query(&self, command: &Cmd) -> Result<Value, StoreError> {
        let deadline = self.deadline();
        let _permit = self.0.permit()?;
        Ok(self.0.send(command, Durability::Nothing, deadline).await?)
    }

    /// Runs `script`; `command` completes `EVALSHA sha` or `EVAL code` with the keys and arguments.
    pub(crate) async fn script(
        &self,
        script: &Script,
        command: impl Fn(&str, &str) -> Cmd,
    ) -> Result<Value, StoreError> {
        self.script_until(self.deadline(), script, Durability::Nothing, command).await
    }

    /// As [`RedisClient::script`], for one of several that share a deadline, or that waits for replicas.
    pub(crate) async fn script_until(
        &self,
        deadline: Instant,
        script: &Script,
        writes: Durability,
        command: impl Fn(&str, &str) -> Cmd,
    ) -> Result<Value, StoreError> {
        let _permit = self.0.permit()?;
        Ok(self.run(deadline, script, writes, command).await?)
    }

    /// As [`RedisClient::script_until`], for calls that have their places.
    pub(super) async fn run(
        &self,
        deadline: Instant,
        script: &Script,
        writes: Durability,
        command: impl Fn(&str, &str) -> Cmd,
    ) -> Result<Value, Failure> {
        let mut sent = command("EVALSHA", &script.sha);
        let mut result = self.0.send(&sent, writes, deadline).await;
        // The server says that it did not run the command, so this cannot charge twice.
        if matches!(&result, Err(failure) if failure.fault == Fault::NoScript) {
            sent = command("EVAL", &script.code);
            result = self.0.send(&sent, writes, deadline).await;
        }
        if let Err(failure) = &result
            && failure.fault == Fault::Unreadable
        {
            self.0.unreadable.write(keys_of(&sent), &failure.text);
        }
        result
    }

    /// A separate connection that receives messages published on `channel` from now on, until it breaks.
    pub async fn subscribe(&self, channel: &str) -> Result<PubSub, StoreError> {
        let deadline = self.deadline();
        let mut command = redis::cmd("SUBSCRIBE");
        let node = self.0.node(command.arg(channel), deadline).await?;
        if node.is_read_only() {
            return Err(Failure::new(Fault::ReadOnly, format!("{} is a replica", node.info.addr())).into());
        }
        let subscribed = timeout_at(deadline, async {
            let mut heard = self.0.dialer.listen(&node.info).await?;
            heard.subscribe(channel).await?;
            Ok(heard)
        });
        match subscribed.await {
            Ok(result) => result.map_err(|error| Failure::to_connect(&error).into()),
            Err(_) => Err(StoreError::Unreachable("no subscription within the deadline".into())),
        }
    }
}

impl Shared {
    fn permit(&self) -> Result<SemaphorePermit<'_>, StoreError> {
        self.in_flight
            .try_acquire()
            .map_err(|_| StoreError::Overloaded(format!("{} calls to Redis are under way", self.config.max_in_flight)))
    }

    fn nodes(&self) -> Vec<Arc<Node>> {
        match &self.route {
            Route::Single(node) => vec![Arc::clone(node)],
            Route::Sentinel(sentinels) => sentinels.now().into_iter().collect(),
            Route::Cluster(cluster) => cluster.nodes(),
        }
    }

    async fn node(&self, command: &Cmd, deadline: Instant) -> Result<Arc<Node>, Failure> {
        match &self.route {
            Route::Single(node) => Ok(Arc::clone(node)),
            Route::Sentinel(sentinels) => sentinels.master(deadline).await,
            Route::Cluster(cluster) => cluster.master(key_of(command), deadline).await,
        }
    }

    /// Sends a command to whom it belongs, and where it is sent on to.
    async fn send(&self, command: &Cmd, writes: Durability, deadline: Instant) -> Result<Value, Failure> {
        let mut node = self.node(command, deadline).await?;
        let mut asking = false;
        for _ in 0..MOST_HOPS {
            let failure = match node.send(command, writes, asking, deadline).await {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            self.met(&failure);
            asking = failure.fault == Fault::Ask;
            node = match (failure.fault, &self.route) {
                (Fault::Moved | Fault::Ask, Route::Cluster(cluster)) => cluster.redirected(&failure.detail, &node)?,
                (Fault::TryAgain, Route::Cluster(_)) => {
                    if timeout_at(deadline, sleep(TRY_AGAIN_AFTER)).await.is_err() {
                        return Err(failure);
                    }
                    self.node(command, deadline).await?
                }
                _ => return Err(failure),
            };
        }
        Err(Failure::new(Fault::Moved, "the cluster sends the request from node to node"))
    }

    /// Counts a fault and starts its remedy.
    fn met(&self, failure: &Failure) {
        if let Some(at) = Fault::ALL.iter().position(|fault| *fault == failure.fault) {
            self.faults[at].fetch_add(1, Ordering::Relaxed);
        }
        if failure.fault.remedy() != Remedy::Relocate {
            return;
        }
        if failure.fault == Fault::ReadOnly {
            // The name may lead to another server by now. Answers of a replica may be stale, so a connection to one is
            // not used.
            for node in self.nodes() {
                node.reconnect();
            }
        }
        match &self.route {
            Route::Single(_) => {}
            Route::Sentinel(sentinels) => sentinels.request_refresh(),
            Route::Cluster(cluster) => cluster.request_refresh(),
        }
    }
}

/// The keys of a script's command.
fn keys_of(command: &Cmd) -> impl Iterator<Item = &[u8]> {
    let mut arguments = command.args_iter().skip(2).filter_map(|argument| match argument {
        Arg::Simple(bytes) => Some(bytes),
        _ => None,
    });
    let number = arguments.next().and_then(|number| std::str::from_utf8(number).ok()?.parse().ok());
    arguments.take(number.unwrap_or(0))
}

/// The first key of a command: after the number of keys for a script, otherwise the first argument.
fn key_of(command: &Cmd) -> Option<&[u8]> {
    let argument = |at| match command.args_iter().nth(at) {
        Some(Arg::Simple(bytes)) => Some(bytes),
        _ => None,
    };
    match argument(0)? {
        b"EVALSHA" | b"EVAL" => argument(2).filter(|keys| *keys != b"0").and_then(|_| argument(3)),
        _ => argument(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(url: &str) -> Result<RedisClient, String> {
        RedisClient::open(RedisConfig::new(url)).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn urls_choose_the_topology_and_mistakes_are_named() {
        for good in [
            "redis://h",
            "redis://:p@h:1/2",
            "rediss://user:p%40ss@h",
            "unix:///run/redis.sock?db=1",
            "redis+sentinel://:p@a,b:2,c/mymaster/3",
            "rediss+sentinel://a/mymaster",
            "redis+cluster://user:p@a:1,b:2",
            "rediss+cluster://a",
        ] {
            assert!(opened(good).is_ok(), "{good}: {:?}", opened(good).err());
        }
        for (bad, said) in [
            ("localhost", "has no scheme"),
            ("http://h", "has the scheme \"http\", not one of redis, "),
            ("redis+sentinel://a,b", "names no service"),
            ("redis+sentinel://a,,b/m", "an empty one between commas"),
            ("redis+cluster://a/1", "names a database"),
            ("redis://h/one", "atabase"),
            ("redis://user:hunter2@h:port", "invalid port number"),
            ("redis://user:hunter2/x@h:1", "write / ? @ : as %2F"),
            ("redis+cluster://user:hunter2@a,b:x", "invalid port number"),
            ("redis://user:hunter2#x@h:1", "has a #; in a user or password write %23"),
            ("redis:user:hunter2@h://", "has a scheme, not one of redis"),
            ("redis://", "Missing hostname"),
            ("rediss://h/#insecure", "ends in #insecure"),
            ("rediss+sentinel://h/m#insecure", "ends in #insecure"),
        ] {
            let error = opened(bad).err().unwrap_or_else(|| panic!("{bad} was taken"));
            assert!(error.contains(said), "{bad}: {error}");
            assert!(!error.contains("hunter2"), "{bad}: {error}");
        }
    }

    #[test]
    fn keys_of_commands() {
        let command = |words: &[&str]| {
            let mut command = Cmd::new();
            for word in words {
                command.arg(word);
            }
            command
        };
        for (words, key) in [
            (&["GET", "k"][..], Some("k")),
            (&["EVALSHA", "sha", "2", "k", "l", "argument"], Some("k")),
            (&["EVAL", "code", "0", "argument"], None),
            (&["PING"], None),
        ] {
            assert_eq!(key_of(&command(words)), key.map(str::as_bytes), "{words:?}");
        }
    }
}
