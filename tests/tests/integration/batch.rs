//! Batches and streams of calls.
//!
//! Seen to fail: with an invalid call that fails its whole batch, with a stream without backpressure, and with a stream
//! whose end drops calls in progress.

use std::{collections::HashMap, time::Duration};

use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tollgate_api::v1::{
    Call, CallResult, ConsumeBatchRequest, ConsumeStreamRequest, ConsumeStreamResponse, Decision, Reason,
    call_result::Result as Of, rate_limit_service_client::RateLimitServiceClient,
};
use tollgate_store::testing::RedisServer;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::{
    grpc::{SuspendedRedis, node_on},
    harness::{
        ProcessBuilder, account, allowed, api_key, call, consume, folder_with, memory_node, peek, quota, redis_node,
        shop, until,
    },
};

type Grpc = RateLimitServiceClient<Channel>;

async fn batch(grpc: &Grpc, calls: Vec<Call>) -> Result<Vec<Result<Decision, (Code, String)>>, Status> {
    let answer = grpc.clone().consume_batch(ConsumeBatchRequest { calls }).await?;
    Ok(answer.into_inner().results.into_iter().map(call_outcome).collect())
}

fn call_outcome(result: CallResult) -> Result<Decision, (Code, String)> {
    match result.result.expect("one of the two") {
        Of::Decision(decision) => Ok(decision),
        Of::Error(error) => Err((Code::from(error.code), error.message)),
    }
}

/// Opens a stream with a client-side queue of `queue` calls.
async fn stream(
    grpc: &Grpc,
    queue: usize,
) -> Result<(mpsc::Sender<ConsumeStreamRequest>, Streaming<ConsumeStreamResponse>), Status> {
    let (to, calls) = mpsc::channel(queue);
    let answers = grpc.clone().consume_stream(ReceiverStream::new(calls)).await?.into_inner();
    Ok((to, answers))
}

fn numbered(id: u64, call: Call) -> ConsumeStreamRequest {
    ConsumeStreamRequest { id, call: Some(call), timeout_ms: 0 }
}

#[tokio::test]
async fn a_batch_decides_each_call_separately() {
    let node = memory_node(&shop(3)).await;
    let good = |name: &str| call(account(name), "model", &[("tokens", 10)]);
    let calls = vec![
        good("a"),
        call(account("a"), "no\nmodel", &[]),
        call(account("b"), "model", &[("tokens", 20_001)]),
        Call { caller: None, ..good("a") },
        call(api_key("sk-nobody"), "model", &[]),
        good("a"),
        call(account("a"), "model", &[("tokens", 1 << 53)]),
        Call { domain: "nowhere".into(), ..good("a") },
        Call { details: true, ..good("c") },
    ];
    let results = batch(&node.grpc, calls).await.unwrap();
    let error = |at: usize| results[at].as_ref().unwrap_err();
    let decision = |at: usize| results[at].as_ref().unwrap();
    assert!(allowed(decision(0)) && allowed(decision(5)) && allowed(decision(8)));
    assert_eq!(decision(2).reason(), Reason::CostAboveLimit);
    assert_eq!(decision(4).reason(), Reason::UnknownKey);
    for (at, code, field) in [
        (1, Code::InvalidArgument, "resource: "),
        (3, Code::InvalidArgument, "caller: "),
        (6, Code::InvalidArgument, "usage.tokens: "),
        (7, Code::NotFound, "domain: "),
    ] {
        assert_eq!(error(at).0, code, "{at}: {:?}", error(at));
        assert!(error(at).1.starts_with(field), "{at}: {:?}", error(at));
    }
    assert!(decision(8).quotas[0].details.is_some() && decision(0).quotas[0].details.is_none());
    // Two calls of `a` were admitted. The refused call of `b` charged neither of its quotas.
    let after = peek(&node.grpc, good("a")).await.unwrap();
    assert_eq!((quota(&after, "requests_per_minute").used, quota(&after, "tokens_per_minute").used), (2, 20));
    let after = peek(&node.grpc, good("b")).await.unwrap();
    assert_eq!((quota(&after, "requests_per_minute").used, quota(&after, "tokens_per_minute").used), (0, 0));
}

#[tokio::test]
async fn a_batch_over_rest_equals_one_over_grpc() {
    let node = memory_node(&shop(3)).await;
    let call = |account: &str| json!({"caller": {"account": account}, "resource": "model"});
    let mut wrong = call("a");
    wrong["colour"] = json!("red");
    let twice = r#"{"caller":{"account":"a"},"resource":"model","usage":{"tokens":1,"tokens":2}}"#;
    let body = format!(r#"{{"calls":[{},{wrong},{twice},7,{},{}]}}"#, call("a"), call("b"), call("a"));
    let (status, answer) = node.rest.post("/v1/consume_batch", body).await;
    assert_eq!(status.as_u16(), 200, "{answer}");
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), 6);
    for at in [0, 4, 5] {
        assert_eq!(results[at]["decision"]["verdict"], "allowed", "{answer}");
    }
    for (at, expected) in [(1, "colour"), (2, "tokens is named twice"), (3, "CallBody")] {
        assert_eq!(results[at]["error"]["code"], "invalid_argument", "{answer}");
        let message = results[at]["error"]["message"].as_str().unwrap();
        assert!(message.starts_with("call: ") && message.contains(expected), "{message}");
    }
    assert_eq!(results[5]["decision"]["quotas"][0]["used"], 2, "{answer}");
    for (body, expected) in [
        (r#"{"calls":[]}"#.to_owned(), "calls: must have 1 to 256 entries"),
        (format!(r#"{{"calls":[{}]}}"#, vec!["{}"; 257].join(",")), "and has 257"),
        (r#"{"calls":{}}"#.to_owned(), "calls: "),
        (r#"{"calls":[],"more":1}"#.to_owned(), "more"),
    ] {
        let (status, answer) = node.rest.post("/v1/consume_batch", body).await;
        assert_eq!((status.as_u16(), &answer["error"]["code"]), (400, &"invalid_argument".into()), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(expected), "{answer}");
    }
}

#[tokio::test]
async fn the_size_of_a_batch_is_bounded() {
    let node = memory_node(&shop(3)).await;
    for count in [0, 257] {
        let calls = vec![call(account("a"), "model", &[]); count];
        let error = batch(&node.grpc, calls).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
        assert!(error.message().contains(&format!("and has {count}")), "{error:?}");
    }
    let after = peek(&node.grpc, call(account("a"), "model", &[])).await.unwrap();
    assert_eq!(after.quotas[0].used, 0, "a batch that is too large charges nothing");
}

/// Calls of a batch are decided concurrently: they admit exactly the limit.
#[tokio::test]
async fn a_batch_on_one_counter_admits_exactly_the_limit() {
    let redis = RedisServer::start();
    for node in [memory_node(&shop(100)).await, redis_node(&shop(100), redis.url()).await] {
        let calls = vec![call(account("hot"), "model", &[("tokens", 150)]); 256];
        let results = batch(&node.grpc, calls).await.unwrap();
        assert_eq!(results.iter().filter(|result| allowed(result.as_ref().unwrap())).count(), 100);
        let after = peek(&node.grpc, call(account("hot"), "model", &[])).await.unwrap();
        assert_eq!(quota(&after, "tokens_per_minute").used, 15_000, "refused calls charged tokens");
    }
}

/// Calls past the deadline report it; the others have their decision.
#[tokio::test]
async fn the_deadline_of_a_batch_applies_to_each_call() {
    let redis = RedisServer::start();
    let (_folder, node) = node_on(&redis, 4_000);
    assert!(allowed(&consume(&node.grpc, call(account("a"), "model", &[])).await.unwrap()));
    let _suspended = SuspendedRedis::suspend(&redis);
    let calls = vec![call(account("a"), "model", &[]), call(account("a"), "free", &[])];
    let mut request = tonic::Request::new(ConsumeBatchRequest { calls });
    request.metadata_mut().insert("grpc-timeout", "600m".parse().unwrap());
    let results = node.grpc.clone().consume_batch(request).await.unwrap().into_inner().results;
    let results: Vec<_> = results.into_iter().map(call_outcome).collect();
    assert_eq!(results[0].as_ref().unwrap_err().0, Code::DeadlineExceeded, "{results:?}");
    assert!(allowed(results[1].as_ref().unwrap()), "it needs no counter");
}

#[tokio::test]
async fn a_stream_answers_every_call_once_under_its_id() {
    let redis = RedisServer::start();
    for node in [memory_node(&shop(100)).await, redis_node(&shop(100), redis.url()).await] {
        let (to, mut answers) = stream(&node.grpc, 16).await.unwrap();
        let sender = tokio::spawn(async move {
            for id in 0..1_000 {
                let call = match id % 10 {
                    0 => call(account("hot"), "no\nmodel", &[]),
                    _ => call(account("hot"), "model", &[("tokens", 150)]),
                };
                to.send(numbered(id, call)).await.expect("the stream is open");
            }
            to.send(ConsumeStreamRequest { id: u64::MAX, call: None, timeout_ms: 0 }).await.expect("the same");
        });
        let mut results = HashMap::new();
        while let Some(answer) = answers.message().await.expect("it ends with OK") {
            let again = results.insert(answer.id, call_outcome(answer.result.unwrap()));
            assert!(again.is_none(), "{} was answered twice", answer.id);
        }
        sender.await.unwrap();
        assert_eq!(results.len(), 1_001);
        let (code, expected) = results.remove(&u64::MAX).unwrap().unwrap_err();
        assert!(code == Code::InvalidArgument && expected.starts_with("call: "), "{expected}");
        for (id, result) in &results {
            assert_eq!(result.is_err(), id % 10 == 0, "{id}: {result:?}");
        }
        assert_eq!(results.values().flatten().filter(|decision| allowed(decision)).count(), 100);
        let after = peek(&node.grpc, call(account("hot"), "model", &[])).await.unwrap();
        assert_eq!(quota(&after, "tokens_per_minute").used, 15_000);
    }
}

/// A client that sends and never reads: the node buffers a bounded number of answers, and other clients are served.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_not_read_while_its_client_does_not_read() {
    const CALLS: u64 = 10_000;
    // Bytes that HTTP/2 buffers between client and node, and the smallest size of an answer.
    const BUFFERED: u64 = 1 << 20;
    const ANSWER: u64 = 200;
    let (_folder, policy) = folder_with(&shop(100));
    let node = ProcessBuilder::new(&policy).arg("--stream-calls=32").start();
    let endpoint = Channel::from_shared(format!("http://{}", node.grpc_address)).unwrap();
    let endpoint = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    let grpc = RateLimitServiceClient::new(endpoint.connect().await.unwrap());
    let (to, mut answers) = stream(&grpc, 1).await.unwrap();
    let before = node.resident_bytes().unwrap();
    let sender = tokio::spawn(async move {
        for id in 0..CALLS {
            let call = Call { details: true, ..call(account("slow"), "bulk", &[("tokens", 7)]) };
            to.send(numbered(id, call)).await.expect("the stream is open");
        }
    });
    let decided = async || {
        let (_, metrics) = node.rest.text("/metrics").await;
        let counts = metrics.lines().filter(|line| line.starts_with("tollgate_decisions_total{"));
        counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>()
    };
    let mut last = 0;
    let stuck = until("it reads no more", Duration::from_secs(20), async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let before = std::mem::replace(&mut last, decided().await);
        (last > 0 && before == last).then_some(last)
    })
    .await;
    assert!(stuck <= 32 + BUFFERED / ANSWER, "{stuck} calls were decided, and no answer was taken");
    let grown = node.resident_bytes().unwrap().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes for a stream that is not read");
    assert!(allowed(&consume(&node.grpc, call(account("other"), "model", &[])).await.unwrap()), "others are served");
    // The client receives every answer once it reads.
    let mut taken = 0;
    while let Some(answer) = answers.message().await.expect("it ends with OK") {
        let decision = call_outcome(answer.result.unwrap()).unwrap();
        assert!(allowed(&decision) && prost::Message::encoded_len(&decision) as u64 >= ANSWER);
        taken += 1;
    }
    sender.await.unwrap();
    assert_eq!(taken, CALLS);
}

/// Each call of a stream has its own deadline; the stream continues.
#[tokio::test]
async fn a_slow_call_does_not_delay_its_stream() {
    let redis = RedisServer::start();
    let (_folder, node) = node_on(&redis, 4_000);
    assert!(allowed(&consume(&node.grpc, call(account("a"), "model", &[])).await.unwrap()));
    let suspended = SuspendedRedis::suspend(&redis);
    let (to, mut answers) = stream(&node.grpc, 4).await.unwrap();
    let model = call(account("a"), "model", &[]);
    to.send(ConsumeStreamRequest { timeout_ms: 1_500, ..numbered(1, model.clone()) }).await.unwrap();
    to.send(numbered(2, call(account("a"), "free", &[]))).await.unwrap();
    let first = answers.message().await.unwrap().unwrap();
    assert_eq!(first.id, 2, "what needs no counter is answered first");
    let late = answers.message().await.unwrap().unwrap();
    assert_eq!((late.id, call_outcome(late.result.unwrap()).unwrap_err().0), (1, Code::DeadlineExceeded));
    drop(suspended);
    to.send(numbered(3, model)).await.unwrap();
    let after = answers.message().await.unwrap().unwrap();
    assert!(after.id == 3 && allowed(&call_outcome(after.result.unwrap()).unwrap()));
}

/// A stopping node answers every call that it has read, and tells the client why the stream ends.
#[tokio::test]
async fn a_stopping_node_answers_the_calls_it_has_read() {
    let redis = RedisServer::start();
    let (_folder, mut node) = node_on(&redis, 8_000);
    assert!(allowed(&consume(&node.grpc, call(account("a"), "model", &[])).await.unwrap()));
    let (_idle_sender, mut idle) = stream(&node.grpc, 1).await.unwrap();
    let (to, mut answers) = stream(&node.grpc, 16).await.unwrap();
    let suspended = SuspendedRedis::suspend(&redis);
    for id in 0..10 {
        to.send(numbered(id, call(account("a"), "model", &[]))).await.unwrap();
    }
    until("all calls wait for Redis", Duration::from_secs(5), async || {
        node.rest.text("/metrics").await.1.contains("tollgate_store_in_flight{store=\"redis\"} 10").then_some(())
    })
    .await;
    node.signal("TERM");
    let ended = idle.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    assert!(ended.message().contains("not charged"), "{ended:?}");
    drop(suspended);
    let mut ids = Vec::new();
    let ended = loop {
        match answers.message().await {
            Ok(Some(answer)) => {
                assert!(allowed(&call_outcome(answer.result.unwrap()).unwrap()));
                ids.push(answer.id);
            }
            Ok(None) => panic!("the status does not say why the stream ends"),
            Err(ended) => break ended,
        }
    };
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    ids.sort_unstable();
    assert_eq!(ids, (0..10).collect::<Vec<u64>>());
    assert_eq!(node.ended(Duration::from_secs(5)).await.code(), Some(0), "{}", node.stderr());
}

#[tokio::test]
async fn open_streams_are_bounded_and_idle_streams_end() {
    let (_folder, policy) = folder_with(&shop(100));
    let node = ProcessBuilder::new(&policy).arg("--max-streams=1").arg("--stream-idle-timeout-ms=1500").start();
    let (to, mut answers) = stream(&node.grpc, 1).await.unwrap();
    let error = stream(&node.grpc, 1).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
    to.send(numbered(1, call(account("a"), "model", &[]))).await.unwrap();
    assert!(answers.message().await.unwrap().is_some());
    let ended = answers.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended:?}");
    drop((to, answers));
    // A stream also frees its slot when the client disconnects without closing it.
    for _ in 0..2 {
        until("a slot is free", Duration::from_secs(5), async || stream(&node.grpc, 1).await.ok()).await;
    }
}
