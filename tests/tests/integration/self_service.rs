//! Self-service: access, response formats, and the log of refusals.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_api::v1::{Reason, ReportOutcomeRequest};
use tollgate_store::testing::RedisServer;

use crate::harness::{
    Node, ProcessBuilder, Rest, account, api_key, api_key_id, call, consume, folder_with, hash_of, memory_node, until,
};

const BOUND: Duration = Duration::from_secs(20);

/// Two accounts; the first has an ADMIN key and two INFERENCE keys.
fn platform(extra: &str) -> String {
    let key =
        |id: &str, kind: &str| format!("{{ id: {id}, hash: \"{}\", kind: {kind} }}", hash_of(&format!("sk-{id}")));
    format!(
        "version: 1\ndomain: platform\n{extra}\nresources:\n  chat: {{ quotas: [{{ unit: requests, per: minute, limit: 2 }}] }}\n  \
         video: {{ quotas: [{{ unit: requests, per: day, limit: 1, scope: [api_key] }}] }}\n  free: {{ quotas: [] }}\n\
         tiers:\n  gold: {{ is_charged: true, priority: 3 }}\ndefault_tier: gold\nabuse:\n  rules:\n    \
         failed: {{ limit: 20, per: 30s, block: 30s, count_refusals: false }}\nbootstrap:\n  accounts:\n    - id: acme\n      \
         tier: gold\n      keys: [{}, {}, {}]\n    - {{ id: other, tier: gold, keys: [{}] }}\n",
        key("admin", "admin"),
        key("one", "inference"),
        key("two", "inference"),
        key("stranger", "admin"),
    )
}

async fn get(rest: &Rest, path: &str, secret: &str) -> (StatusCode, Value) {
    let answer = rest.request(Method::GET, path).bearer_auth(secret).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

/// Waits until the log has this many entries, and returns them.
async fn log_of(rest: &Rest, secret: &str, entries: usize) -> Vec<Value> {
    let what = format!("{entries} entries for {secret}");
    until(&what, BOUND, async || {
        let (status, body) = get(rest, "/api_keys/rate_limits/log", secret).await;
        assert_eq!((status, &body["object"]), (StatusCode::OK, &json!("list")), "{body}");
        let data = body["data"].as_array().unwrap().clone();
        assert!(data.len() <= entries, "{data:?}");
        (data.len() == entries).then_some(data)
    })
    .await
}

async fn block(node: &Node, secret: &str, resource: &str) {
    for _ in 0..21 {
        let report = ReportOutcomeRequest {
            caller: Some(api_key(secret)),
            resource: resource.to_owned(),
            status: 500,
            ..ReportOutcomeRequest::default()
        };
        node.grpc.clone().report_outcome(report).await.unwrap();
    }
}

fn pairs(log: &[Value]) -> Vec<(&str, &str, &str)> {
    let text = |entry: &'_ Value, name: &str| entry[name].as_str().map_or("", |text| text).to_owned().leak() as &str;
    log.iter().map(|entry| (text(entry, "apiKeyId"), text(entry, "modelId"), text(entry, "rateLimitType"))).collect()
}

#[tokio::test]
async fn the_log_shows_an_account_to_its_admin_keys_and_a_key_to_itself() {
    let node = memory_node(&platform("")).await;
    for (key, resource) in [("one", "chat"), ("one", "chat"), ("one", "chat"), ("two", "video"), ("two", "video")] {
        consume(&node.grpc, call(api_key(format!("sk-{key}")), resource, &[])).await.unwrap();
        node.clock.advance_ms(1_000);
    }
    block(&node, "sk-two", "free").await;
    let blocked = consume(&node.grpc, call(api_key_id("two"), "free", &[])).await.unwrap();
    assert_eq!(blocked.reason(), Reason::Blocked);
    consume(&node.grpc, call(account("acme"), "free", &[])).await.unwrap();
    let all = [
        ("", "free", "FAILED_REQUESTS"),
        ("two", "free", "FAILED_REQUESTS"),
        ("two", "video", "RPD"),
        ("one", "chat", "RPM"),
    ];
    let log = log_of(&node.rest, "sk-admin", 4).await;
    assert_eq!(pairs(&log), all, "newest first");
    assert_eq!(
        log[3],
        json!({"apiKeyId": "one", "modelId": "chat", "rateLimitTier": "gold", "rateLimitType": "RPM",
               "timestamp": "2025-03-03T00:00:02.000Z"})
    );
    assert_eq!(pairs(&log_of(&node.rest, "sk-one", 1).await), all[3..]);
    assert_eq!(pairs(&log_of(&node.rest, "sk-two", 2).await), all[1..3]);
    assert!(log_of(&node.rest, "sk-stranger", 0).await.is_empty(), "nothing of another account");

    let path = "/api/v1/api_keys/rate_limits/log?apiKeyId=one";
    let (status, of_one) = get(&node.rest, path, "sk-admin").await;
    assert_eq!((status, of_one["data"].as_array().unwrap().len()), (StatusCode::OK, 1));
    assert_eq!(get(&node.rest, path, "sk-one").await.0, StatusCode::OK, "itself");
    let refused = (StatusCode::UNAUTHORIZED, json!({"error": "Admin API key required"}));
    assert_eq!(get(&node.rest, path, "sk-two").await, refused);
    let (status, of_one) = get(&node.rest, path, "sk-stranger").await;
    assert_eq!((status, &of_one["data"]), (StatusCode::OK, &json!([])), "a key of another account has no entries here");
    for secret in ["sk-nobody", "", "tg_x"] {
        let refused = (StatusCode::UNAUTHORIZED, json!({"error": "Authentication failed"}));
        assert_eq!(get(&node.rest, "/api_keys/rate_limits/log", secret).await, refused);
    }
    let (status, body) = get(&node.rest, "/api_keys/rate_limits/log?limit=7", "sk-one").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
}

#[tokio::test]
async fn the_last_fifty_refusals_survive_the_node() {
    let redis = RedisServer::start();
    let (_folder, policy) = folder_with(&platform(""));
    let mut node = ProcessBuilder::new(&policy).redis(&redis.url()).start();
    for _ in 0..70 {
        consume(&node.grpc, call(api_key("sk-one"), "chat", &[])).await.unwrap();
    }
    // The node exits at once, and first writes what is queued.
    consume(&node.grpc, call(api_key("sk-two"), "chat", &[])).await.unwrap();
    node.signal("TERM");
    assert!(node.ended(BOUND).await.success());
    let again = ProcessBuilder::new(&policy).redis(&redis.url()).start();
    let log = log_of(&again.rest, "sk-admin", 50).await;
    assert_eq!(log[0]["apiKeyId"], "two", "newest first: {log:?}");
    assert!(log[1..].iter().all(|entry| entry["apiKeyId"] == "one"));
    let times: Vec<&str> = log.iter().map(|entry| entry["timestamp"].as_str().unwrap()).collect();
    assert!(times.is_sorted_by(|a, b| a >= b), "{times:?}");
    let keys: Vec<String> = redis::cmd("KEYS").arg("*refusals").query(&mut redis.connection()).unwrap();
    assert_eq!(keys.len(), 1);
    let ttl: i64 = redis::cmd("PTTL").arg(&keys[0]).query(&mut redis.connection()).unwrap();
    assert!(ttl > 29 * 24 * 60 * 60 * 1000, "{ttl}");
}

/// Both formats, computed from the deciding counters, including an active block.
#[tokio::test]
async fn each_domain_has_its_own_self_service_format() {
    let plain = memory_node(&platform("")).await;
    consume(&plain.grpc, call(api_key("sk-one"), "chat", &[])).await.unwrap();
    consume(&plain.grpc, call(api_key("sk-one"), "video", &[])).await.unwrap();
    block(&plain, "sk-one", "free").await;
    let (status, body) = get(&plain.rest, "/api_keys/rate_limits", "sk-one").await;
    assert_eq!(status, StatusCode::OK);
    insta::assert_json_snapshot!("plain_limits", body);
    let (_, of_two) = get(&plain.rest, "/api/v1/api_keys/rate_limits", "sk-two").await;
    let used = |body: &Value, at: usize| body["resources"][at]["quotas"][0]["used"].clone();
    assert_eq!((used(&of_two, 0), used(&of_two, 1)), (json!(1), json!(0)), "the account's counters, no other key's");
    let (_, page) = get(&plain.rest, "/api_keys/rate_limits?limit=1", "sk-two").await;
    assert!(page["next_cursor"].is_string() && page["resources"].as_array().unwrap().len() == 1, "{page}");

    let venice = memory_node(&platform("self_service: venice")).await;
    block(&venice, "sk-one", "free").await;
    let (_, body) = get(&venice.rest, "/api_keys/rate_limits", "sk-one").await;
    let until = "2025-03-03T00:00:30.000Z";
    assert_eq!((&body["data"]["accessPermitted"], &body["data"]["blockedUntil"]), (&json!(true), &json!(until)));
    assert_eq!(body["data"]["rateLimits"][2]["blockedUntil"], until);
    assert!(body["data"]["rateLimits"][0].get("blockedUntil").is_none(), "{body}");
    let everywhere = platform("self_service: venice").replace("block: 30s,", "block: 30s, scope: [account],");
    let venice = memory_node(&everywhere).await;
    assert_eq!(get(&venice.rest, "/api_keys/rate_limits", "sk-one").await.1["data"]["accessPermitted"], true);
    block(&venice, "sk-two", "free").await;
    assert_eq!(get(&venice.rest, "/api_keys/rate_limits", "sk-one").await.1["data"]["accessPermitted"], false);
    assert_eq!(get(&venice.rest, "/api_keys/rate_limits", "sk-stranger").await.1["data"]["accessPermitted"], true);
}
