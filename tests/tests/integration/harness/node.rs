//! A node in this process, with an injected clock.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tempfile::TempDir;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tollgate_api::v1::rate_limit_service_client::RateLimitServiceClient;
use tollgate_core::{store::Store, time::Timestamp};
use tollgate_server::{
    run::{Backend, Listeners, RunError, run},
    settings::{Options, Settings},
};
use tollgate_store::{
    clock::ManualClock,
    memory::MemoryStore,
    redis::{RedisConfig, RedisStore},
};
use tonic::transport::Channel;

use super::{Rest, folder_with};

/// Where every injected clock starts: 2025-03-03T00:00:00Z.
pub(crate) const START: Timestamp = Timestamp::from_ms(1_740_960_000_000);

/// A running node, stopped when dropped.
pub(crate) struct Node {
    pub(crate) rest: Rest,
    pub(crate) grpc: RateLimitServiceClient<Channel>,
    pub(crate) channel: Channel,
    pub(crate) grpc_address: String,
    pub(crate) http_address: String,
    pub(crate) clock: Arc<ManualClock>,
    /// The policy file, for tests that change it.
    pub(crate) policy: PathBuf,
    shutdown: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), RunError>>,
    _folder: TempDir,
}

/// The settings of a node with this policy file and listeners of the test's choice.
fn settings(mut options: Options, policy: PathBuf) -> Settings {
    options.policy.push(policy);
    if options.service_tokens.is_none() {
        options.open_loopback.get_or_insert(true);
    }
    // Tests send many invalid keys from one address.
    options.max_login_failures.get_or_insert(0);
    options.resolve(None).expect("the settings are valid")
}

/// A node on a memory store.
pub(crate) async fn memory_node(policy: &str) -> Node {
    memory_node_with(Options::default(), policy).await
}

/// A node on a memory store, with these options and, besides the files they name, this policy.
pub(crate) async fn memory_node_with(options: Options, policy: &str) -> Node {
    let clock = Arc::new(ManualClock::at(START));
    let store = Arc::new(MemoryStore::new(Arc::clone(&clock), 100_000));
    Node::start(policy, options, store, clock, "memory").await
}

/// A node on the Redis at `url`, whose scripts take the time from the node's clock.
pub(crate) async fn redis_node(policy: &str, url: String) -> Node {
    redis_node_with(Options::default(), policy, url).await
}

/// The same, with these options and, besides the files they name, this policy.
pub(crate) async fn redis_node_with(options: Options, policy: &str, url: String) -> Node {
    let clock = Arc::new(ManualClock::at(START));
    let store = redis_on(url, &clock);
    Node::start(policy, options, store, clock, "redis").await
}

/// A store with injected time and a long deadline, as the deadline runs in real time.
fn redis_on(url: String, clock: &Arc<ManualClock>) -> Arc<RedisStore> {
    let config = RedisConfig { deadline: Duration::from_secs(20), ..RedisConfig::new(url) };
    Arc::new(RedisStore::with_injected_clock(config, Arc::clone(clock)).expect("a Redis URL"))
}

impl Node {
    async fn start(
        policy: &str,
        options: Options,
        store: Arc<dyn Store>,
        clock: Arc<ManualClock>,
        kind: &'static str,
    ) -> Self {
        let (folder, file) = folder_with(policy);
        let bind = async || TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let listeners = Listeners { http: bind().await, grpc: bind().await, ops: None };
        let http = listeners.http.local_addr().expect("an address");
        let grpc = listeners.grpc.local_addr().expect("an address");
        let (shutdown, stopped) = oneshot::channel();
        let backend = Backend::new(store, Arc::clone(&clock) as _, kind).unwrap();
        let task = tokio::spawn(run(settings(options, file.clone()), backend, listeners, || {}, async {
            let _ = stopped.await;
        }));
        let channel = Channel::from_shared(format!("http://{grpc}")).expect("an address").connect_lazy();
        Self {
            rest: Rest::new(&http.to_string()),
            grpc: RateLimitServiceClient::new(channel.clone()),
            channel,
            grpc_address: grpc.to_string(),
            http_address: http.to_string(),
            clock,
            policy: file,
            shutdown: Some(shutdown),
            task,
            _folder: folder,
        }
    }

    /// Stops the node, and waits until it has ended.
    pub(crate) async fn stop(&mut self) -> Result<(), RunError> {
        drop(self.shutdown.take());
        (&mut self.task).await.expect("the node did not panic")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}
