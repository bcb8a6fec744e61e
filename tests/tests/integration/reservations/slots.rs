//! The scope of a slot: the calls that are refused while a reservation holds the only slot.

use serde_json::json;
use tollgate_api::v1::{Call, Caller, Decision, RenderedResponse};
use tollgate_store::testing::RedisServer;

use super::{cancel, id_of, reserve, settle};
use crate::harness::{
    Node, account, allowed, api_key_id, call, decided_at_ms, hash_of, memory_node, ms, quota, redis_node,
};

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

/// The headers of these names.
fn headers<'a, const N: usize>(answer: &'a RenderedResponse, names: [&str; N]) -> [Option<&'a str>; N] {
    names.map(|name| answer.headers.iter().find(|header| header.name == name).map(|header| header.value.as_str()))
}

async fn check_advice(node: &Node, wait_ms: u64) {
    let held = id_of(&decide(node, "one", "chat").await);
    let refused = async |dialect: &str| {
        let call = Call { render: true, dialect: dialect.to_owned(), ..call(api_key_id("one"), "chat", &[]) };
        reserve(&node.grpc, call, &[], 0).await.expect("a decision")
    };
    for dialect in ["openai", "anthropic", "venice", "tiered-chat", "deapi", "ietf"] {
        let decision = refused(dialect).await;
        assert_eq!((decision.retry_after_ms, &*decision.quota), (Some(wait_ms), "concurrent_requests"), "{dialect}");
        let retry_at = quota(&decision, "concurrent_requests").retry_at.as_ref().map(ms);
        assert_eq!(retry_at, Some(decided_at_ms(&decision) + wait_ms), "{dialect}");
        let rendered = decision.rendered.expect("an answer");
        assert!(rendered.body.contains("concurrent requests"), "{dialect}: {}", rendered.body);
        let lower: Vec<(String, &str)> =
            rendered.headers.iter().map(|header| (header.name.to_lowercase(), &*header.value)).collect();
        let of = |name: &str| lower.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
        let seconds = wait_ms.div_ceil(1_000).to_string();
        assert_eq!((rendered.status, of("retry-after")), (429, Some(&*seconds)), "{dialect}");
        assert_eq!(of("x-should-retry"), None, "{dialect}: SDKs may retry");
    }
    let openai = *refused("openai").await.rendered.expect("an answer");
    assert_eq!(headers(&openai, ["retry-after-ms"]), [Some(&*wait_ms.to_string())]);
    // The slot is free when the call ends, and the advice then leads to an admission.
    settle(&node.grpc, &held, &[]).await.expect("it ends");
    node.clock.advance_ms(wait_ms);
    cancel(&node.grpc, &id_of(&decide(node, "one", "chat").await)).await.expect("it is given back");
}

/// A slot is free when a call ends, which is usually long before its reservation would expire.
#[tokio::test]
async fn a_refusal_without_a_free_slot_advises_a_short_wait() {
    let redis = RedisServer::start();
    let own = |more: &str| policy(&["api_key"]).replace(r#""limit":1"#, &format!(r#""limit":1{more}"#));
    for (policy, wait_ms) in [(own(""), 1_000), (own(r#","retry_after":"2500ms""#), 2_500)] {
        check_advice(&memory_node(&policy).await, wait_ms).await;
        check_advice(&redis_node(&policy, redis.url()).await, wait_ms).await;
    }
}
