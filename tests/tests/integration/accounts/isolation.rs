//! Accounts are isolated: no key reads or charges another account.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_store::testing::RedisServer;

use super::{Client, Deployment, call, hourly};

#[tokio::test]
async fn a_key_gives_no_access_to_another_account() {
    let redis = RedisServer::start();
    let deployment = Deployment::new();
    let node = deployment.node(&redis.url());
    let admin = Client::new(&node);
    // Ids that are easily confused with each other.
    let ids = ["acme", "acme:2", "Acme", "acme/keys"];
    let mut keys = Vec::new();
    for id in ids {
        admin.create(id, "basic").await;
        keys.push(admin.key(&id.replace('/', "%2F")).await.1);
    }
    for (times, secret) in (1..).zip(&keys) {
        for _ in 0..times {
            call(&node.rest, "consume", json!({"api_key": secret})).await;
        }
    }
    for ((times, id), secret) in (1..).zip(ids).zip(&keys) {
        let decision = call(&node.rest, "check", json!({"api_key": secret})).await;
        assert_eq!((&decision["account"], hourly(&decision)), (&json!(id), (10, times)));
        // A key shows the limits of its own account, and no parameter selects another.
        let used = |limits: &Value| limits["data"]["rateLimits"][0]["rateLimits"][0]["used"].clone();
        assert_eq!(used(&node.rest.limits(secret).await), times);
        for query in ["account=acme", "domain=other", "api_key_id=fixed-1"] {
            let path = format!("/api_keys/rate_limits?{query}");
            let answer = node.rest.request(Method::GET, &path).bearer_auth(secret).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{query}");
        }
    }
}

/// The same account and key ids in two domains are two accounts.
#[tokio::test]
async fn a_key_is_unknown_in_another_domain() {
    let redis = RedisServer::start();
    let deployment = Deployment::new();
    let node = deployment.node(&redis.url());
    let (shop, other) = (Client::new(&node), Client::new(&node).in_domain("other"));
    shop.create("acme", "basic").await;
    other.create("acme", "premium").await;
    let (key, secret) = other.key("acme").await;
    let of_shop = call(&node.rest, "check", json!({"account": "acme"})).await;
    assert_eq!(hourly(&of_shop).0, 10);
    for caller in [json!({"api_key": secret}), json!({"api_key_id": key})] {
        let refused = call(&node.rest, "check", caller).await;
        assert_eq!((&refused["verdict"], &refused["reason"]), (&json!("denied"), &json!("unknown_key")), "{refused}");
    }
    for (method, path) in [(Method::GET, format!("/keys/{key}")), (Method::POST, format!("/keys/{key}/revoke"))] {
        assert_eq!(shop.send(method, &path, None).await.0, StatusCode::NOT_FOUND);
    }
    assert_eq!(shop.send_ok(Method::GET, "/accounts/acme/keys", None).await["keys"], json!([]));
}

/// The data in Redis contains no key, and not the secret part of one.
#[tokio::test]
async fn a_leaked_database_contains_no_usable_key() {
    let redis = RedisServer::start();
    let deployment = Deployment::new();
    let node = deployment.node(&redis.url());
    let admin = Client::new(&node);
    admin.create("acme", "basic").await;
    let (key, first) = admin.key("acme").await;
    let rotated = admin.send_ok(Method::POST, &format!("/keys/{key}/rotate"), Some(json!({"overlap_s": 60}))).await;
    let second = rotated["secret"].as_str().unwrap().to_owned();
    let mut connection = redis.connection();
    let names: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut connection).unwrap();
    assert!(names.len() >= 4, "{names:?}");
    for name in names {
        let kept: Vec<u8> = redis::cmd("DUMP").arg(&name).query(&mut connection).unwrap();
        for secret in [&first, &second] {
            let hidden = &secret[8..24];
            let in_value = kept.windows(hidden.len()).any(|part| part == hidden.as_bytes());
            assert!(!in_value && !name.contains(hidden), "a secret is at {name}");
        }
    }
    for secret in [first, second] {
        assert!(!node.stderr().contains(&secret[8..]), "a secret is in the log");
    }
}
