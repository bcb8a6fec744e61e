//! Stored accounts and keys: administered over REST, effective on every node.

mod account_cap;
mod admin;
mod command_line;
mod hidden_characters;
mod isolation;
mod names;
mod propagation;
mod proxy;
mod separate_redis;
mod usage;

use std::path::{Path, PathBuf};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Process, ProcessBuilder, Rest, folder_with, hash_of};

/// Token of an administrator of every domain.
const ADMIN: &str = "tgt_integration-token-of-the-administrators-31";
/// Token of an administrator of `other` alone.
const OTHER_ADMIN: &str = "tgt_integration-token-of-the-others-admin-8265";

/// Policy files of two domains that differ only in name, and admin tokens.
struct Deployment {
    policies: PathBuf,
    tokens: PathBuf,
    _kept: TempDir,
}

fn policy(domain: &str) -> String {
    format!(
        "version: 1\n\
         domain: {domain}\n\
         self_service: venice\n\
         units: [tokens]\n\
         scopes: {{ account: [account, resource], key: [api_key, resource] }}\n\
         resources:\n\
         \x20 model: {{ quotas: [] }}\n\
         tiers:\n\
         \x20 basic:\n\
         \x20   is_charged: false\n\
         \x20   resources:\n\
         \x20     model: {{ quotas: [{{ unit: requests, per: hour, limit: 10 }}, {{ unit: requests, per: {{ calendar: day }}, limit: 12 }}] }}\n\
         \x20 premium:\n\
         \x20   is_charged: true\n\
         \x20   resources:\n\
         \x20     model: {{ quotas: [{{ unit: requests, per: hour, limit: 300 }}] }}\n\
         default_tier: basic\n\
         promotions: [{{ on: payment, from: basic, to: premium }}]\n\
         keys: {{ max_active: 3 }}\n\
         bootstrap:\n\
         \x20 accounts:\n\
         \x20   - id: fixed\n\
         \x20     tier: premium\n\
         \x20     balances: {{ USD: 2.5 }}\n\
         \x20     overrides: [{{ resource: model, unit: requests, per: hour, limit: 77 }}]\n\
         \x20     keys: [{{ id: fixed-1, kind: admin, hash: '{}' }}, {{ id: fixed-2, kind: inference, hash: '{}', revoked: true }}]\n",
        hash_of(&format!("secret of {domain}")),
        hash_of(&format!("old secret of {domain}"))
    )
}

impl Deployment {
    fn new() -> Self {
        let (folder, _) = folder_with("");
        let policies = folder.path().join("policies");
        std::fs::create_dir(&policies).unwrap();
        for domain in ["shop", "other"] {
            std::fs::write(policies.join(format!("{domain}.yaml")), policy(domain)).unwrap();
        }
        let tokens = folder.path().join("admins.yaml");
        let entries = format!(
            "tokens:\n- {{ name: root, hash: '{}', domains: all }}\n- {{ name: other, hash: '{}', domains: [other] }}\n",
            hash_of(ADMIN),
            hash_of(OTHER_ADMIN)
        );
        std::fs::write(&tokens, entries).unwrap();
        Self { policies, tokens, _kept: folder }
    }

    fn process(&self) -> ProcessBuilder {
        // Tests send many invalid secrets.
        let builder = ProcessBuilder::new(&self.policies).arg("--max-login-failures=0");
        builder.arg("--admin-tokens").arg(&self.tokens)
    }

    /// Uses the Redis at `url`.
    fn node(&self, redis: &str) -> Process {
        self.process().redis(redis).start()
    }

    fn policy_file(&self, domain: &str) -> PathBuf {
        Path::new(&self.policies).join(format!("{domain}.yaml"))
    }
}

/// A client of the admin API for one domain.
#[derive(Clone)]
struct Client {
    rest: Rest,
    token: &'static str,
    domain: &'static str,
}

impl Client {
    fn new(node: &Process) -> Self {
        Self { rest: node.rest.clone(), token: ADMIN, domain: "shop" }
    }

    fn in_domain(&self, domain: &'static str) -> Self {
        Self { domain, ..self.clone() }
    }

    /// Status and body of a request to a path below `/admin/v1`.
    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let (status, _, body) = self.send_if_match(method, path, body, None).await;
        (status, body)
    }

    /// The same with `If-Match`; also returns the `ETag` of the answer.
    async fn send_if_match(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        if_match: Option<&str>,
    ) -> (StatusCode, String, Value) {
        let sign = if path.contains('?') { '&' } else { '?' };
        let path = format!("/admin/v1{path}{sign}domain={}", self.domain);
        let mut request = self.rest.request(method, &path).bearer_auth(self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        if let Some(tag) = if_match {
            request = request.header("if-match", tag);
        }
        let answer = request.send().await.expect("an answer");
        let status = answer.status();
        let tag = answer.headers().get("etag").map(|tag| tag.to_str().unwrap().to_owned()).unwrap_or_default();
        let text = answer.text().await.expect("a text");
        (status, tag, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// The body of a successful answer; any other status fails the test.
    async fn send_ok(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.send(method.clone(), path, body).await;
        assert!(status.is_success(), "{method} {path}: {status} {answer}");
        answer
    }

    async fn create(&self, id: &str, tier: &str) -> Value {
        self.send_ok(Method::POST, "/accounts", Some(json!({"id": id, "tier": tier}))).await
    }

    async fn tier(&self, id: &str, tier: &str) {
        self.send_ok(Method::PATCH, &format!("/accounts/{id}"), Some(json!({"tier": tier}))).await;
    }

    /// Issues a key. Returns its id and secret.
    async fn key(&self, account: &str) -> (String, String) {
        let issued =
            self.send_ok(Method::POST, &format!("/accounts/{account}/keys"), Some(json!({"kind": "inference"}))).await;
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&issued["key"]["id"]), text(&issued["secret"]))
    }
}

/// Calls `model` on a node over REST. Returns the body of the answer.
async fn call(rest: &Rest, verb: &str, caller: Value) -> Value {
    let body = json!({"caller": caller, "resource": "model", "domain": "shop"});
    let (status, answer) = rest.post(&format!("/v1/{verb}"), body.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer
}

/// Limit and usage of requests per hour.
fn hourly(decision: &Value) -> (u64, u64) {
    let hourly = quota(decision, "requests_per_hour").expect("requests an hour");
    (hourly["limit"].as_u64().unwrap(), hourly["used"].as_u64().unwrap())
}

/// The quota of this name, if present.
fn quota<'a>(decision: &'a Value, name: &str) -> Option<&'a Value> {
    let quotas = decision["quotas"].as_array().unwrap_or_else(|| panic!("no quotas: {decision}"));
    quotas.iter().find(|quota| quota["name"] == name)
}
