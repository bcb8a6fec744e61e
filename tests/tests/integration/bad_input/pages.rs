//! Listing pages that do not exist, and listings without a caller.

use reqwest::{Method, StatusCode};
use serde_json::Value;
use tollgate_api::v1::{Caller, GetRateLimitsRequest};
use tonic::Code;

use super::{TOO_LONG, bad_texts, node, nothing_charged};
use crate::harness::{KEY, account, api_key, api_key_id};

#[tokio::test]
async fn invalid_listing_queries_over_rest_are_refused() {
    let node = node().await;
    for (query, names) in [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=-1", "limit"),
        ("limit=x", "limit"),
        ("limit=18446744073709551616", "limit"),
        ("cursor=garbage", "cursor"),
        ("cursor=-1", "cursor"),
        ("colour=red", "colour"),
    ] {
        let request = node.rest.request(Method::GET, &format!("/api_keys/rate_limits?{query}")).bearer_auth(KEY);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{query}");
        let body: Value = answer.json().await.unwrap();
        assert!(body["error"].as_str().unwrap().contains(names), "{query}: {body}");
    }
    nothing_charged(&node).await;
}

/// A cursor past the end gives an empty page or an error, at any distance.
#[tokio::test]
async fn a_cursor_past_the_end_gives_an_empty_page_or_an_error() {
    let node = node().await;
    for cursor in ["7", "1000", "9223372036854775807", "18446744073709551615"] {
        let path = format!("/api_keys/rate_limits?cursor={cursor}");
        let answer = node.rest.request(Method::GET, &path).bearer_auth(KEY).send().await;
        let answer = answer.unwrap_or_else(|error| panic!("cursor {cursor}: no answer at all: {error}"));
        assert!(matches!(answer.status().as_u16(), 200 | 400), "cursor {cursor}: {}", answer.status());
        let request = GetRateLimitsRequest {
            caller: Some(api_key(KEY)),
            page_token: cursor.into(),
            ..GetRateLimitsRequest::default()
        };
        if let Err(error) = node.grpc.clone().get_rate_limits(request).await {
            assert_eq!(error.code(), Code::InvalidArgument, "page_token {cursor}: {error:?}");
        }
    }
    nothing_charged(&node).await;
}

#[tokio::test]
async fn invalid_listing_requests_over_grpc_are_refused() {
    let node = node().await;
    let good = || GetRateLimitsRequest { caller: Some(api_key(KEY)), ..GetRateLimitsRequest::default() };
    let token = |token: &str| GetRateLimitsRequest { page_token: token.into(), ..good() };
    let of = |caller: Caller| GetRateLimitsRequest { caller: Some(caller), ..good() };
    let mut wrong = Vec::new();
    for text in bad_texts().into_iter().chain([String::new()]) {
        wrong.push(("caller.account", of(account(text.clone()))));
        wrong.push(("caller.api_key_id", of(api_key_id(text))));
    }
    for length in [0, 513, TOO_LONG] {
        wrong.push(("caller.api_key", of(api_key("k".repeat(length)))));
    }
    wrong.extend([
        ("page_size", GetRateLimitsRequest { page_size: 101, ..good() }),
        ("page_size", GetRateLimitsRequest { page_size: u32::MAX, ..good() }),
        ("page_token", token("garbage")),
        ("page_token", token("-1")),
        ("page_token", token("18446744073709551616")),
        ("page_token", token(&"9".repeat(TOO_LONG))),
        ("caller", GetRateLimitsRequest { caller: None, ..good() }),
        ("attributes", GetRateLimitsRequest { attributes: [(String::new(), "v".into())].into(), ..good() }),
        ("domain", GetRateLimitsRequest { domain: "a\nb".into(), ..good() }),
    ]);
    for (field, request) in wrong {
        let error = node.grpc.clone().get_rate_limits(request).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{field}: {error:?}");
        assert!(error.message().starts_with(field), "{field}: {error:?}");
        assert!(error.message().len() < 600 && !error.message().contains(char::is_control), "{field}: {error:?}");
    }
    nothing_charged(&node).await;
}
