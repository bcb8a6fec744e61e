//! The shipped policies, compared with the public documents of the platforms. The rows are written out from the
//! documents, not read from the policies. Every row is used up to its limit and one call further, and the whole answer
//! is compared. One node serves all three platforms.

mod clients;
mod deapi;
mod tiered_chat;
mod venice;

use std::{collections::BTreeMap, path::Path};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tollgate_api::v1::{Call, Caller, ConsumeRequest, Decision, Upload, caller::By};
use tollgate_server::settings::Options;
use tollgate_store::{clock::Clock as _, testing::RedisServer};

use crate::harness::{Node, memory_node_with, redis_node_with};

/// The token of an administrator.
const ADMIN: &str = "tgt_integration-token-of-the-administrators-31";

/// A node that serves the three shipped policies.
struct Platforms {
    node: Node,
    _folder: TempDir,
}

/// An answer to a platform's caller: status, headers and body.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u32,
    headers: Vec<(String, String)>,
    body: String,
}

/// The shipped policy of a platform.
fn shipped(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/policies").join(name);
    std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Adds accounts with keys of the same ids: `free-1` is the first key of the account `free-1` on the tier `free`.
fn with_keys(policy: &str, tiers: &[&str], keys: usize) -> String {
    let accounts = tiers.iter().flat_map(|tier| (1..=keys).map(move |number| (tier, format!("{tier}-{number}"))));
    let accounts: Vec<Value> = accounts
        .map(|(tier, id)| {
            let hash = crate::harness::hash_of(&format!("sk-document-{id}"));
            json!({ "id": id, "tier": tier, "keys": [{ "id": id, "hash": hash, "kind": "inference" }] })
        })
        .collect();
    // JSON is YAML.
    format!("{policy}\nbootstrap: {}\n", json!({ "accounts": accounts }))
}

/// Runs `drive` on the shipped policies, in memory and on Redis.
async fn on_every_store(drive: impl AsyncFn(&Platforms)) {
    on_every_store_with(&|_, policy| policy, drive).await;
}

/// The same with policies changed by `change`, which is given the file's name and text.
async fn on_every_store_with(change: &dyn Fn(&str, String) -> String, drive: impl AsyncFn(&Platforms)) {
    println!("in memory");
    drive(&Platforms::start(None, change).await).await;
    println!("in Redis");
    let redis = RedisServer::start();
    drive(&Platforms::start(Some(redis.url()), change).await).await;
}

/// A change that replaces one text, which must be present, in the policy of one file.
fn changed(file: &str, from: &str, to: &str) -> impl Fn(&str, String) -> String {
    move |name, policy| {
        if name != file {
            return policy;
        }
        assert!(policy.contains(from), "{file} has no {from:?}");
        policy.replace(from, to)
    }
}

impl Platforms {
    /// Starts a node in memory, or on the Redis at this URL; `change` may change the text of a file.
    async fn start(redis: Option<String>, change: &dyn Fn(&str, String) -> String) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: &str| {
            let file = folder.path().join(name);
            std::fs::write(&file, text).expect("the policy is written");
            file
        };
        let policy_of = |name: &str| change(name, shipped(name));
        let tiered_chat = with_keys(&policy_of("tiered-chat.yaml"), &["free", "basic", "pro", "enterprise"], 4);
        let deapi = with_keys(&policy_of("deapi.yaml"), &["basic", "premium"], 4);
        let policy = vec![write("tiered-chat.yaml", &tiered_chat), write("deapi.yaml", &deapi)];
        let admins = format!("tokens: [{{ name: root, hash: '{}', domains: all }}]", crate::harness::hash_of(ADMIN));
        let options = Options { policy, admin_tokens: Some(write("admins.yaml", &admins)), ..Options::default() };
        let venice = policy_of("venice.yaml");
        let node = match redis {
            None => memory_node_with(options, &venice).await,
            Some(url) => redis_node_with(options, &venice, url).await,
        };
        Self { node, _folder: folder }
    }

    async fn in_memory() -> Self {
        Self::start(None, &|_, policy| policy).await
    }

    /// A change by an administrator: a `POST` below the accounts of a domain.
    async fn administer(&self, domain: &str, path: &str, body: Value) -> Value {
        let request = self.node.rest.request(Method::POST, &format!("/admin/v1/accounts{path}?domain={domain}"));
        let answer = request.bearer_auth(ADMIN).json(&body).send().await.expect("an answer");
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        answer.json().await.expect("JSON")
    }

    /// Issues a key of a stored account. Returns its id and secret.
    async fn issue(&self, domain: &str, account: &str) -> [String; 2] {
        let issued = self.administer(domain, &format!("/{account}/keys"), json!({ "kind": "inference" })).await;
        [&issued["key"]["id"], &issued["secret"]].map(|text| text.as_str().expect("a key").to_owned())
    }

    /// Issues a key of a stored account. Returns its id.
    async fn new_key(&self, domain: &str, account: &str) -> String {
        let [id, _] = self.issue(domain, account).await;
        id
    }

    /// Guesses keys from one address. The first guesses get the answer for an invalid key; after one more, every key,
    /// valid ones included, is blocked for this time. Other addresses are not affected.
    async fn guessing(&self, domain: &str, resource: &str, borne: u64, block_s: u64, bad_key: &Answer, message: &str) {
        self.administer(domain, "", json!({ "id": "guessed" })).await;
        let [id, secret] = self.issue(domain, "guessed").await;
        let from = |ip: &str, by: By| Call {
            attributes: BTreeMap::from([("ip".to_owned(), ip.to_owned())]),
            ..call(domain, by, resource, &[])
        };
        let good = |ip: &str| from(ip, By::ApiKey(secret.clone()));
        for guess in 0..=borne {
            let guess = By::ApiKey(format!("sk-guess-{guess}"));
            assert_eq!(self.consume(from("192.0.2.1", guess)).await, *bad_key, "{domain}");
        }
        let blocked = self.refused(good("192.0.2.1")).await;
        assert_eq!((blocked.status, &*blocked.body), (429, message), "{domain}");
        let wait = ("Retry-After".to_owned(), block_s.to_string());
        assert!(blocked.headers.contains(&wait), "{domain}: {blocked:?}");
        assert_eq!(self.consume(good("192.0.2.2")).await.status, 200, "{domain}: another address");
        assert_eq!(
            self.consume(from("192.0.2.1", By::ApiKeyId(id))).await.status,
            200,
            "{domain}: known to the backend"
        );
        self.node.clock.advance_ms(block_s * 1000 - 1);
        assert_eq!(self.refused(good("192.0.2.1")).await.status, 429, "{domain}: until the last millisecond");
        self.node.clock.advance_ms(1);
        assert_eq!(self.consume(good("192.0.2.1")).await.status, 200, "{domain}: and not longer");
    }

    /// The injected time.
    fn ms(&self) -> u64 {
        self.node.clock.now().as_ms()
    }

    fn seconds(&self) -> u64 {
        self.ms().div_ceil(1000)
    }

    /// `Consume` over gRPC, rendered.
    async fn consume(&self, call: Call) -> Answer {
        rendered(self.decide(call).await)
    }

    async fn decide(&self, call: Call) -> Decision {
        let call = Call { render: true, ..call };
        let answer = self.node.grpc.clone().consume(ConsumeRequest { call: Some(call) }).await.expect("a decision");
        answer.into_inner().decision.expect("a decision")
    }

    /// A call that must be refused: asserts that `Consume` over gRPC, `Check` over REST and `Consume` over REST agree.
    async fn refused(&self, call: Call) -> Answer {
        let answer = self.consume(call.clone()).await;
        assert_ne!(answer.status, 200, "{answer:?}");
        for path in ["/v1/check", "/v1/consume"] {
            assert_eq!(self.post(path, &call).await, answer, "{path}");
        }
        answer
    }

    /// The same over REST.
    async fn post(&self, path: &str, call: &Call) -> Answer {
        let caller = match call.caller.as_ref().and_then(|caller| caller.by.as_ref()).expect("a caller") {
            By::ApiKey(secret) => json!({ "api_key": secret }),
            By::ApiKeyId(id) => json!({ "api_key_id": id }),
            By::Account(id) => json!({ "account": id }),
        };
        let mut body = json!({
            "domain": call.domain, "caller": caller, "resource": call.resource, "usage": call.usage, "render": true,
            "attributes": call.attributes,
        });
        if let Some(Upload { media_type, bytes, duration_seconds }) = &call.upload {
            body["upload"] = json!({ "media_type": media_type, "bytes": bytes, "duration_seconds": duration_seconds });
        }
        let (status, decision) = self.node.rest.post(path, body.to_string()).await;
        assert_eq!(status, 200, "{decision}");
        let rendered = &decision["rendered"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let headers = rendered["headers"].as_array().expect("headers").iter();
        Answer {
            status: rendered["status"].as_u64().and_then(|status| u32::try_from(status).ok()).expect("a status"),
            headers: headers.map(|header| (text(&header["name"]), text(&header["value"]))).collect(),
            body: text(&rendered["body"]),
        }
    }
}

fn rendered(decision: Decision) -> Answer {
    let rendered = decision.rendered.expect("a rendered answer");
    let headers = rendered.headers.into_iter().map(|header| (header.name, header.value));
    Answer { status: rendered.status, headers: headers.collect(), body: rendered.body }
}

/// The expected answer.
fn answer(status: u32, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut all: Vec<(String, String)> = Vec::new();
    if !body.is_empty() {
        all.push(("Content-Type".to_owned(), "application/json".to_owned()));
    }
    all.extend(headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    Answer { status, headers: all, body: body.to_owned() }
}

fn call(domain: &str, by: By, resource: &str, usage: &[(&str, u64)]) -> Call {
    Call {
        domain: domain.to_owned(),
        caller: Some(Caller { by: Some(by) }),
        resource: resource.to_owned(),
        usage: usage.iter().map(|(unit, amount)| ((*unit).to_owned(), *amount)).collect(),
        ..Call::default()
    }
}
