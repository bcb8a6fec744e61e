//! Reservations that are settled or cancelled with the status of the call: failures count for the abuse rules, as if
//! reported.

use std::collections::BTreeMap;

use serde_json::json;
use tollgate_api::v1::{Call, Caller, Decision, Reason};
use tollgate_store::testing::RedisServer;

use super::{CancelRequest, SettleRequest, id_of, reserve, usage};
use crate::harness::{KEY, Node, account, allowed, api_key_id, call, hash_of, memory_node, peek, quota, redis_node};

/// The rules tolerate three failures of a key, and one of an address at a resource.
fn policy() -> String {
    format!(
        r#"version: 1
domain: guarded
units: [tokens]
resources:
  chat: {{ quotas: [{{ unit: tokens, per: minute, limit: 100000 }}, {{ unit: concurrent_requests, limit: 100 }}] }}
  free: {{ quotas: [] }}
tiers:
  paid: {{ is_charged: true }}
default_tier: paid
abuse:
  rules:
    keys: {{ limit: 3, per: 30s, block: 30s, scope: [api_key], statuses: [5xx] }}
    addresses: {{ limit: 1, per: 30s, block: 60s, scope: [ip, resource], statuses: [418] }}
bootstrap:
  accounts:
    - id: acme
      tier: paid
      keys:
        - {{ id: one, hash: "{}", kind: inference }}
        - {{ id: two, hash: "{}", kind: inference }}
"#,
        hash_of(KEY),
        hash_of("sk-integration-second")
    )
}

/// The protocol of the request.
#[derive(Clone, Copy, Debug)]
enum Protocol {
    Grpc,
    Rest,
}

/// How a reservation ends: settled with this many tokens, or cancelled.
type ReservationEnd = Option<u64>;

/// Ends a reservation. Returns whether the end was a replay, or the error message.
async fn end(node: &Node, protocol: Protocol, id: &str, end: ReservationEnd, status: u32) -> Result<bool, String> {
    let (path, mut body) = match end {
        Some(tokens) => ("/v1/settle", json!({ "reservation_id": id, "usage": { "tokens": tokens } })),
        None => ("/v1/cancel", json!({ "reservation_id": id })),
    };
    match (protocol, end) {
        (Protocol::Grpc, Some(tokens)) => {
            let request = SettleRequest { reservation_id: id.to_owned(), usage: usage(&[("tokens", tokens)]), status };
            let answer = node.grpc.clone().settle(request).await.map_err(|error| error.message().to_owned())?;
            Ok(answer.into_inner().settlement.expect("a settlement").replayed)
        }
        (Protocol::Grpc, None) => {
            let request = CancelRequest { reservation_id: id.to_owned(), status };
            let answer = node.grpc.clone().cancel(request).await.map_err(|error| error.message().to_owned())?;
            Ok(answer.into_inner().settlement.expect("a settlement").replayed)
        }
        (Protocol::Rest, _) => {
            if status != 0 {
                body["status"] = json!(status);
            }
            let (code, answer) = node.rest.post(path, body.to_string()).await;
            if code.as_u16() != 200 {
                return Err(answer["error"]["message"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned());
            }
            assert!(answer["settled_at"].is_string(), "{answer}");
            Ok(answer["replayed"] == true)
        }
    }
}

async fn decide(node: &Node, caller: Caller, resource: &str, ip: &str) -> Decision {
    let attributes = BTreeMap::from([("ip".to_owned(), ip.to_owned())]);
    let call = Call { attributes, ..call(caller, resource, &[("tokens", 10)]) };
    reserve(&node.grpc, call, &[], 0).await.expect("a decision")
}

/// Reserves with this key, and returns the reservation's id.
async fn slots_in_use(node: &Node, key: &str, ip: &str) -> String {
    id_of(&decide(node, api_key_id(key), "chat", ip).await)
}

async fn failures_block(node: &Node, protocol: Protocol) {
    let ended =
        async |id: &str, how: ReservationEnd, status| end(node, protocol, id, how, status).await.expect("it ends");
    let key_one = async || decide(node, api_key_id("one"), "chat", "192.0.2.1").await;
    let used = async || {
        let now = peek(&node.grpc, call(account("acme"), "chat", &[])).await.expect("a decision");
        [quota(&now, "tokens_per_minute").used, quota(&now, "concurrent_requests").used]
    };
    let under_way = slots_in_use(node, "one", "192.0.2.1").await;
    let before = used().await;

    // An invalid status is refused by name, and the reservation stays open.
    let wrong = slots_in_use(node, "one", "192.0.2.1").await;
    for status in [1, 99, 600] {
        for how in [Some(3), None] {
            let output = end(node, protocol, &wrong, how, status).await.expect_err("it is refused");
            assert!(output.starts_with("status: must be an HTTP status from 100 to 599"), "{protocol:?}: {output}");
        }
    }
    assert_eq!(used().await, [before[0] + 10, before[1] + 1], "{protocol:?}: as it was reserved");
    // The first failure. A repeated end counts once, whatever its status.
    assert!(!ended(&wrong, Some(3), 503).await, "{protocol:?}: not ended by what was refused");
    assert_eq!(used().await, [before[0] + 3, before[1]], "{protocol:?}: settled");
    for status in [503, 500, 0, 599, 503] {
        assert!(ended(&wrong, Some(3), status).await, "{protocol:?}: a replay");
    }
    // The second failure, and ends that are no failure: a success, a status outside the rule, no status.
    let cancelled = slots_in_use(node, "one", "192.0.2.1").await;
    assert!(!ended(&cancelled, None, 500).await);
    for _ in 0..5 {
        assert!(ended(&cancelled, None, 500).await, "{protocol:?}: a replay");
    }
    for status in [200, 404, 0, 499] {
        for how in [Some(10), None] {
            ended(&slots_in_use(node, "one", "192.0.2.1").await, how, status).await;
        }
    }
    // The third failure is tolerated, the fourth blocks.
    ended(&slots_in_use(node, "one", "192.0.2.1").await, Some(0), 599).await;
    let last = slots_in_use(node, "one", "192.0.2.1").await;
    let before = used().await;
    ended(&last, None, 502).await;
    assert_eq!(used().await, [before[0] - 10, before[1] - 1], "{protocol:?}: it ends all the same");
    let refused = key_one().await;
    assert_eq!(
        (refused.reason(), refused.retry_after_ms),
        (Reason::Blocked, Some(30_000)),
        "{protocol:?}: {refused:?}"
    );
    // The key of the reservation is blocked, not its account or the other key.
    for caller in [account("acme"), api_key_id("two")] {
        let others = decide(node, caller, "chat", "192.0.2.1").await;
        ended(&id_of(&others), None, 0).await;
    }
    // Open reservations can be ended, and do not lengthen the block.
    node.clock.advance_ms(10_000);
    assert!(!ended(&under_way, Some(0), 500).await);
    assert_eq!(key_one().await.retry_after_ms, Some(20_000), "{protocol:?}");
    node.clock.advance_ms(20_000);
    ended(&id_of(&key_one().await), None, 0).await;

    // Attributes and resource come from the reservation, too.
    for key in ["one", "two"] {
        assert!(allowed(&decide(node, account("acme"), "chat", "192.0.2.9").await));
        ended(&slots_in_use(node, key, "192.0.2.9").await, Some(10), 418).await;
    }
    let refused = decide(node, account("other"), "chat", "192.0.2.9").await;
    assert_eq!(
        (refused.reason(), refused.retry_after_ms),
        (Reason::Blocked, Some(60_000)),
        "{protocol:?}: {refused:?}"
    );
    assert!(allowed(&decide(node, account("other"), "free", "192.0.2.9").await), "{protocol:?}: another resource");
    assert!(allowed(&decide(node, account("other"), "chat", "192.0.2.1").await), "{protocol:?}: another address");
    node.clock.advance_ms(3_600_000);
}

#[tokio::test]
async fn failures_reported_at_settlement_block_like_reports() {
    let redis = RedisServer::start();
    for node in [memory_node(&policy()).await, redis_node(&policy(), redis.url()).await] {
        for protocol in [Protocol::Grpc, Protocol::Rest] {
            failures_block(&node, protocol).await;
        }
        let (_, metrics) = node.rest.text("/metrics").await;
        for (rule, blocks) in [("keys", 2), ("addresses", 2)] {
            let line = format!("tollgate_blocks_total{{domain=\"guarded\",rule=\"{rule}\"}} {blocks}");
            assert!(metrics.contains(&line), "{line}: {metrics}");
        }
    }
}
