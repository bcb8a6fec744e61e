//! Listings: every resource once, whatever the size of the page.
//!
//! Tried by breaking the service: a `next` that is one too far.

use std::collections::HashSet;

use tollgate_proto::v1::{GetRateLimitsRequest, GetRateLimitsResponse};
use tollgate_store::testing::RedisServer;

use crate::harness::{KEY, Node, account, api_key, call, consume, hash_of, memory_node, redis_node};

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

/// A quota by an attribute that this request cannot bring is no reason to show a good key nothing.
#[tokio::test]
async fn a_quota_by_ip_does_not_hide_the_other_limits() {
    let by_ip = "  by-ip: { quotas: [{ unit: requests, per: minute, limit: 5, scope: [ip] }] }\n";
    let node = memory_node(&catalogue().replace("resources:\n", &format!("resources:\n{by_ip}"))).await;
    let answer =
        node.rest.request(reqwest::Method::GET, "/api_keys/rate_limits").bearer_auth(KEY).send().await.unwrap();
    assert_eq!(answer.status(), reqwest::StatusCode::OK, "the key is good");
}

/// The document's own fields, in its own words.
#[tokio::test]
async fn the_listing_has_the_shape_of_the_venice_document() {
    let node = memory_node(&crate::harness::shop(100)).await;
    for path in ["/api_keys/rate_limits", "/api/v1/api_keys/rate_limits"] {
        let answer = node.rest.request(reqwest::Method::GET, path).bearer_auth(KEY).send().await.unwrap();
        let body: serde_json::Value = answer.json().await.unwrap();
        insta::assert_json_snapshot!("listing", body);
    }
}
