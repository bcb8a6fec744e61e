//! The numbers of a decision are exact: after any load they predict the next decisions.

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use serde_json::Value;
use tollgate_api::v1::{Call, Decision, GetRateLimitsRequest, Reason};
use tollgate_core::time::Timestamp;
use tollgate_store::{
    clock::{Clock, SystemClock},
    testing::{Program, RedisServer},
};

use crate::harness::{
    KEY, Node, account, allowed, api_key, call, consume, decided_at_ms, memory_node, ms, peek, quota, redis_node, shop,
};

/// Steps of a load: a pause in ms, a number of requests, and the tokens of each.
type Load = Vec<(u64, u64, u64)>;

fn load() -> impl Strategy<Value = Load> {
    let pause = prop_oneof![2 => Just(0), 3 => 1_u64..50, 3 => 1_u64..4_000, 1 => 4_000_u64..20_000];
    prop::collection::vec((pause, 1_u64..4, 1_u64..120), 1..25)
}

fn check(cases: u32, start: impl AsyncFn() -> Node) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let node = runtime.block_on(start());
    let mut runner =
        TestRunner::new(Config { cases, failure_persistence: None, max_shrink_iters: 100, ..Config::default() });
    let outcome = runner.run(&load(), |load| {
        runtime.block_on(check_reported_numbers(&node, load));
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

async fn check_reported_numbers(node: &Node, load: Load) {
    // The usage of earlier cases has left the windows.
    node.clock.advance_ms(3_600_000);
    let tiny = |usage: &[(&str, u64)]| call(api_key(KEY), "tiny", usage);
    for (pause, requests, tokens) in load {
        node.clock.advance_ms(pause);
        let load = tiny(&[("requests", requests), ("tokens", tokens)]);
        let before = peek(&node.grpc, load.clone()).await.unwrap();
        let decision = consume(&node.grpc, load).await.unwrap();
        assert_eq!(before.verdict, decision.verdict, "Check equals Consume");
        assert_eq!(decided_at_ms(&decision), node.clock.now().as_ms());
        for status in &decision.quotas {
            assert_eq!(status.remaining.unwrap(), status.limit.unwrap() - status.used, "{status:?}");
        }
        check_listing_agrees(node, &decision).await;
    }
    let now = peek(&node.grpc, tiny(&[])).await.unwrap();
    let room = now
        .quotas
        .iter()
        .filter(|quota| quota.name.starts_with("requests"))
        .map(|quota| quota.remaining.unwrap())
        .min()
        .unwrap();
    for admitted in 0..room {
        let decision = consume(&node.grpc, tiny(&[])).await.unwrap();
        assert!(allowed(&decision), "{admitted} of {room}: {decision:?}");
    }
    let refused = consume(&node.grpc, tiny(&[])).await.unwrap();
    assert!(!allowed(&refused), "one more than {room}: {refused:?}");
    assert_eq!(refused.reason(), Reason::QuotaExceeded);
    let wait = refused.retry_after_ms.expect("a Retry-After");
    let says = quota(&refused, &refused.quota);
    let at = says.retry_at.as_ref().map(ms);
    assert_eq!(at, Some(decided_at_ms(&refused) + wait), "retry_at and retry_after_ms are one thing");
    node.clock.advance_ms(wait - 1);
    assert!(!allowed(&peek(&node.grpc, tiny(&[])).await.unwrap()), "admitted 1 ms before {wait} ms");
    node.clock.advance_ms(1);
    assert!(allowed(&consume(&node.grpc, tiny(&[])).await.unwrap()), "refused after {wait} ms");
}

/// Asserts that `GET /api_keys/rate_limits` has the numbers of the last decision.
async fn check_listing_agrees(node: &Node, decision: &Decision) {
    let body = node.rest.limits(KEY).await;
    let resources = body["data"]["rateLimits"].as_array().unwrap();
    let tiny = resources.iter().find(|resource| resource["apiModelId"] == "tiny").unwrap();
    let numbers = |entry: &Value| ["amount", "used", "remaining"].map(|name| entry[name].as_u64().unwrap());
    let listed: Vec<[u64; 3]> = tiny["rateLimits"].as_array().unwrap().iter().map(numbers).collect();
    let decided: Vec<[u64; 3]> =
        decision.quotas.iter().map(|quota| [quota.limit.unwrap(), quota.used, quota.remaining.unwrap()]).collect();
    assert_eq!(listed, decided);
    assert_eq!(body["data"]["decidedAt"], node.clock.now().to_string());
}

#[test]
fn reported_numbers_are_exact_in_memory() {
    check(24, async || memory_node(&shop(100)).await);
}

#[test]
fn reported_numbers_are_exact_in_redis() {
    let redis = RedisServer::start();
    check(12, async || redis_node(&shop(100), redis.url()).await);
}

/// Every answer carries the store's time, also when the node's clock is an hour off. Runs on Redis 6.2, whose allocator
/// works with libfaketime.
#[tokio::test]
async fn decided_at_is_the_time_of_the_store() {
    let redis = RedisServer::start_program(Program::OwnClock, &[]);
    let (_folder, policy) = crate::harness::folder_with(&shop(100));
    let node = crate::harness::ProcessBuilder::new(&policy).redis(&redis.url()).start();
    for ahead_s in [3_600, -3_600] {
        redis.set_clock(ahead_s);
        let time = || -> Timestamp {
            let (seconds, micros): (u64, u64) = redis::cmd("TIME").query(&mut redis.connection()).unwrap();
            Timestamp::from_ms(seconds * 1000 + micros / 1000)
        };
        let before = time();
        assert!(before.as_ms().abs_diff(SystemClock.now().as_ms()) > 3_000_000, "{ahead_s} s");
        let of_the_store = |what: &str, at: Timestamp| {
            let after = time();
            assert!((before..=after).contains(&at), "{what}: {at} is not from {before} to {after}");
        };
        let text_of_the_store = |what: &str, at: &Value| {
            let (at, after) = (at.as_str().unwrap(), time().to_string());
            // Timestamps of one form and length, which sort by time.
            assert_eq!(at.len(), after.len(), "{at}");
            assert!((&*before.to_string()..=&*after).contains(&at), "{what}: {at} is not from {before} to {after}");
        };
        let one = || call(account("a"), "model", &[]);
        for (what, decision) in
            [("Consume", consume(&node.grpc, one()).await), ("Check", peek(&node.grpc, one()).await)]
        {
            of_the_store(what, Timestamp::from_ms(decided_at_ms(&decision.unwrap())));
        }
        let listing = GetRateLimitsRequest { caller: Some(account("a")), ..Default::default() };
        let listed = node.grpc.clone().get_rate_limits(listing).await.unwrap().into_inner();
        of_the_store("GetRateLimits", Timestamp::from_ms(ms(listed.decided_at.as_ref().unwrap())));
        text_of_the_store("REST's limits", &node.rest.limits(KEY).await["data"]["decidedAt"]);
        let body = r#"{"caller":{"account":"a"},"resource":"model"}"#;
        let (_, decision) = node.rest.post("/v1/consume", body).await;
        text_of_the_store("REST's Consume", &decision["decided_at"]);
    }
}

/// Promise 5 of README.md.
#[tokio::test]
async fn a_cost_above_the_limit_is_refused_permanently() {
    let redis = RedisServer::start();
    for node in [memory_node(&shop(100)).await, redis_node(&shop(100), redis.url()).await] {
        let too_much = call(account("a"), "model", &[("tokens", 20_001)]);
        let decision = consume(&node.grpc, too_much).await.unwrap();
        assert!(!allowed(&decision));
        assert_eq!(decision.reason(), Reason::CostAboveLimit);
        assert_eq!(decision.retry_after_ms, None);
        assert_eq!(decision.quota, "tokens_per_minute");
        let says = quota(&decision, "tokens_per_minute");
        assert!(says.denies && says.retry_at.is_none(), "{says:?}");
        assert!(decision.quotas.iter().all(|quota| quota.used == 0), "{decision:?}");
        let (status, body) = node
            .rest
            .post("/v1/consume", r#"{"caller":{"account":"a"},"resource":"model","usage":{"tokens":20001}}"#)
            .await;
        assert_eq!((status.as_u16(), body["verdict"].as_str()), (200, Some("denied")));
        assert_eq!(body["reason"], "cost_above_limit");
        assert!(body.get("retry_after_ms").is_none(), "{body}");
        // A cost equal to the limit is admitted.
        assert!(allowed(&consume(&node.grpc, call(account("a"), "model", &[("tokens", 20_000)])).await.unwrap()));
    }
}

/// Descriptions of quotas are included on request; their status always is.
#[tokio::test]
async fn details_are_included_on_request_only() {
    let node = memory_node(&shop(100)).await;
    let brief = consume(&node.grpc, call(account("a"), "tiny", &[("tokens", 5)])).await.unwrap();
    assert!(brief.quotas.iter().all(|quota| quota.details.is_none()), "{brief:?}");
    let with_details = Call { details: true, ..call(account("a"), "tiny", &[]) };
    let full = peek(&node.grpc, with_details).await.unwrap();
    let tokens = quota(&full, "tokens_per_minute");
    assert_eq!((tokens.used, tokens.limit), (5, Some(300)));
    let details = tokens.details.as_ref().expect("the details");
    assert_eq!((&*details.label, &*details.unit), ("TPM", "tokens"));
    assert_eq!(details.scope, ["account", "resource"]);
    let window = details.window.as_ref().and_then(|window| window.kind.as_ref());
    assert_eq!(window, Some(&tollgate_api::v1::window::Kind::SlidingMs(60_000)));
}
