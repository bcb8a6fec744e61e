//! How often one address may fail to log in.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_proto::v1::ConsumeRequest;
use tollgate_server::settings::Options;
use tonic::Code;

use crate::harness::{KEY, Node, account, call, folder_with, hash_of, memory_node_with, shop};

const GOOD: &str = "tgt_integration-token-of-the-shop-0123456789";

async fn node(proxies: &[&str]) -> (tempfile::TempDir, Node) {
    let (folder, _) = folder_with("");
    let tokens = folder.path().join("tokens.yaml");
    std::fs::write(&tokens, format!("tokens: [{{ name: shop, hash: '{}', domains: all }}]", hash_of(GOOD))).unwrap();
    let options = Options {
        service_tokens: Some(tokens.clone()),
        admin_tokens: Some(tokens),
        max_login_failures: Some(20),
        trusted_proxies: proxies.iter().map(|proxy| (*proxy).to_owned()).collect(),
        ..Options::default()
    };
    (folder, memory_node_with(options, &shop(100)).await)
}

/// The status and the Retry-After of a call with this token, or API key.
async fn rest(node: &Node, route: &str, token: &str, forwarded: Option<&str>) -> (u16, Option<u64>) {
    let method = if route.starts_with("/v1/") { Method::POST } else { Method::GET };
    let mut request = node.rest.request(method, route).bearer_auth(token);
    if let Some(forwarded) = forwarded {
        request = request.header("x-forwarded-for", forwarded);
    }
    let request = request.header("content-type", "application/json");
    let answer = request.body(r#"{"caller":{"account":"a"},"resource":"free"}"#).send().await.unwrap();
    let wait = answer.headers().get("retry-after").map(|wait| wait.to_str().unwrap().parse().unwrap());
    (answer.status().as_u16(), wait)
}

async fn grpc(node: &Node, token: &str) -> Option<tonic::Status> {
    let mut request = tonic::Request::new(ConsumeRequest { call: Some(call(account("a"), "free", &[])) });
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    node.grpc.clone().consume(request).await.err()
}

/// Whatever is guessed at, the guesses of an address count together, and then nothing from it is even looked at.
#[tokio::test]
async fn an_address_that_fails_too_often_is_turned_away_for_a_while() {
    let (_folder, node) = node(&[]).await;
    for guess in 0..21 {
        let status = match guess % 4 {
            0 => rest(&node, "/v1/consume", "tgt_guess", None).await.0,
            1 => rest(&node, "/api_keys/rate_limits", "sk-guess", None).await.0,
            2 => rest(&node, "/admin/v1/accounts", "tgt_guess", None).await.0,
            _ => {
                assert_eq!(grpc(&node, "tgt_guess").await.unwrap().code(), Code::Unauthenticated, "guess {guess}");
                continue;
            }
        };
        assert_eq!(status, 401, "guess {guess}");
    }
    node.clock.advance_ms(1);
    for route in ["/v1/consume", "/api_keys/rate_limits", "/admin/v1/accounts", "/admin/v1/tiers"] {
        for token in [GOOD, KEY, "guess"] {
            assert_eq!(rest(&node, route, token, None).await, (429, Some(30)), "{route}");
        }
    }
    // Each route says it in the shape of its other errors.
    let said = "too many attempts from this address failed; try again in 30 s";
    for (method, route, body) in [
        (Method::POST, "/v1/consume", json!({ "error": { "code": "resource_exhausted", "message": said } })),
        (Method::POST, "/admin/v1/accounts", json!({ "error": { "code": "resource_exhausted", "message": said } })),
        (Method::GET, "/api_keys/rate_limits", json!({ "error": said })),
        (Method::GET, "/api/v1/api_keys/rate_limits/log", json!({ "error": said })),
    ] {
        let answer = node.rest.request(method, route).bearer_auth(KEY).send().await.unwrap();
        assert_eq!(answer.json::<Value>().await.unwrap(), body, "{route}");
    }
    let blocked = grpc(&node, GOOD).await.unwrap();
    assert_eq!(blocked.code(), Code::ResourceExhausted, "{blocked}");
    assert_eq!(blocked.metadata().get("retry-after").unwrap(), "30");
    // Who shows nothing guesses nothing, and what is open stays open.
    for route in ["/v1/consume", "/admin/v1/accounts"] {
        let nothing = node.rest.request(Method::POST, route).send().await.unwrap();
        assert_eq!(nothing.status(), StatusCode::UNAUTHORIZED, "{route}");
    }
    let (status, metrics) = node.rest.text("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    for (door, reason) in [
        ("service", "unknown"),
        ("key", "unknown"),
        ("admin", "unknown"),
        ("service", "too_many_failures"),
        ("admin", "too_many_failures"),
        ("service", "missing"),
        ("admin", "missing"),
    ] {
        let counted = format!(r#"tollgate_turned_away_total{{door="{door}",reason="{reason}"}}"#);
        assert!(metrics.contains(&counted), "{counted}: {metrics}");
    }
    node.clock.advance_ms(29_000);
    for route in ["/v1/consume", "/admin/v1/accounts"] {
        assert_eq!(rest(&node, route, GOOD, None).await, (429, Some(1)), "{route}");
    }
    node.clock.advance_ms(999);
    assert_eq!(rest(&node, "/v1/consume", GOOD, None).await.0, 200);
    assert!(grpc(&node, GOOD).await.is_none());
    assert_eq!(rest(&node, "/api_keys/rate_limits", KEY, None).await.0, 200);
    assert_eq!(rest(&node, "/admin/v1/accounts", GOOD, None).await.0, 200);
}

/// Who only ever knocks at the door of administrators is turned away there, and before any token is compared.
#[tokio::test]
async fn guesses_at_an_administrators_token_are_bounded() {
    let (_folder, node) = node(&[]).await;
    for guess in 0..21 {
        let route = ["/admin/v1/accounts", "/admin/v1/tiers", "/admin/v1/accounts/acme/keys"][guess % 3];
        assert_eq!(rest(&node, route, &format!("tgt_guess-{guess}"), None).await, (401, None), "guess {guess}");
    }
    node.clock.advance_ms(1);
    for token in ["tgt_guess", GOOD] {
        for route in ["/admin/v1/accounts", "/admin/v1/tiers", "/v1/consume"] {
            assert_eq!(rest(&node, route, token, None).await, (429, Some(30)), "{route}");
        }
    }
    node.clock.advance_ms(29_999);
    assert_eq!(rest(&node, "/admin/v1/accounts", GOOD, None).await, (200, None));
}

/// A key that asks for what it may not see is known, and guesses nothing.
#[tokio::test]
async fn a_good_key_that_may_not_see_something_is_not_turned_away() {
    let (_folder, node) = node(&[]).await;
    for ask in 0..40 {
        let status = rest(&node, "/api_keys/rate_limits/log?apiKeyId=acme-revoked", KEY, None).await;
        assert_eq!(status, (401, None), "ask {ask}");
    }
    assert_eq!(rest(&node, "/api_keys/rate_limits", KEY, None).await.0, 200);
    assert_eq!(rest(&node, "/v1/consume", GOOD, None).await.0, 200);
}

/// Twenty failures in thirty seconds are borne for ever.
#[tokio::test]
async fn an_address_that_fails_now_and_then_is_not_turned_away() {
    let (_folder, node) = node(&[]).await;
    for _ in 0..5 {
        for _ in 0..20 {
            assert_eq!(rest(&node, "/v1/consume", "tgt_guess", None).await.0, 401);
        }
        assert_eq!(rest(&node, "/v1/consume", GOOD, None).await.0, 200);
        node.clock.advance_ms(30_000);
    }
}

/// Callers behind a trusted proxy are told apart; whoever is not behind one cannot pretend to be.
#[tokio::test]
async fn failures_count_for_the_address_behind_the_proxy() {
    let (_folder, behind) = node(&["127.0.0.0/8"]).await;
    for guess in 0..21 {
        // The first is the caller's own claim, the second what the proxy saw; a whole /64 is one caller.
        let forwarded = format!("198.51.100.{guess}, 2001:db8:1:2::{guess}");
        assert_eq!(rest(&behind, "/v1/consume", "tgt_guess", Some(&forwarded)).await.0, 401);
    }
    behind.clock.advance_ms(1);
    assert_eq!(rest(&behind, "/v1/consume", GOOD, Some("2001:db8:1:2:ffff::1")).await.0, 429);
    assert_eq!(rest(&behind, "/v1/consume", GOOD, Some("2001:db8:1:3::1")).await.0, 200);
    assert_eq!(rest(&behind, "/v1/consume", GOOD, None).await.0, 200);
    let (_folder, open) = node(&["10.0.0.0/8"]).await;
    for guess in 0..21 {
        let forwarded = format!("198.51.100.{guess}");
        assert_eq!(rest(&open, "/v1/consume", "tgt_guess", Some(&forwarded)).await.0, 401);
    }
    open.clock.advance_ms(1);
    assert_eq!(rest(&open, "/v1/consume", GOOD, Some("203.0.113.1")).await.0, 429);
}
