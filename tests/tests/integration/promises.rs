//! Never over the limit, all or nothing: four processes, 64 callers, one key, one Redis.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tollgate_api::v1::{Call, Decision};
use tollgate_store::testing::RedisServer;

use crate::harness::{
    Process, ProcessBuilder, account, allowed, call, consume, decided_at_ms, folder_with, peek, quota, shop,
};

const NODES: usize = 4;
const CALLERS: usize = 64;

fn cluster(redis: &RedisServer) -> (tempfile::TempDir, Arc<Vec<Process>>) {
    let (folder, policy) = folder_with(&shop(100));
    // This test is about numbers, not latency: two busy cores may be slow.
    let node = || ProcessBuilder::new(&policy).redis(&redis.url()).start();
    (folder, Arc::new((0..NODES).map(|_| node()).collect()))
}

/// 64 callers, spread over the nodes, call until `more` returns false. Returns every decision.
async fn call_concurrently(
    nodes: &Arc<Vec<Process>>,
    call_number: impl Fn(usize) -> Call + Clone + Send + 'static,
    more: impl Fn(usize) -> bool + Clone + Send + 'static,
) -> Vec<Decision> {
    let number = Arc::new(AtomicUsize::new(0));
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..CALLERS {
        let (nodes, number, call_number, more) =
            (Arc::clone(nodes), Arc::clone(&number), call_number.clone(), more.clone());
        callers.spawn(async move {
            let mut decisions = Vec::new();
            loop {
                let at = number.fetch_add(1, Ordering::Relaxed);
                if !more(at) {
                    return decisions;
                }
                let node = &nodes[(caller + at) % NODES];
                decisions.push(consume(&node.grpc, call_number(at)).await.expect("a decision"));
            }
        });
    }
    callers.join_all().await.into_iter().flatten().collect()
}

/// Asserts that all decisions were made within one window.
fn assert_within_one_window(decisions: &[Decision]) {
    let times = || decisions.iter().map(decided_at_ms);
    let took = times().max().expect("calls") - times().min().expect("calls");
    assert!(took < 60_000, "the machine is too slow: {took} ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn four_processes_admit_exactly_the_limit_of_requests() {
    let redis = RedisServer::start();
    let (_folder, nodes) = cluster(&redis);
    let one = || call(account("hot"), "model", &[("tokens", 150)]);
    let decisions = call_concurrently(&nodes, move |_| one(), |number| number < 2_000).await;
    assert_eq!(decisions.len(), 2_000);
    assert_within_one_window(&decisions);
    assert_eq!(decisions.iter().filter(|decision| allowed(decision)).count(), 100);
    let after = peek(&nodes[0].grpc, one()).await.expect("a decision");
    assert_eq!(quota(&after, "requests_per_minute").used, 100);
    assert_eq!(quota(&after, "tokens_per_minute").used, 15_000, "refused calls charged tokens");
}

#[tokio::test(flavor = "multi_thread")]
async fn four_processes_admit_exactly_the_limit_of_tokens() {
    let redis = RedisServer::start();
    let (_folder, nodes) = cluster(&redis);
    let one = || call(account("hot"), "model", &[("tokens", 250)]);
    let decisions = call_concurrently(&nodes, move |_| one(), |number| number < 1_000).await;
    assert_within_one_window(&decisions);
    assert_eq!(decisions.iter().filter(|decision| allowed(decision)).count(), 80);
    let after = peek(&nodes[0].grpc, one()).await.expect("a decision");
    assert_eq!(quota(&after, "tokens_per_minute").used, 20_000);
    assert_eq!(quota(&after, "requests_per_minute").used, 80, "refused calls charged requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_mixed_cost_charge_all_quotas_or_none() {
    let redis = RedisServer::start();
    let (_folder, nodes) = cluster(&redis);
    let cost = |number: usize| [1, 700, 90, 4_000, 333, 20, 1_500][number % 7];
    let of = move |number| call(account("mixed"), "model", &[("tokens", cost(number))]);
    let decisions = call_concurrently(&nodes, of, |number| number < 1_000).await;
    assert_within_one_window(&decisions);
    let admitted: Vec<&Decision> = decisions.iter().filter(|decision| allowed(decision)).collect();
    let after = peek(&nodes[1].grpc, of(0)).await.expect("a decision");
    let (requests, tokens) = (quota(&after, "requests_per_minute").used, quota(&after, "tokens_per_minute").used);
    assert_eq!(requests, admitted.len() as u64);
    assert!(requests <= 100 && tokens <= 20_000, "{requests} requests, {tokens} tokens");
    // Every admission raised both counters by its cost, so the highest reported usage is the final sum.
    let highest = admitted.iter().map(|decision| quota(decision, "tokens_per_minute").used).max();
    assert_eq!(highest, Some(tokens));
    assert!(
        requests == 100 || tokens == 20_000,
        "a call of one token was refused: {requests} requests, {tokens} tokens"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_trailing_window_of_the_log_exceeds_the_limit() {
    const LIMIT: usize = 50;
    const WINDOW_MS: u64 = 2_000;
    let redis = RedisServer::start();
    let (_folder, nodes) = cluster(&redis);
    let one = || call(account("log"), "burst", &[]);
    let until = Instant::now() + Duration::from_secs(6);
    let decisions = call_concurrently(&nodes, move |_| one(), move |_| Instant::now() < until).await;
    let mut log: Vec<u64> = decisions.iter().filter(|decision| allowed(decision)).map(decided_at_ms).collect();
    log.sort_unstable();
    for (at, now) in log.iter().enumerate() {
        // An event exactly one window old has left.
        let inside = log[..=at].iter().filter(|then| **then + WINDOW_MS > *now).count();
        assert!(inside <= LIMIT, "{inside} admissions in the {WINDOW_MS} ms up to {now}");
    }
    assert!(log.len() >= 3 * LIMIT, "only {} admissions in three windows", log.len());
    let after = peek(&nodes[2].grpc, one()).await.expect("a decision");
    let live = log.iter().filter(|then| **then + WINDOW_MS > decided_at_ms(&after)).count();
    assert_eq!(after.quotas[0].used, live as u64, "refused calls were charged");
}
