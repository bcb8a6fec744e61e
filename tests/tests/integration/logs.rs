//! JSON logs: one object per line, with the caller's trace.
//!
//! Seen to fail: with nested fields, with a line printed outside the log, with an error text in a message, with a key's
//! secret in a field, and with calls that run outside the trace, over gRPC and over REST.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use reqwest::Method;
use serde_json::Value;
use tollgate_api::v1::{Call, ConsumeRequest};
use tollgate_store::testing::RedisServer;

use crate::harness::{
    KEY, Process, ProcessBuilder, account, api_key, call, consume, folder_with, hash_of, shop, until,
};

const BOUND: Duration = Duration::from_secs(10);
/// The message for a call that a shadow quota would refuse: the first line caused by a call on a healthy node.
const SHADOW: &str = "a shadow would have refused a call";

/// The shop policy in shadow mode, so that calls cause log lines.
fn on_trial(domain: &str) -> String {
    shop(1).replace("domain: shop", &format!("domain: {domain}\nshadow: true"))
}

async fn until_logged(node: &Process, text: &str) {
    until(&format!("{text:?} is logged"), BOUND, async || node.stderr().contains(text).then_some(())).await;
}

fn objects(log: &str) -> Vec<Value> {
    let parsed = log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")));
    parsed.inspect(|line: &Value| assert!(line.is_object(), "{line}")).collect()
}

/// A node with the most verbose log, through an invalid file and the loss of its Redis.
#[tokio::test]
async fn json_logs_have_one_object_per_line_with_a_constant_message() {
    let password = "hunter2-hunter2";
    let mut redis = RedisServer::start();
    let _: () =
        redis::cmd("CONFIG").arg("SET").arg("requirepass").arg(password).query(&mut redis.connection()).unwrap();
    let url = redis.url().replace("redis://", &format!("redis://:{password}@"));
    let (_folder, policy) = folder_with(&on_trial("shop"));
    let mut node = ProcessBuilder::new(&policy).redis(&url).args(["--log-format=json", "--log-filter=trace"]).start();
    let secrets = [KEY, "sk-integration-revoked", "sk-nobody-has-this-one"];
    for secret in secrets {
        for _ in 0..2 {
            consume(&node.grpc, call(api_key(secret), "model", &[])).await.unwrap();
        }
        let body = serde_json::json!({ "caller": { "api_key": secret }, "resource": "no-such-model" });
        node.rest.post("/v1/consume", body.to_string()).await;
        let request = node.rest.request(Method::GET, "/api_keys/rate_limits").bearer_auth(secret);
        request.send().await.unwrap();
    }
    until_logged(&node, SHADOW).await;
    // Several errors, so several lines in the text for people.
    std::fs::write(&policy, on_trial("shop").replace("class: text", "class: none\n")).unwrap();
    node.signal("HUP");
    until_logged(&node, "not reloaded").await;
    std::fs::write(&policy, on_trial("shop")).unwrap();
    node.signal("HUP");
    until_logged(&node, "\"reloaded\"").await;
    redis.kill();
    until("the loss is logged", BOUND, async || {
        let _ = consume(&node.grpc, call(account("acme"), "model", &[])).await;
        node.stderr().contains("a call was answered without the store").then_some(())
    })
    .await;
    node.signal("TERM");
    node.ended(BOUND).await;
    let log = until("the last line is there", BOUND, async || {
        Some(node.stderr()).filter(|log| log.contains("node stopped") && log.ends_with('\n'))
    })
    .await;
    let lines = objects(&log);
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
    let mut output = HashSet::new();
    for line in lines.iter().filter(|line| line["target"].as_str().is_some_and(|from| from.starts_with("tollgate"))) {
        let message = line["message"].as_str().unwrap_or_else(|| panic!("no message: {line}"));
        let own = ["timestamp", "level", "target", "message", "span", "spans"];
        let fields = line.as_object().unwrap().iter().filter(|(name, _)| !own.contains(&name.as_str()));
        let fields: Vec<(&str, String)> = fields.map(|(name, value)| (name.as_str(), text(value))).collect();
        for (name, value) in &fields {
            assert!(!message.contains(value.as_str()), "the value of {name} is in the message: {line}");
        }
        let names: BTreeSet<&str> = fields.iter().map(|(name, _)| *name).collect();
        output.insert(format!("{message} {names:?}"));
    }
    for expected in [
        r#"node starts {"domains", "store"}"#,
        r#"a shadow would have refused a call {"account", "domain", "quota", "suppressed"}"#,
        r#"not reloaded; the old contents stay in force {"errors", "what"}"#,
        r#"reloaded {"what"}"#,
        r#"the store does not answer {"error"}"#,
        r#"a call was answered without the store {"error", "mode", "suppressed"}"#,
        "node stopped {}",
    ] {
        assert!(output.contains(expected), "{expected} is not among {output:#?}");
    }
    for secret in secrets.into_iter().chain([password]) {
        for part in [secret, &hash_of(secret)["sha256:".len()..][..16]] {
            let line = log.lines().find(|line| line.contains(part));
            assert_eq!(line, None, "{secret}");
        }
    }
}

/// The log line is that of a shadow refusal, written once per domain: one call through each API causes it.
#[tokio::test]
async fn a_log_line_caused_by_a_call_has_the_caller_trace() {
    let (_folder, policy) = folder_with(&on_trial("over-grpc"));
    let second = policy.with_file_name("second.yaml");
    std::fs::write(&second, on_trial("over-rest")).unwrap();
    let node = ProcessBuilder::new(&policy).arg("--policy").arg(&second).arg("--log-format=json").start();
    let traces = [
        ("over-grpc", "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"),
        ("over-rest", "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"),
    ];
    let [grpc, rest] = traces.map(|(_, trace, parent)| format!("00-{trace}-{parent}-01"));
    let refused = Call { domain: "over-grpc".into(), ..call(account("acme"), "model", &[("requests", 2)]) };
    let mut request = tonic::Request::new(ConsumeRequest { call: Some(refused) });
    request.metadata_mut().insert("traceparent", grpc.parse().unwrap());
    node.grpc.clone().consume(request).await.unwrap();
    let body = r#"{"domain":"over-rest","caller":{"account":"acme"},"resource":"model","usage":{"requests":2}}"#;
    let request = node.rest.request(Method::POST, "/v1/consume").header("content-type", "application/json");
    let answer = request.header("traceparent", rest).body(body).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    let lines = until("both calls are logged", BOUND, async || {
        let log = node.stderr();
        let whole_lines = log.rsplit_once('\n')?.0;
        (whole_lines.matches(SHADOW).count() == 2).then(|| objects(whole_lines))
    })
    .await;
    for (domain, trace, parent) in traces {
        let line = lines.iter().find(|line| line["message"] == SHADOW && line["domain"] == domain).unwrap();
        let span = &line["span"];
        assert_eq!((&span["trace_id"], &span["parent_id"]), (&trace.into(), &parent.into()), "{line}");
    }
    let others: Vec<&Value> = lines.iter().filter(|line| line["message"] != SHADOW).collect();
    assert!(!others.is_empty() && others.iter().all(|line| line.get("span").is_none()), "{others:?}");
}

/// The log line of an administrator's change has the trace too. Seen to fail with routes outside the trace.
#[tokio::test]
async fn a_change_is_logged_with_the_administrator_trace() {
    let (folder, policy) = folder_with(&shop(1));
    let tokens = folder.path().join("admins.yaml");
    let token = "tgt_integration-token-of-the-administrators-31";
    std::fs::write(&tokens, format!("tokens: [{{ name: root, hash: '{}', domains: all }}]\n", hash_of(token))).unwrap();
    let node = ProcessBuilder::new(&policy).arg("--log-format=json").arg("--admin-tokens").arg(&tokens).start();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let request = node.rest.request(Method::POST, "/admin/v1/accounts").header("content-type", "application/json");
    let request = request.bearer_auth(token).header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"));
    assert_eq!(request.body(r#"{"id":"new"}"#).send().await.unwrap().status().as_u16(), 201);
    until_logged(&node, "account created").await;
    let log = node.stderr();
    let lines = objects(log.rsplit_once('\n').unwrap().0);
    let line = lines.iter().find(|line| line["message"] == "account created").unwrap();
    assert_eq!(line["span"]["trace_id"], trace, "{line}");
}
