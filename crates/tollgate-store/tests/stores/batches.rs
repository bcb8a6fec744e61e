//! Calls that arrive at the same moment: decided by one run of the script, each as if it had arrived alone.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::join_all};
use tollgate_core::{
    amount::{Amount, Limit, UnitId},
    claim::{ApplyResult, Claim, Effect, LedgerKey, Mode, Partition},
    store::{Store, StoreError},
    time::Timestamp,
    window::{SlidingWindow, WindowInstance},
};
use tollgate_store::{
    clock::ManualClock,
    redis::{Fault, RedisConfig, RedisStore},
    testing::{RedisServer, topologies::RedisCluster},
};

const START: Timestamp = Timestamp::from_ms(1_800_000_000_000);

fn call(account: &str, limit: u64) -> [Claim; 1] {
    [Claim {
        ledger: LedgerKey::of(Partition::of([account]), ["requests"]),
        span: WindowInstance::Sliding(SlidingWindow::from_ms(60_000).unwrap()),
        unit: UnitId::of("requests"),
        cost: Amount::from(1),
        limit: Limit::Finite(Amount::try_from(limit).unwrap()),
        effect: Effect::Charge,
    }]
}

fn store(server: &RedisServer) -> RedisStore {
    RedisStore::with_injected_clock(RedisConfig::new(server.url()), Arc::new(ManualClock::at(START))).unwrap()
}

/// The usage of a call's counters, and whether it was admitted.
fn said(answer: Result<ApplyResult, StoreError>) -> Result<(u64, bool), StoreError> {
    match answer? {
        ApplyResult::Applied(applied) => Ok((applied.statuses[0].used.get(), applied.allowed)),
        ApplyResult::OutsidePeriod(_) => panic!("no calendar here"),
    }
}

async fn at_once(store: &RedisStore, calls: &[[Claim; 1]]) -> Vec<Result<(u64, bool), StoreError>> {
    join_all(calls.iter().map(|claims| store.apply(claims, Mode::Try))).await.into_iter().map(said).collect()
}

/// How often Redis ran `command` since its statistics were reset.
fn runs(server: &RedisServer, command: &str) -> usize {
    let stats: String = server.run("INFO commandstats");
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

/// Tried with a batch of one call, and with calls of one account that are not grouped.
#[tokio::test]
async fn simultaneous_calls_share_one_script_run_and_one_counter_read() {
    let server = RedisServer::start();
    let store = store(&server);
    let calls: Vec<[Claim; 1]> = (0..32).map(|number| call(["a", "b", "c", "d"][number % 4], 6)).collect();
    at_once(&store, &calls).await.into_iter().for_each(|answer| assert!(answer.is_ok(), "{answer:?}"));
    server.run::<()>("CONFIG RESETSTAT");
    let answers = at_once(&store, &calls).await;
    assert!(
        answers.into_iter().all(|answer| matches!(answer, Ok((6, false)))),
        "each had eight calls, and room for six"
    );
    assert_eq!((runs(&server, "evalsha"), runs(&server, "getrange"), runs(&server, "setrange")), (1, 4, 0));
    let more: Vec<[Claim; 1]> = calls.iter().map(|[claim]| [Claim { limit: Limit::Unlimited, ..*claim }]).collect();
    let mut used: Vec<u64> = at_once(&store, &more).await.into_iter().map(|answer| answer.unwrap().0).collect();
    used.sort_unstable();
    assert_eq!(used, (7..=14).flat_map(|used| [used; 4]).collect::<Vec<_>>());
    assert_eq!((runs(&server, "evalsha"), runs(&server, "getrange"), runs(&server, "setrange")), (2, 8, 4));
}

/// A broken counter fails only its own callers. Tried with a script that stops at the first error.
#[tokio::test]
async fn a_broken_counter_in_a_batch_fails_its_own_calls_only() {
    let server = RedisServer::start();
    let store = store(&server);
    let accounts = ["a", "b", "c", "d", "e"];
    let calls: Vec<[Claim; 1]> = accounts.iter().map(|account| call(account, 100)).collect();
    let mut keys: Vec<String> = Vec::new();
    for claims in &calls {
        said(store.apply(claims, Mode::Try).await).unwrap();
        let all: Vec<String> = server.run("KEYS *");
        keys.extend(all.into_iter().find(|key| !keys.contains(key)));
    }
    // One is of another version, and one is none of ours.
    let mut redis = server.connection();
    redis::cmd("SETRANGE").arg(&keys[1]).arg(0).arg(&[4_u8][..]).exec(&mut redis).unwrap();
    redis::cmd("DEL").arg(&keys[3]).exec(&mut redis).unwrap();
    redis::cmd("RPUSH").arg(&keys[3]).arg("a list").exec(&mut redis).unwrap();
    for round in 2..5 {
        let answers = at_once(&store, &calls).await;
        for (account, answer) in accounts.iter().zip(answers) {
            match (*account, answer) {
                ("b", Err(StoreError::Refused(text))) => assert!(text.contains("a counter is of version 4"), "{text}"),
                ("d", Err(StoreError::Refused(text))) => assert!(text.contains("WRONGTYPE"), "{text}"),
                ("a" | "c" | "e", answer) => assert_eq!(answer, Ok((round, true)), "{account}"),
                (_, answer) => panic!("{account}: {answer:?}"),
            }
        }
    }
    let met = |name| store.link().status().faults.iter().find(|(fault, _)| fault.name() == name).map(|(_, met)| *met);
    assert_eq!((met(Fault::OtherVersion.name()), met(Fault::Unreadable.name())), (Some(3), Some(3)));
}

/// At its memory limit Redis charges no caller that it refuses.
#[tokio::test]
async fn a_redis_without_memory_charges_nothing() {
    let server = RedisServer::start();
    let store = store(&server);
    let known: Vec<[Claim; 1]> = ["a", "b"].iter().map(|account| call(account, 100)).collect();
    at_once(&store, &known).await.into_iter().for_each(|answer| assert!(answer.is_ok(), "{answer:?}"));
    server.run::<()>("CONFIG SET maxmemory 1");
    let calls = [known[0], call("new", 100), known[1]];
    for calls in [calls, [calls[1], calls[0], calls[2]]] {
        for answer in at_once(&store, &calls).await {
            assert!(matches!(&answer, Err(StoreError::Refused(text)) if text.contains("OOM")), "{answer:?}");
        }
    }
    server.run::<()>("CONFIG SET maxmemory 0");
    let used: Vec<_> = at_once(&store, &calls).await.into_iter().map(|answer| answer.unwrap().0).collect();
    assert_eq!(used, [2, 1, 2]);
}

/// Tried without the check whether the caller still waits.
#[tokio::test]
async fn a_caller_that_left_before_its_call_is_sent_is_not_charged() {
    let server = RedisServer::start();
    let store = store(&server);
    let claims = call("a", 100);
    said(store.apply(&claims, Mode::Try).await).unwrap();
    let (mut goes, mut stays) = (store.apply(&claims, Mode::Try), store.apply(&claims, Mode::Try));
    // Both calls have arrived, and one is gone before anything else runs.
    assert!((&mut goes).now_or_never().is_none() && (&mut stays).now_or_never().is_none());
    drop(goes);
    assert_eq!(said(stays.await), Ok((2, true)));
    assert_eq!(said(store.apply(&claims, Mode::Try).await), Ok((3, true)));
}

/// All calls of a batch have their answer within the deadline, and none is sent again.
#[tokio::test]
async fn a_stalled_redis_fails_calls_at_their_deadline() {
    let server = RedisServer::start();
    let config = RedisConfig { deadline: Duration::from_millis(100), ..RedisConfig::new(server.url()) };
    let store = RedisStore::connect(config).unwrap();
    let calls: Vec<[Claim; 1]> = (0..20).map(|number| call(["a", "b"][number % 2], 100)).collect();
    at_once(&store, &calls).await.into_iter().for_each(|answer| assert!(answer.is_ok(), "{answer:?}"));
    server.pause();
    for answer in at_once(&store, &calls).await {
        assert!(matches!(answer, Err(StoreError::Indeterminate(_))), "{answer:?}");
    }
    // A call that was sent is decided when Redis continues, once.
    server.resume();
    let used: Vec<_> = at_once(&store, &calls[..2]).await.into_iter().map(|answer| answer.unwrap().0).collect();
    assert_eq!(used, [21, 21]);
}

/// The name of a server may lead to another one by now. Tried with a reported fault whose remedy is not started.
#[tokio::test]
async fn a_read_only_server_is_connected_to_again() {
    let server = RedisServer::start();
    let store = store(&server);
    assert_eq!(said(store.apply(&call("a", 100), Mode::Try).await), Ok((1, true)));
    let connection = || {
        let clients: String = server.run("CLIENT LIST");
        let mut decides = clients.lines().filter(|line| line.contains("cmd=eval"));
        decides.next().unwrap().split(' ').next().unwrap().to_owned()
    };
    let before = connection();
    server.run::<()>("REPLICAOF 127.0.0.1 1");
    // Accounts that are new take the long way.
    let answer = store.apply(&call("b", 100), Mode::Try).await;
    assert!(matches!(&answer, Err(StoreError::Unreachable(text)) if text.contains("READONLY")), "{answer:?}");
    server.run::<()>("REPLICAOF NO ONE");
    assert_eq!(said(store.apply(&call("b", 100), Mode::Try).await), Ok((1, true)));
    assert_ne!(connection(), before);
}

/// Each account has a slot of its own.
#[tokio::test]
async fn in_a_cluster_calls_of_one_slot_are_batched() {
    let cluster = RedisCluster::start();
    let config = RedisConfig { deadline: Duration::from_secs(5), ..RedisConfig::new(cluster.url()) };
    let store = RedisStore::connect(config).unwrap();
    let names: Vec<String> = (0..60).map(|number| format!("account {}", number % 12)).collect();
    let calls: Vec<[Claim; 1]> = names.iter().map(|name| call(name, 100)).collect();
    let mut used: Vec<u64> = at_once(&store, &calls).await.into_iter().map(|answer| answer.unwrap().0).collect();
    used.sort_unstable();
    assert_eq!(used, (1..=5).flat_map(|used| [used; 12]).collect::<Vec<_>>());
}
