//! Tokens of services and administrators.

use std::{path::PathBuf, time::Duration};

use reqwest::{Method, StatusCode};
use tempfile::TempDir;
use tollgate_api::v1::{Call, GetRateLimitsRequest, Reason};
use tonic::{Code, Request, Status, metadata::MetadataValue};

use crate::harness::{
    KEY, Process, ProcessBuilder, account, allowed, api_key, call, folder_with, hash_of, shop, until,
};

const SHOP: &str = "tgt_integration-token-of-the-shop-0123456789";
const OTHER: &str = "tgt_integration-token-of-the-other-platform-4711";
const BOTH: &str = "tgt_integration-token-of-the-gateway-of-both-97";
const ADMIN: &str = "tgt_integration-token-of-the-administrators-31";
/// A key of the domain `other`.
const OTHER_KEY: &str = "sk-integration-of-the-other-platform";

/// A folder with two domains and token files.
struct Folder {
    policies: PathBuf,
    services: PathBuf,
    admins: PathBuf,
    _kept: TempDir,
}

fn folder() -> Folder {
    let (folder, policies) = folder_with(&shop(100));
    let other = shop(100).replace("domain: shop", "domain: other").replace(&hash_of(KEY), &hash_of(OTHER_KEY));
    let other = other.replace("sk-integration-revoked", "");
    let policies_folder = folder.path().join("policies");
    std::fs::create_dir(&policies_folder).unwrap();
    std::fs::rename(&policies, policies_folder.join("shop.yaml")).unwrap();
    std::fs::write(policies_folder.join("other.yaml"), other).unwrap();
    std::fs::write(folder.path().join("both"), format!("{BOTH}\n")).unwrap();
    let services = folder.path().join("services.yaml");
    std::fs::write(
        &services,
        format!(
            "tokens:\n\
             - {{ name: shop, hash: '{}', domains: [shop] }}\n\
             - {{ name: other, hash: '{}', domains: [other] }}\n\
             - {{ name: both, file: both, domains: all }}\n",
            hash_of(SHOP),
            hash_of(OTHER)
        ),
    )
    .unwrap();
    let admins = folder.path().join("admins.yaml");
    std::fs::write(&admins, format!("tokens: [{{ name: root, hash: '{}', domains: all }}]\n", hash_of(ADMIN))).unwrap();
    Folder { policies: policies_folder, services, admins, _kept: folder }
}

fn start(folder: &Folder) -> Process {
    ProcessBuilder::new(&folder.policies)
        .arg("--service-tokens")
        .arg(&folder.services)
        .arg("--admin-tokens")
        .arg(&folder.admins)
        .arg("--max-login-failures=0")
        .start()
}

fn with_token<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

async fn consume(node: &Process, token: &str, call: Call) -> Result<tollgate_api::v1::Decision, Status> {
    let message = tollgate_api::v1::ConsumeRequest { call: Some(call) };
    Ok(node.grpc.clone().consume(with_token(token, message)).await?.into_inner().decision.unwrap())
}

async fn consume_rest(node: &Process, token: &str, body: &str) -> (StatusCode, serde_json::Value) {
    let request = node.rest.request(Method::POST, "/v1/consume").bearer_auth(token);
    let request = request.header("content-type", "application/json").body(body.to_owned());
    let answer = request.send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

fn within(domain: &str, mut call: Call) -> Call {
    domain.clone_into(&mut call.domain);
    call
}

/// A platform's backend can neither use nor read another platform's quotas, nor learn whether that platform exists.
#[tokio::test]
async fn a_token_gives_no_access_to_other_domains() {
    let folder = folder();
    let node = start(&folder);
    let one = |caller| call(caller, "model", &[]);
    for (token, own, key, others_key) in [(SHOP, "shop", KEY, OTHER_KEY), (OTHER, "other", OTHER_KEY, KEY)] {
        let others = if own == "shop" { "other" } else { "shop" };
        // The domain is named, or found by the key, or the only one of the token.
        assert!(allowed(&consume(&node, token, within(own, one(account("a")))).await.unwrap()));
        assert!(allowed(&consume(&node, token, one(api_key(key))).await.unwrap()));
        assert!(allowed(&consume(&node, token, one(account("a"))).await.unwrap()));
        for there in [others, "nowhere"] {
            for caller in [account("a"), api_key(others_key), crate::harness::api_key_id("acme-good")] {
                let refused = consume(&node, token, within(there, one(caller.clone()))).await.unwrap_err();
                assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
                assert_eq!(refused.message(), format!("domain: the caller may not act in {there:?}"));
                let listing = GetRateLimitsRequest {
                    domain: there.to_owned(),
                    caller: Some(caller),
                    ..GetRateLimitsRequest::default()
                };
                let refused = node.grpc.clone().get_rate_limits(with_token(token, listing)).await.unwrap_err();
                assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
            }
            let body = format!(r#"{{"domain":"{there}","caller":{{"account":"a"}},"resource":"model"}}"#);
            let (status, answer) = consume_rest(&node, token, &body).await;
            assert_eq!((status.as_u16(), &answer["error"]["code"]), (403, &"permission_denied".into()), "{answer}");
        }
        // A key of the other platform is an unknown key.
        let unknown = consume(&node, token, one(api_key(others_key))).await.unwrap();
        assert_eq!(unknown.reason(), Reason::UnknownKey);
        let listing = GetRateLimitsRequest { caller: Some(api_key(others_key)), ..GetRateLimitsRequest::default() };
        let listed = node.grpc.clone().get_rate_limits(with_token(token, listing)).await.unwrap().into_inner();
        assert_eq!(listed.reason(), Reason::UnknownKey);
        assert!(listed.resources.is_empty() && listed.account.is_empty());
        let body = format!(r#"{{"caller":{{"api_key":"{others_key}"}},"resource":"model"}}"#);
        let (status, answer) = consume_rest(&node, token, &body).await;
        assert_eq!((status.as_u16(), &answer["reason"]), (200, &"unknown_key".into()), "{answer}");
    }
    // None of these calls was charged: each account called three times in its own domain.
    for (domain, key) in [("shop", KEY), ("other", OTHER_KEY)] {
        let now = consume(&node, BOTH, within(domain, one(api_key(key)))).await.unwrap();
        assert_eq!(now.quotas[0].used, 2, "{now:?}");
        let now = consume(&node, BOTH, within(domain, one(account("a")))).await.unwrap();
        assert_eq!(now.quotas[0].used, 3, "{now:?}");
    }
    // Ambiguous: the token covers two domains.
    let unclear = consume(&node, BOTH, one(account("a"))).await.unwrap_err();
    assert_eq!(unclear.code(), Code::NotFound, "{unclear}");
    assert!(unclear.message().contains("other, shop"), "{unclear}");
}

#[tokio::test]
async fn calls_without_a_valid_token_are_refused() {
    let folder = folder();
    let node = start(&folder);
    let body = r#"{"domain":"shop","caller":{"account":"a"},"resource":"model"}"#;
    let message = || tollgate_api::v1::ConsumeRequest { call: Some(call(account("a"), "model", &[])) };
    let refused = node.grpc.clone().consume(message()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    let (status, answer) = node.rest.post("/v1/consume", body).await;
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (401, &"unauthenticated".into()));
    for bad in ["", "x", ADMIN, KEY, &SHOP[1..], &format!("{SHOP}x"), &"k".repeat(4_000)] {
        let refused = consume(&node, bad, call(account("a"), "model", &[])).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{bad}: {refused}");
        let (status, _) = consume_rest(&node, bad, body).await;
        assert_eq!(status.as_u16(), 401, "{bad}");
        // Refused before the body is read.
        let (status, _) = consume_rest(&node, bad, "{").await;
        assert_eq!(status.as_u16(), 401, "{bad}");
    }
    let request = node.rest.request(Method::POST, "/v1/check").header("authorization", format!("Basic {SHOP}"));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 401);
    assert_eq!(answer.headers()["www-authenticate"], "Bearer");
    // Two headers: a check of only one of them would be wrong.
    let twice = node.rest.request(Method::POST, "/v1/consume").bearer_auth(SHOP).bearer_auth(OTHER);
    assert_eq!(twice.send().await.unwrap().status().as_u16(), 401);
    // Health, metrics, the API description and gRPC reflection of it are open.
    for open in ["/healthz", "/readyz", "/metrics", "/openapi.json"] {
        assert_eq!(node.rest.text(open).await.0.as_u16(), 200, "{open}");
    }
    let mut health = tonic_health::pb::health_client::HealthClient::new(node.channel.clone());
    health.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap();
    // An end user's key gives access to that user's routes.
    assert_eq!(node.rest.limits(KEY).await["data"]["accessPermitted"], true);
}

/// Both tokens of a rotation are valid at the same time; a removed one is not.
#[tokio::test]
async fn tokens_rotate_without_a_restart() {
    let folder = folder();
    let node = start(&folder);
    let one = || within("shop", call(account("a"), "free", &[]));
    let code = async |token: &str| consume(&node, token, one()).await.err().map(|refused| refused.code());
    assert_eq!(code(SHOP).await, None);
    let new = "tgt_integration-the-next-token-of-the-shop-2718281828";
    assert_eq!(code(new).await, Some(Code::Unauthenticated));
    let line = |name: &str, token: &str| format!("- {{ name: {name}, hash: '{}', domains: [shop] }}\n", hash_of(token));
    let write = |text: &str| {
        // Atomically, as mounts and careful editors do.
        let beside = folder.services.with_extension("new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(&beside, &folder.services).unwrap();
    };
    write(&format!("tokens:\n{}{}", line("shop", SHOP), line("shop-next", new)));
    until("the new token is valid", Duration::from_secs(10), async || code(new).await.is_none().then_some(())).await;
    assert_eq!(code(SHOP).await, None);
    write(&format!("tokens:\n{}", line("shop-next", new)));
    until("the old token is bad", Duration::from_secs(10), async || code(SHOP).await).await;
    assert_eq!(code(new).await, None);

    // An invalid file changes nothing, and is reported.
    write("tokens: [{ name: shop, hash: nonsense, domains: all }]");
    until("the failure is reported", Duration::from_secs(10), async || {
        let (_, ready) = node.rest.json("/readyz").await;
        let credentials = &ready["credentials"];
        let error_text =
            credentials["ok"] == false && credentials["detail"] == "not reloaded" && ready["ready"] == true;
        error_text.then_some(())
    })
    .await;
    assert_eq!(code(new).await, None);
    let (_, metrics) = node.rest.text("/metrics").await;
    assert!(
        metrics.contains(r#"tollgate_credential_reloads_total{kind="service_tokens",result="failure"} 1"#),
        "{metrics}"
    );
    assert!(node.stderr().contains("tokens[0].hash: "), "{}", node.stderr());

    // A mounted secret that changes alone is reloaded too, also one that did not exist when it was named. (Seen to
    // fail when only loaded secrets were watched.)
    write("tokens: [{ name: shop, file: mounted, domains: [shop] }]");
    until("it is missed", Duration::from_secs(10), async || {
        node.stderr().contains("tokens[0].file: the file that it names: cannot be read").then_some(())
    })
    .await;
    std::fs::write(folder.services.with_file_name("mounted"), SHOP).unwrap();
    until("the mounted token is valid", Duration::from_secs(10), async || code(SHOP).await.is_none().then_some(()))
        .await;
    std::fs::write(folder.services.with_file_name("mounted"), new).unwrap();
    until("it has changed", Duration::from_secs(10), async || code(SHOP).await).await;
    assert_eq!(code(new).await, None);
}

#[test]
fn a_node_with_an_invalid_token_file_does_not_start() {
    let folder = folder();
    std::fs::write(
        &folder.services,
        "tokens: [{ name: a, hash: 'sha256:0', domains: all }, { name: b, domains: all }]",
    )
    .unwrap();
    let (status, _, stderr) =
        ProcessBuilder::new(&folder.policies).arg("--service-tokens").arg(&folder.services).output();
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("services.yaml: tokens[0].hash: ") && stderr.contains("tokens[1].hash: "), "{stderr}");
    let (status, _, stderr) = ProcessBuilder::new(&folder.policies).arg("--admin-tokens=/nowhere.yaml").output();
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("/nowhere.yaml"), "{stderr}");
}

#[test]
fn generated_tokens_are_unique_and_can_be_stored_as_a_hash() {
    let generate = || ProcessBuilder::bare().arg("generate-token").output().1;
    let (one, two) = (generate(), generate());
    let token = |text: &str| text.lines().next().unwrap().strip_prefix("token: ").unwrap().to_owned();
    assert_ne!(token(&one), token(&two));
    assert!(token(&one).starts_with("tgt_") && token(&one).len() == 47, "{one}");
    assert!(one.contains(&format!("hash: {}", hash_of(&token(&one)))), "{one}");
}

/// The token's domains apply to every call of a batch or stream.
#[tokio::test]
async fn the_domains_of_a_token_hold_for_every_call_of_a_batch_and_a_stream() {
    use tollgate_api::v1::{ConsumeBatchRequest, ConsumeStreamRequest, call_result::Result as Of};
    let folder = folder();
    let node = start(&folder);
    let calls = || ["shop", "other"].map(|domain| within(domain, call(account("a"), "model", &[])));
    let check = |results: Vec<Option<Of>>| {
        let [Some(Of::Decision(own)), Some(Of::Error(others))] = &results[..] else { panic!("{results:?}") };
        assert!(allowed(own));
        assert_eq!(Code::from(others.code), Code::PermissionDenied, "{others:?}");
    };
    let batch = with_token(SHOP, ConsumeBatchRequest { calls: calls().to_vec() });
    let answer = node.grpc.clone().consume_batch(batch).await.unwrap().into_inner();
    check(answer.results.into_iter().map(|result| result.result).collect());
    let numbered =
        calls().into_iter().zip(0..).map(|(call, id)| ConsumeStreamRequest { id, call: Some(call), timeout_ms: 0 });
    let stream = with_token(SHOP, tokio_stream::iter(numbered.collect::<Vec<_>>()));
    let mut answers = node.grpc.clone().consume_stream(stream).await.unwrap().into_inner();
    let mut results = vec![None, None];
    while let Some(answer) = answers.message().await.unwrap() {
        results[usize::try_from(answer.id).unwrap()] = answer.result.unwrap().result;
    }
    check(results);
    let nobody = node.grpc.clone().consume_batch(ConsumeBatchRequest { calls: calls().to_vec() }).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated);
    let body = r#"{"calls":[{"caller":{"account":"a"},"resource":"model","domain":"other"}]}"#;
    let request = node.rest.request(Method::POST, "/v1/consume_batch").bearer_auth(SHOP);
    let request = request.header("content-type", "application/json").body(body);
    let answer: serde_json::Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(answer["results"][0]["error"]["code"], "permission_denied", "{answer}");
}
