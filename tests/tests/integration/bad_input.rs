//! Invalid input through the API: the error names the field, is never internal, and nothing is charged.
//!
//! Seen to fail: without `check_attributes`; without `deny_unknown_fields` on `CallBody`; without a check of account
//! names; with a key that has control characters treated as the service's error; and with a refusal of too large or
//! unreadable input that does not name it.

mod messages;
mod numbers;
mod pages;

use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};
use tollgate_api::v1::{Call, GetRateLimitsRequest, Reason};
use tonic::Code;

use crate::harness::{KEY, Node, account, allowed, api_key, api_key_id, call, consume, memory_node, peek, shop};

const TOO_LONG: usize = 10_000;

async fn node() -> Node {
    memory_node(&shop(100)).await
}

/// Asserts that no account was charged.
async fn nothing_charged(node: &Node) {
    for caller in [account("acme"), account("a"), api_key(KEY)] {
        for resource in ["model", "tiny", "prompt/x"] {
            let decision = peek(&node.grpc, call(caller.clone(), resource, &[])).await.unwrap();
            assert!(decision.quotas.iter().all(|quota| quota.used == 0), "{decision:?}");
        }
    }
}

/// Texts that no field accepts.
fn bad_texts() -> [String; 10] {
    let hidden = ["a\u{202e}b", "a\u{200b}", "\u{feff}a", "a\u{fe0f}", "\u{2028}"].map(str::to_owned);
    let [direction, no_width, mark, variation, line] = hidden;
    let control = ["a\nb", "\0", "a\u{7f}", "\u{85}"].map(str::to_owned);
    let [newline, zero, delete, next_line] = control;
    ["x".repeat(TOO_LONG), newline, zero, delete, next_line, direction, no_width, mark, variation, line]
}

fn good() -> Call {
    call(account("a"), "model", &[])
}

/// Invalid calls, and the field that the error must name.
fn wrong_calls() -> Vec<(&'static str, Call)> {
    let mut wrong = Vec::new();
    let with_attribute = |name: String, value: String| Call { attributes: [(name, value)].into(), ..good() };
    for text in bad_texts().into_iter().chain([String::new()]) {
        wrong.push(("resource", Call { resource: text.clone(), ..good() }));
        wrong.push(("caller.account", Call { caller: Some(account(text.clone())), ..good() }));
        wrong.push(("caller.api_key_id", Call { caller: Some(api_key_id(text.clone())), ..good() }));
        wrong.push(("attributes", with_attribute(text.clone(), "v".into())));
        wrong.push(("attributes.ip", with_attribute("ip".into(), text.clone())));
        wrong.push(("usage", call(account("a"), "model", &[(&text, 1)])));
        if !text.is_empty() {
            wrong.push(("domain", Call { domain: text, ..good() }));
        }
    }
    for length in [0, 513, TOO_LONG] {
        wrong.push(("caller.api_key", Call { caller: Some(api_key("k".repeat(length))), ..good() }));
    }
    let most = (1_u64 << 53) - 1;
    for amount in [most + 1, u64::MAX] {
        wrong.push(("usage.tokens", call(account("a"), "model", &[("tokens", amount)])));
        wrong.push(("usage.requests", call(account("a"), "model", &[("requests", amount)])));
    }
    wrong.push(("usage.bananas", call(account("a"), "model", &[("bananas", 1)])));
    wrong.push(("caller", Call { caller: None, ..good() }));
    let many = (0..17).map(|number| (format!("a{number}"), "v".to_owned())).collect();
    wrong.push(("attributes", Call { attributes: many, ..good() }));
    let many = (0..17).map(|number| (format!("u{number}"), 1)).collect();
    wrong.push(("usage", Call { usage: many, ..good() }));
    wrong
}

/// The call as JSON; `None` if JSON cannot express it.
fn to_json(call: &Call) -> Option<Value> {
    use tollgate_api::v1::caller::By;
    let caller = match call.caller.as_ref()?.by.as_ref()? {
        By::ApiKey(secret) => json!({ "api_key": secret }),
        By::ApiKeyId(id) => json!({ "api_key_id": id }),
        By::Account(id) => json!({ "account": id }),
    };
    Some(json!({
        "domain": call.domain, "caller": caller, "resource": call.resource, "usage": call.usage, "attributes": call.attributes,
    }))
}

fn shortened(text: &str) -> String {
    text.chars().take(300).collect()
}

#[tokio::test]
async fn errors_over_grpc_name_the_invalid_field() {
    let node = node().await;
    for (field, wrong) in wrong_calls() {
        let complaint = shortened(&format!("{wrong:?}"));
        for error in [consume(&node.grpc, wrong.clone()).await.err(), peek(&node.grpc, wrong).await.err()] {
            let error = error.unwrap_or_else(|| panic!("no error for {field}: {complaint}"));
            let code =
                if field == "domain" { [Code::InvalidArgument, Code::NotFound] } else { [Code::InvalidArgument; 2] };
            assert!(code.contains(&error.code()), "{field}: {error:?}: {complaint}");
            assert!(error.message().starts_with(field), "{field}: {:?}: {complaint}", shortened(error.message()));
            // The error may quote the caller's text in part, never at length or with control characters.
            assert!(error.message().len() < 600, "{field}: the error has {} bytes", error.message().len());
            assert!(!error.message().contains(char::is_control), "{field}: {:?}", shortened(error.message()));
        }
    }
    nothing_charged(&node).await;
}

#[tokio::test]
async fn errors_over_rest_name_the_invalid_field() {
    let node = node().await;
    for (field, wrong) in wrong_calls() {
        let Some(body) = to_json(&wrong) else { continue };
        let complaint = shortened(&body.to_string());
        for path in ["/v1/consume", "/v1/check"] {
            let (status, answer) = node.rest.post(path, body.to_string()).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{field}: {answer}: {complaint}");
            assert_eq!(answer["error"]["code"], "invalid_argument", "{field}: {complaint}");
            let message = answer["error"]["message"].as_str().unwrap();
            assert!(message.starts_with(field), "{field}: {:?}: {complaint}", shortened(message));
            assert!(message.len() < 600, "{field}: the error has {} bytes", message.len());
        }
    }
    nothing_charged(&node).await;
}

#[tokio::test]
async fn an_unknown_domain_is_refused() {
    let node = node().await;
    let elsewhere = Call { domain: "nowhere".into(), ..good() };
    let error = consume(&node.grpc, elsewhere.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message().starts_with("domain: "), "{error:?}");
    let (status, answer) = node.rest.post("/v1/consume", to_json(&elsewhere).unwrap().to_string()).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(answer["error"]["message"].as_str().unwrap().starts_with("domain: "), "{answer}");
    nothing_charged(&node).await;
}

/// An invalid key gives a decision, not an error.
#[tokio::test]
async fn invalid_keys_are_refused() {
    let node = node().await;
    for (secret, reason, word) in [
        ("sk-nobody-has-this", Reason::UnknownKey, "unknown_key"),
        ("tg_notevenplausible", Reason::UnknownKey, "unknown_key"),
        ("ключ", Reason::UnknownKey, "unknown_key"),
        // The key comes from the end user: the backend that passes it on made no mistake, and needs a decision for its
        // user.
        ("sk\nwith\0controls\u{7f}\u{85}", Reason::UnknownKey, "unknown_key"),
        ("sk-integration-revoked", Reason::RevokedKey, "revoked_key"),
        ("sk-integration-expired", Reason::ExpiredKey, "expired_key"),
    ] {
        let one = Call { render: true, dialect: "openai".into(), ..call(api_key(secret), "model", &[]) };
        for decision in [consume(&node.grpc, one.clone()).await, peek(&node.grpc, one).await] {
            let decision = decision.unwrap();
            assert!(!allowed(&decision));
            assert_eq!(decision.reason(), reason, "{secret}");
            assert!(decision.quotas.is_empty() && decision.retry_after_ms.is_none(), "{decision:?}");
            assert_eq!(decision.rendered.map(|rendered| rendered.status), Some(401), "{secret}");
        }
        let body = json!({ "caller": { "api_key": secret }, "resource": "model", "render": true, "dialect": "openai" });
        for path in ["/v1/consume", "/v1/check"] {
            let (status, answer) = node.rest.post(path, body.to_string()).await;
            assert_eq!((status, &answer["reason"]), (StatusCode::OK, &json!(word)), "{path}: {secret}: {answer}");
            assert_eq!(
                (&answer["verdict"], &answer["rendered"]["status"]),
                (&json!("denied"), &json!(401)),
                "{answer}"
            );
        }
        let request = GetRateLimitsRequest { caller: Some(api_key(secret)), ..GetRateLimitsRequest::default() };
        let listed = node.grpc.clone().get_rate_limits(request).await.unwrap().into_inner();
        assert_eq!((listed.reason(), listed.resources.len()), (reason, 0), "{secret}");
    }
    for (id, reason) in
        [("nobody", Reason::UnknownKey), ("acme-revoked", Reason::RevokedKey), ("acme-expired", Reason::ExpiredKey)]
    {
        let one = call(api_key_id(id), "model", &[]);
        for decision in [consume(&node.grpc, one.clone()).await, peek(&node.grpc, one).await] {
            let decision = decision.unwrap();
            assert_eq!((allowed(&decision), decision.reason()), (false, reason), "{id}");
        }
    }
    nothing_charged(&node).await;
}

#[tokio::test]
async fn invalid_bearer_tokens_are_refused() {
    let node = node().await;
    let long = format!("Bearer {}", "k".repeat(TOO_LONG));
    let bearers: [Option<&[u8]>; 12] = [
        None,
        Some(b""),
        Some(b"Bearer"),
        Some(b"Bearer "),
        Some(b"Basic dXNlcjpwYXNz"),
        Some(KEY.as_bytes()),
        Some(b"Bearer \xff\xfe"),
        Some(b"Bearer sk-nobody-has-this"),
        Some(b"Bearer sk-integration-revoked"),
        Some(b"Bearer sk-integration-expired"),
        Some(b"Bearer tg_x"),
        Some(long.as_bytes()),
    ];
    for path in ["/api_keys/rate_limits", "/api/v1/api_keys/rate_limits"] {
        for bearer in bearers {
            let mut request = node.rest.request(Method::GET, path);
            if let Some(bearer) = bearer {
                request = request.header(header::AUTHORIZATION, header::HeaderValue::from_bytes(bearer).unwrap());
            }
            let answer = request.send().await.unwrap();
            let complaint = bearer.map(|bearer| shortened(&String::from_utf8_lossy(bearer)));
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{complaint:?}");
            assert_eq!(
                answer.json::<Value>().await.unwrap(),
                json!({ "error": "Authentication failed" }),
                "{complaint:?}"
            );
        }
        // The scheme may be in any case (RFC 7235).
        let good = node.rest.request(Method::GET, path).header(header::AUTHORIZATION, format!("bEaReR {KEY}"));
        assert_eq!(good.send().await.unwrap().status(), StatusCode::OK);
    }
    nothing_charged(&node).await;
}

#[tokio::test]
async fn invalid_bodies_are_refused() {
    let node = node().await;
    let usage = |usage: &str| format!(r#"{{"caller":{{"account":"a"}},"resource":"model","usage":{usage}}}"#);
    let tokens = |amount: &str| usage(&format!(r#"{{"tokens":{amount}}}"#));
    for (names, body) in [
        ("body", String::new()),
        ("body", "{".into()),
        ("body", "nonsense".into()),
        ("body", r#"{"caller":{"account":"a"},"resource":"model"} trailing"#.into()),
        ("body", "[".repeat(5_000)),
        ("caller", r#"{"resource":"model"}"#.into()),
        ("caller", r#"{"caller":{},"resource":"model"}"#.into()),
        ("caller", r#"{"caller":null,"resource":"model"}"#.into()),
        ("caller", r#"{"caller":{"account":"a","api_key":"k"},"resource":"model"}"#.into()),
        ("caller.account", r#"{"caller":{"account":7},"resource":"model"}"#.into()),
        ("caller", r#"{"caller":{"nickname":"a"},"resource":"model"}"#.into()),
        ("resource", r#"{"caller":{"account":"a"}}"#.into()),
        ("resource", r#"{"caller":{"account":"a"},"resource":7}"#.into()),
        ("colour", r#"{"caller":{"account":"a"},"resource":"model","colour":"red"}"#.into()),
        ("usage.tokens", tokens("-1")),
        ("usage.tokens", tokens("1.5")),
        ("usage.tokens", tokens("1e3")),
        ("usage.tokens", tokens("\"1\"")),
        ("usage.tokens", tokens("null")),
        ("usage.tokens", tokens("18446744073709551616")),
        ("usage.tokens", tokens("18446744073709551615")),
        ("usage.tokens", tokens("9007199254740992")),
        ("usage", usage("[]")),
        ("usage", usage("7")),
        ("attributes.ip", r#"{"caller":{"account":"a"},"resource":"model","attributes":{"ip":7}}"#.into()),
    ] {
        let (status, answer) = node.rest.post("/v1/consume", body.clone()).await;
        let complaint = shortened(&body);
        assert_eq!(status, StatusCode::BAD_REQUEST, "{complaint}: {answer}");
        assert_eq!(answer["error"]["code"], "invalid_argument", "{complaint}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.starts_with(&format!("{names}: ")), "{complaint}: {message}");
    }
    nothing_charged(&node).await;
}

/// A duplicate unit is ambiguous, so it is refused.
#[tokio::test]
async fn a_unit_named_twice_in_json_is_refused() {
    let node = node().await;
    let body = r#"{"caller":{"account":"a"},"resource":"model","usage":{"tokens":1,"tokens":2}}"#;
    let (status, answer) = node.rest.post("/v1/consume", body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("usage"), "{answer}");
    nothing_charged(&node).await;
}

#[tokio::test]
async fn bodies_over_the_limit_and_of_another_type_are_refused() {
    let node = node().await;
    let good = to_json(&good()).unwrap().to_string();
    let padded = |length: usize| format!("{}{good}", " ".repeat(length - good.len()));
    let (status, answer) = node.rest.post("/v1/consume", padded(65_537)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{answer}");
    assert_eq!(answer["error"]["code"], "payload_too_large");
    assert_eq!(answer["error"]["message"], "body: has more than 65536 bytes");
    let post = |content_type: Option<&str>| {
        let request = node.rest.request(Method::POST, "/v1/consume").body(good.clone());
        match content_type {
            Some(content_type) => request.header(header::CONTENT_TYPE, content_type),
            None => request,
        }
    };
    for content_type in [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("nonsense")] {
        let answer = post(content_type).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type:?}");
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["error"]["code"], "unsupported_media_type", "{body}");
        assert!(body["error"]["message"].as_str().unwrap().to_lowercase().contains("content-type"), "{body}");
    }
    nothing_charged(&node).await;
    // A body of exactly the limit is accepted.
    let (status, answer) = node.rest.post("/v1/check", padded(65_536)).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(post(Some("application/json; charset=utf-8")).send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn unknown_routes_and_methods_are_refused() {
    let node = node().await;
    for (method, path, status, code) in [
        (Method::GET, "/v1/consume", StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        (Method::DELETE, "/api_keys/rate_limits", StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        (Method::POST, "/healthz", StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        (Method::GET, "/nowhere", StatusCode::NOT_FOUND, "not_found"),
        (Method::GET, "/v1/consume/", StatusCode::NOT_FOUND, "not_found"),
        (Method::GET, "/%00", StatusCode::NOT_FOUND, "not_found"),
    ] {
        let answer = node.rest.request(method.clone(), path).send().await.unwrap();
        assert_eq!(answer.status(), status, "{method} {path}");
        if status == StatusCode::METHOD_NOT_ALLOWED {
            assert!(answer.headers().contains_key(header::ALLOW), "{method} {path} does not say what is allowed");
        }
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["error"]["code"], code, "{method} {path}");
    }
    nothing_charged(&node).await;
}
