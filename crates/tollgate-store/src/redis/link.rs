//! The way to one Redis: a few connections that all calls share, a deadline, a bound on what is under way.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::{
    Client, Cmd, ErrorKind, RedisError, ServerErrorKind, Value,
    aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig, PubSub},
};
use tokio::sync::Semaphore;
use tollgate_core::store::StoreError;

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
}

/// The way to one Redis. Concurrent calls share pipelines on a few connections, which reconnect by
/// themselves; nothing is sent twice except a script that the server said it does not know. Clones share
/// the connections and the bounds.
///
/// Every answer or error comes within the deadline.
#[derive(Clone)]
pub struct Link(Arc<Shared>);

struct Shared {
    client: Client,
    connections: Box<[ConnectionManager]>,
    next: AtomicUsize,
    in_flight: Semaphore,
    config: RedisConfig,
}

impl Link {
    /// The way to `config.url`. Does not wait for the server: it need not be there yet.
    ///
    /// Must be called within a Tokio runtime.
    pub fn open(config: RedisConfig) -> Result<Self, StoreError> {
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
        let in_flight = Semaphore::new(config.max_in_flight);
        Ok(Self(Arc::new(Shared { client, connections, next: AtomicUsize::new(0), in_flight, config })))
    }

    /// What every key begins with.
    pub(crate) fn key_prefix(&self) -> &str {
        &self.0.config.key_prefix
    }

    /// How many calls are under way.
    pub fn in_flight(&self) -> usize {
        self.0.config.max_in_flight - self.0.in_flight.available_permits()
    }

    /// Runs `script`; `command` completes `EVALSHA sha` or `EVAL code` with the keys and arguments.
    pub(crate) async fn script(
        &self,
        script: &Script,
        command: impl Fn(&str, &str) -> Cmd,
    ) -> Result<Value, StoreError> {
        self.bounded(async {
            let mut connection = self.connection();
            let by_hash = command("EVALSHA", &script.sha);
            match connection.req_packed_command(&by_hash).await.and_then(Value::extract_error) {
                // The server says that it ran nothing, so this cannot charge twice.
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    let in_full = command("EVAL", &script.code);
                    connection.req_packed_command(&in_full).await.and_then(Value::extract_error)
                }
                result => result,
            }
        })
        .await
    }

    /// Runs one command.
    pub async fn query(&self, command: &Cmd) -> Result<Value, StoreError> {
        self.bounded(async {
            let mut connection = self.connection();
            connection.req_packed_command(command).await.and_then(Value::extract_error)
        })
        .await
    }

    /// A connection of its own that hears what is published on `channel` from now on, until it breaks.
    pub async fn subscribe(&self, channel: &str) -> Result<PubSub, StoreError> {
        self.in_time(async {
            let mut heard = self.0.client.get_async_pubsub().await?;
            heard.subscribe(channel).await?;
            Ok(heard)
        })
        .await
    }

    /// Whether the server answers.
    pub(crate) async fn ping(&self) -> Result<(), StoreError> {
        let mut connection = self.connection();
        // Outside the bound: a probe must get through when calls do not.
        match self.in_time(async move { connection.req_packed_command(&redis::cmd("PING")).await }).await? {
            Value::SimpleString(text) if text == "PONG" => Ok(()),
            other => Err(StoreError::Refused(format!("PING was answered {other:?}"))),
        }
    }

    async fn bounded(&self, work: impl Future<Output = Result<Value, RedisError>>) -> Result<Value, StoreError> {
        let _permit = self.0.in_flight.try_acquire().map_err(|_| {
            StoreError::Overloaded(format!("{} calls to Redis are under way", self.0.config.max_in_flight))
        })?;
        self.in_time(work).await
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, RedisError>>) -> Result<T, StoreError> {
        match tokio::time::timeout(self.0.config.deadline, work).await {
            Ok(result) => result.map_err(|error| store_error(&error)),
            Err(_) => Err(StoreError::Indeterminate(format!("Redis took longer than {:?}", self.0.config.deadline))),
        }
    }

    fn connection(&self) -> ConnectionManager {
        let next = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.0.connections[next % self.0.connections.len()].clone()
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
