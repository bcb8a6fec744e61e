//! An overloaded node: it refuses early and cheaply, and decides every call that it accepted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::{Method, StatusCode, header};
use serde_json::Value;
use tokio::task::JoinSet;
use tollgate_api::v1::rate_limit_service_client::RateLimitServiceClient;
use tollgate_store::testing::RedisServer;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

use crate::{
    grpc::SuspendedRedis,
    harness::{
        KEY, Process, ProcessBuilder, Proxy, Rest, account, allowed, call, consume, folder_with, peek, quota, shop,
        until,
    },
};

const DEADLINE: Duration = Duration::from_secs(4);
/// The delay of each answer of Redis, so that a node with room for 16 calls decides a few hundred per second.
const REDIS_DELAY: Duration = Duration::from_millis(40);
const LOAD: Duration = Duration::from_secs(4);
/// A refused caller's pause before the next call: far shorter than its `Retry-After`.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// The outcome of a call.
enum Outcome {
    /// Decided: whether the call was admitted; always false for a listing.
    Decided(bool),
    /// Refused as the node is overloaded, with the documented error.
    Refused,
}

struct Answer {
    endpoint: Api,
    end: Outcome,
    took: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Api {
    Grpc,
    Rest,
    /// `GET /api_keys/rate_limits`.
    Limits,
}

async fn over_grpc(grpc: &RateLimitServiceClient<Channel>) -> Outcome {
    match consume(grpc, call(account("load"), "bulk", &[("tokens", 3)])).await {
        Ok(decision) => Outcome::Decided(allowed(&decision)),
        Err(status) => {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
            let pushback = status.metadata().get("grpc-retry-pushback-ms").expect("a Retry-After");
            let pushback: u64 = pushback.to_str().unwrap().parse().expect("a number of milliseconds");
            assert!((1..=1_000).contains(&pushback), "{pushback}");
            Outcome::Refused
        }
    }
}

/// The body of a decision, or that of a refusal, whose `Retry-After` is checked.
async fn answered(request: reqwest::RequestBuilder) -> Result<Value, Value> {
    let answer = request.send().await.expect("an answer");
    let (status, wait) = (answer.status(), answer.headers().get(header::RETRY_AFTER).cloned());
    let body: Value = answer.json().await.expect("JSON");
    match status {
        StatusCode::OK => Ok(body),
        StatusCode::TOO_MANY_REQUESTS => {
            assert_eq!(wait.expect("a Retry-After"), "1", "{body}");
            Err(body)
        }
        status => panic!("{status}: {body}"),
    }
}

async fn over_rest(rest: &Rest) -> Outcome {
    let request = rest.request(Method::POST, "/v1/consume").header(header::CONTENT_TYPE, "application/json");
    let body = r#"{"caller":{"account":"load"},"resource":"bulk","usage":{"tokens":3}}"#;
    match answered(request.body(body)).await {
        Ok(decision) => Outcome::Decided(decision["verdict"] == "allowed"),
        Err(body) => {
            assert_eq!(body["error"]["code"], "resource_exhausted", "{body}");
            Outcome::Refused
        }
    }
}

async fn limits(rest: &Rest) -> Outcome {
    match answered(rest.request(Method::GET, "/api_keys/rate_limits").bearer_auth(KEY)).await {
        Ok(_) => Outcome::Decided(false),
        Err(body) => {
            assert_plain_overload_error(&body);
            Outcome::Refused
        }
    }
}

/// Asserts the error shape of the end users' routes.
fn assert_plain_overload_error(body: &Value) {
    let error = body.as_object().filter(|fields| fields.len() == 1).and_then(|fields| fields.get("error"));
    assert!(error.is_some_and(Value::is_string), "{body}");
}

/// Calls one API until stopped.
async fn keep_calling(
    endpoint: Api,
    grpc: RateLimitServiceClient<Channel>,
    rest: Rest,
    go: Arc<AtomicBool>,
) -> Vec<Answer> {
    let mut answers = Vec::new();
    while go.load(Ordering::Relaxed) {
        let started = Instant::now();
        let one = async {
            match endpoint {
                Api::Grpc => over_grpc(&grpc).await,
                Api::Rest => over_rest(&rest).await,
                Api::Limits => limits(&rest).await,
            }
        };
        let end = tokio::time::timeout(2 * DEADLINE, one).await.expect("a call hangs");
        let took = started.elapsed();
        if matches!(end, Outcome::Refused) {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        answers.push(Answer { endpoint, end, took });
    }
    answers
}

/// Four gRPC connections, each with fewer calls than it has streams, so that no call waits in the client; over REST
/// more calls than the node accepts.
fn load(node: &Process, go: &Arc<AtomicBool>) -> JoinSet<Vec<Answer>> {
    let mut callers = JoinSet::new();
    for _ in 0..4 {
        let address = Endpoint::from_shared(format!("http://{}", node.grpc_address)).expect("an address");
        let grpc = RateLimitServiceClient::new(address.connect_lazy());
        for number in 0..42 {
            let endpoint = match number {
                0..24 => Api::Grpc,
                24..40 => Api::Rest,
                _ => Api::Limits,
            };
            callers.spawn(keep_calling(endpoint, grpc.clone(), node.rest.clone(), Arc::clone(go)));
        }
    }
    callers
}

/// Peak memory (kB) and descriptors of a node during a part of the load.
async fn peak_resources(node: &Process, during: Duration) -> (u64, usize) {
    let (started, mut peak_resources) = (Instant::now(), (0, 0));
    while started.elapsed() < during {
        let (memory, descriptors) =
            (node.resident_bytes().expect("it lives") / 1024, node.descriptors().expect("it lives"));
        peak_resources = (peak_resources.0.max(memory), peak_resources.1.max(descriptors));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    peak_resources
}

fn longest<'a>(answers: impl IntoIterator<Item = &'a Answer>) -> Duration {
    answers.into_iter().map(|answer| answer.took).max().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overloaded_node_refuses_early_and_decides_what_it_accepted() {
    let redis = RedisServer::start();
    let proxy = Proxy::start(redis.port()).await;
    let (_folder, policy) = folder_with(&shop(100));
    let node = ProcessBuilder::new(&policy).redis(&proxy.url());
    let node = node.arg("--max-concurrent-calls=48").arg("--store-max-in-flight=16").start();
    until("the node decides", Duration::from_secs(10), async || {
        peek(&node.grpc, call(account("load"), "bulk", &[])).await.ok()
    })
    .await;
    proxy.delay(REDIS_DELAY);
    let go = Arc::new(AtomicBool::new(true));
    let callers = load(&node, &go);
    // By the end of the first quarter every connection is open and every buffer has been used.
    peak_resources(&node, LOAD / 4).await;
    let early = peak_resources(&node, LOAD / 4).await;
    peak_resources(&node, LOAD / 4).await;
    let late = peak_resources(&node, LOAD / 4).await;
    go.store(false, Ordering::Relaxed);
    let answers: Vec<Answer> = callers.join_all().await.into_iter().flatten().collect();

    let (refused, decided): (Vec<&Answer>, Vec<&Answer>) =
        answers.iter().partition(|answer| matches!(answer.end, Outcome::Refused));
    for endpoint in [Api::Grpc, Api::Rest, Api::Limits] {
        let of = |answers: &[&Answer]| answers.iter().filter(|answer| answer.endpoint == endpoint).count();
        assert!(
            of(&refused) > 20 && of(&decided) > 0,
            "{endpoint:?}: {} refused, {} decided",
            of(&refused),
            of(&decided)
        );
    }
    assert!(refused.len() > 4 * decided.len(), "no overload: {} refused, {} decided", refused.len(), decided.len());
    assert!(longest(refused.iter().copied()) < DEADLINE / 4, "refused after {:?}", longest(refused));
    assert!(longest(decided.iter().copied()) < DEADLINE, "decided after {:?}", longest(decided));
    assert!(late.0 < early.0 + 4 * 1024, "memory grows under load: {early:?} kB and descriptors, then {late:?}");
    assert!(late.1 <= early.1 + 4, "descriptors grow under load: {early:?} kB and descriptors, then {late:?}");

    // After the load the node works as before, and Redis holds exactly what was admitted: refusals charged nothing.
    proxy.delay(Duration::ZERO);
    let now = peek(&node.grpc, call(account("load"), "bulk", &[])).await.expect("a decision");
    let admitted = answers.iter().filter(|answer| matches!(answer.end, Outcome::Decided(true))).count() as u64;
    assert_eq!(quota(&now, "requests_per_hour").used, admitted, "what was charged, and what was admitted");
    assert_eq!(quota(&now, "tokens_per_hour").used, 3 * admitted);
    assert!(admitted > 100, "{admitted}");
    for _ in 0..100 {
        assert!(matches!(over_grpc(&node.grpc).await, Outcome::Decided(true)));
        assert!(matches!(over_rest(&node.rest).await, Outcome::Decided(true)));
        assert!(matches!(limits(&node.rest).await, Outcome::Decided(_)));
    }
    until("it is ready", Duration::from_secs(10), async || {
        (node.rest.text("/readyz").await.0 == StatusCode::OK).then_some(())
    })
    .await;
    let output = node.stderr();
    assert!(!output.contains("panicked") && !output.contains("ERROR"), "{output}");
}

/// Errors of the end users' routes when the node is overloaded, when the counters do not answer, and when the deadline
/// passes: each in the shape that the routes document.
#[tokio::test]
async fn overload_errors_of_self_service_have_the_shape_of_the_domain() {
    let redis = RedisServer::start();
    let (_folder, policy) = folder_with(&shop(100));
    for (flags, expected) in [
        (&["--store-deadline-ms=1000", "--max-concurrent-calls=1"][..], [429, 503]),
        (&["--store-deadline-ms=1000", "--store-max-in-flight=1"], [429, 503]),
        (&["--call-timeout-ms=500"], [504, 504]),
    ] {
        for route in ["/api_keys/rate_limits", "/api/v1/api_keys/rate_limits", "/api_keys/rate_limits/log"] {
            // A node for each route: after some calls without an answer its breaker would refuse calls at once.
            let proxy = Proxy::start(redis.port()).await;
            let node = ProcessBuilder::new(&policy).redis(&proxy.url()).args(flags.to_vec()).start();
            let ask = || node.rest.request(Method::GET, route).bearer_auth(KEY).send();
            until("the node decides", Duration::from_secs(10), async || {
                ask().await.ok()?.status().is_success().then_some(())
            })
            .await;
            proxy.drop_traffic(true);
            let started = Instant::now();
            let (one, other) = tokio::join!(ask(), ask());
            assert!(started.elapsed() < DEADLINE, "{route}: {:?}", started.elapsed());
            let mut statuses = Vec::new();
            for answer in [one.expect("an answer"), other.expect("an answer")] {
                let (status, wait) = (answer.status().as_u16(), answer.headers().get(header::RETRY_AFTER).cloned());
                assert_eq!(wait.is_some(), status == 429, "{route}: {status}");
                assert_plain_overload_error(&answer.json().await.expect("JSON"));
                statuses.push(status);
            }
            statuses.sort_unstable();
            assert_eq!(statuses, expected, "{route}");
        }
    }
}

/// The node accepts a bounded number of concurrent calls on a gRPC connection. The client holds the others back, and
/// none is refused. (Seen to fail with a node without that bound.)
#[tokio::test]
async fn calls_beyond_the_bound_of_a_connection_wait() {
    let redis = RedisServer::start();
    let (_folder, policy) = folder_with(&shop(100));
    let node = ProcessBuilder::new(&policy).redis(&redis.url()).args(["--max-concurrent-calls=4"]).start();
    let one = || call(account("a"), "model", &[]);
    // The client knows the bound once it has an answer.
    assert!(allowed(&consume(&node.grpc, one()).await.unwrap()));
    let suspended = SuspendedRedis::suspend(&redis);
    let mut calls = JoinSet::new();
    for _ in 0..12 {
        let grpc = node.grpc.clone();
        calls.spawn(async move { consume(&grpc, one()).await });
    }
    let in_work = async || {
        let (_, metrics) = node.rest.text("/metrics").await;
        let mut lines =
            metrics.lines().filter_map(|line| line.strip_prefix("tollgate_store_in_flight{store=\"redis\"} "));
        lines.next().expect("the metric").parse::<f64>().expect("a number")
    };
    until("four calls are in work", DEADLINE, async || (in_work().await >= 4.0).then_some(())).await;
    // Calls that were sent would be in progress by now.
    for _ in 0..20 {
        assert!(in_work().await <= 4.0, "more than the bound");
    }
    drop(suspended);
    for decision in calls.join_all().await {
        assert!(allowed(&decision.expect("a decision")));
    }
    assert_eq!(quota(&peek(&node.grpc, one()).await.unwrap(), "requests_per_minute").used, 13);

    // A client that starts more calls before it knows the bound has an answer to each of them, too; the node ignores
    // what it refused.
    let fresh = Endpoint::from_shared(format!("http://{}", node.grpc_address)).expect("an address").connect_lazy();
    let fresh = RateLimitServiceClient::new(fresh);
    let mut calls = JoinSet::new();
    for _ in 0..60 {
        let grpc = fresh.clone();
        calls.spawn(async move { consume(&grpc, call(account("b"), "model", &[])).await });
    }
    let answers = tokio::time::timeout(DEADLINE, calls.join_all()).await.expect("a call hangs");
    let decided = answers.iter().filter(|answer| answer.as_ref().is_ok_and(allowed)).count();
    let now = peek(&fresh, call(account("b"), "model", &[])).await.unwrap();
    assert_eq!(quota(&now, "requests_per_minute").used, decided as u64);
}
