//! Calls every RPC and every route, on two nodes in turn, and checks what they leave in Redis.

use std::{cell::RefCell, collections::BTreeSet, time::Duration};

use prost::Message;
use prost_types::{FileDescriptorSet, MethodDescriptorProto};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_stream::StreamExt;
use tollgate_api::v1::{
    Call, CancelRequest, ConsumeBatchRequest, ConsumeStreamRequest, ExtendRequest, GetRateLimitsRequest,
    ReportOutcomeRequest, ReserveRequest, SettleRequest, call_result::Result as Of,
};

use crate::harness::{
    KEY, Process, ProcessBuilder, account, allowed, api_key, call, consume, folder_with, hash_of, peek, quota, until,
};

const ADMIN: &str = "tgt_integration-token-of-the-administrators-31";

fn platform() -> String {
    format!(
        "version: 1
domain: shop
self_service: venice
units: [tokens]
scopes: {{ account: [account, resource] }}
resources:
  model:
    quotas:
      - {{ unit: requests, per: minute, limit: 100 }}
      - {{ unit: tokens, per: minute, limit: 20000 }}
      - {{ unit: tokens, per: {{ calendar: day }}, limit: 1000000 }}
  held:
    quotas:
      - {{ unit: requests, per: minute, limit: 100 }}
      - {{ unit: tokens, per: minute, limit: 20000 }}
      - {{ unit: concurrent_requests, limit: 2 }}
  closed: {{ quotas: [{{ unit: requests, per: minute, limit: 0 }}] }}
tiers:
  basic: {{ is_charged: false }}
  paid: {{ is_charged: true }}
default_tier: paid
promotions: [{{ on: payment, from: basic, to: paid }}]
abuse: {{ rules: {{ failed: {{ limit: 20, per: 30s, block: 30s, count_refusals: false }} }} }}
bootstrap:
  accounts:
    - {{ id: acme, tier: paid, keys: [{{ id: acme-good, hash: '{}', kind: admin }}] }}
",
        hash_of(KEY)
    )
}

/// Runs every operation on two nodes with these settings and checks that they count in the same Redis.
pub(super) async fn smoke(settings: &[String]) {
    let (folder, policy) = folder_with(&platform());
    let tokens = folder.path().join("admins.yaml");
    std::fs::write(&tokens, format!("tokens: [{{ name: root, hash: '{}', domains: all }}]", hash_of(ADMIN))).unwrap();
    let start = || {
        let node = ProcessBuilder::new(&policy).arg("--admin-tokens").arg(&tokens);
        settings.iter().fold(node, ProcessBuilder::arg).start()
    };
    let nodes = [start(), start()];
    for node in &nodes {
        until("the node is ready", Duration::from_secs(20), async || {
            (node.rest.text("/readyz").await.0.as_u16() == 200).then_some(())
        })
        .await;
    }
    decisions(&nodes).await;
    reservations(&nodes).await;
    let routes = Routes { nodes: &nodes, seen: RefCell::default() };
    decisions_over_rest(&routes).await;
    accounts(&routes).await;
    routes.assert_all_called().await;
}

fn model(tokens: u64) -> Call {
    call(account("acme"), "model", &[("tokens", tokens)])
}

/// What is used of each quota of `resource`, in their order.
async fn used(node: &Process, caller: &str, resource: &str) -> [u64; 3] {
    let now = peek(&node.grpc, call(account(caller), resource, &[])).await.unwrap();
    [0, 1, 2].map(|at| now.quotas[at].used)
}

async fn decisions([node, other]: &[Process; 2]) {
    for number in 1..=3 {
        let decision = consume(&node.grpc, call(api_key(KEY), "model", &[("tokens", 7)])).await.unwrap();
        assert!(allowed(&decision));
        assert_eq!(quota(&decision, "requests_per_minute").used, number);
    }
    assert_eq!(used(other, "acme", "model").await, [3, 21, 21], "nodes share their counters");
    let named = Call { request_id: "one".into(), ..model(9) };
    assert!(!consume(&node.grpc, named.clone()).await.unwrap().replayed);
    assert!(consume(&other.grpc, named).await.unwrap().replayed, "nodes share what they remember of calls");

    let batch = ConsumeBatchRequest { calls: vec![model(5), model(5)] };
    let results = other.grpc.clone().consume_batch(batch).await.unwrap().into_inner().results;
    for result in results {
        assert!(matches!(result.result, Some(Of::Decision(decision)) if allowed(&decision)));
    }
    let calls = [1, 2].map(|id| ConsumeStreamRequest { id, call: Some(model(5)), timeout_ms: 0 });
    let answers = node.grpc.clone().consume_stream(tokio_stream::iter(calls)).await.unwrap().into_inner();
    assert_eq!(answers.filter_map(Result::ok).collect::<Vec<_>>().await.len(), 2);
    assert_eq!(used(node, "acme", "model").await, [8, 50, 50]);

    let report = ReportOutcomeRequest {
        caller: Some(account("acme")),
        resource: "model".into(),
        status: 500,
        ..ReportOutcomeRequest::default()
    };
    assert_eq!(node.grpc.clone().report_outcome(report).await.unwrap().into_inner().counted, 1);
    let request = GetRateLimitsRequest { caller: Some(account("acme")), ..GetRateLimitsRequest::default() };
    let listed = other.grpc.clone().get_rate_limits(request).await.unwrap().into_inner();
    assert_eq!(listed.resources.len(), 3);

    // This file covers every RPC of the API.
    let files = FileDescriptorSet::decode(tollgate_api::DESCRIPTORS).unwrap().file;
    let services = files.iter().flat_map(|file| &file.service).filter(|service| service.name() == "RateLimitService");
    let mut rpcs: Vec<&str> = services.flat_map(|service| &service.method).map(MethodDescriptorProto::name).collect();
    rpcs.sort_unstable();
    let here = ["Cancel", "Check", "Consume", "ConsumeBatch", "ConsumeStream", "Extend", "GetRateLimits"];
    assert_eq!(rpcs, [&here[..], &["ReportOutcome", "Reserve", "Settle"]].concat());
}

async fn reservations([node, other]: &[Process; 2]) {
    let reserve = async |at: &Process| {
        let reserved = call(account("a"), "held", &[("tokens", 100)]);
        let request = ReserveRequest { call: Some(reserved), ..ReserveRequest::default() };
        let decision = at.grpc.clone().reserve(request).await.unwrap().into_inner().decision.unwrap();
        decision.reservation.expect("it is reserved").id
    };
    let (first, second) = (reserve(node).await, reserve(other).await);
    assert_eq!(used(node, "a", "held").await, [2, 200, 2]);
    let extend = ExtendRequest { reservation_id: first.clone(), ttl_ms: 60_000 };
    assert!(other.grpc.clone().extend(extend).await.unwrap().into_inner().reservation.is_some());
    let usage = [("tokens".to_owned(), 140)].into();
    other.grpc.clone().settle(SettleRequest { reservation_id: first, usage, status: 0 }).await.unwrap();
    assert_eq!(used(node, "a", "held").await, [2, 240, 1]);
    node.grpc.clone().cancel(CancelRequest { reservation_id: second, status: 0 }).await.unwrap();
    assert_eq!(used(other, "a", "held").await, [1, 140, 0]);
}

/// The described routes, and the set of those called so far.
struct Routes<'a> {
    nodes: &'a [Process; 2],
    seen: RefCell<BTreeSet<(String, String)>>,
}

impl Routes<'_> {
    /// Calls a route on the next node; `of` is its path in the API description.
    async fn call(&self, method: Method, of: &str, path: &str, token: &str, body: Option<Value>) -> Value {
        let turn = self.seen.borrow().len() % 2;
        self.seen.borrow_mut().insert((method.as_str().to_lowercase(), of.to_owned()));
        let request = self.nodes[turn].rest.request(method, path).bearer_auth(token);
        let answer = body.into_iter().fold(request, |request, body| request.json(&body)).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.call(Method::POST, path, path, "", Some(body)).await
    }

    /// A route below `/admin/v1`, whose parts in braces are `names` in order.
    async fn admin(&self, method: Method, of: &str, names: &[&str], body: Option<Value>) -> Value {
        let of = format!("/admin/v1{of}");
        let mut names = names.iter();
        let parts = of.split('/').map(|part| if part.starts_with('{') { *names.next().unwrap() } else { part });
        let path = parts.collect::<Vec<_>>().join("/");
        self.call(method, &of, &path, ADMIN, body).await
    }

    /// Asserts that every described route was called.
    async fn assert_all_called(&self) {
        let (_, description) = self.nodes[0].rest.json("/openapi.json").await;
        let operations = description["paths"].as_object().unwrap().iter().flat_map(|(path, item)| {
            item.as_object().unwrap().keys().map(move |method| (method.clone(), path.clone()))
        });
        assert_eq!(operations.collect::<BTreeSet<_>>(), *self.seen.borrow());
    }
}

async fn decisions_over_rest(routes: &Routes<'_>) {
    let of = |resource| json!({"caller": {"account": "rest"}, "resource": resource, "usage": {"tokens": 10}});
    let body = of("model");
    for route in ["/v1/check", "/v1/consume"] {
        assert_eq!(routes.post(route, body.clone()).await["verdict"], "allowed", "{route}");
    }
    let batch = routes.post("/v1/consume_batch", json!({"calls": [body, body]})).await;
    assert_eq!(batch["results"][1]["decision"]["verdict"], "allowed", "{batch}");
    let id = async || routes.post("/v1/reserve", json!({"call": of("held")})).await["reservation"]["id"].clone();
    let (first, second) = (id().await, id().await);
    routes.post("/v1/extend", json!({"reservation_id": first})).await;
    routes.post("/v1/settle", json!({"reservation_id": first, "usage": {"tokens": 4}})).await;
    routes.post("/v1/cancel", json!({"reservation_id": second})).await;
    assert_eq!(used(&routes.nodes[0], "rest", "model").await, [3, 30, 30]);
    assert_eq!(used(&routes.nodes[0], "rest", "held").await, [1, 4, 0]);
    let report = json!({"caller": {"account": "rest"}, "resource": "model", "status": 500});
    assert_eq!(routes.post("/v1/report_outcome", report).await["counted"], 1);
    let listed = routes.post("/v1/get_rate_limits", json!({"caller": {"account": "rest"}})).await;
    assert!(listed["resources"].as_array().is_some_and(|resources| !resources.is_empty()), "{listed}");

    let closed = json!({"caller": {"api_key": KEY}, "resource": "closed"});
    assert_eq!(routes.post("/v1/consume", closed).await["verdict"], "denied");
    for below in ["", "/api/v1"] {
        let limits = format!("{below}/api_keys/rate_limits");
        assert!(routes.call(Method::GET, &limits, &limits, KEY, None).await["data"].is_object());
        let log = format!("{below}/api_keys/rate_limits/log");
        until("the refusal is in the log", Duration::from_secs(20), async || {
            let entries = routes.call(Method::GET, &log, &log, KEY, None).await;
            (entries["data"][0]["modelId"] == "closed").then_some(())
        })
        .await;
    }
    for route in ["/healthz", "/readyz", "/metrics"] {
        routes.call(Method::GET, route, route, "", None).await;
    }
}

async fn accounts(routes: &Routes<'_>) {
    let (get, post, patch) = (Method::GET, Method::POST, Method::PATCH);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    routes.admin(post.clone(), "/accounts", &[], Some(json!({"id": "new", "tier": "basic"}))).await;
    let listed = routes.admin(get.clone(), "/accounts", &[], None).await;
    assert!(listed.to_string().contains("\"new\""), "{listed}");
    let paid = json!({"id": "payment-1", "type": "payment"});
    routes.admin(post.clone(), "/accounts/{account}/events", &["new"], Some(paid)).await;
    assert_eq!(routes.admin(get.clone(), "/accounts/{account}", &["new"], None).await["tier"], "paid");
    routes.admin(patch.clone(), "/accounts/{account}", &["new"], Some(json!({"tier": "basic"}))).await;
    let issue = json!({"kind": "inference"});
    let issued = routes.admin(post.clone(), "/accounts/{account}/keys", &["new"], Some(issue)).await;
    let (key, secret) = (text(&issued["key"]["id"]), text(&issued["secret"]));
    routes.admin(get.clone(), "/accounts/{account}/keys", &["new"], None).await;
    routes.admin(get, "/keys/{key}", &[&key], None).await;
    routes.admin(patch, "/keys/{key}", &[&key], Some(json!({"description": "new"}))).await;
    assert!(routes.admin(Method::GET, "/tiers", &[], None).await["tiers"].is_array());
    let over = json!({"resource": "model", "unit": "requests", "per": "minute", "limit": 7});
    for (of, name) in [("/accounts/{account}/overrides/{name}", "new"), ("/keys/{key}/overrides/{name}", &key)] {
        routes.admin(Method::PUT, of, &[name, "sale"], Some(over.clone())).await;
        routes.admin(Method::DELETE, of, &[name, "sale"], None).await;
    }
    let rotated = routes.admin(post.clone(), "/keys/{key}/rotate", &[&key], Some(json!({}))).await;
    let verdict = async |secret: &str| {
        consume(&routes.nodes[0].grpc, call(api_key(secret), "model", &[])).await.map(|decision| allowed(&decision))
    };
    assert_eq!(verdict(&text(&rotated["secret"])).await.ok(), Some(true));
    until("the old secret is invalid", Duration::from_secs(20), async || {
        (!verdict(&secret).await.unwrap()).then_some(())
    })
    .await;
    routes.admin(post.clone(), "/keys/{key}/revoke", &[&key], None).await;
    let reset = routes.admin(post, "/accounts/{account}/reset_usage", &["new"], Some(json!({}))).await;
    assert!(reset.is_object(), "{reset}");
    let status = routes.admin(Method::GET, "/status", &[], None).await;
    assert!(status.is_object(), "{status}");
    routes.admin(Method::DELETE, "/accounts/{account}", &["new"], None).await;
}
