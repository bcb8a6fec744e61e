//! What each failure mode does during an outage of Redis, and after it.

use std::time::Duration;

use tollgate_store::testing::RedisServer;
use tonic::Code;

use crate::harness::{Process, ProcessBuilder, account, allowed, call, consume, folder_with, peek, quota, until};

/// A platform whose resources have different failure modes. `mixed` has a quota of each mode but `deny`.
fn platform() -> &'static str {
    "version: 1
domain: shop
units: [tokens]
on_failure: local
resources:
  local: { quotas: [{ unit: requests, per: hour, limit: 30 }] }
  open: { quotas: [{ unit: requests, per: hour, limit: 5, on_failure: allow }] }
  closed: { quotas: [{ unit: requests, per: hour, limit: 5, on_failure: deny }] }
  mixed:
    quotas:
      - { unit: requests, per: hour, limit: 9, on_failure: local }
      - { unit: tokens, per: hour, limit: 100, on_failure: allow }
  strict:
    quotas:
      - { unit: requests, per: hour, limit: 9, on_failure: local }
      - { unit: tokens, per: hour, limit: 100, on_failure: deny }
  tried: { quotas: [{ unit: requests, per: hour, limit: 1, on_failure: deny, shadow: true }] }
tiers:
  paid: { is_charged: true }
default_tier: paid
"
}

const NODES: u64 = 3;

fn nodes(url: &str) -> (tempfile::TempDir, Vec<Process>) {
    let (folder, policy) = folder_with(platform());
    let start = |_| ProcessBuilder::new(&policy).redis(url).arg(format!("--node-count={NODES}")).start();
    (folder, (0..NODES).map(start).collect())
}

/// Calls every node until it refuses. Returns the total number of admissions.
async fn admitted_by_all(nodes: &[Process], resource: &str, decided_by: &str) -> u64 {
    let mut admitted = 0;
    for node in nodes {
        for _ in 0..40 {
            let decision = consume(&node.grpc, call(account("a"), resource, &[])).await.expect("a decision");
            assert_eq!(decision.decided_by, decided_by);
            admitted += u64::from(allowed(&decision));
        }
    }
    admitted
}

#[tokio::test]
async fn each_failure_mode_keeps_its_bound_and_local_charges_are_replayed() {
    let mut redis = RedisServer::start();
    let (_folder, nodes) = nodes(&redis.url());
    let node = &nodes[0];
    let before = consume(&node.grpc, call(account("a"), "local", &[])).await.unwrap();
    assert_eq!((allowed(&before), before.decided_by.as_str()), (true, ""));
    redis.kill();
    for node in &nodes {
        until("the outage is reported", Duration::from_secs(10), async || {
            let decision = consume(&node.grpc, call(account("probe"), "local", &[])).await.unwrap();
            (decision.decided_by == "local").then_some(())
        })
        .await;
    }

    // local: each node enforces its share, and reports the numbers of that share.
    let first = consume(&node.grpc, call(account("b"), "local", &[])).await.unwrap();
    let status = quota(&first, "requests_per_hour");
    assert_eq!((status.limit, status.used, status.remaining), (Some(10), 1, Some(9)));
    let locally = admitted_by_all(&nodes, "local", "local").await;
    assert_eq!(locally, 30, "three times a third of the limit");
    // allow: every call whose cost is within the limit.
    assert_eq!(admitted_by_all(&nodes, "open", "allow").await, 40 * NODES);
    // With several quotas, local enforces its own limit. A cost above a limit is never admitted.
    let two = |tokens| call(account("c"), "mixed", &[("requests", 1), ("tokens", tokens)]);
    for number in 0..5 {
        assert_eq!(allowed(&consume(&node.grpc, two(90)).await.unwrap()), number < 3);
    }
    assert!(!allowed(&consume(&nodes[1].grpc, two(101)).await.unwrap()));
    assert_eq!(quota(&peek(&nodes[1].grpc, two(1)).await.unwrap(), "requests_per_hour").used, 0, "nothing was charged");
    // deny: no decision. One such quota is enough, unless it is a shadow quota.
    for resource in ["closed", "strict"] {
        let error = consume(&node.grpc, call(account("a"), resource, &[])).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{resource}: {error:?}");
    }
    assert!(allowed(&consume(&node.grpc, call(account("a"), "tried", &[])).await.unwrap()));
    // REST gives the same answers.
    let (_, answer) = node.rest.post("/v1/consume", r#"{"caller":{"account":"d"},"resource":"local"}"#).await;
    assert_eq!(answer["decided_by"], "local", "{answer}");
    // A node that decides without the store is ready.
    until("the outage is reported", Duration::from_secs(10), async || {
        let (status, ready) = node.rest.json("/readyz").await;
        assert_eq!(status.as_u16(), 200, "{ready}");
        (ready["store"]["ok"] == false).then_some(())
    })
    .await;
    let (_, metrics) = node.rest.text("/metrics").await;
    for series in [
        r#"tollgate_failure_decisions_total{mode="local",verdict="allowed"}"#,
        r#"tollgate_failure_decisions_total{mode="local",verdict="denied"}"#,
        r#"tollgate_failure_decisions_total{mode="allow",verdict="allowed"}"#,
        r#"tollgate_failure_decisions_total{mode="deny",verdict="undecided"}"#,
        r#"tollgate_store_faults_total{fault="unconnected"}"#,
    ] {
        let line = metrics.lines().find_map(|line| line.strip_prefix(series)).unwrap_or_else(|| panic!("no {series}"));
        assert_ne!(line.trim(), "0", "{series}");
    }
    let lines = node.stderr().lines().filter(|line| line.contains("answered without the store")).count();
    assert!((1..=3).contains(&lines), "{lines} lines for hundreds of calls");

    // Redis is back and empty: it receives the charges of local quotas, once.
    redis.restart();
    for node in &nodes {
        until("what was admitted is charged", Duration::from_secs(10), async || {
            let (_, metrics) = node.rest.text("/metrics").await;
            metrics.contains("tollgate_failure_replay_waiting 0\n").then_some(())
        })
        .await;
    }
    let after = until("Redis decides", Duration::from_secs(10), async || {
        let decision = peek(&node.grpc, call(account("a"), "local", &[])).await.ok()?;
        decision.decided_by.is_empty().then_some(decision)
    })
    .await;
    assert_eq!(quota(&after, "requests_per_hour").used, locally);
    assert!(!allowed(&after), "thirty of thirty are used");
    let open = peek(&node.grpc, call(account("a"), "open", &[])).await.unwrap();
    assert_eq!(quota(&open, "requests_per_hour").used, 0, "a call without a decision is not charged");
}

/// Asserts that the log has the store's error under the incident id that the caller received.
async fn assert_cause_is_logged(node: &Process, message: &str, why: &str) {
    let (_, incident) = message.split_once("incident ").unwrap_or_else(|| panic!("no incident: {message}"));
    let incident = incident.trim_end_matches(')');
    until(&format!("{why} is logged as {incident}"), Duration::from_secs(10), async || {
        node.stderr().lines().any(|line| line.contains(incident) && line.contains(why)).then_some(())
    })
    .await;
}

/// A full Redis accepts no writes: it answers, and cannot decide.
#[tokio::test]
async fn a_full_redis_is_treated_as_an_outage() {
    let redis = RedisServer::start();
    let (_folder, nodes) = nodes(&redis.url());
    assert!(allowed(&consume(&nodes[0].grpc, call(account("a"), "closed", &[])).await.unwrap()));
    let _: () = redis.run("CONFIG SET maxmemory 1");
    let error = consume(&nodes[0].grpc, call(account("a"), "closed", &[])).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert_cause_is_logged(&nodes[0], error.message(), "OOM").await;
    let local = consume(&nodes[0].grpc, call(account("a"), "local", &[])).await.unwrap();
    assert_eq!((allowed(&local), local.decided_by.as_str()), (true, "local"));
    let _: () = redis.run("CONFIG SET maxmemory 0");
    let again = consume(&nodes[0].grpc, call(account("a"), "closed", &[])).await.unwrap();
    assert_eq!((allowed(&again), quota(&again, "requests_per_hour").used), (true, 2));
}

/// A node that must wait for a replica which does not exist: the call is not decided, and reads are answered.
#[tokio::test]
async fn a_charge_that_no_replica_confirms_is_not_decided() {
    let redis = RedisServer::start();
    let (_folder, policy) = folder_with(platform());
    let node = ProcessBuilder::new(&policy).redis(&redis.url());
    let node = node.args(["--redis-wait-replicas=1", "--redis-wait-ms=50"]).start();
    let error = consume(&node.grpc, call(account("a"), "closed", &[])).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert_cause_is_logged(&node, error.message(), "0 of 1 replicas had the charge within 50ms").await;
    let now = peek(&node.grpc, call(account("a"), "closed", &[])).await.unwrap();
    assert_eq!(quota(&now, "requests_per_hour").used, 1, "it was made");
    // The node's own probe is not confirmed either; the node is ready, as it has quotas that need no store.
    let (status, ready) = node.rest.json("/readyz").await;
    let detail = "replicas do not confirm in time: no charge is possible";
    assert_eq!((status.as_u16(), &ready["store"]["detail"]), (200, &detail.into()), "{ready}");
    let (_, metrics) = node.rest.text("/metrics").await;
    let faults =
        metrics.lines().find_map(|line| line.strip_prefix("tollgate_store_faults_total{fault=\"unreplicated\"} "));
    assert!(faults.is_some_and(|faults| faults != "0"), "{metrics}");
    let arguments = ["doctor", "--redis", &redis.url(), "--redis-wait-replicas=1", "--redis-wait-ms=50"];
    let (status, error_text, _) = ProcessBuilder::bare().args(arguments).output();
    assert!(
        !status.success() && error_text.contains("0 of 1 confirm within 50ms; calls fail (unreplicated)"),
        "{error_text}"
    );
}
