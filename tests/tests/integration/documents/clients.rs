//! Clients that platforms' customers really have, against a gateway that only copies what the node renders: the
//! official `OpenAI` SDK, and clients that follow the retry advice of each platform's documentation. They run in
//! processes of their own (tests/clients), as fast as time goes; the node's clock starts where the test wants it
//! and goes on with the real one.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{Path as UrlPath, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};
use tollgate_core::time::Timestamp;
use tollgate_store::clock::{Clock as _, SystemClock};

use super::Platforms;
use crate::harness::{Node, ProcessBuilder, Rest};

/// Who calls: the domain, the dialect of its answers, and the caller.
#[derive(Clone, Copy)]
struct Customer {
    domain: &'static str,
    dialect: &'static str,
    caller: (&'static str, &'static str),
}

const VENICE: Customer = Customer { domain: "venice", dialect: "", caller: ("account", "demo") };
const TIERED_CHAT: Customer = Customer { domain: "tiered-chat", dialect: "", caller: ("api_key_id", "free-1") };
const OPENAI: Customer = Customer { dialect: "openai", ..TIERED_CHAT };
const DEAPI: Customer = Customer { domain: "deapi", dialect: "", caller: ("api_key_id", "basic-1") };

impl Customer {
    fn call(self, resource: &str) -> Value {
        let (by, id) = self.caller;
        json!({
            "domain": self.domain, "dialect": self.dialect, "render": true, "caller": { by: id }, "resource": resource,
        })
    }
}

/// A gateway in front of a node, for one customer, and the time going on behind it.
struct Gateway {
    base: String,
    _tasks: JoinSet<()>,
}

impl Gateway {
    async fn start(node: &Node, customer: Customer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let app = Router::new().route("/{*path}", post(pass)).with_state((node.rest.clone(), customer));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, app).await.expect("the gateway serves") });
        let clock = Arc::clone(&node.clock);
        tasks.spawn(async move {
            let mut last = Instant::now();
            loop {
                tokio::time::sleep(Duration::from_millis(5)).await;
                let passed = u64::try_from(last.elapsed().as_millis()).expect("a short time");
                last += Duration::from_millis(passed);
                clock.advance_ms(passed);
            }
        });
        Self { base, _tasks: tasks }
    }

    /// Runs a client for so many calls, and returns what it says.
    async fn client(&self, name: &str, calls: u32) -> Value {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
        let python = root.join("target/clients/bin/python");
        assert!(python.exists(), "{} is missing: tests/run installs it", python.display());
        let script = root.join("tests/clients/clients.py");
        let run = ProcessBuilder::program(&python).arg(script).arg(name).arg(&self.base).arg(calls.to_string());
        let ended = tokio::task::spawn_blocking(|| run.env("NO_PROXY", "*").output()).await;
        let (status, said, errors) = ended.expect("the client ends");
        assert!(status.success(), "the client crashed: {errors}");
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}{errors}"))
    }
}

/// Asks the node, copies what it renders, and does the work of an admitted call.
async fn pass(
    State((node, customer)): State<(Rest, Customer)>,
    UrlPath(path): UrlPath<String>,
    Json(body): Json<Value>,
) -> Response {
    let resource = body["model"].as_str().unwrap_or(&path);
    let (status, decision) = node.post("/v1/consume", customer.call(resource).to_string()).await;
    assert_eq!(status.as_u16(), 200, "{decision}");
    let rendered = &decision["rendered"];
    let mut headers = HeaderMap::new();
    for header in rendered["headers"].as_array().expect("headers") {
        let (name, value) = (header["name"].as_str().expect("a name"), header["value"].as_str().expect("a value"));
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).expect("a header name"),
            HeaderValue::from_str(value).expect("a header value"),
        );
    }
    let status = u16::try_from(rendered["status"].as_u64().expect("a status")).expect("a status");
    match rendered["body"].as_str() {
        Some(body) => (StatusCode::from_u16(status).expect("a status"), headers, body.to_owned()).into_response(),
        None => (headers, Json(completion())).into_response(),
    }
}

fn completion() -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "chat",
        "choices": [{
            "index": 0, "finish_reason": "stop", "logprobs": null,
            "message": { "role": "assistant", "content": "Hello yourself.", "refusal": null },
        }],
        "usage": { "prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3 },
    })
}

/// Uses `calls` calls up, `pause_ms` apart.
async fn use_up(node: &Node, customer: Customer, resource: &str, calls: u32, pause_ms: u64) {
    for _ in 0..calls {
        let (_, decision) = node.rest.post("/v1/consume", customer.call(resource).to_string()).await;
        assert_eq!(decision["verdict"], "allowed", "{decision}");
        node.clock.advance_ms(pause_ms);
    }
}

/// Three platforms whose clock shows the real time once `ahead` has passed on it.
async fn platforms_behind(ahead: Duration) -> Platforms {
    let platforms = Platforms::in_memory().await;
    let ahead_ms = u64::try_from(ahead.as_millis()).expect("a time");
    platforms.node.clock.set(Timestamp::from_ms(SystemClock.now().as_ms() - ahead_ms));
    platforms
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_sdk_waits_as_told_and_reaches_its_result() {
    let platforms = platforms_behind(Duration::from_secs(57)).await;
    let node = &platforms.node;
    use_up(node, OPENAI, "chat", 10, 0).await;
    node.clock.set(SystemClock.now());
    let said = Gateway::start(node, OPENAI).await.client("openai", 2).await;
    assert_eq!((&said["succeeded"], &said["refused"]), (&json!(2), &json!(1)), "{said}");
    assert!((1.0..8.0).contains(&said["waited"].as_f64().expect("seconds")), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_sdk_does_not_wait_for_another_day() {
    let platforms = platforms_behind(Duration::from_mins(50)).await;
    let node = &platforms.node;
    use_up(node, OPENAI, "chat", 500, 6_000).await;
    let said = Gateway::start(node, OPENAI).await.client("openai", 1).await;
    assert_eq!((&said["succeeded"], &said["refused"]), (&json!(0), &json!(1)), "{said}");
    assert_eq!(said["gave_up"], "rate_limit_exceeded", "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_the_venice_document_reaches_its_result() {
    let platforms = platforms_behind(Duration::from_secs(57)).await;
    let node = &platforms.node;
    use_up(node, VENICE, "zai-org-glm-5-1", 100, 0).await;
    node.clock.set(SystemClock.now());
    let said = Gateway::start(node, VENICE).await.client("venice", 2).await;
    assert_eq!((&said["succeeded"], &said["refused"]), (&json!(2), &json!(1)), "{said}");
    assert!(said["waited"].as_f64().expect("seconds") > 1.0, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_the_tiered_chat_document_reaches_its_result() {
    let platforms = platforms_behind(Duration::from_secs(57)).await;
    let node = &platforms.node;
    use_up(node, TIERED_CHAT, "chat", 10, 0).await;
    node.clock.set(SystemClock.now());
    let said = Gateway::start(node, TIERED_CHAT).await.client("tiered-chat", 2).await;
    assert_eq!(said["succeeded"], 2, "{said}");
    assert!(said["refused"].as_u64() >= Some(1), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_the_deapi_document_reaches_its_result_and_stops_for_the_day() {
    let platforms = platforms_behind(Duration::from_secs(57)).await;
    let node = &platforms.node;
    use_up(node, DEAPI, "txt2img", 3, 0).await;
    node.clock.set(SystemClock.now());
    let said = Gateway::start(node, DEAPI).await.client("deapi", 1).await;
    assert_eq!((&said["succeeded"], &said["refused"]), (&json!(1), &json!(1)), "{said}");
    assert!(said["waited"].as_f64().expect("seconds") >= 1.0, "{said}");

    let platforms = Platforms::in_memory().await;
    let node = &platforms.node;
    use_up(node, DEAPI, "txt2img", 100, 20_000).await;
    let said = Gateway::start(node, DEAPI).await.client("deapi", 1).await;
    assert_eq!((&said["succeeded"], &said["refused"]), (&json!(0), &json!(1)), "{said}");
    assert_eq!(said["gave_up"], "daily", "{said}");
}
