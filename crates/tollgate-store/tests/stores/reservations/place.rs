//! Where nodes keep reservations, and how one of them dies.

use std::{cell::RefCell, sync::Arc};

use tokio::runtime::Runtime;
use tollgate_core::store::Store;
use tollgate_store::{clock::ManualClock, memory::MemoryStore, redis::RedisConfig, testing::RedisServer};

use crate::harness::store_with_clock;

/// A store that nodes share.
pub(crate) enum Place<'a> {
    /// The one node that has it.
    Memory(Arc<MemoryStore<Arc<ManualClock>>>),
    /// Any number of nodes.
    Redis {
        watcher: RefCell<redis::Connection>,
        config: Box<RedisConfig>,
        clock: Arc<ManualClock>,
        runtime: &'a Runtime,
    },
}

/// A node's way to the store.
pub(crate) struct Node {
    pub(crate) store: Arc<dyn Store>,
    /// The number that Redis gave its connection.
    client: Option<u64>,
}

impl<'a> Place<'a> {
    pub(crate) fn memory(clock: &Arc<ManualClock>) -> Self {
        Self::Memory(Arc::new(MemoryStore::new(Arc::clone(clock), 10_000)))
    }

    pub(crate) fn redis(server: &RedisServer, prefix: String, clock: &Arc<ManualClock>, runtime: &'a Runtime) -> Self {
        let config = RedisConfig { key_prefix: prefix, connections: 1, ..server.config() };
        Self::Redis {
            watcher: RefCell::new(server.connection()),
            config: Box::new(config),
            clock: Arc::clone(clock),
            runtime,
        }
    }

    /// A node that starts now.
    pub(crate) fn node(&self) -> Node {
        match self {
            Self::Memory(store) => Node { store: Arc::clone(store) as _, client: None },
            Self::Redis { config, clock, runtime, .. } => {
                let before = self.clients();
                let store = store_with_clock(RedisConfig::clone(config), clock, runtime);
                assert!(runtime.block_on(store.health()).is_whole());
                let client = self.clients().into_iter().find(|client| !before.contains(client));
                assert!(client.is_some(), "the node has a connection");
                Node { store: Arc::new(store), client }
            }
        }
    }

    /// Does `work` on a node that dies after this number of turns of the runtime, or when the answer arrives, and waits
    /// until everything that it sent is done or lost. Nobody sees an answer.
    pub(crate) fn crash(&self, node: Node, after: Option<usize>, work: impl AsyncFnOnce(&dyn Store)) {
        match self {
            // A step that has begun in memory completes.
            Self::Memory(store) => {
                let here = Runtime::new().unwrap();
                here.block_on(work(&**store));
            }
            Self::Redis { runtime, .. } => {
                runtime.block_on(async {
                    tokio::select! {
                        biased;
                        () = work(&*node.store) => {}
                        () = turns(after) => {}
                    }
                });
                let client = node.client;
                drop(node);
                while self.clients().iter().any(|known| Some(*known) == client) {
                    std::thread::yield_now();
                }
            }
        }
    }

    /// All stored data expires and is bounded.
    pub(crate) fn every_key_is_bounded(&self) {
        let Self::Redis { watcher, config, .. } = self else { return };
        let mut redis = watcher.borrow_mut();
        let keys: Vec<String> = redis::cmd("KEYS").arg(format!("{}{{*", config.key_prefix)).query(&mut *redis).unwrap();
        for key in keys {
            let ttl: i64 = redis::cmd("PTTL").arg(&key).query(&mut *redis).unwrap();
            assert!(ttl > 0, "{key} stays");
            let kind: String = redis::cmd("TYPE").arg(&key).query(&mut *redis).unwrap();
            let (length, most): (usize, usize) = match &*kind {
                "zset" => (redis::cmd("ZCARD").arg(&key).query(&mut *redis).unwrap(), 10_000),
                _ => (redis::cmd("STRLEN").arg(&key).query(&mut *redis).unwrap(), 65_536),
            };
            assert!(length <= most, "{key}: a {kind} of {length}");
        }
    }

    /// The clients that are connected to Redis.
    fn clients(&self) -> Vec<u64> {
        let Self::Redis { watcher, .. } = self else { return Vec::new() };
        let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut *watcher.borrow_mut()).unwrap();
        let numbers = list.lines().map(|line| line.split(' ').find_map(|field| field.strip_prefix("id=")));
        numbers.map(|number| number.unwrap().parse().unwrap()).collect()
    }
}

/// Ends after so many turns of the runtime, or never.
async fn turns(number: Option<usize>) {
    let Some(number) = number else { return std::future::pending().await };
    for _ in 0..number {
        tokio::task::yield_now().await;
    }
}
