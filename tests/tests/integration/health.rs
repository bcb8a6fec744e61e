//! What a node reports while its stores fail: the table of `docs/operations.md`, row by row, with real servers and with
//! the alert rules as Prometheus evaluates them.

mod alerting;
mod table;

use std::time::Duration;

use tokio::task::{LocalSet, spawn_local};
use tollgate_store::testing::{Program, RedisServer, topologies::RedisCluster};
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use self::{
    alerting::firing,
    table::{DecidableCalls, Fault, State, TABLE},
};
use crate::{
    grpc::{SERVICE, health},
    harness::{Process, ProcessBuilder, account, allowed, call, consume, folder_with, peek, shop, until},
};

const OPERATIONS: &str = include_str!("../../../docs/operations.md");
/// Long, as the machine runs other tests too: a node probes its stores every second, and eviction every ten.
const PATIENCE: Duration = Duration::from_secs(40);

/// Servers, and a node on them.
struct Deployment {
    counters: Option<RedisServer>,
    cluster: Option<RedisCluster>,
    accounts: Option<RedisServer>,
    node: Process,
    _folder: tempfile::TempDir,
}

impl Deployment {
    fn start(fault: Fault) -> Self {
        let program = if fault == Fault::Skewed { Program::OwnClock } else { Program::Installed };
        let in_cluster = fault == Fault::OneOfThreeFull;
        let apart = matches!(fault, Fault::AccountsGone | Fault::AccountsReplica | Fault::AccountsFull);
        let cluster = in_cluster.then(RedisCluster::start);
        let counters = (!in_cluster).then(|| RedisServer::start_program(program, &[]));
        let accounts = apart.then(RedisServer::start);
        let url = counters.as_ref().map_or_else(|| cluster.as_ref().unwrap().url_of_user(), RedisServer::url);
        let (folder, policy) = folder_with(&shop(100_000));
        let mut builder = ProcessBuilder::new(&policy).redis(&url).arg("--store-deadline-ms=1000");
        if let Some(accounts) = &accounts {
            builder = builder.arg(format!("--accounts-redis={}", accounts.url()));
        }
        Self { counters, cluster, accounts, node: builder.start(), _folder: folder }
    }

    fn inject(&mut self, fault: Fault) {
        let counters = self.counters.as_mut();
        let run = |server: Option<&RedisServer>, command: &str| server.unwrap().run::<()>(command);
        match fault {
            Fault::Nothing => {}
            Fault::Replica => run(counters.as_deref(), "REPLICAOF 127.0.0.1 1"),
            Fault::Full => run(counters.as_deref(), "CONFIG SET maxmemory 1"),
            Fault::Hung => counters.unwrap().pause(),
            Fault::Gone => counters.unwrap().kill(),
            Fault::Evicting => run(counters.as_deref(), "CONFIG SET maxmemory-policy allkeys-lru"),
            Fault::Skewed => counters.unwrap().set_clock(5),
            Fault::OneOfThreeFull => self.cluster.as_ref().unwrap().servers[0].run("CONFIG SET maxmemory 1"),
            Fault::AccountsGone => self.accounts.as_mut().unwrap().kill(),
            Fault::AccountsReplica => run(self.accounts.as_ref(), "REPLICAOF 127.0.0.1 1"),
            Fault::AccountsFull => run(self.accounts.as_ref(), "CONFIG SET maxmemory 1"),
        }
    }

    async fn metrics(&self) -> String {
        self.node.rest.text("/metrics").await.1
    }
}

fn value(metrics: &str, series: &str) -> Option<bool> {
    metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).map(|value| value != "0")
}

/// The error code of each call, or `None`.
async fn calls(node: &Process, names: [&str; 2]) -> Vec<Option<Code>> {
    let mut ends = Vec::new();
    for name in names {
        for end in [
            consume(&node.grpc, call(account(name), "model", &[])).await,
            peek(&node.grpc, call(account(name), "model", &[])).await,
        ] {
            assert!(end.as_ref().map_or(true, allowed), "{end:?}");
            ends.push(end.err().map(|status| status.code()));
        }
    }
    ends
}

async fn check_state(state: State) {
    let State { name, .. } = state;
    let mut deployment = Deployment::start(state.fault);
    until(&format!("{name}: the node is healthy"), PATIENCE, async || {
        let (status, ready) = deployment.node.rest.json("/readyz").await;
        (status == 200 && ready["store"]["ok"] == true && ready["accounts"]["ok"] == true).then_some(())
    })
    .await;
    assert_eq!(calls(&deployment.node, ["acme", "known"]).await, [None; 4], "{name}");
    let before = deployment.metrics().await;
    deployment.inject(state.fault);

    let ready = until(&format!("{name}: /readyz reports it"), PATIENCE, async || {
        let (status, ready) = deployment.node.rest.json("/readyz").await;
        let says = state.says.is_none_or(|(part, ok, text)| {
            let part = &ready[part];
            part["ok"] == ok && part["detail"].as_str().is_some_and(|detail| detail.starts_with(text))
        });
        (status == state.readyz && says && ready["ready"] == (state.readyz == 200)).then_some(ready)
    })
    .await;
    // `/readyz` needs no token.
    for report in ["127.0.0.1", "error", "tg{", "maxmemory 1"] {
        assert!(!ready.to_string().contains(report), "{name}: {ready}");
    }
    let expected = if state.serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in ["", SERVICE] {
        until(&format!("{name}: health of {service:?}"), PATIENCE, async || {
            (health(&deployment.node.channel, service).await == Some(expected)).then_some(())
        })
        .await;
    }
    for (series, up) in [
        ("tollgate_store_up{store=\"redis\"}", state.store_up),
        ("tollgate_account_store_up", state.accounts_up),
        ("tollgate_account_feed_up", state.heard),
    ] {
        until(&format!("{name}: {series} is {up}"), PATIENCE, async || {
            (value(&deployment.metrics().await, series) == Some(up)).then_some(())
        })
        .await;
    }
    // Reads from a replica do not count either, and remembered accounts expire.
    let ends = calls(&deployment.node, ["acme", "known"]).await;
    let no = Some(Code::Unavailable);
    match state.decided {
        DecidableCalls::All => assert_eq!(ends, [None; 4], "{name}"),
        DecidableCalls::OfThePolicy => assert_eq!(ends, [None, None, no, no], "{name}"),
        // A full server still answers reads.
        DecidableCalls::None if state.fault == Fault::Full => assert_eq!(ends, [no, None, no, None], "{name}"),
        DecidableCalls::None => assert_eq!(ends, [no; 4], "{name}"),
        DecidableCalls::Some => {}
    }
    let after = deployment.metrics().await;
    let mut expected: Vec<&str> = state.alerts.to_vec();
    if matches!(state.decided, DecidableCalls::Some) && ends.contains(&no) {
        expected.push("TollgateDecidesWithoutStore");
    }
    firing(name, &before, &after, &expected);
    let output = deployment.node.stderr();
    if let Some((_, ok, text)) = state.says {
        let what = if ok { text } else { text.rsplit(": ").next().unwrap() };
        let line = output.lines().find(|line| line.contains("WARN") && line.contains(what) && line.contains("store"));
        assert!(line.is_some(), "{name}: {output}");
    }
}

/// Seen to fail: with `PING` as the probe (read-only and full servers pass), with connections to replicas in use, and
/// with a subscription to a replica.
#[tokio::test]
async fn every_state_of_the_stores_is_reported_as_documented() {
    for state in TABLE {
        assert!(OPERATIONS.contains(&state.line()), "docs/operations.md lacks\n{}", state.line());
    }
    let header = "| the Redis of the counters is |";
    let rows = OPERATIONS.lines().skip_while(|line| !line.starts_with(header)).skip(2);
    assert_eq!(rows.take_while(|line| line.starts_with('|')).count(), TABLE.len(), "rows without a test");
    // A few rows at a time: each starts one or two Redis servers.
    for states in TABLE.chunks(4) {
        let all = LocalSet::new();
        all.run_until(async {
            let running: Vec<_> = states.iter().map(|state| spawn_local(check_state(*state))).collect();
            for state in running {
                state.await.expect("what is documented");
            }
        })
        .await;
    }
}

/// Unauthenticated callers may ask for readiness at any rate; the load on Redis does not depend on it.
///
/// Seen to fail when each request asked the store.
#[tokio::test]
async fn a_readiness_request_sends_nothing_to_redis() {
    let deployment = Deployment::start(Fault::Nothing);
    let redis = deployment.counters.as_ref().unwrap();
    let commands = || {
        let stats: String = redis.run("INFO stats");
        let line = stats.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    let (before, started) = (commands(), std::time::Instant::now());
    for _ in 0..500 {
        assert_eq!(deployment.node.rest.text("/readyz").await.0, 200);
    }
    // A probe sends a few commands once a second.
    let most = 40 + 20 * started.elapsed().as_secs();
    let sent = commands() - before;
    assert!(sent < most, "{sent} commands in {:?}", started.elapsed());
}
