//! Identifiers forged from parts of valid ones: every part of every identifier is combined across domains, accounts,
//! keys and kinds. None is accepted, and nothing is charged or refunded.

use std::collections::BTreeSet;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tollgate_api::v1::{
    Call, Caller, CancelRequest, CheckRequest, ConsumeRequest, Decision, ExtendRequest, GetRateLimitsRequest, Reason,
    ReserveRequest, SettleRequest,
};
use tollgate_store::testing::RedisServer;
use tonic::{Code, Request, Status};

use crate::harness::{
    Process, ProcessBuilder, account, allowed, api_key, api_key_id, call, folder_with, hash_of, quota,
};

const ADMIN: &str = "tgt_integration-token-of-the-administrators-31";
const DOMAINS: [&str; 2] = ["shop", "other"];
const ACCOUNTS: [&str; 2] = ["acme", "bcme"];
/// A usage that would exhaust a customer's limit.
const ALL: u64 = (1 << 53) - 1;

fn token_of(domain: &str) -> String {
    format!("tgt_integration-token-of-the-services-of-{domain}")
}

fn policy(domain: &str) -> String {
    let resource = |name: &str| {
        format!(
            "  {name}: {{ quotas: [{{ unit: requests, per: hour, limit: 1000000 }}, \
             {{ unit: tokens, per: hour, limit: 1000000 }}, {{ unit: concurrent_requests, limit: 100 }}] }}\n"
        )
    };
    format!(
        "version: 1\ndomain: {domain}\nself_service: plain\nunits: [tokens]\nresources:\n{}{}{}\
         \x20 plain: {{ quotas: [{{ unit: requests, per: hour, limit: 1000000 }}] }}\n\
         tiers: {{ basic: {{ is_charged: false }}, premium: {{ is_charged: true }} }}\ndefault_tier: basic\n\
         promotions: [{{ on: payment, from: basic, to: premium }}]\n",
        resource("model"),
        resource("second"),
        resource("third")
    )
}

/// A node with two domains that differ only in name, each with two accounts of two keys.
struct Deployment {
    node: Process,
    /// Key ids and secrets, by domain and account.
    keys: [[[(String, String); 2]; 2]; 2],
    _folder: TempDir,
}

impl Deployment {
    async fn start(redis: Option<&RedisServer>) -> Self {
        let (folder, _) = folder_with("");
        let policies = folder.path().join("policies");
        std::fs::create_dir(&policies).unwrap();
        let mut services = "tokens:\n".to_owned();
        for domain in DOMAINS {
            std::fs::write(policies.join(format!("{domain}.yaml")), policy(domain)).unwrap();
            let hash = hash_of(&token_of(domain));
            let token = format!("- {{ name: {domain}, hash: '{hash}', domains: [{domain}] }}\n");
            services.push_str(&token);
        }
        let files = [folder.path().join("services.yaml"), folder.path().join("admins.yaml")];
        std::fs::write(&files[0], services).unwrap();
        let admin = format!("tokens: [{{ name: root, hash: '{}', domains: all }}]\n", hash_of(ADMIN));
        std::fs::write(&files[1], admin).unwrap();
        let node = ProcessBuilder::new(&policies).arg("--max-login-failures=0");
        let node = node.arg("--service-tokens").arg(&files[0]).arg("--admin-tokens").arg(&files[1]);
        let node = if let Some(redis) = redis { node.redis(&redis.url()) } else { node }.start();
        let mut deployment = Self { node, keys: Default::default(), _folder: folder };
        for (d, domain) in DOMAINS.into_iter().enumerate() {
            for (a, id) in ACCOUNTS.into_iter().enumerate() {
                let (status, made) = deployment.admin(domain, Method::POST, "/accounts", Some(json!({"id": id}))).await;
                assert_eq!(status, StatusCode::CREATED, "{made}");
                for k in 0..2 {
                    let path = format!("/accounts/{id}/keys");
                    let (_, issued) =
                        deployment.admin(domain, Method::POST, &path, Some(json!({"kind": "admin"}))).await;
                    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{issued}")).to_owned();
                    deployment.keys[d][a][k] = (text(&issued["key"]["id"]), text(&issued["secret"]));
                }
            }
        }
        deployment
    }

    async fn admin(&self, domain: &str, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let sign = if path.contains('?') { '&' } else { '?' };
        let request = self.node.rest.request(method, &format!("/admin/v1{path}{sign}domain={domain}"));
        let request = request.bearer_auth(ADMIN);
        let request = if let Some(body) = body { request.json(&body) } else { request };
        let answer = request.send().await.unwrap();
        (answer.status(), answer.json().await.unwrap_or(Value::Null))
    }

    /// `POST /v1/…` with the service token of a domain.
    async fn post(&self, domain: &str, verb: &str, body: Value) -> (StatusCode, Value) {
        let request = self.node.rest.request(Method::POST, &format!("/v1/{verb}")).bearer_auth(token_of(domain));
        let answer = request.json(&body).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    async fn reserve(&self, domain: &str, call: Call) -> Result<Decision, Status> {
        let request = ReserveRequest { call: Some(call), ..ReserveRequest::default() };
        Ok(self.node.grpc.clone().reserve(as_service(domain, request)).await?.into_inner().decision.unwrap())
    }

    async fn consume(&self, domain: &str, call: Call) -> Result<Decision, Status> {
        let request = ConsumeRequest { call: Some(call) };
        Ok(self.node.grpc.clone().consume(as_service(domain, request)).await?.into_inner().decision.unwrap())
    }

    /// The usage of every quota of every account.
    async fn used(&self) -> Vec<u64> {
        let mut used = Vec::new();
        for domain in DOMAINS {
            for id in ACCOUNTS {
                let call = call(account(id), "model", &[]);
                let answer =
                    self.node.grpc.clone().check(as_service(domain, CheckRequest { call: Some(call) })).await.unwrap();
                let decision = answer.into_inner().decision.unwrap();
                let names = ["requests_per_hour", "tokens_per_hour", "concurrent_requests"];
                used.extend(names.map(|name| quota(&decision, name).used));
            }
        }
        used
    }
}

fn as_service<T>(domain: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {}", token_of(domain)).parse().unwrap());
    request
}

async fn on_both_stores(check: impl AsyncFn(&Deployment)) {
    check(&Deployment::start(None).await).await;
    let redis = RedisServer::start();
    check(&Deployment::start(Some(&redis)).await).await;
}

/// The parts of a reservation id: domain, partition, reservation.
fn token_parts(token: &str) -> [Vec<u8>; 3] {
    let bytes = URL_SAFE_NO_PAD.decode(token.strip_prefix("rs_").unwrap()).unwrap();
    assert_eq!(bytes.len(), 36, "{token}");
    [bytes[..8].to_vec(), bytes[8..20].to_vec(), bytes[20..].to_vec()]
}

/// Every id that can be combined from the parts of these ids and of the remembered request ids.
fn splice_all(tokens: &[String], requests: &[&str]) -> BTreeSet<String> {
    let mut all: [Vec<Vec<u8>>; 3] = Default::default();
    for token in tokens {
        for (known, part) in all.iter_mut().zip(token_parts(token)) {
            known.push(part);
        }
    }
    all[2].extend(requests.iter().map(|id| Sha256::digest(id)[..16].to_vec()));
    all[2].push(vec![0; 16]);
    let [tags, homes, ids] = all;
    let mut splice_all = BTreeSet::new();
    for tag in &tags {
        for home in &homes {
            for id in &ids {
                splice_all.insert(format!("rs_{}", URL_SAFE_NO_PAD.encode([&tag[..], home, id].concat())));
            }
        }
    }
    for token in tokens {
        assert!(splice_all.remove(token), "{token}");
    }
    splice_all
}

/// A forged id, or the id of another domain's reservation, ends, extends and reads nothing, whatever service sends it.
async fn assert_no_reservation(
    deployment: &Deployment,
    ids: impl IntoIterator<Item = &String>,
    services: &[&str],
    usage: u64,
) {
    let tokens = || [("tokens".to_owned(), usage)].into_iter();
    for id in ids {
        let reservation_id = || id.clone();
        for service in services {
            let mut grpc = deployment.node.grpc.clone();
            let settle = SettleRequest { reservation_id: id.clone(), usage: tokens().collect(), status: 0 };
            let cancel = CancelRequest { reservation_id: reservation_id(), status: 0 };
            let extend = ExtendRequest { reservation_id: reservation_id(), ttl_ms: 5_000 };
            let refused = [
                grpc.settle(as_service(service, settle)).await.map(drop),
                grpc.cancel(as_service(service, cancel)).await.map(drop),
                grpc.extend(as_service(service, extend)).await.map(drop),
            ];
            for (verb, refused) in ["settle", "cancel", "extend"].into_iter().zip(refused) {
                let code = refused.map_err(|status| status.code());
                assert_eq!(code, Err(Code::NotFound), "{verb} of {id} by {service}");
            }
            for (verb, body) in [
                ("settle", json!({"reservation_id": id, "usage": {"tokens": usage}})),
                ("cancel", json!({"reservation_id": id})),
                ("extend", json!({"reservation_id": id, "ttl_ms": 5000})),
            ] {
                let (status, answer) = deployment.post(service, verb, body).await;
                assert_eq!(status, StatusCode::NOT_FOUND, "{verb} of {id} by {service}: {answer}");
            }
        }
    }
}

/// Seen to fail when the account of a record was not compared: one domain's tag in front of another domain's id ended
/// that domain's reservations, and read ended ones.
#[tokio::test]
async fn no_spliced_reservation_id_is_accepted() {
    on_both_stores(async |deployment| {
        let mut of_domain: [Vec<String>; 2] = Default::default();
        for (tokens, domain) in of_domain.iter_mut().zip(DOMAINS) {
            for id in ACCOUNTS {
                for (request_id, caller) in [("", account(id)), ("request-1", account(id))] {
                    let call = Call { request_id: request_id.to_owned(), ..call(caller, "model", &[("tokens", 700)]) };
                    let made = deployment.reserve(domain, call).await.unwrap();
                    assert!(allowed(&made), "{made:?}");
                    tokens.push(made.reservation.unwrap().id);
                }
            }
        }
        let all = of_domain.concat();
        let forged = splice_all(&all, &["request-1"]);
        assert_eq!(forged.len(), 72, "two domains, four accounts, ten ids, without the eight genuine ones");
        let before = deployment.used().await;
        assert_eq!(before, [2, 1_400, 2].repeat(4));
        assert_no_reservation(deployment, &forged, &DOMAINS, ALL).await;
        assert_no_reservation(deployment, &of_domain[1], &DOMAINS[..1], ALL).await;
        assert_no_reservation(deployment, &of_domain[0], &DOMAINS[1..], ALL).await;
        assert_eq!(deployment.used().await, before, "nothing was charged or given back");
        // The genuine ids are valid, once. An ended reservation is not readable with a forged id either.
        for (tokens, domain) in of_domain.iter().zip(DOMAINS) {
            for (at, id) in tokens.iter().enumerate() {
                let usage = [("tokens".to_owned(), 500)].into_iter().collect();
                let settle = SettleRequest { reservation_id: id.clone(), usage, status: 0 };
                let cancel = CancelRequest { reservation_id: id.clone(), status: 0 };
                let mut grpc = deployment.node.grpc.clone();
                if at == 0 {
                    grpc.cancel(as_service(domain, cancel)).await.unwrap();
                } else {
                    grpc.settle(as_service(domain, settle)).await.unwrap();
                }
            }
        }
        let after = deployment.used().await;
        assert_eq!(after, [1, 500, 0, 2, 1_000, 0].repeat(2));
        assert_no_reservation(deployment, &forged, &DOMAINS, 500).await;
        assert_no_reservation(deployment, &of_domain[1], &DOMAINS[..1], 500).await;
        assert_eq!(deployment.used().await, after);
    })
    .await;
}

/// A request id belongs to its account, key and kind of call; elsewhere it is a new call. Seen to fail with a digest
/// without the key.
#[tokio::test]
async fn a_request_id_is_not_replayed_for_another_account_or_key() {
    on_both_stores(async |deployment| {
        let named = |caller: Caller| Call { request_id: "request-1".to_owned(), ..call(caller, "plain", &[]) };
        for (d, domain) in DOMAINS.into_iter().enumerate() {
            for (a, id) in ACCOUNTS.into_iter().enumerate() {
                let [first, second] = &deployment.keys[d][a];
                let made = deployment.consume(domain, named(api_key_id(&first.0))).await.unwrap();
                assert!(!made.replayed && made.account == *id, "its first of this account: {made:?}");
                assert_eq!(quota(&made, "requests_per_hour").used, 1);
                assert!(deployment.consume(domain, named(api_key(&first.1))).await.unwrap().replayed, "the same key");
                for other in [api_key_id(&second.0), account(id)] {
                    let refused = deployment.consume(domain, named(other)).await.unwrap_err();
                    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
                }
                let refused = deployment.reserve(domain, named(api_key_id(&first.0))).await.unwrap_err();
                assert_eq!(refused.code(), Code::InvalidArgument, "another kind: {refused}");
                let body = json!({"caller": {"api_key_id": second.0}, "resource": "plain", "request_id": "request-1"});
                let (status, answer) = deployment.post(domain, "consume", body).await;
                assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
            }
        }
        for domain in DOMAINS {
            for id in ACCOUNTS {
                let request = CheckRequest { call: Some(call(account(id), "plain", &[])) };
                let now = deployment.node.grpc.clone().check(as_service(domain, request)).await.unwrap().into_inner();
                assert_eq!(quota(&now.decision.unwrap(), "requests_per_hour").used, 1, "{domain} {id}");
            }
        }
    })
    .await;
}

/// Key ids and secrets of another domain are unknown to services, end users and administrators. Event ids belong to an
/// account. Seen to fail with events stored under their id alone.
#[tokio::test]
async fn keys_and_events_of_another_domain_are_unknown() {
    on_both_stores(async |deployment| {
        for (d, domain) in DOMAINS.into_iter().enumerate() {
            for (id, secret) in deployment.keys[1 - d].iter().flatten() {
                for caller in [api_key_id(id), api_key(secret)] {
                    let refused = deployment.consume(domain, call(caller, "plain", &[])).await.unwrap();
                    assert_eq!((allowed(&refused), refused.reason()), (false, Reason::UnknownKey), "{refused:?}");
                }
                for (method, path) in [
                    (Method::GET, format!("/keys/{id}")),
                    (Method::POST, format!("/keys/{id}/revoke")),
                    (Method::GET, format!("/accounts/{id}")),
                ] {
                    let (status, answer) = deployment.admin(domain, method, &path, None).await;
                    assert_eq!(status, StatusCode::NOT_FOUND, "{path}: {answer}");
                }
            }
            for id in ACCOUNTS {
                let event = Some(json!({"id": "event-1", "type": "payment"}));
                let path = format!("/accounts/{id}/events");
                let (_, report) = deployment.admin(domain, Method::POST, &path, event.clone()).await;
                assert_eq!(
                    (&report["repeated"], &report["account"]["tier"]),
                    (&json!(false), &json!("premium")),
                    "{report}"
                );
                let (_, report) = deployment.admin(domain, Method::POST, &path, event).await;
                assert_eq!(report["repeated"], true, "{report}");
            }
        }
    })
    .await;
}

/// Seen to fail with page tokens that contain only the position.
#[tokio::test]
async fn a_page_token_is_valid_for_its_own_list_only() {
    on_both_stores(async |deployment| {
        // Every list of limits: its domain, caller and key.
        let mut limits = Vec::new();
        for (d, domain) in DOMAINS.into_iter().enumerate() {
            for (a, id) in ACCOUNTS.into_iter().enumerate() {
                limits.push((domain, account(id), None));
                for (key, secret) in &deployment.keys[d][a] {
                    limits.push((domain, api_key_id(key), Some(secret.clone())));
                }
            }
        }
        let list = async |(domain, caller, _): &(&str, Caller, Option<String>), page_token: &str| {
            let caller = Some(caller.clone());
            let request =
                GetRateLimitsRequest { caller, page_size: 1, page_token: page_token.to_owned(), ..Default::default() };
            let answer = deployment.node.grpc.clone().get_rate_limits(as_service(domain, request)).await;
            answer.map(|answer| answer.into_inner().next_page_token).map_err(|status| status.code())
        };
        let read = async |secret: &str, cursor: &str| {
            let path = format!("/api_keys/rate_limits?limit=1&cursor={cursor}");
            let answer = deployment.node.rest.request(Method::GET, &path).bearer_auth(secret).send().await.unwrap();
            (answer.status(), answer.json::<Value>().await.unwrap())
        };
        let admin = async |(domain, path): &(&str, String), cursor: &str| {
            let (status, page) =
                deployment.admin(domain, Method::GET, &format!("{path}?limit=1&cursor={cursor}"), None).await;
            (status, page["next_cursor"].as_str().map(str::to_owned))
        };
        let mut admins = Vec::new();
        for domain in DOMAINS {
            admins.push((domain, "/accounts".to_owned()));
            admins.extend(ACCOUNTS.map(|id| (domain, format!("/accounts/{id}/keys"))));
        }
        // The page token of each list, with a name of the list.
        let mut tokens = Vec::new();
        for (at, of) in limits.iter().enumerate() {
            tokens.push((format!("limits {at}"), list(of, "").await.unwrap()));
        }
        for (at, of) in admins.iter().enumerate() {
            let (status, next) = admin(of, "").await;
            assert_eq!(status, StatusCode::OK);
            tokens.push((format!("admin {at}"), next.unwrap()));
        }
        for bare in ["1", "acme", &deployment.keys[0][0][0].0] {
            tokens.push(("a bare position".to_owned(), bare.to_owned()));
        }
        for (made_by, token) in &tokens {
            assert!(!token.is_empty());
            for (at, of) in limits.iter().enumerate() {
                let own = *made_by == format!("limits {at}");
                let listed = list(of, token).await.map(drop);
                assert_eq!(listed, if own { Ok(()) } else { Err(Code::InvalidArgument) }, "{made_by} in limits {at}");
                if let Some(secret) = &of.2 {
                    let (status, page) = read(secret, token).await;
                    assert_eq!(status, if own { StatusCode::OK } else { StatusCode::BAD_REQUEST }, "{made_by}: {page}");
                }
            }
            for (at, of) in admins.iter().enumerate() {
                let own = *made_by == format!("admin {at}");
                let (status, _) = admin(of, token).await;
                assert_eq!(
                    status,
                    if own { StatusCode::OK } else { StatusCode::BAD_REQUEST },
                    "{made_by} in admin {at}"
                );
            }
        }
        // The log of refusals has no pages, and covers one account.
        for (secret, other) in [
            (&deployment.keys[0][0][0].1, &deployment.keys[0][1][0].0),
            (&deployment.keys[0][0][0].1, &deployment.keys[1][0][0].0),
        ] {
            let path = format!("/api_keys/rate_limits/log?apiKeyId={other}");
            let answer = deployment.node.rest.request(Method::GET, &path).bearer_auth(secret).send().await.unwrap();
            assert_eq!(answer.json::<Value>().await.unwrap()["data"], json!([]));
        }
    })
    .await;
}
