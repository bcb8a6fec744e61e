//! Listings: every resource appears once, at any page size.
//!
//! Seen to fail with a page token that is off by one, and, over REST, with an ignored page size and a token of another
//! domain.

use std::collections::HashSet;

use reqwest::{Method, StatusCode};
use serde_json::json;
use tollgate_api::v1::{GetRateLimitsRequest, GetRateLimitsResponse};
use tollgate_server::settings::Options;
use tollgate_store::testing::RedisServer;

use crate::harness::{
    KEY, Node, account, api_key, call, consume, folder_with, hash_of, memory_node, memory_node_with, redis_node,
};

const RESOURCES: usize = 123;

/// Many resources, of none to five quotas each.
fn catalogue() -> String {
    let per = ["minute", "hour", "day", "30s", "2h"];
    let quota = |per: &&str| format!("{{ unit: requests, per: {per}, limit: 1000 }}");
    let resource = |number: usize| {
        let quotas: Vec<String> = per[..number % 6].iter().map(quota).collect();
        format!("  r{number:03}: {{ quotas: [{}] }}\n", quotas.join(", "))
    };
    let resources: Vec<String> = (0..RESOURCES).map(resource).collect();
    let resources = resources.concat();
    format!(
        "version: 1\ndomain: catalogue\nself_service: venice\nresources:\n{resources}tiers:\n  paid: {{ is_charged: true }}\ndefault_tier: paid\n\
         bootstrap:\n  accounts:\n    - id: acme\n      tier: paid\n      keys: [{{ id: good, hash: \"{}\", kind: inference }}]\n",
        hash_of(KEY)
    )
}

async fn every_resource_is_listed_once(node: &Node) {
    for number in [1, 7, 50, 122] {
        for _ in 0..number % 5 {
            consume(&node.grpc, call(api_key(KEY), &format!("r{number:03}"), &[])).await.unwrap();
        }
    }
    let expected_used = |name: &str| match name {
        "r001" => 1,
        "r007" | "r122" => 2,
        _ => 0,
    };
    for page_size in [0, 1, 7, 50, 100] {
        let mut names = Vec::new();
        let mut page_token = String::new();
        loop {
            let caller = if page_size == 7 { account("acme") } else { api_key(KEY) };
            let caller = Some(caller);
            let request = GetRateLimitsRequest { caller, page_size, page_token, ..GetRateLimitsRequest::default() };
            let page: GetRateLimitsResponse = node.grpc.clone().get_rate_limits(request).await.unwrap().into_inner();
            assert!(page.resources.len() <= if page_size == 0 { 50 } else { page_size as usize });
            assert!(!page.resources.is_empty(), "an empty page after {} resources", names.len());
            for resource in page.resources {
                let number: usize = resource.resource[1..].parse().unwrap();
                assert_eq!(resource.quotas.len(), number % 6, "{resource:?}");
                let used = expected_used(&resource.resource);
                assert!(resource.quotas.iter().all(|quota| quota.used == used), "{resource:?}");
                names.push(resource.resource);
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(names.len(), RESOURCES, "pages of {page_size}");
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), RESOURCES, "pages of {page_size}");
    }
    for limit in ["", "?limit=1", "?limit=10", "?limit=41", "?limit=123", "?limit=500"] {
        let mut names = Vec::new();
        let mut cursor = String::new();
        loop {
            let path = format!("/api_keys/rate_limits{limit}{cursor}");
            let answer = node.rest.request(reqwest::Method::GET, &path).bearer_auth(KEY).send().await.unwrap();
            let body: serde_json::Value = answer.json().await.unwrap();
            for resource in body["data"]["rateLimits"].as_array().unwrap() {
                let name = resource["apiModelId"].as_str().unwrap();
                for entry in resource["rateLimits"].as_array().unwrap() {
                    assert_eq!(entry["used"], expected_used(name), "{resource}");
                }
                names.push(name.to_owned());
            }
            let Some(next) = body["data"].get("nextCursor") else { break };
            let and = if limit.is_empty() { "?" } else { "&" };
            cursor = format!("{and}cursor={}", next.to_string().trim_matches('"'));
        }
        assert_eq!(names.len(), RESOURCES, "{limit}");
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), RESOURCES, "{limit}");
    }
}

#[tokio::test]
async fn every_resource_is_listed_once_in_memory() {
    every_resource_is_listed_once(&memory_node(&catalogue()).await).await;
}

#[tokio::test]
async fn every_resource_is_listed_once_in_redis() {
    let redis = RedisServer::start();
    every_resource_is_listed_once(&redis_node(&catalogue(), redis.url()).await).await;
}

/// A quota by an attribute that this request lacks does not hide the other quotas of a valid key.
#[tokio::test]
async fn a_quota_per_ip_does_not_hide_the_other_limits() {
    let by_ip = "  by-ip: { quotas: [{ unit: requests, per: minute, limit: 5, scope: [ip] }] }\n";
    let node = memory_node(&catalogue().replace("resources:\n", &format!("resources:\n{by_ip}"))).await;
    let answer =
        node.rest.request(reqwest::Method::GET, "/api_keys/rate_limits").bearer_auth(KEY).send().await.unwrap();
    assert_eq!(answer.status(), reqwest::StatusCode::OK, "the key is good");
}

/// The document's fields and names.
#[tokio::test]
async fn the_listing_has_the_shape_of_the_venice_document() {
    let node = memory_node(&crate::harness::shop(100)).await;
    for path in ["/api_keys/rate_limits", "/api/v1/api_keys/rate_limits"] {
        let answer = node.rest.request(reqwest::Method::GET, path).bearer_auth(KEY).send().await.unwrap();
        let body: serde_json::Value = answer.json().await.unwrap();
        insta::assert_json_snapshot!("listing", body);
    }
}

/// A page over REST, which must equal that over gRPC.
async fn page_over_both(node: &Node, page_size: u32, page_token: &str) -> serde_json::Value {
    let caller = Some(api_key(KEY));
    let request = GetRateLimitsRequest { caller, page_size, page_token: page_token.to_owned(), ..Default::default() };
    let rpc = node.grpc.clone().get_rate_limits(request).await.unwrap().into_inner();
    let body = json!({"caller": {"api_key": KEY}, "page_size": page_size, "page_token": page_token});
    let (status, page) = node.rest.post("/v1/get_rate_limits", body.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{page}");
    let text = |name: &str| page[name].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        (text("account"), text("api_key_id"), text("tier"), text("next_page_token"), page.get("reason")),
        (rpc.account, rpc.api_key_id, rpc.tier, rpc.next_page_token, None)
    );
    let resources = page["resources"].as_array().unwrap();
    assert_eq!(resources.len(), rpc.resources.len());
    for (twin, resource) in resources.iter().zip(&rpc.resources) {
        assert_eq!(twin["resource"], resource.resource);
        let quotas = twin["quotas"].as_array().unwrap();
        assert_eq!(quotas.len(), resource.quotas.len(), "{twin}");
        for (twin, quota) in quotas.iter().zip(&resource.quotas) {
            assert_eq!((twin["name"].as_str(), twin["used"].as_u64()), (Some(&*quota.name), Some(quota.used)));
            assert_eq!((twin["limit"].as_u64(), twin["remaining"].as_u64()), (quota.limit, quota.remaining));
            assert_eq!(twin["label"].as_str(), quota.details.as_ref().map(|details| &*details.label));
        }
    }
    page
}

async fn check_rest_equals_grpc(node: &Node) {
    for resource in ["r001", "r007", "r122"] {
        consume(&node.grpc, call(api_key(KEY), resource, &[])).await.unwrap();
    }
    for page_size in [0, 1, 50, 100] {
        let (mut names, mut token) = (Vec::new(), String::new());
        loop {
            let page = page_over_both(node, page_size, &token).await;
            names.extend(page["resources"].as_array().unwrap().iter().map(|resource| resource["resource"].to_string()));
            match page.get("next_page_token") {
                Some(next) => next.as_str().unwrap().clone_into(&mut token),
                None => break,
            }
        }
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), RESOURCES, "pages of {page_size}");
        assert_eq!(names.len(), RESOURCES, "pages of {page_size}");
    }
    let ask = async |body: serde_json::Value| node.rest.post("/v1/get_rate_limits", body.to_string()).await;
    let (status, nobody) = ask(json!({"caller": {"api_key": "tg_nobody"}})).await;
    assert_eq!((status, &nobody["reason"], &nobody["resources"]), (StatusCode::OK, &json!("unknown_key"), &json!([])));
    for (body, field) in [
        (json!({"caller": {"api_key": KEY}, "page_size": 101}), "page_size: "),
        (json!({"caller": {"api_key": KEY}, "page_token": "x"}), "page_token: "),
        (json!({"caller": {"account": ""}}), "caller.account: "),
        (json!({"caller": {"api_key": KEY}, "attributes": {"ip": "x"}}), "attributes.ip: "),
    ] {
        let (status, wrong) = ask(body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{wrong}");
        assert!(wrong["error"]["message"].as_str().unwrap().starts_with(field), "{wrong}");
    }
}

#[tokio::test]
async fn rest_and_grpc_list_the_same_in_memory() {
    check_rest_equals_grpc(&memory_node(&catalogue()).await).await;
}

#[tokio::test]
async fn rest_and_grpc_list_the_same_in_redis() {
    let redis = RedisServer::start();
    check_rest_equals_grpc(&redis_node(&catalogue(), redis.url()).await).await;
}

#[tokio::test]
async fn a_token_lists_its_own_domains_only() {
    const TOKEN: &str = "tgt_integration-token-of-another-platform-4711";
    let (folder, _) = folder_with("");
    let tokens = folder.path().join("services.yaml");
    std::fs::write(&tokens, format!("tokens: [{{ name: a, hash: '{}', domains: [other] }}]", hash_of(TOKEN))).unwrap();
    let options = Options { service_tokens: Some(tokens), ..Options::default() };
    let node = memory_node_with(options, &catalogue()).await;
    let ask = async |token: &str, body: serde_json::Value| {
        let request = node.rest.request(Method::POST, "/v1/get_rate_limits").bearer_auth(token).json(&body);
        let answer = request.send().await.unwrap();
        (answer.status(), answer.json::<serde_json::Value>().await.unwrap())
    };
    let by_key = json!({"caller": {"api_key": KEY}});
    assert_eq!(ask("tgt_nobody", by_key.clone()).await.0, StatusCode::UNAUTHORIZED);
    let (status, elsewhere) = ask(TOKEN, by_key).await;
    assert_eq!((status, &elsewhere["reason"]), (StatusCode::OK, &json!("unknown_key")), "{elsewhere}");
    let (status, named) = ask(TOKEN, json!({"domain": "catalogue", "caller": {"account": "acme"}})).await;
    assert_eq!((status, &named["error"]["code"]), (StatusCode::FORBIDDEN, &json!("permission_denied")), "{named}");
}
