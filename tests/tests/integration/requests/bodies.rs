//! Slow and unfinished bodies, and request slots held by one caller.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::body::{Body, Bytes};
use reqwest::{Method, StatusCode, header};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tollgate_api::v1::ConsumeStreamRequest;
use tollgate_store::testing::RedisServer;
use tonic::{
    Code, Status,
    codegen::{Service, http},
    transport::{Channel, Endpoint},
};

use super::{
    OTHER_TOKEN, SERVICE_TOKEN, as_service, assert_latency_nearly_unchanged, node_with, p99_over_grpc, p99_over_rest,
};
use crate::harness::{Process, Proxy, account, call, quota, until};

const CONSUME: &str = "/tollgate.v1.RateLimitService/Consume";
/// A call of which only a part is sent.
const HALF: &str =
    "POST /v1/consume HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n";
const PATIENCE: Duration = Duration::from_secs(20);

/// Opens a connection and sends half a call.
async fn half_a_call(node: &Process, token: &str) -> TcpStream {
    let mut stream = TcpStream::connect(&node.http_address).await.unwrap();
    stream.write_all(format!("{HALF}authorization: Bearer {token}\r\n\r\n{{").as_bytes()).await.unwrap();
    stream
}

/// Everything the node sends until it closes the connection.
async fn rest_of(mut stream: TcpStream) -> String {
    let mut output = Vec::new();
    let _ =
        timeout(PATIENCE, stream.read_to_end(&mut output)).await.expect("the node should have closed the connection");
    String::from_utf8_lossy(&output).into_owned()
}

async fn refused(node: &Process, protocol: &str, reason: &str) -> u64 {
    let (status, metrics) = node.rest.text("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    let series = format!("tollgate_requests_refused_total{{protocol=\"{protocol}\",reason=\"{reason}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&series));
    line.unwrap_or_else(|| panic!("no {series} in {metrics}")).parse().unwrap()
}

/// One valid token sends more slow bodies than there are slots and memory, without end: other callers, probes and
/// scrapers are served as before. Seen to fail when a body was read in the slot of a call.
#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_of_one_token_over_rest_do_not_block_others() {
    let (_folder, node) =
        node_with(&["--max-concurrent-calls=64", "--max-unread-bytes=2097152", "--body-timeout-ms=1500"], None);
    let before = p99_over_rest(&node).await;
    let mut slow = JoinSet::new();
    for _ in 0..1_030 {
        let stream = half_a_call(&node, OTHER_TOKEN).await;
        slow.spawn(rest_of(stream));
    }
    // Half of 2 MiB for bodies of 16 KiB and a little.
    until("the memory is held", PATIENCE, async || {
        (refused(&node, "http", "unread_bodies").await >= 900).then_some(())
    })
    .await;
    let held = half_a_call(&node, OTHER_TOKEN).await;
    let during = p99_over_rest(&node).await;
    for page in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(node.rest.text(page).await.0, StatusCode::OK, "{page}");
    }
    assert_latency_nearly_unchanged(before, during);
    let answers = slow.join_all().await;
    let of = |status: &str| answers.iter().filter(|answer| answer.starts_with(status)).count();
    let (late, refused) = (of("HTTP/1.1 408 "), of("HTTP/1.1 429 "));
    assert!(late > 0 && refused >= 900 && late + refused == answers.len(), "{late} late, {refused} refused");
    for answer in answers.iter().chain([&rest_of(held).await]) {
        assert!(answer.contains("connection: close"), "{answer}");
        assert_eq!(answer.starts_with("HTTP/1.1 429 "), answer.contains("retry-after: 1\r\n"), "{answer}");
    }
}

/// Seen to fail with a hundred times the timeout.
#[tokio::test]
async fn an_unfinished_body_times_out_and_is_not_charged() {
    let (_folder, node) = node_with(&["--body-timeout-ms=300"], None);
    let started = Instant::now();
    let answer = rest_of(half_a_call(&node, OTHER_TOKEN).await).await;
    assert!(started.elapsed() >= Duration::from_millis(290), "{:?}", started.elapsed());
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("deadline_exceeded"), "{answer}");
    assert!(answer.contains("body: did not arrive within 300ms"), "{answer}");
    assert_eq!(refused(&node, "http", "slow_body").await, 1);
    let started = Instant::now();
    let error = half_a_message(&channel(&node), OTHER_TOKEN, &[0, 0, 0, 0, 9, 10]).await.unwrap_err();
    assert!(started.elapsed() >= Duration::from_millis(290), "{:?}", started.elapsed());
    assert_eq!((error.code(), error.message().contains("within 300ms")), (Code::DeadlineExceeded, true), "{error:?}");
    assert_eq!(refused(&node, "grpc", "slow_body").await, 1);
}

/// A body that sends its first bytes and never ends.
struct UnfinishedMessage(Option<Bytes>);

impl tokio_stream::Stream for UnfinishedMessage {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.take().map_or(Poll::Pending, |bytes| Poll::Ready(Some(Ok(bytes))))
    }
}

fn channel(node: &Process) -> Channel {
    Endpoint::from_shared(format!("http://{}", node.grpc_address)).unwrap().connect_lazy()
}

/// Sends the first bytes of a message. Returns the error of the answer.
async fn half_a_message(channel: &Channel, token: &str, first_bytes: &'static [u8]) -> Result<(), Status> {
    let body = tonic::body::Body::new(Body::from_stream(UnfinishedMessage(Some(Bytes::from_static(first_bytes)))));
    let request = http::Request::post(CONSUME)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {token}"))
        .body(body)
        .unwrap();
    let mut channel = channel.clone();
    std::future::poll_fn(|context| channel.poll_ready(context)).await.expect("a connection");
    let answer = timeout(PATIENCE, channel.call(request)).await.expect("a call hangs").expect("an answer");
    Status::from_header_map(answer.headers()).map_or(Ok(()), Err)
}

/// One token announces messages of the largest size and never sends them, on several connections, repeatedly: others
/// are served as before, and the node's memory does not grow. Seen to fail without a bound on the memory of unread
/// messages.
#[tokio::test(flavor = "multi_thread")]
async fn slow_messages_of_one_token_over_grpc_do_not_block_others() {
    const LARGEST: &[u8] = &[0, 0, 1, 0, 0, 10];
    let (_folder, node) = node_with(&["--max-unread-bytes=4194304", "--body-timeout-ms=1000"], None);
    let before = p99_over_grpc(&node).await;
    let memory = node.resident_bytes().unwrap();
    let mut slow = JoinSet::new();
    for _ in 0..8 {
        let channel = channel(&node);
        for _ in 0..250 {
            let channel = channel.clone();
            slow.spawn(async move {
                let mut codes = Vec::new();
                for _ in 0..2 {
                    codes.push(half_a_message(&channel, OTHER_TOKEN, LARGEST).await.unwrap_err().code());
                }
                codes
            });
        }
    }
    until("the memory is held", PATIENCE, async || (refused(&node, "grpc", "unread_bodies").await > 500).then_some(()))
        .await;
    let during = p99_over_grpc(&node).await;
    let grown = node.resident_bytes().unwrap().saturating_sub(memory);
    let codes: Vec<Code> = slow.join_all().await.into_iter().flatten().collect();
    let of = |code| codes.iter().filter(|found| **found == code).count();
    let (late, refused) = (of(Code::DeadlineExceeded), of(Code::ResourceExhausted));
    // Half of 4 MiB for messages of 64 KiB and 16 KiB besides.
    assert!(
        late >= 26 && refused > 1_000 && late + refused == codes.len(),
        "{late} late, {refused} refused: {codes:?}"
    );
    println!("{} KiB more", grown >> 10);
    assert!(grown < 64 << 20, "{grown} bytes more");
    assert_latency_nearly_unchanged(before, during);
}

/// Streams of one token, and hanging calls of one token, leave slots for others. Seen to fail without the share per
/// token.
#[tokio::test]
async fn one_token_holds_at_most_its_share_of_open_requests() {
    let redis = RedisServer::start();
    let proxy = Proxy::start(redis.port()).await;
    let arguments =
        ["--max-streams=4", "--max-concurrent-calls=5", "--max-calls-per-caller=2", "--store-deadline-ms=1500"];
    let (_folder, node) = node_with(&arguments, Some(&proxy.url()));
    let open = async |token: &str| {
        let calls = tokio_stream::pending::<ConsumeStreamRequest>();
        node.grpc.clone().consume_stream(as_service(token, calls)).await
    };
    let held = [open(OTHER_TOKEN).await.unwrap(), open(OTHER_TOKEN).await.unwrap()];
    let error = open(OTHER_TOKEN).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
    assert!(error.message().contains("the caller has its maximum number of open streams"), "{error:?}");
    let first_service_streams = [open(SERVICE_TOKEN).await.unwrap(), open(SERVICE_TOKEN).await.unwrap()];
    assert_eq!(refused(&node, "grpc", "streams").await, 1);
    drop((held, first_service_streams));

    let consume = async |token: &str| {
        let request = node.rest.request(Method::POST, "/v1/consume").bearer_auth(token);
        let request = request.header(header::CONTENT_TYPE, "application/json");
        let answer = request.body(r#"{"caller":{"account":"a"},"resource":"model"}"#).send().await.unwrap();
        (answer.status().as_u16(), answer.headers().contains_key(header::RETRY_AFTER))
    };
    until("the node decides", PATIENCE, async || (consume(SERVICE_TOKEN).await.0 == 200).then_some(())).await;
    proxy.drop_traffic(true);
    let (others, first_service, pages) = tokio::join!(
        async { tokio::join!(consume(OTHER_TOKEN), consume(OTHER_TOKEN), consume(OTHER_TOKEN), consume(OTHER_TOKEN)) },
        async { tokio::join!(consume(SERVICE_TOKEN), consume(SERVICE_TOKEN)) },
        async {
            let mut statuses = Vec::new();
            for _ in 0..5 {
                statuses.push((node.rest.text("/healthz").await.0, node.rest.text("/metrics").await.0));
            }
            statuses
        }
    );
    let others: &mut [(u16, bool)] = &mut [others.0, others.1, others.2, others.3];
    others.sort_unstable();
    assert_eq!(*others, [(429, true), (429, true), (503, false), (503, false)]);
    assert_eq!([first_service.0, first_service.1], [(503, false); 2]);
    assert!(pages.iter().all(|pair| *pair == (StatusCode::OK, StatusCode::OK)), "{pages:?}");
    proxy.drop_traffic(false);
    let used = until("the node decides again", PATIENCE, async || {
        let one = tollgate_api::v1::CheckRequest { call: Some(call(account("a"), "model", &[])) };
        node.grpc.clone().check(as_service(SERVICE_TOKEN, one)).await.ok()
    });
    let decision = used.await.into_inner().decision.unwrap();
    assert!(quota(&decision, "requests_per_minute").used >= 1);
}
