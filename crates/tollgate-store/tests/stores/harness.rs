//! Shared by the tests of stores.

use std::sync::Arc;

use tokio::runtime::Runtime;
use tollgate_store::{
    clock::ManualClock,
    redis::{RedisConfig, RedisStore},
};

/// A store in Redis whose scripts take the time from `clock`.
pub(crate) fn store_with_clock(config: RedisConfig, clock: &Arc<ManualClock>, runtime: &Runtime) -> RedisStore {
    let _inside = runtime.enter();
    RedisStore::with_injected_clock(config, Arc::clone(clock)).unwrap()
}

/// How often a store has met the fault of this name.
pub(crate) fn faults(store: &RedisStore, name: &str) -> u64 {
    let status = store.link().status();
    status.faults.iter().find(|(fault, _)| fault.name() == name).map_or(0, |(_, met)| *met)
}
