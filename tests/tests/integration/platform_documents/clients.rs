//! Real client libraries against a gateway that copies what the node renders: the official `OpenAI` SDK, and clients
//! that follow the retry advice of each platform's documentation. Each runs in a process of its own (`tests/clients`)
//! in real time; the node's injected clock follows real time from the first call.

use std::{
    convert::Infallible,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path as UrlPath, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode},
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
    routing::post,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::OnceCell, task::JoinSet};
use tollgate_core::time::Timestamp;
use tollgate_store::clock::{Clock as _, ManualClock, SystemClock};

use super::{Platforms, changed};
use crate::harness::{Node, ProcessBuilder, Rest, memory_node};

/// A customer: domain, dialect of the answers, caller, and the routes that name a resource by themselves.
#[derive(Clone, Copy)]
struct Customer {
    domain: &'static str,
    dialect: &'static str,
    caller: (&'static str, &'static str),
    routes: &'static [(&'static str, &'static str)],
}

const VENICE: Customer = Customer { domain: "venice", dialect: "", caller: ("account", "demo"), routes: &[] };
const TIERED_CHAT: Customer = Customer {
    domain: "tiered-chat",
    dialect: "",
    caller: ("api_key_id", "free-1"),
    routes: &[
        ("v1/chat/completions", "chat"),
        ("v1/images/generations", "images"),
        ("v1/audio/speech", "audio"),
        ("v1/audio/transcriptions", "audio"),
    ],
};
const OPENAI: Customer = Customer { dialect: "openai", ..TIERED_CHAT };
const DEAPI: Customer = Customer { domain: "deapi", dialect: "", caller: ("api_key_id", "basic-1"), routes: &[] };

/// Number of parts of a streamed answer.
const CHUNKS: usize = 50;

impl Customer {
    /// The resource: from the route, else from the body's model, else the route itself.
    fn resource<'a>(self, route: &'a str, body: &'a Value) -> &'a str {
        let by_route = self.routes.iter().find(|(known, _)| *known == route).map(|(_, resource)| *resource);
        by_route.or(body["model"].as_str()).unwrap_or(route)
    }

    fn call(self, resource: &str) -> Value {
        let (by, id) = self.caller;
        json!({
            "domain": self.domain, "dialect": self.dialect, "render": true, "caller": { by: id }, "resource": resource,
        })
    }
}

/// Calls that a customer made before the test: how long ago, of which resource, how many, and how far apart.
#[derive(Clone, Copy)]
struct EarlierUsage {
    ago: Duration,
    resource: &'static str,
    calls: u32,
    pause_ms: u64,
}

/// A gateway in front of a node, for one customer. The node's clock follows real time.
struct Gateway {
    base: String,
    _tasks: JoinSet<()>,
}

struct GatewayState {
    rest: Rest,
    clock: Arc<ManualClock>,
    customer: Customer,
    earlier: Option<EarlierUsage>,
    /// The node's time at the first call, and the real time of that call.
    opened: OnceCell<(Timestamp, Instant)>,
}

impl Gateway {
    async fn start(node: &Node, customer: Customer, earlier: Option<EarlierUsage>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let (rest, clock) = (node.rest.clone(), Arc::clone(&node.clock));
        let gateway = GatewayState { rest, clock, customer, earlier, opened: OnceCell::new() };
        let app = Router::new().route("/{*path}", post(forward)).with_state(Arc::new(gateway));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, app).await.expect("the gateway serves") });
        Self { base, _tasks: tasks }
    }

    /// Runs a client for this many calls, and returns its report.
    async fn client(&self, name: &str, calls: u32) -> Value {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
        let python = root.join("target/clients/bin/python");
        assert!(python.exists(), "{} is missing: tests/run installs it", python.display());
        let script = root.join("tests/clients/clients.py");
        let run = ProcessBuilder::program(&python).arg(script).arg(name).arg(&self.base).arg(calls.to_string());
        let ended = tokio::task::spawn_blocking(|| run.env("NO_PROXY", "*").output()).await;
        let (status, report, errors) = ended.expect("the client ends");
        assert!(status.success(), "the client crashed: {errors}");
        serde_json::from_str(&report).unwrap_or_else(|error| panic!("{error}: {report}{errors}"))
    }
}

impl Gateway {
    /// One call of a route, and where the caller stands after it.
    async fn post(&self, route: &str, body: Value) -> (StatusCode, HeaderMap) {
        let client = crate::harness::http().build().expect("a client");
        let answer = client.post(format!("{}/{route}", self.base)).json(&body).send().await.expect("an answer");
        (answer.status(), answer.headers().clone())
    }
}

impl GatewayState {
    /// Makes the earlier calls before the first call, so that the start-up time of a client does not matter.
    async fn start_clock(&self) -> (Timestamp, Instant) {
        if let Some(earlier) = self.earlier {
            let now = SystemClock.now();
            let ago_ms = u64::try_from(earlier.ago.as_millis()).expect("a time");
            self.clock.set(Timestamp::from_ms(now.as_ms() - ago_ms));
            replay_earlier_usage(&self.rest, &self.clock, self.customer, earlier).await;
            self.clock.set(SystemClock.now());
        }
        (self.clock.now(), Instant::now())
    }
}

/// Asks the node, copies the rendered response, and answers an admitted call.
async fn forward(State(gateway): State<Arc<GatewayState>>, UrlPath(path): UrlPath<String>, body: Bytes) -> Response {
    // An uploaded file is not JSON.
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let (from, since) = gateway.opened.get_or_init(|| gateway.start_clock()).await;
    gateway.clock.set(from.plus_ms(u64::try_from(since.elapsed().as_millis()).expect("a short time")));
    let call = gateway.customer.call(gateway.customer.resource(&path, &body));
    let (status, decision) = gateway.rest.post("/v1/consume", call.to_string()).await;
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
        None if body["stream"] == true => (headers, streamed()).into_response(),
        None => (headers, Json(job_done(&path))).into_response(),
    }
}

/// The response to an admitted call.
fn job_done(path: &str) -> Value {
    match path {
        "v1/images/generations" => json!({ "created": 1, "data": [{ "b64_json": "AAAA" }] }),
        "v1/audio/transcriptions" => json!({ "text": "Hello yourself." }),
        _ => completion(),
    }
}

/// An answer that comes in many parts.
fn streamed() -> impl IntoResponse {
    let chunk = |number: usize| {
        let delta = json!({ "role": "assistant", "content": format!("{number} ") });
        let choice = json!({ "index": 0, "finish_reason": null, "delta": delta });
        json!({ "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice] })
    };
    let chunks = (0..CHUNKS).map(move |number| chunk(number).to_string()).chain(["[DONE]".to_owned()]);
    Sse::new(tokio_stream::iter(chunks.map(|data| Ok::<_, Infallible>(Event::default().data(data)))))
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

async fn replay_earlier_usage(rest: &Rest, clock: &ManualClock, customer: Customer, earlier: EarlierUsage) {
    for _ in 0..earlier.calls {
        let (_, decision) = rest.post("/v1/consume", customer.call(earlier.resource).to_string()).await;
        assert_eq!(decision["verdict"], "allowed", "{decision}");
        clock.advance_ms(earlier.pause_ms);
    }
}

/// A minute's limit was used up 57 s ago.
const fn a_minute(resource: &'static str, calls: u32) -> EarlierUsage {
    EarlierUsage { ago: Duration::from_secs(57), resource, calls, pause_ms: 0 }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_sdk_waits_for_retry_after_and_succeeds() {
    let platforms = Platforms::in_memory().await;
    let report = Gateway::start(&platforms.node, OPENAI, Some(a_minute("chat", 10))).await.client("openai", 2).await;
    assert_eq!((&report["succeeded"], &report["refused"]), (&json!(2), &json!(1)), "{report}");
    assert!((1.0..8.0).contains(&report["waited"].as_f64().expect("seconds")), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_sdk_does_not_wait_for_another_day() {
    let platforms = Platforms::in_memory().await;
    let earlier = EarlierUsage { ago: Duration::from_mins(50), resource: "chat", calls: 500, pause_ms: 6_000 };
    let report = Gateway::start(&platforms.node, OPENAI, Some(earlier)).await.client("openai", 1).await;
    assert_eq!((&report["succeeded"], &report["refused"]), (&json!(0), &json!(1)), "{report}");
    assert_eq!(report["gave_up"], "rate_limit_exceeded", "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_the_venice_document_succeeds() {
    let platforms = Platforms::in_memory().await;
    let earlier = a_minute("zai-org-glm-5-1", 100);
    let report = Gateway::start(&platforms.node, VENICE, Some(earlier)).await.client("venice", 2).await;
    assert_eq!((&report["succeeded"], &report["refused"]), (&json!(2), &json!(1)), "{report}");
    assert!(report["waited"].as_f64().expect("seconds") > 1.0, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_the_tiered_chat_document_succeeds() {
    let platforms = Platforms::in_memory().await;
    let report =
        Gateway::start(&platforms.node, TIERED_CHAT, Some(a_minute("chat", 10))).await.client("tiered-chat", 2).await;
    assert_eq!(report["succeeded"], 2, "{report}");
    assert!(report["refused"].as_u64() >= Some(1), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_the_deapi_document_succeeds_and_stops_for_the_day() {
    let platforms = Platforms::in_memory().await;
    let report = Gateway::start(&platforms.node, DEAPI, Some(a_minute("txt2img", 3))).await.client("deapi", 1).await;
    assert_eq!((&report["succeeded"], &report["refused"]), (&json!(1), &json!(1)), "{report}");
    assert!(report["waited"].as_f64().expect("seconds") >= 1.0, "{report}");

    let platforms = Platforms::in_memory().await;
    let node = &platforms.node;
    let earlier = EarlierUsage { ago: Duration::ZERO, resource: "txt2img", calls: 100, pause_ms: 20_000 };
    replay_earlier_usage(&node.rest, &node.clock, DEAPI, earlier).await;
    let report = Gateway::start(node, DEAPI, None).await.client("deapi", 1).await;
    assert_eq!((&report["succeeded"], &report["refused"]), (&json!(0), &json!(1)), "{report}");
    assert_eq!(report["gave_up"], "daily", "{report}");
}

/// "Streaming responses count as a single request", however many parts they have.
#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_answer_counts_as_one_request() {
    let platforms = Platforms::in_memory().await;
    let gateway = Gateway::start(&platforms.node, TIERED_CHAT, None).await;
    let report = gateway.client("openai-stream", 10).await;
    assert_eq!((&report["succeeded"], &report["refused"]), (&json!(10), &json!(0)), "{report}");
    let seen: Vec<Value> = (1..=10).map(|used| json!([CHUNKS, used.to_string()])).collect();
    assert_eq!(report["seen"], json!(seen), "the parts of each answer, and the requests used");
    let (_, decision) = platforms.node.rest.post("/v1/check", TIERED_CHAT.call("chat").to_string()).await;
    assert_eq!((&decision["verdict"], &decision["quotas"][0]["used"]), (&json!("denied"), &json!(10)), "{decision}");
}

/// "The resource being rate limited (e.g., chat, images, audio)", as the SDK's routes say it: all of a key count together.
#[tokio::test(flavor = "multi_thread")]
async fn routes_are_counted_as_chat_images_and_audio() {
    let platforms = Platforms::in_memory().await;
    let report = Gateway::start(&platforms.node, TIERED_CHAT, None).await.client("openai-routes", 1).await;
    assert_eq!((&report["succeeded"], &report["refused"]), (&json!(1), &json!(0)), "{report}");
    assert_eq!(report["seen"], json!([["chat", "1"], ["images", "2"], ["audio", "3"], ["audio", "4"]]), "{report}");
}

/// The same with a counter per resource: a full counter does not affect the others.
#[tokio::test(flavor = "multi_thread")]
async fn each_route_may_have_its_own_quota() {
    let each = changed("tiered-chat.yaml", "\n  quotas: [api_key]\n", "\n  quotas: [api_key, resource]\n");
    let platforms = Platforms::start(None, &each).await;
    let gateway = Gateway::start(&platforms.node, TIERED_CHAT, None).await;
    let report = gateway.client("openai-routes", 1).await;
    assert_eq!(report["seen"], json!([["chat", "1"], ["images", "1"], ["audio", "1"], ["audio", "2"]]), "{report}");
    // This route names no resource, so the body does.
    let mut used = [("v1/chat/completions", "chat", 1), ("v1/responses", "images", 1), ("v1/audio/speech", "audio", 2)];
    for (route, resource, used) in &mut used {
        while *used < 10 {
            *used += 1;
            let (status, headers) = gateway.post(route, json!({ "model": resource })).await;
            let report = ["x-ratelimit-resource", "x-ratelimit-used", "x-ratelimit-limit"].map(|name| &headers[name]);
            assert_eq!(status.as_u16(), 200, "{route}: {used}");
            assert_eq!(report, [*resource, &*used.to_string(), "10"], "{route}");
        }
        let (status, headers) = gateway.post(route, json!({ "model": resource })).await;
        assert_eq!((status.as_u16(), &headers["x-ratelimit-resource"]), (429, &HeaderValue::from_static(resource)));
    }
}

/// The official SDKs wait as the dialect tells them, up to their own bounds, and give up where waiting takes too long.
#[tokio::test(flavor = "multi_thread")]
async fn the_official_sdks_wait_as_they_are_told() {
    let windows = ["30s", "61s", "130s", "day"];
    let model = |per: &str| format!("  {per}: {{ quotas: [{{ unit: requests, per: {per}, limit: 1 }}] }}\n");
    let policy = format!(
        "version: 1\ndomain: waits\nresources:\n{}tiers: {{ paid: {{ is_charged: true }} }}\ndefault_tier: paid\n",
        windows.map(model).concat()
    );
    let (never, day): (&[u64], &[u64]) = (&[], &[86_400]);
    for (client, dialect, waits) in [
        ("openai-waits", "openai", [&[30], &[61], never, never]),
        ("anthropic-waits", "anthropic", [&[30], &[61], &[130], day]),
    ] {
        let node = memory_node(&policy).await;
        let customer = Customer { domain: "waits", dialect, caller: ("account", "a"), routes: &[] };
        let report = Gateway::start(&node, customer, None).await.client(client, 1).await;
        let expected: Vec<Value> = windows.iter().zip(waits).map(|(window, waits)| json!([window, waits])).collect();
        assert_eq!(report["seen"], json!(expected), "{client}: {report}");
    }
}
