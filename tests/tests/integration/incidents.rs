//! Store faults as callers see them: a reason in plain words and an incident id. The log has the whole error under that
//! id; no answer contains text of the store.
//!
//! Seen to fail: with the store's text in answers over gRPC, `/v1`, self-service and administration; with an id that is
//! not logged; and with a log line for each failed call.

use std::{collections::BTreeSet, time::Duration};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_api::v1::{
    CancelRequest, CheckRequest, ConsumeBatchRequest, ConsumeRequest, ConsumeStreamRequest, ExtendRequest,
    GetRateLimitsRequest, ReportOutcomeRequest, ReserveRequest, SettleRequest,
};
use tollgate_store::testing::RedisServer;

use crate::harness::{Process, ProcessBuilder, account, api_key, call, folder_with, hash_of, shop, until};

const ADMIN: &str = "tgt_integration-token-of-the-administrators-31";
const BOUND: Duration = Duration::from_secs(20);

/// Texts that only the store, its client or the operating system produces.
const INTERNALS: [&str; 23] = [
    "os error",
    "onnection refused",
    "127.0.0.1",
    "localhost",
    "edis",
    "tg{",
    "secret",
    "user_script",
    "lua",
    "Lua",
    "WRONGTYPE",
    "ERR ",
    "OOM",
    "NOPERM",
    "NoPerm",
    "permission to",
    "permissions",
    "READONLY",
    "EVALSHA",
    "evalsha",
    "maxmemory",
    "column",
    "breaker",
];

struct Deployment {
    redis: RedisServer,
    node: Process,
    /// Secret and id of a key of the stored account `acme-stored`.
    key: (String, String),
    /// A reservation of that account.
    reservation: String,
    _folder: tempfile::TempDir,
}

impl Deployment {
    async fn new() -> Self {
        let redis = RedisServer::start();
        let (folder, policy) = folder_with(&shop(1000));
        let tokens = folder.path().join("admins.yaml");
        std::fs::write(&tokens, format!("tokens: [{{ name: root, hash: '{}', domains: all }}]", hash_of(ADMIN)))
            .unwrap();
        let builder = ProcessBuilder::new(&policy).redis(&redis.url()).arg("--admin-tokens").arg(&tokens);
        let node = builder.args(["--store-deadline-ms=400", "--log-format=json", "--account-cache-entries=1"]).start();
        let mut deployment = Self { redis, node, key: Default::default(), reservation: String::new(), _folder: folder };
        let (status, made) = deployment.rest(Method::POST, "/admin/v1/accounts", json!({"id": "acme-stored"})).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        let path = "/admin/v1/accounts/acme-stored/keys";
        let (status, issued) = deployment.rest(Method::POST, path, json!({"kind": "admin"})).await;
        assert_eq!(status, StatusCode::CREATED, "{issued}");
        let issued: Value = serde_json::from_str(&issued).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        deployment.key = (text(&issued["secret"]), text(&issued["key"]["id"]));
        let reserve =
            json!({"call": {"caller": {"account": "acme-stored"}, "resource": "model", "usage": {"tokens": 5}}});
        let (status, reserved) = deployment.rest(Method::POST, "/v1/reserve", reserve).await;
        assert_eq!(status, StatusCode::OK, "{reserved}");
        let reserved: Value = serde_json::from_str(&reserved).unwrap();
        deployment.reservation = text(&reserved["reservation"]["id"]);
        deployment
    }

    /// Status and body of a request with the admin token, or with the key on the end users' routes.
    async fn rest(&self, method: Method, path: &str, body: Value) -> (StatusCode, String) {
        let token = if path.contains("api_keys/") { &self.key.0 } else { ADMIN };
        let mut request = self.node.rest.request(method, path).bearer_auth(token);
        if !body.is_null() {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status(), format!("{:?}", answer.headers()));
        assert_eq!(internals_in(&headers), None, "{path}: {headers}");
        (status, answer.text().await.unwrap())
    }

    /// Every described operation that uses the store, with a valid body.
    fn operations(&self) -> Vec<(Method, String, String, Value)> {
        let caller = json!({"account": "acme-stored"});
        let call = json!({"caller": {"api_key": self.key.0}, "resource": "model", "render": true});
        let over = json!({"unit": "requests", "per": "minute", "limit": 7});
        let list: [(&str, &str, Value); 30] = [
            ("get", "/api_keys/rate_limits", Value::Null),
            ("get", "/api_keys/rate_limits/log", Value::Null),
            ("get", "/api/v1/api_keys/rate_limits", Value::Null),
            ("get", "/api/v1/api_keys/rate_limits/log", Value::Null),
            ("post", "/v1/check", call.clone()),
            ("post", "/v1/consume", call.clone()),
            ("post", "/v1/consume_batch", json!({"calls": [call, {"caller": caller, "resource": "model"}]})),
            ("post", "/v1/reserve", json!({"call": {"caller": caller, "resource": "model", "request_id": "r-1"}})),
            ("post", "/v1/settle", json!({"reservation_id": self.reservation, "usage": {"tokens": 3}})),
            ("post", "/v1/cancel", json!({"reservation_id": self.reservation})),
            ("post", "/v1/extend", json!({"reservation_id": self.reservation})),
            ("post", "/v1/report_outcome", json!({"caller": caller, "resource": "model", "status": 500})),
            ("post", "/v1/get_rate_limits", json!({"caller": caller})),
            ("get", "/admin/v1/accounts", Value::Null),
            ("post", "/admin/v1/accounts", json!({"id": "new"})),
            ("get", "/admin/v1/accounts/{account}", Value::Null),
            ("patch", "/admin/v1/accounts/{account}", json!({"balances": {"USD": 1.5}})),
            ("delete", "/admin/v1/accounts/{account}", Value::Null),
            ("post", "/admin/v1/accounts/{account}/events", json!({"id": "e-1", "type": "payment"})),
            ("post", "/admin/v1/accounts/{account}/reset_usage", json!({})),
            ("put", "/admin/v1/accounts/{account}/overrides/{name}", over.clone()),
            ("delete", "/admin/v1/accounts/{account}/overrides/{name}", Value::Null),
            ("get", "/admin/v1/accounts/{account}/keys", Value::Null),
            ("post", "/admin/v1/accounts/{account}/keys", json!({"kind": "inference"})),
            ("get", "/admin/v1/keys/{key}", Value::Null),
            ("patch", "/admin/v1/keys/{key}", json!({"description": "another"})),
            ("post", "/admin/v1/keys/{key}/rotate", json!({})),
            ("post", "/admin/v1/keys/{key}/revoke", Value::Null),
            ("put", "/admin/v1/keys/{key}/overrides/{name}", over),
            ("delete", "/admin/v1/keys/{key}/overrides/{name}", Value::Null),
        ];
        let path = |path: &str| {
            // Resetting the usage would repair the broken values.
            let account = if path.ends_with("/reset_usage") { "another" } else { "acme-stored" };
            path.replace("{account}", account).replace("{key}", &self.key.1).replace("{name}", "own")
        };
        let list = list.into_iter().map(|(method, template, body)| {
            (method.to_uppercase().parse().unwrap(), template.to_owned(), path(template), body)
        });
        list.collect()
    }

    /// The answer to every RPC.
    async fn rpcs(&self) -> Vec<(&'static str, String)> {
        let mut grpc = self.node.grpc.clone();
        let one = || Some(call(api_key(&self.key.0), "model", &[]));
        let named = || Some(call(account("acme-stored"), "model", &[]));
        let id = || self.reservation.clone();
        let stream = tokio_stream::iter([
            ConsumeStreamRequest { id: 1, call: one(), timeout_ms: 0 },
            ConsumeStreamRequest { id: 2, call: named(), timeout_ms: 0 },
        ]);
        let streamed = async {
            let mut answers = grpc.clone().consume_stream(stream).await?.into_inner();
            let mut taken = Vec::new();
            while let Some(answer) = answers.message().await? {
                taken.push(answer);
            }
            Ok::<_, tonic::Status>(format!("{taken:?}"))
        };
        let streamed = streamed.await;
        let report = ReportOutcomeRequest {
            caller: Some(account("acme-stored")),
            resource: "model".to_owned(),
            status: 500,
            ..ReportOutcomeRequest::default()
        };
        let list = GetRateLimitsRequest { caller: Some(api_key(&self.key.0)), ..GetRateLimitsRequest::default() };
        let batch = ConsumeBatchRequest { calls: vec![one().unwrap(), named().unwrap()] };
        let reserve = ReserveRequest { call: named(), ..ReserveRequest::default() };
        let settle = SettleRequest { reservation_id: id(), status: 500, ..SettleRequest::default() };
        vec![
            ("Check", error_text(grpc.check(CheckRequest { call: one() }).await)),
            ("Consume", error_text(grpc.consume(ConsumeRequest { call: named() }).await)),
            ("ConsumeBatch", error_text(grpc.consume_batch(batch).await)),
            ("ConsumeStream", streamed.unwrap_or_else(|status| format!("{status:?}"))),
            ("Reserve", error_text(grpc.reserve(reserve).await)),
            ("Settle", error_text(grpc.settle(settle).await)),
            ("Cancel", error_text(grpc.cancel(CancelRequest { reservation_id: id(), status: 0 }).await)),
            ("Extend", error_text(grpc.extend(ExtendRequest { reservation_id: id(), ttl_ms: 0 }).await)),
            ("GetRateLimits", error_text(grpc.get_rate_limits(list).await)),
            ("ReportOutcome", error_text(grpc.report_outcome(report).await)),
        ]
    }

    /// Calls every operation and checks each answer. Returns the operations that failed because of the store, and their
    /// incident ids.
    async fn call_every_operation(&self, fault: &str) -> (BTreeSet<String>, BTreeSet<String>) {
        let mut answers = Vec::new();
        for (method, template, path, body) in self.operations() {
            let (status, text) = self.rest(method.clone(), &path, body).await;
            let failed = status.is_server_error();
            answers.push((format!("{method} {template}"), failed, text));
        }
        for (rpc, text) in self.rpcs().await {
            answers.push((rpc.to_owned(), text.contains("Unavailable"), text));
        }
        let (mut failed, mut incidents) = (BTreeSet::new(), BTreeSet::new());
        for (what, has_failed, text) in answers {
            assert_eq!(internals_in(&text), None, "{fault}: {what}: {text}");
            let named: Vec<String> =
                text.split("incident ").skip(1).map(|rest| rest.chars().take(16).collect()).collect();
            assert!(!has_failed || !named.is_empty() || text.contains("took too long"), "{fault}: {what}: {text}");
            if has_failed {
                failed.insert(what);
            }
            incidents.extend(named);
        }
        (failed, incidents)
    }

    /// The log lines that open an incident, by id.
    fn logged(&self) -> Vec<(String, String)> {
        let log = self.node.stderr();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let of = |line: Value| {
            Some((line["incident"].as_str()?.to_owned(), line["error"].as_str().unwrap_or_default().to_owned()))
        };
        lines.filter_map(of).collect()
    }

    async fn check(&self, fault: &str, fails: &[&str], says: &str) {
        let (failed, incidents) = self.call_every_operation(fault).await;
        for what in fails {
            assert!(failed.contains(*what), "{fault}: {what} did not fail: {failed:?}");
        }
        let logged = until(&format!("{fault}: all incidents are logged"), BOUND, async || {
            let logged = self.logged();
            incidents.iter().all(|id| logged.iter().any(|(known, _)| known == id)).then_some(logged)
        })
        .await;
        let errors: Vec<&String> =
            logged.iter().filter(|(id, _)| incidents.contains(id)).map(|(_, error)| error).collect();
        assert!(errors.iter().any(|error| error.contains(says)), "{fault}: nothing is said of {says}: {errors:?}");
    }
}

fn error_text<T: std::fmt::Debug>(answer: Result<T, tonic::Status>) -> String {
    answer.map_or_else(|status| format!("{status:?}"), |answer| format!("{answer:?}"))
}

/// The first of [`INTERNALS`] in an answer. The field `secret` of an issued key is allowed.
fn internals_in(text: &str) -> Option<&'static str> {
    let text = text.replace("\"secret\":\"", "");
    INTERNALS.into_iter().find(|internal| text.contains(internal))
}

/// Every described operation is tested, except those that do not use the store.
#[tokio::test]
async fn every_operation_that_uses_the_store_is_tested() {
    let deployment = Deployment::new().await;
    let (_, description) = deployment.node.rest.json("/openapi.json").await;
    let asked: BTreeSet<(String, String)> =
        deployment.operations().into_iter().map(|(method, template, ..)| (method.to_string(), template)).collect();
    for (path, methods) in description["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let without =
                ["/healthz", "/readyz", "/metrics", "/admin/v1/tiers", "/admin/v1/status"].contains(&path.as_str());
            assert!(without || asked.contains(&(method.to_uppercase(), path.clone())), "{method} {path} is not asked");
        }
    }
}

#[tokio::test]
async fn failures_name_no_internals_when_redis_is_gone() {
    let mut deployment = Deployment::new().await;
    deployment.redis.kill();
    let fails = ["GET /api_keys/rate_limits", "POST /v1/consume", "GET /admin/v1/accounts", "Consume", "GetRateLimits"];
    deployment.check("killed", &fails, "onnection refused").await;
    // A flood of failed calls causes few log lines.
    let before = deployment.logged().len();
    for _ in 0..300 {
        let (_, text) = deployment
            .rest(Method::POST, "/v1/consume", json!({"caller": {"account": "a"}, "resource": "model"}))
            .await;
        assert!(text.contains("incident "), "{text}");
    }
    let lines = deployment.logged().len() - before;
    assert!(lines <= 40, "{lines} lines");
}

#[tokio::test]
async fn failures_name_no_internals_when_redis_hangs() {
    let deployment = Deployment::new().await;
    deployment.redis.pause();
    let fails = ["GET /api_keys/rate_limits", "POST /v1/settle", "POST /admin/v1/accounts", "Settle"];
    deployment.check("hung", &fails, "answer").await;
    deployment.redis.resume();
}

#[tokio::test]
async fn failures_name_no_internals_when_redis_refuses() {
    let deployment = Deployment::new().await;
    let _: () = deployment.redis.run("ACL SETUSER default -@all +ping +info +role +acl");
    deployment.check("without rights", &["POST /v1/consume", "GET /admin/v1/accounts"], "permissions").await;
    let _: () = deployment.redis.run("ACL SETUSER default +@all");
    let _: () = deployment.redis.run("CONFIG SET maxmemory 1");
    deployment.check("full", &["POST /v1/consume", "Consume"], "OOM").await;
}

/// Counters, records and reservations of a wrong Redis type, and with unreadable bytes.
#[tokio::test]
async fn unreadable_values_in_redis_are_logged_and_not_shown() {
    let deployment = Deployment::new().await;
    for (method, _, path, body) in deployment.operations() {
        if path.starts_with("/v1/con") || path.starts_with("/v1/report") {
            assert_eq!(deployment.rest(method, &path, body).await.0, StatusCode::OK, "{path}");
        }
    }
    let keys: Vec<String> = deployment.redis.run("KEYS *");
    assert!(keys.len() > 3, "{keys:?}");
    let mut redis = deployment.redis.connection();
    for key in &keys {
        let _: () = redis::pipe().del(key).lpush(key, "x").query(&mut redis).unwrap();
    }
    deployment.check("wrong type", &["POST /v1/consume", "Consume"], "").await;
    for key in &keys {
        let _: () = redis::pipe().del(key).set(key, [0xff_u8; 64].as_slice()).query(&mut redis).unwrap();
    }
    deployment.check("corrupted", &["POST /v1/consume", "Consume"], "").await;
}
