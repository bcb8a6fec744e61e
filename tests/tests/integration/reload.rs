//! Hot reload: limits change at once, usage stays, and a broken file changes nothing but what the node says.
//!
//! Tried by breaking the server: a reload that doesn't keep what went wrong.

use std::{path::Path, time::Duration};

use tollgate_store::testing::RedisServer;

use crate::harness::{
    Node, ProcessBuilder, Rest, account, allowed, call, consume, folder_with, memory_node, peek, quota, redis_node,
    shop, until,
};

const BOUND: Duration = Duration::from_secs(10);

/// Replaces the file in one step, as tools that deploy do.
fn replace(policy: &Path, text: &str) {
    let beside = policy.with_extension("new");
    std::fs::write(&beside, text).expect("the policy is written");
    std::fs::rename(&beside, policy).expect("the policy is replaced");
}

fn one() -> tollgate_proto::v1::Call {
    call(account("a"), "model", &[("tokens", 10)])
}

async fn limit_is(node: &Node, limit: u64) {
    until(&format!("the limit is {limit}"), BOUND, async || {
        let now = peek(&node.grpc, one()).await.expect("a decision");
        (quota(&now, "requests_per_minute").limit == Some(limit)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn limits_change_at_once_and_usage_stays() {
    let redis = RedisServer::start();
    for node in [memory_node(&shop(10)).await, redis_node(&shop(10), redis.url()).await] {
        for _ in 0..10 {
            assert!(allowed(&consume(&node.grpc, one()).await.unwrap()));
        }
        assert!(!allowed(&consume(&node.grpc, one()).await.unwrap()));
        replace(&node.policy, &shop(12));
        limit_is(&node, 12).await;
        let now = peek(&node.grpc, one()).await.unwrap();
        let requests = quota(&now, "requests_per_minute");
        assert_eq!((requests.used, requests.remaining), (10, Some(2)));
        assert_eq!(quota(&now, "tokens_per_minute").used, 100);
        for room in [true, true, false] {
            assert_eq!(allowed(&consume(&node.grpc, one()).await.unwrap()), room);
        }
        // Below what is used: nothing is left, and nothing underflows.
        replace(&node.policy, &shop(5));
        limit_is(&node, 5).await;
        let now = consume(&node.grpc, one()).await.unwrap();
        let requests = quota(&now, "requests_per_minute");
        assert_eq!((allowed(&now), requests.used, requests.remaining), (false, 12, Some(0)));
        // Written in place, as editors do.
        std::fs::write(&node.policy, shop(20)).unwrap();
        limit_is(&node, 20).await;
        assert_eq!(quota(&peek(&node.grpc, one()).await.unwrap(), "requests_per_minute").used, 12);
    }
}

async fn policies_are(rest: &Rest, ok: bool) -> serde_json::Value {
    until(&format!("/readyz says that policies are ok: {ok}"), BOUND, async || {
        let (_, body) = rest.json("/readyz").await;
        (body["policies"]["ok"] == ok).then_some(body)
    })
    .await
}

async fn reloads(rest: &Rest, result: &str) -> u64 {
    let (_, metrics) = rest.text("/metrics").await;
    let name = format!("tollgate_policy_reloads_total{{result=\"{result}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().expect("a number"))
}

#[tokio::test]
async fn a_broken_file_keeps_the_old_policy_and_says_where_it_is_broken() {
    let node = memory_node(&shop(10)).await;
    assert!(allowed(&consume(&node.grpc, one()).await.unwrap()));
    assert_eq!(reloads(&node.rest, "failure").await, 0);
    let broken = shop(99).replace("limit: 20000", "limit: -1").replace("per: 2s", "per: 0s");
    let line_of = |text: &str| 1 + broken.lines().position(|line| line.contains(text)).unwrap();
    replace(&node.policy, &broken);
    let body = policies_are(&node.rest, false).await;
    let detail = body["policies"]["detail"].as_str().unwrap();
    for text in ["limit: -1", "per: 0s"] {
        let place = format!("policy.yaml:{}: ", line_of(text));
        assert!(detail.contains(&place), "no {place} in {detail}");
    }
    assert_eq!(body["ready"], true, "the old policy still decides: {body}");
    assert!(reloads(&node.rest, "failure").await >= 1);
    let now = consume(&node.grpc, one()).await.unwrap();
    let requests = quota(&now, "requests_per_minute");
    assert_eq!((requests.limit, requests.used), (Some(10), 2));
    // A file that went away is as broken.
    std::fs::remove_file(&node.policy).unwrap();
    until("the loss is told", BOUND, async || {
        let (_, body) = node.rest.json("/readyz").await;
        body["policies"]["detail"].as_str().is_some_and(|detail| !detail.contains("0s")).then_some(())
    })
    .await;
    assert!(allowed(&consume(&node.grpc, one()).await.unwrap()));
    replace(&node.policy, &shop(11));
    let body = policies_are(&node.rest, true).await;
    assert!(body["policies"].get("detail").is_none(), "{body}");
    assert!(reloads(&node.rest, "success").await >= 1);
    assert_eq!(quota(&peek(&node.grpc, one()).await.unwrap(), "requests_per_minute").used, 3);
}

#[tokio::test]
async fn sighup_reloads_what_no_watcher_sees() {
    // The policy is a link into another folder, so that a change there is no event in the folder that is watched.
    let (_elsewhere, target) = folder_with(&shop(10));
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("policy.yaml");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let node = ProcessBuilder::new(&link).start();
    assert!(allowed(&consume(&node.grpc, one()).await.unwrap()));
    replace(&target, &shop(30));
    node.signal("HUP");
    let now = until("the limit is 30", BOUND, async || {
        let now = peek(&node.grpc, one()).await.expect("a decision");
        (quota(&now, "requests_per_minute").limit == Some(30)).then_some(now)
    })
    .await;
    assert_eq!(quota(&now, "requests_per_minute").used, 1);
    std::fs::write(&target, "version: 2\n").unwrap();
    node.signal("HUP");
    policies_are(&node.rest, false).await;
    let said = async || node.stderr().contains("not reloaded; what was there stays").then_some(());
    until("it says so", BOUND, said).await;
    assert!(allowed(&consume(&node.grpc, one()).await.unwrap()), "it still runs");
}
