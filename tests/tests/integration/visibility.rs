//! Quotas that accounts share: the platform's services see them, and its customers do not.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tollgate_api::v1::{Call, Decision, GetRateLimitsRequest};

use crate::harness::{Node, account, allowed, api_key, call, consume, hash_of, memory_node, quota, until};

/// A free and a large account with limits of their own on a capacity that both share.
fn platform(extra: &str) -> String {
    let key = |id: &str| json!({ "id": id, "hash": hash_of(&format!("sk-{id}")), "kind": "admin" });
    let of_account = |limit: u64| json!({ "unit": "tokens", "per": "minute", "limit": limit });
    let mut capacity = json!({
        "unit": "tokens", "per": "minute", "limit": 20_000_000, "name": "capacity", "scope": ["resource"],
        "pool": { "shares": [10, 20, 30, 40] },
    });
    let extra: Value = serde_json::from_str(extra).expect("JSON");
    capacity.as_object_mut().expect("a map").extend(extra.as_object().expect("a map").clone());
    let policy = json!({
        "version": 1,
        "domain": "platform",
        "units": ["tokens"],
        "resources": { "chat": { "also": [capacity] } },
        "tiers": {
            "free": { "is_charged": false, "quotas": [of_account(4_000)] },
            "large": { "is_charged": true, "priority": 4, "quotas": [of_account(30_000_000)] },
        },
        "default_tier": "free",
        "bootstrap": { "accounts": [
            { "id": "small", "tier": "free", "keys": [key("small")] },
            { "id": "big", "tier": "large", "keys": [key("big")] },
        ] },
    });
    // JSON is YAML.
    policy.to_string()
}

async fn own_limits(node: &Node, secret: &str) -> Value {
    let answer = node.rest.request(Method::GET, "/api_keys/rate_limits").bearer_auth(secret).send().await.unwrap();
    answer.json().await.unwrap()
}

async fn use_tokens(node: &Node, secret: &str, tokens: u64, dialect: &str) -> Decision {
    let call =
        Call { render: true, dialect: dialect.to_owned(), ..call(api_key(secret), "chat", &[("tokens", tokens)]) };
    consume(&node.grpc, call).await.expect("a decision")
}

/// The names of the quotas that the plain format lists for the first resource.
fn names(limits: &Value) -> Vec<&str> {
    let quotas = limits["resources"][0]["quotas"].as_array().expect("quotas");
    quotas.iter().map(|quota| quota["name"].as_str().expect("a name")).collect()
}

const DIALECTS: [&str; 7] = ["venice", "tiered-chat", "deapi", "openai", "anthropic", "ietf", "none"];

#[tokio::test]
async fn no_customer_sees_the_use_of_another() {
    let node = memory_node(&platform("{}")).await;
    assert!(allowed(&use_tokens(&node, "sk-big", 19_998_569, "none").await));
    let limits = own_limits(&node, "sk-small").await;
    assert_eq!(names(&limits), ["tokens_per_minute"], "{limits}");
    // What remains of the capacity is less than the free account's own limit, and is not shown in any answer.
    let admitted = use_tokens(&node, "sk-small", 10, "openai").await;
    assert_eq!(admitted.quota, "capacity", "the service sees it");
    assert!(quota(&admitted, "capacity").hidden && !quota(&admitted, "tokens_per_minute").hidden);
    for dialect in DIALECTS {
        for decision in
            [use_tokens(&node, "sk-small", 0, dialect).await, use_tokens(&node, "sk-small", 3_000, dialect).await]
        {
            let rendered = decision.rendered.expect("an answer");
            let texts = rendered.headers.iter().map(|header| &header.value).chain([&rendered.body]);
            for text in texts {
                let shows = ["20000000", "1999", "1421", "\"capacity\""].into_iter().find(|part| text.contains(part));
                assert_eq!(shows, None, "{dialect}: {text}");
            }
        }
    }
    let refused = use_tokens(&node, "sk-small", 3_000, "openai").await;
    assert_eq!((&*refused.quota, refused.retry_after_ms), ("capacity", Some(60_000)), "{refused:?}");
    let rendered = refused.rendered.expect("an answer");
    let header = |name: &str| rendered.headers.iter().find(|header| header.name == name).map(|header| &*header.value);
    assert_eq!((rendered.status, header("retry-after")), (503, Some("60")));
    assert_eq!(
        (header("x-ratelimit-limit-tokens"), header("x-ratelimit-remaining-tokens")),
        (Some("4000"), Some("3990"))
    );
    let body: Value = serde_json::from_str(&rendered.body).unwrap();
    assert_eq!(body["error"]["code"], "server_is_overloaded");
    // The customer sees in its log that it was refused, and not by which quota.
    let log = until("the log", Duration::from_secs(20), async || {
        let request = node.rest.request(Method::GET, "/api_keys/rate_limits/log").bearer_auth("sk-small");
        let log: Value = request.send().await.unwrap().json().await.unwrap();
        let data = log["data"].as_array().unwrap().clone();
        (data.len() == 8).then_some(data)
    })
    .await;
    assert!(log.iter().all(|entry| entry["rateLimitType"] == "OVERLOADED"), "{log:?}");
}

#[tokio::test]
async fn a_listing_in_the_format_of_venice_hides_shared_quotas() {
    let node = memory_node(&platform("{}").replace(r#""version":1"#, r#""version":1,"self_service":"venice""#)).await;
    let limits = own_limits(&node, "sk-small").await;
    let listed = limits["data"]["rateLimits"][0]["rateLimits"].as_array().expect("limits");
    assert_eq!((listed.len(), &listed[0]["amount"]), (1, &json!(4_000)), "{limits}");
}

/// Services read all quotas, each with a mark on what they must not pass on.
#[tokio::test]
async fn services_list_hidden_quotas_with_a_mark() {
    let node = memory_node(&platform("{}")).await;
    let request = GetRateLimitsRequest { caller: Some(account("small")), ..GetRateLimitsRequest::default() };
    let listed = node.grpc.clone().get_rate_limits(request).await.unwrap().into_inner();
    let marks: Vec<(&str, bool)> =
        listed.resources[0].quotas.iter().map(|quota| (&*quota.name, quota.hidden)).collect();
    assert_eq!(marks, [("tokens_per_minute", false), ("capacity", true)]);
    let (_, listed) = node.rest.post("/v1/get_rate_limits", r#"{"caller":{"account":"small"}}"#).await;
    let quotas = &listed["resources"][0]["quotas"];
    assert_eq!((&quotas[0]["hidden"], &quotas[1]["hidden"]), (&Value::Null, &json!(true)), "{listed}");
}

#[tokio::test]
async fn a_policy_may_show_a_shared_quota() {
    let node = memory_node(&platform(r#"{ "visible": true }"#)).await;
    assert_eq!(names(&own_limits(&node, "sk-small").await), ["tokens_per_minute", "capacity"]);
    assert!(allowed(&use_tokens(&node, "sk-big", 20_000_000, "openai").await));
    let refused = use_tokens(&node, "sk-small", 10, "openai").await;
    let rendered = refused.rendered.expect("an answer");
    assert_eq!(rendered.status, 429);
    assert!(rendered.body.contains("Limit 20000000, Used 20000000"), "{}", rendered.body);
}
