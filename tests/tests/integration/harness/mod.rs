//! The test harness: nodes in this process, nodes as processes, clients, policies, a network with faults, and waiting
//! for a condition.

mod clients;
mod frames;
mod node;
mod policy;
mod process;
mod proxy;

use std::time::{Duration, Instant};

pub(crate) use clients::{
    Rest, account, allowed, api_key, api_key_id, assert_watch_open, call, consume, decided_at_ms, http, ms, peek, quota,
};
pub(crate) use frames::{PREFACE, RawHttp2, connect_from};
pub(crate) use node::{Node, START, memory_node, memory_node_with, redis_node, redis_node_with};
pub(crate) use policy::{KEY, folder_with, hash_of, shop};
pub(crate) use process::{Process, ProcessBuilder, signal};
pub(crate) use proxy::Proxy;

/// Tolerance of the chaos suite on top of a call's deadline on a loaded machine: for every call, and for the 99th
/// percentile.
pub(crate) const SLACK: Duration = Duration::from_millis(250);
pub(crate) const P99_SLACK: Duration = Duration::from_millis(20);

/// Polls `ask` until it returns a value, for at most `bound`.
pub(crate) async fn until<T>(what: &str, bound: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < bound, "not within {bound:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
