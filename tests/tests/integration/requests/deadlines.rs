//! Calls whose deadline passes before they are decided: no work is done, and nothing is charged.
//!
//! Seen to fail without the check of the deadline before the work (a timeout polls its future once, which is enough for
//! a store in memory), and with deadlines that start at the end of the message.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Bytes, HttpBody};
use hyper::body::Frame;
use prost::Message;
use tollgate_api::v1::{
    ConsumeBatchRequest, ConsumeRequest, GetRateLimitsRequest, ReportOutcomeRequest, ReserveRequest, SettleRequest,
};
use tollgate_store::testing::RedisServer;
use tonic::Code;

use crate::{
    grpc::{error_of, raw, raw_as},
    harness::{Node, account, call, http, memory_node, peek, quota, redis_node, shop},
};

const METHODS: &str = "/tollgate.v1.RateLimitService/";

async fn used(node: &Node) -> u64 {
    let now = peek(&node.grpc, call(account("a"), "model", &[])).await.unwrap();
    quota(&now, "requests_per_minute").used
}

async fn nothing_is_charged_after_the_deadline(node: &Node) {
    let one = || Some(call(account("a"), "model", &[]));
    let batch = ConsumeBatchRequest { calls: vec![one().unwrap(); 3] }.encode_to_vec();
    for timeout in ["0S", "0H", "0m", "0u", "0n", "1n", "1m"] {
        for (method, message) in [
            ("Consume", ConsumeRequest { call: one() }.encode_to_vec()),
            ("Check", ConsumeRequest { call: one() }.encode_to_vec()),
            ("Reserve", ReserveRequest { call: one(), ..ReserveRequest::default() }.encode_to_vec()),
            ("Settle", SettleRequest { reservation_id: "x".into(), ..SettleRequest::default() }.encode_to_vec()),
            (
                "GetRateLimits",
                GetRateLimitsRequest { caller: Some(account("a")), ..GetRateLimitsRequest::default() }.encode_to_vec(),
            ),
            (
                "ReportOutcome",
                ReportOutcomeRequest {
                    caller: Some(account("a")),
                    resource: "model".into(),
                    status: 500,
                    ..ReportOutcomeRequest::default()
                }
                .encode_to_vec(),
            ),
        ] {
            let path = format!("{METHODS}{method}");
            let (code, output) = raw(&node.grpc_address, &path, &message, &[("grpc-timeout", timeout)]).await;
            assert_eq!(code, Code::DeadlineExceeded, "{method} {timeout}: {output}");
            assert!(
                output.contains("nothing%20was%20charged") || output.contains("nothing was charged"),
                "{method}: {output}"
            );
        }
        // In a batch each call has the error.
        let (path, headers) = (format!("{METHODS}ConsumeBatch"), [("grpc-timeout", timeout)]);
        let answer = raw_as(Some("application/grpc"), &node.grpc_address, &path, &batch, &headers).await;
        let body = answer.bytes().await.unwrap();
        let output = String::from_utf8_lossy(&body);
        assert_eq!(output.matches("nothing was charged").count(), 3, "{timeout}: {output}");
    }
    assert_eq!(used(node).await, 0);
}

#[tokio::test]
async fn nothing_is_charged_after_the_deadline_in_memory() {
    let node = memory_node(&shop(100)).await;
    nothing_is_charged_after_the_deadline(&node).await;
}

#[tokio::test]
async fn nothing_is_charged_after_the_deadline_in_redis() {
    let redis = RedisServer::start();
    let node = redis_node(&shop(100), redis.url()).await;
    nothing_is_charged_after_the_deadline(&node).await;
}

/// A body whose only chunk is sent later.
struct DelayedBody(tokio::sync::mpsc::Receiver<Bytes>);

impl HttpBody for DelayedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// The deadline starts with the headers, not with the message.
#[tokio::test]
async fn a_message_received_after_the_deadline_is_not_charged() {
    let node = memory_node(&shop(100)).await;
    let message = ConsumeRequest { call: Some(call(account("a"), "model", &[])) }.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let frame: Vec<u8> = [&[0][..], &length, &message].concat();
    let (to, from) = tokio::sync::mpsc::channel(1);
    // Through a client that applies no deadline of its own.
    let client = http().http2_prior_knowledge().build().unwrap();
    let request = client
        .post(format!("http://{}{METHODS}Consume", node.grpc_address))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "200m")
        .body(reqwest::Body::wrap(DelayedBody(from)));
    let answer = tokio::spawn(request.send());
    // However late it is after this, it is late; a node that did not have the headers before would not be.
    tokio::time::sleep(Duration::from_millis(600)).await;
    to.send(frame.into()).await.unwrap();
    drop(to);
    let answer = answer.await.unwrap().unwrap();
    let (code, output) = error_of(&answer);
    assert_eq!(code, Code::DeadlineExceeded, "{output}");
    assert_eq!(used(&node).await, 0);
}
