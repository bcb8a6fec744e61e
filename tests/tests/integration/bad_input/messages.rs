//! Messages that are not gRPC, or not of the called method.

use std::time::Duration;

use prost::Message;
use reqwest::StatusCode;
use tollgate_api::v1::{Call, ConsumeRequest, rate_limit_service_client::RateLimitServiceClient};
use tonic::Code;

use super::{good, node, nothing_charged, wrong_calls};
use crate::{
    grpc::{error_of, raw, raw_as},
    harness::{allowed, consume, peek, quota},
};

#[tokio::test]
async fn messages_over_the_limit_and_without_a_call_are_refused() {
    let node = node().await;
    let large = Call { attributes: [("ip".to_owned(), "x".repeat(70_000))].into(), ..good() };
    let error = consume(&node.grpc, large).await.unwrap_err();
    let expected = [Code::InvalidArgument, Code::ResourceExhausted, Code::OutOfRange];
    assert!(expected.contains(&error.code()), "{error:?}");
    assert!(error.message().contains("65536"), "it does not say the limit: {error:?}");
    let error = node.grpc.clone().consume(ConsumeRequest { call: None }).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().starts_with("call: "), "{error:?}");
    nothing_charged(&node).await;
}

/// A message that is not protobuf, or whose strings are not UTF-8.
#[tokio::test]
async fn unreadable_messages_are_refused() {
    let node = node().await;
    let mut wrong = Vec::new();
    // Field 1 (call), of 3 bytes: field 3 (resource), of one byte that is no UTF-8.
    for (message, names) in
        [(&b"\x0a\x03\x1a\x01\xff"[..], "resource"), (b"\x0a\xff\xff\xff\xff\x0f", "buffer"), (b"\xff\xff", "varint")]
    {
        let error = raw(&node.grpc_address, "/tollgate.v1.RateLimitService/Consume", message, &[]).await;
        if error.0 != Code::InvalidArgument || !error.1.contains(names) {
            wrong.push((message, error));
        }
    }
    assert!(wrong.is_empty(), "not INVALID_ARGUMENT, or not what is wrong: {wrong:?}");
    nothing_charged(&node).await;
}

/// A body of another content type is not decoded as gRPC. Without the guard's check of the type, each gets 200 and is
/// charged.
#[tokio::test]
async fn messages_of_another_type_are_refused() {
    let node = node().await;
    let message = ConsumeRequest { call: Some(good()) }.encode_to_vec();
    let path = "/tollgate.v1.RateLimitService/Consume";
    for content_type in [
        None,
        Some(""),
        Some("text/plain"),
        Some("application/json"),
        Some("application/grpc+json"),
        Some("application/grpc-web"),
        Some("application/grpcx"),
    ] {
        let answer = raw_as(content_type, &node.grpc_address, path, &message, &[]).await;
        assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type:?}");
        let (code, output) = error_of(&answer);
        assert_eq!(code, Code::InvalidArgument, "{content_type:?}");
        assert!(output.starts_with("content-type:"), "{content_type:?}: {output}");
    }
    nothing_charged(&node).await;
    for content_type in ["application/grpc", "application/grpc+proto", "Application/gRPC; charset=utf-8"] {
        let answer = raw_as(Some(content_type), &node.grpc_address, path, &message, &[]).await;
        assert_eq!(answer.status(), StatusCode::OK, "{content_type}");
        // An error would be in the headers; the body is the decision.
        assert!(!answer.headers().contains_key("grpc-status"), "{content_type}: {:?}", error_of(&answer));
    }
    assert_eq!(quota(&peek(&node.grpc, good()).await.unwrap(), "requests_per_minute").used, 3);
}

#[tokio::test]
async fn unknown_methods_over_grpc_are_refused() {
    let node = node().await;
    for path in ["/tollgate.v1.RateLimitService/Nothing", "/nowhere/Nothing", "/"] {
        assert_eq!(raw(&node.grpc_address, path, b"", &[]).await.0, Code::Unimplemented, "{path}");
    }
    nothing_charged(&node).await;
}

/// Afterwards the node works as before.
#[tokio::test]
async fn an_invalid_call_does_not_break_its_connection() {
    let node = node().await;
    let one = RateLimitServiceClient::new(node.channel.clone());
    for (_, wrong) in wrong_calls() {
        consume(&one, wrong).await.unwrap_err();
    }
    nothing_charged(&node).await;
    let right = tokio::time::timeout(Duration::from_secs(5), consume(&one, good())).await.unwrap().unwrap();
    assert!(allowed(&right));
}
