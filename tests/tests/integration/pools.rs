//! Pools with priorities, through the API.

use tollgate_api::v1::{Caller, CancelRequest, Decision, ReserveRequest, SettleRequest, SettledUnit};
use tollgate_store::testing::{RedisServer, topologies::RedisCluster};

use crate::harness::{
    Node, ProcessBuilder, allowed, api_key_id, call, consume, folder_with, hash_of, memory_node, ms, peek, quota,
    redis_node,
};

const TIERS: [&str; 4] = ["low", "medium", "high", "critical"];

/// A model with a pool of `limit` tokens per minute, and an account in a tier of each priority.
fn shared(limit: u64) -> String {
    let tiers =
        (1..).zip(TIERS).map(|(priority, tier)| format!("  {tier}: {{ is_charged: true, priority: {priority} }}\n"));
    let accounts = TIERS.map(|tier| {
        format!(
            "    - {{ id: {tier}, tier: {tier}, keys: [{{ id: {tier}-key, hash: \"{}\", kind: inference }}] }}\n",
            hash_of(&secret(tier))
        )
    });
    format!(
        "version: 1\ndomain: pools\nself_service: venice\nunits: [tokens]\nresources:\n  model:\n    quotas:\n      \
         - {{ unit: requests, per: minute, limit: 1000000 }}\n      \
         - {{ unit: tokens, per: minute, limit: {limit}, name: capacity, scope: [resource], visible: true, \
          pool: {{ shares: [10, 20, 30, 40] }} }}\n\
         tiers:\n{}default_tier: low\nbootstrap:\n  accounts:\n{}",
        tiers.collect::<String>(),
        accounts.concat()
    )
}

fn secret(tier: &str) -> String {
    format!("sk-integration-pools-{tier}-0123456789")
}

fn of(tier: &str) -> Caller {
    api_key_id(format!("{tier}-key"))
}

async fn draw(node: &Node, tier: &str, tokens: u64) -> Decision {
    consume(&node.grpc, call(of(tier), "model", &[("tokens", tokens)])).await.unwrap()
}

/// Every priority demands half of the capacity: each has its share, and a correct remaining amount.
#[tokio::test]
async fn each_priority_gets_its_share_and_its_remaining_amount() {
    let redis = RedisServer::start();
    for node in [memory_node(&shared(1_000)).await, redis_node(&shared(1_000), redis.url()).await] {
        let mut admitted = [0_u64; 4];
        for step in 0..300_u64 {
            // Each makes 50 calls of 10 tokens per minute, for six minutes.
            node.clock.advance_ms(1_200);
            for (number, tier) in TIERS.into_iter().enumerate() {
                let decision = draw(&node, tier, 10).await;
                let capacity = quota(&decision, "capacity");
                assert!(capacity.used <= 1_000, "never over: {capacity:?}");
                if allowed(&decision) {
                    admitted[number] += if step >= 200 { 10 } else { 0 };
                } else {
                    assert_eq!(decision.quota, "capacity");
                    assert!(capacity.denies && capacity.retry_at.is_some() && decision.retry_after_ms > Some(0));
                }
            }
        }
        for (admitted, share) in admitted.into_iter().zip([200, 400, 600, 800]) {
            assert!(admitted.abs_diff(share) <= 40, "{admitted} of {share} in the last two minutes");
        }
        // The remaining amount of a priority can be admitted, and no more; the listing agrees.
        node.clock.advance_ms(7_000);
        for tier in TIERS {
            let looked = peek(&node.grpc, call(of(tier), "model", &[("tokens", 1)])).await.unwrap();
            let remaining = quota(&looked, "capacity").remaining.unwrap();
            let limits = node.rest.limits(&secret(tier)).await;
            let listed = &limits["data"]["rateLimits"][0]["rateLimits"][1];
            assert_eq!((&listed["amount"], &listed["remaining"]), (&1_000.into(), &remaining.into()), "{limits}");
            assert!(!allowed(&draw(&node, tier, remaining + 1).await), "{tier}: {remaining}");
            if remaining > 0 {
                assert!(allowed(&draw(&node, tier, remaining).await), "{tier}: {remaining}");
            }
        }
    }
}

/// Low calls fill the pool, and a critical call needs a tenth of it: its wait is at most the announced one.
#[tokio::test]
async fn capacity_is_kept_for_a_refused_critical_call() {
    let node = memory_node(&shared(1_000)).await;
    for _ in 0..200 {
        node.clock.advance_ms(600);
        draw(&node, "low", 10).await;
    }
    let refused = draw(&node, "critical", 100).await;
    assert!(!allowed(&refused) && quota(&refused, "capacity").remaining < Some(100), "{refused:?}");
    let retry_at = ms(quota(&refused, "capacity").retry_at.as_ref().unwrap());
    let wait = refused.retry_after_ms.unwrap();
    assert!(wait <= 7_500, "a tenth of the pool is free within an eighth of the window: {wait}");
    let mut lows = 0;
    while ms(peek(&node.grpc, call(of("low"), "model", &[])).await.unwrap().decided_at.as_ref().unwrap()) < retry_at {
        lows += u64::from(allowed(&draw(&node, "low", 10).await));
        node.clock.advance_ms(100);
    }
    assert!(allowed(&draw(&node, "critical", 100).await), "{lows} low calls passed meanwhile");
}

/// Reservations draw from a pool and hold a shared slot. Unused tokens return to the pool and to the share of the
/// priority; excess is a debt of both. Runs in memory, on one Redis, and over the slots of a cluster. Seen to fail with
/// a settlement that leaves the share unchanged.
#[tokio::test]
async fn a_reservation_is_settled_in_the_pool_and_in_the_share() {
    let (redis, cluster) = (RedisServer::start(), RedisCluster::start());
    let streams = "- { unit: concurrent_requests, limit: 1, name: streams, scope: [resource] }\n      - { unit: tokens";
    let policy = shared(1_000).replace("- { unit: tokens", streams);
    let nodes =
        [memory_node(&policy).await, redis_node(&policy, redis.url()).await, redis_node(&policy, cluster.url()).await];
    for node in nodes {
        let reserve = async |tier: &str, tokens: u64| {
            let call = call(of(tier), "model", &[("tokens", tokens)]);
            let request = ReserveRequest { call: Some(call), ..ReserveRequest::default() };
            node.grpc.clone().reserve(request).await.unwrap().into_inner().decision.unwrap()
        };
        let end = async |decision: Decision, tokens: Option<u64>| -> SettledUnit {
            let reservation_id = decision.reservation.expect("it was admitted").id;
            let settlement = if let Some(tokens) = tokens {
                let usage = [("tokens".to_owned(), tokens)].into();
                let request = SettleRequest { reservation_id, usage, status: 0 };
                node.grpc.clone().settle(request).await.unwrap().into_inner().settlement
            } else {
                node.grpc
                    .clone()
                    .cancel(CancelRequest { reservation_id, status: 0 })
                    .await
                    .unwrap()
                    .into_inner()
                    .settlement
            };
            settlement.unwrap().units.into_iter().find(|unit| unit.unit == "tokens").unwrap()
        };
        // Usage of slots and of the pool, and the remaining amount of a priority.
        let stands = async |tier: &str| {
            let now = peek(&node.grpc, call(of(tier), "model", &[])).await.unwrap();
            let capacity = quota(&now, "capacity");
            (quota(&now, "streams").used, capacity.used, capacity.remaining.unwrap())
        };
        let held = reserve("low", 900).await;
        assert_eq!(stands("low").await, (1, 900, 100));
        let refused = reserve("critical", 10).await;
        assert_eq!((refused.reservation.is_none(), &*refused.quota), (true, "streams"), "there is one slot for all");
        assert_eq!(stands("low").await, (1, 900, 100), "and a call without one is charged nothing");
        assert_eq!(end(held, None).await.returned, 900);
        assert_eq!(stands("low").await, (0, 0, 1_000));

        let less = end(reserve("low", 900).await, Some(300)).await;
        assert_eq!((less.returned, less.debt, stands("low").await), (600, 0, (0, 300, 700)));
        let more = end(reserve("low", 100).await, Some(250)).await;
        assert_eq!((more.returned, more.debt, stands("low").await), (0, 150, (0, 550, 450)));
        end(reserve("critical", 400).await, Some(400)).await;
        // Critical keeps its usage and an eighth more, of 1,000.
        assert_eq!((stands("low").await, stands("critical").await), ((0, 950, 0), (0, 950, 50)));
        node.clock.advance_ms(60_000);
        assert_eq!(stands("low").await, (0, 0, 1_000));
    }
}

/// Two processes and four priorities at the same time: the limit is never exceeded, and nearly used.
#[tokio::test(flavor = "multi_thread")]
async fn several_nodes_never_exceed_the_pool() {
    let redis = RedisServer::start();
    let (_folder, policy) = folder_with(&shared(1_000));
    let node = || ProcessBuilder::new(&policy).redis(&redis.url()).start();
    let nodes = std::sync::Arc::new([node(), node()]);
    let mut callers = tokio::task::JoinSet::new();
    for number in 0..32_usize {
        let nodes = std::sync::Arc::clone(&nodes);
        callers.spawn(async move {
            let mut admitted = 0;
            for at in 0..20 {
                let call = call(of(TIERS[number % 4]), "model", &[("tokens", 10)]);
                let decision = consume(&nodes[(number / 4 + at) % 2].grpc, call).await.expect("a decision");
                assert!(quota(&decision, "capacity").used <= 1_000);
                admitted += u64::from(allowed(&decision)) * 10;
            }
            admitted
        });
    }
    let admitted: u64 = callers.join_all().await.into_iter().sum();
    let after = peek(&nodes[0].grpc, call(of("critical"), "model", &[])).await.expect("a decision");
    assert_eq!(quota(&after, "capacity").used, admitted);
    assert!((850..=1_000).contains(&admitted), "{admitted}");
}

#[test]
fn errors_in_pools_are_reported_with_their_line() {
    let good = shared(1_000);
    for (from, to, expected) in [
        ("[10, 20, 30, 40]", "[10, 20, 30, 50]", "add up to 110 percent"),
        ("[10, 20, 30, 40]", "[0, 0, 0, 0]", "add up to 0 percent"),
        ("[10, 20, 30, 40]", "[10, 20, 70]", "shares"),
        ("[10, 20, 30, 40]", "[10, 20, 30, 101]", "must be at most 100"),
        ("scope: [resource]", "scope: [account, resource]", "one account's own"),
    ] {
        let (_folder, policy) = folder_with(&good.replace(from, to));
        let (status, _, stderr) = ProcessBuilder::bare().arg("check-policy").arg(&policy).output();
        let line = 1 + good.lines().position(|line| line.contains("name: capacity")).unwrap();
        assert_eq!(status.code(), Some(1), "{to}: {stderr}");
        assert!(stderr.contains(&format!("policy.yaml:{line}: ")) && stderr.contains(expected), "{to}: {stderr}");
    }
}
