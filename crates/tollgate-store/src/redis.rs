//! Counters in Redis, shared by any number of nodes.

mod wire;

use std::{
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use redis::{
    Client, Cmd, ErrorKind, RedisError, ServerErrorKind, Value,
    aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig},
};
use tokio::sync::Semaphore;
use tollgate_core::{
    claim::{Answer, Claim, Mode},
    store::{AnswerFuture, Store, StoreError},
};

/// The decision script, put together from `lua/`: a clock, the ledger, the decision.
const APPLY: &str = concat!(
    include_str!("../../../lua/clock.lua"),
    include_str!("../../../lua/ledger.lua"),
    include_str!("../../../lua/apply.lua")
);

/// How to reach Redis, and what to bear. Without `Debug`, as the URL may hold a password.
#[derive(Clone)]
pub struct RedisConfig {
    /// `redis://[user:password@]host[:port][/db]`.
    pub url: String,
    /// What every key begins with, so that several deployments can share a server.
    pub key_prefix: String,
    /// How many connections the calls of this node share. Each carries any number of calls at once,
    /// in pipelines.
    pub connections: usize,
    /// How long a call may take in all, waiting included.
    pub deadline: Duration,
    /// How many calls may be under way at once; one more is refused at once.
    pub max_in_flight: usize,
}

impl RedisConfig {
    /// The usual settings for the server at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            key_prefix: "tg".into(),
            connections: 2,
            deadline: Duration::from_millis(250),
            max_in_flight: 8192,
        }
    }
}

/// A store in Redis. One decision is one `EVALSHA` in one round trip. Concurrent calls share
/// pipelines on a few connections, which reconnect by themselves; nothing is sent twice except a
/// script that the server said it does not know.
///
/// Every answer or error comes within the deadline.
pub struct RedisStore {
    connections: Box<[ConnectionManager]>,
    next: AtomicUsize,
    in_flight: Semaphore,
    config: RedisConfig,
    script: Script,
}

struct Script {
    code: String,
    sha: String,
    clock: Option<InjectedClock>,
}

type InjectedClock = Box<dyn Fn() -> tollgate_core::time::Timestamp + Send + Sync>;

impl RedisStore {
    /// A store at `config.url`. Does not wait for the server: it need not be there yet.
    ///
    /// Must be called within a Tokio runtime.
    pub fn connect(config: RedisConfig) -> Result<Self, StoreError> {
        Self::with_script(config, APPLY.to_owned(), None)
    }

    /// A store whose scripts take the time from `clock` instead of Redis, for tests.
    #[cfg(feature = "testing")]
    pub fn with_injected_clock(config: RedisConfig, clock: impl crate::clock::Clock) -> Result<Self, StoreError> {
        let code = concat!(
            include_str!("../../../lua/clock_injected.lua"),
            include_str!("../../../lua/ledger.lua"),
            include_str!("../../../lua/apply.lua")
        );
        Self::with_script(config, code.to_owned(), Some(Box::new(move || clock.now())))
    }

    fn with_script(config: RedisConfig, code: String, clock: Option<InjectedClock>) -> Result<Self, StoreError> {
        let refused = |error: RedisError| StoreError::Refused(format!("the Redis URL: {error}"));
        let client = Client::open(config.url.as_str()).map_err(refused)?;
        // The deadline of each call is our own; one connection attempt at a time is made when a call
        // finds none, and everybody waits for that one.
        let settings = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(Duration::from_secs(1)))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(config.max_in_flight.clamp(64, 1024));
        let connections = (0..config.connections.max(1))
            .map(|_| ConnectionManager::new_lazy_with_config(client.clone(), settings.clone()).map_err(refused))
            .collect::<Result<_, _>>()?;
        let sha = redis::Script::new(&code).get_hash().to_owned();
        let in_flight = Semaphore::new(config.max_in_flight);
        Ok(Self { connections, next: AtomicUsize::new(0), in_flight, config, script: Script { code, sha, clock } })
    }

    /// How many calls are under way.
    pub fn in_flight(&self) -> usize {
        self.config.max_in_flight - self.in_flight.available_permits()
    }

    async fn apply_in_time(&self, claims: &[Claim], mode: Mode) -> Result<Answer, StoreError> {
        let _permit = self.in_flight.try_acquire().map_err(|_| {
            StoreError::Overloaded(format!("{} calls to Redis are under way", self.config.max_in_flight))
        })?;
        let request = wire::Request::new(&self.config.key_prefix, claims, mode);
        let reply = self.in_time(self.run(&request)).await?;
        request.read_reply(&reply)
    }

    async fn run(&self, request: &wire::Request) -> Result<Value, RedisError> {
        let mut connection = self.connection();
        let clock = self.script.clock.as_ref().map(|clock| clock().as_ms());
        let by_hash = request.command("EVALSHA", &self.script.sha, clock);
        match connection.req_packed_command(&by_hash).await.and_then(Value::extract_error) {
            // The server says that it ran nothing, so this cannot charge twice.
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                let in_full = request.command("EVAL", &self.script.code, clock);
                connection.req_packed_command(&in_full).await.and_then(Value::extract_error)
            }
            result => result,
        }
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, RedisError>>) -> Result<T, StoreError> {
        match tokio::time::timeout(self.config.deadline, work).await {
            Ok(result) => result.map_err(|error| store_error(&error)),
            Err(_) => Err(StoreError::Indeterminate(format!("Redis took longer than {:?}", self.config.deadline))),
        }
    }

    fn connection(&self) -> ConnectionManager {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.connections[next % self.connections.len()].clone()
    }
}

impl Store for RedisStore {
    fn apply<'a>(&'a self, claims: &'a [Claim], mode: Mode) -> AnswerFuture<'a> {
        Box::pin(self.apply_in_time(claims, mode))
    }

    fn ready<'a>(&'a self) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + 'a>> {
        Box::pin(async {
            let mut connection = self.connection();
            let ping: String =
                self.in_time(async move { Cmd::new().arg("PING").query_async(&mut connection).await }).await?;
            if ping == "PONG" { Ok(()) } else { Err(StoreError::Refused(format!("PING was answered {ping:?}"))) }
        })
    }
}

/// The script and its arguments as they are, for benches that run them without a store.
#[cfg(feature = "testing")]
pub mod raw {
    use tollgate_core::claim::{Claim, Mode};

    /// The decision script behind a clock of the bench's own.
    pub fn script(clock: &str) -> String {
        [clock, include_str!("../../../lua/ledger.lua"), include_str!("../../../lua/apply.lua")].concat()
    }

    /// The keys and the packed argument of one decision.
    pub fn encode(prefix: &str, claims: &[Claim], mode: Mode) -> (Vec<String>, Vec<u8>) {
        let request = super::wire::Request::new(prefix, claims, mode);
        (request.keys.into_vec(), request.packed)
    }
}

/// What an error of the client says about the charge.
fn store_error(error: &RedisError) -> StoreError {
    let text = error.to_string();
    match error.kind() {
        _ if error.is_connection_refusal() => StoreError::Unreachable(text),
        // The connection broke, or never came to be: the client does not tell which.
        ErrorKind::Io => StoreError::Indeterminate(text),
        ErrorKind::Server(
            ServerErrorKind::BusyLoading | ServerErrorKind::ClusterDown | ServerErrorKind::MasterDown,
        ) => StoreError::Unreachable(text),
        _ => StoreError::Refused(text),
    }
}
