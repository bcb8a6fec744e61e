//! The scope of a slot: the calls that are refused while a reservation holds the only slot.

use serde_json::json;
use tollgate_api::v1::{Caller, Decision};
use tollgate_store::testing::RedisServer;

use super::{cancel, id_of, reserve};
use crate::harness::{Node, account, allowed, api_key_id, call, hash_of, memory_node, quota, redis_node};

/// A policy with one slot of this scope; three keys, two of them of one account, and two resources.
fn policy(scope: &[&str]) -> String {
    let key = |id: &str| json!({ "id": id, "hash": hash_of(&format!("sk-slots-{id}")), "kind": "inference" });
    let policy = json!({
        "version": 1,
        "domain": "slots",
        "classes": { "any": { "quotas": [{ "unit": "concurrent_requests", "limit": 1, "scope": scope }] } },
        "resources": { "chat": { "class": "any" }, "images": { "class": "any" } },
        "tiers": { "paid": { "is_charged": true } },
        "default_tier": "paid",
        "bootstrap": { "accounts": [
            { "id": "acme", "tier": "paid", "keys": [key("one"), key("two")] },
            { "id": "other", "tier": "paid", "keys": [key("three")] },
        ] },
    });
    // JSON is YAML.
    policy.to_string()
}

/// Whether a slot of `chat` held by the first key of `acme` blocks another call, by scope.
#[rustfmt::skip]
const ROWS: [(&str, &str, [bool; 5]); 8] = [
    // caller         resource   [api_key]  [account]  [resource]  [api_key, resource]  [account, resource]
    ("one",           "chat",   [true,      true,      true,       true,                true]),
    ("one",           "images", [true,      true,      false,      false,               false]),
    ("two",           "chat",   [false,     true,      true,       false,               true]),
    ("two",           "images", [false,     true,      false,      false,               false]),
    ("three",         "chat",   [false,     false,     true,       false,               false]),
    ("three",         "images", [false,     false,     false,      false,               false]),
    // A call by account has no key.
    ("account acme",  "chat",   [false,     true,      true,       false,               true]),
    ("account acme",  "images", [false,     true,      false,      false,               false]),
];

const SCOPES: [&[&str]; 5] =
    [&["api_key"], &["account"], &["resource"], &["api_key", "resource"], &["account", "resource"]];

async fn decide(node: &Node, caller_name: &str, resource: &str) -> Decision {
    let caller: Caller = caller_name.strip_prefix("account ").map_or_else(|| api_key_id(caller_name), account);
    reserve(&node.grpc, call(caller, resource, &[]), &[], 0).await.expect("a decision")
}

async fn check_slot_scope(node: &Node, at: usize) {
    let held = id_of(&decide(node, "one", "chat").await);
    for (caller_name, resource, shares) in ROWS {
        let what = format!("{caller_name} at {resource} by {:?}", SCOPES[at]);
        let decision = decide(node, caller_name, resource).await;
        assert_eq!(!allowed(&decision), shares[at], "{what}: {decision:?}");
        if shares[at] {
            let slots = quota(&decision, "concurrent_requests");
            assert_eq!((&*decision.quota, slots.denies, slots.used), ("concurrent_requests", true, 1), "{what}");
        } else {
            cancel(&node.grpc, &id_of(&decision)).await.expect("it is given back");
        }
    }
    cancel(&node.grpc, &held).await.expect("it is given back");
    for (caller_name, resource, _) in ROWS {
        let decision = decide(node, caller_name, resource).await;
        assert!(allowed(&decision), "{caller_name} at {resource} by {:?}, when no slot is held", SCOPES[at]);
        cancel(&node.grpc, &id_of(&decision)).await.expect("it is given back");
    }
}

#[tokio::test]
async fn slots_are_counted_by_the_scope_of_their_quota() {
    let redis = RedisServer::start();
    for (at, scope) in SCOPES.iter().enumerate() {
        check_slot_scope(&memory_node(&policy(scope)).await, at).await;
        check_slot_scope(&redis_node(&policy(scope), redis.url()).await, at).await;
    }
}
