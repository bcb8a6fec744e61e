//! Headers that determine how a request is read, sent byte by byte.
//!
//! Seen to fail when the guard checked only the first host, no encoding, or no length, and when it did not announce the
//! end of a connection.

use std::time::Duration;

use prost::Message;
use reqwest::StatusCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tollgate_api::v1::ConsumeRequest;
use tonic::Code;

use super::{SERVICE_TOKEN, node_with};
use crate::{
    grpc::{error_of, raw_as},
    harness::{Process, account, call, http, memory_node, peek, quota, shop},
};

const BODY: &str = r#"{"caller":{"account":"a"},"resource":"model"}"#;

/// The status and text of the first answer on a connection, and whether the node then closes it.
async fn first_answer(address: &str, request: &str) -> (u16, String, bool) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut output = Vec::new();
    let mut chunk = [0; 4096];
    let whole = |output: &[u8]| {
        let text = String::from_utf8_lossy(output).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        (body.len() >= length).then_some(text)
    };
    let text = loop {
        if let Some(text) = whole(&output) {
            break text;
        }
        let read = timeout(Duration::from_secs(10), stream.read(&mut chunk)).await.expect("an answer at once").unwrap();
        assert!(read > 0, "closed after {:?}", String::from_utf8_lossy(&output));
        output.extend_from_slice(&chunk[..read]);
    };
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    // An open connection answers a second request; a closed one does not.
    let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let next = timeout(Duration::from_secs(10), stream.read(&mut chunk)).await.expect("it answers, or ends");
    (status, text.to_ascii_lowercase(), !matches!(next, Ok(1..)))
}

fn post(path: &str, headers: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nauthorization: Bearer {SERVICE_TOKEN}\r\ncontent-type: application/json\r\n{headers}\r\n{body}"
    )
}

async fn used(node: &Process) -> u64 {
    let request = super::as_service(
        SERVICE_TOKEN,
        tollgate_api::v1::CheckRequest { call: Some(call(account("a"), "model", &[])) },
    );
    let decision = node.grpc.clone().check(request).await.unwrap().into_inner().decision.unwrap();
    quota(&decision, "requests_per_minute").used
}

#[tokio::test]
async fn unreadable_headers_are_refused_before_the_body() {
    // The body timeout is long, so that an answer that waited for the body would miss the bound.
    let (_folder, node) = node_with(&["--body-timeout-ms=60000"], None);
    let host = "host: localhost\r\n";
    let length = |length: &str| format!("{host}content-length: {length}\r\n");
    let good = format!("{host}content-length: {}\r\n", BODY.len());
    let mut wrong = Vec::new();
    for (request, status, says) in [
        // Several `host` headers, on every kind of route.
        (post("/v1/consume", &format!("{good}host: localhost\r\n"), BODY), 400, "host: "),
        (post("/v1/consume", &format!("{good}host: evil.example\r\n"), BODY), 400, "host: "),
        (format!("GET /healthz HTTP/1.1\r\n{host}{host}\r\n"), 400, "host: "),
        (format!("GET /api_keys/rate_limits HTTP/1.1\r\n{host}{host}\r\n"), 400, "host: "),
        (format!("GET /nowhere HTTP/1.1\r\n{host}{host}\r\n"), 400, "host: "),
        // Compressed bodies.
        (post("/v1/consume", &format!("{good}content-encoding: gzip\r\n"), BODY), 415, "content-encoding: "),
        (post("/v1/consume", &format!("{good}content-encoding: identity, br\r\n"), BODY), 415, "content-encoding: "),
        (
            post("/v1/check", &format!("{good}content-encoding: identity\r\ncontent-encoding: zstd\r\n"), BODY),
            415,
            "content-encoding: ",
        ),
        (post("/v1/consume", &format!("{good}content-encoding: \r\n"), BODY), 415, "content-encoding: "),
        // Lengths: too large, without a body, and beyond the integer range; missing, repeated, and in conflict with
        // chunks.
        (post("/v1/consume", &length("65537"), ""), 413, "65536 bytes"),
        (post("/v1/consume", &length("1000000000000000000"), ""), 413, "65536 bytes"),
        (post("/v1/consume", &format!("{}expect: 100-continue\r\n", length("65537")), ""), 413, "65536 bytes"),
        // No token, no route, a wrong method: with a body that is never read.
        (format!("POST /v1/consume HTTP/1.1\r\n{host}content-length: 1000\r\n\r\n"), 401, "unauthenticated"),
        (format!("POST /nowhere HTTP/1.1\r\n{host}content-length: 1000\r\n\r\n"), 404, "not_found"),
        (format!("POST /healthz HTTP/1.1\r\n{host}content-length: 1000\r\n\r\n"), 405, "method_not_allowed"),
        (format!("GET /healthz HTTP/1.1\r\n{host}content-length: 1000\r\n\r\n"), 200, "ok"),
        (format!("GET /metrics HTTP/1.1\r\n{host}transfer-encoding: chunked\r\n\r\n"), 200, "tollgate_"),
        (
            format!("GET /api_keys/rate_limits HTTP/1.1\r\n{host}content-length: 9\r\n\r\n"),
            401,
            "authentication failed",
        ),
        ("POST /v1/consume HTTP/1.1\r\nhost: evil.example\r\ncontent-length: 9\r\n\r\n".to_owned(), 421, "host: "),
    ] {
        let (found, output, closed) = first_answer(&node.http_address, &request).await;
        let has_body = request.contains("content-length") || request.contains("transfer-encoding");
        let right = found == status
            && output.contains(says)
            && output.contains("accept-encoding: identity\r\n") == (status == 415)
            && output.contains("connection: close\r\n") == has_body
            && closed == has_body;
        if !right {
            wrong.push(format!("{request}\n{output}\nclosed: {closed}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n---\n"));
    assert_eq!(used(&node).await, 0);
}

/// In HTTP/2 the host is `:authority`, and a `host` header must equal it. Seen to fail without the comparison.
#[tokio::test]
async fn a_host_that_differs_from_the_authority_is_refused() {
    let node = memory_node(&shop(100)).await;
    let client = http().http2_prior_knowledge().build().unwrap();
    for (host, status) in [(node.http_address.as_str(), 200), ("limits.example", 400), ("localhost", 400)] {
        let request = client.get(format!("http://{}/healthz", node.http_address)).header("host", host);
        assert_eq!(request.send().await.unwrap().status().as_u16(), status, "{host}");
    }
}

/// A request whose body has no defined end reaches no route; hyper refuses it.
#[tokio::test]
async fn invalid_content_lengths_close_the_connection() {
    let (_folder, node) = node_with(&[], None);
    let length = BODY.len();
    for headers in [
        "content-length: abc\r\n".to_owned(),
        "content-length: -1\r\n".to_owned(),
        "content-length: +1\r\n".to_owned(),
        "content-length: 18446744073709551616\r\n".to_owned(),
        "content-length: 18446744073709551615\r\n".to_owned(),
        "content-length: \r\n".to_owned(),
        format!("content-length: {length}\r\ncontent-length: 5\r\n"),
        format!("content-length: {length}, 5\r\n"),
        "transfer-encoding: gzip\r\n".to_owned(),
    ] {
        let request = post("/v1/consume", &format!("host: localhost\r\n{headers}"), BODY);
        let (status, output, closed) = first_answer(&node.http_address, &request).await;
        // hyper reports the largest number as too large headers.
        assert!(matches!(status, 400 | 413 | 431) && closed, "{headers}: {output}");
    }
    assert_eq!(used(&node).await, 0);
}

/// A request that is read completely keeps its connection. Seen to fail when every request with a body closed it.
#[tokio::test]
async fn a_valid_request_keeps_its_connection() {
    let (_folder, node) = node_with(&[], None);
    let length = BODY.len();
    for headers in [
        format!("content-length: {length}\r\n"),
        format!("content-length: {length}\r\ncontent-encoding: Identity\r\n"),
        format!("content-length: {length}\r\ncontent-length: {length}\r\n"),
    ] {
        let request = post("/v1/consume", &format!("host: localhost\r\n{headers}"), BODY);
        let (status, output, closed) = first_answer(&node.http_address, &request).await;
        assert_eq!((status, closed, output.contains("connection: close")), (200, false, false), "{headers}: {output}");
    }
    // In several chunks, and with an invalid field.
    let chunks =
        BODY.as_bytes().chunks(3).map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk)));
    let request = post(
        "/v1/consume",
        "host: localhost\r\ntransfer-encoding: chunked\r\n",
        &format!("{}0\r\n\r\n", chunks.collect::<String>()),
    );
    let (status, output, closed) = first_answer(&node.http_address, &request).await;
    assert_eq!((status, closed), (200, false), "{output}");
    let (status, output, closed) =
        first_answer(&node.http_address, &post("/v1/consume", "host: localhost\r\ncontent-length: 2\r\n", "{}")).await;
    assert_eq!((status, closed, output.contains("connection: close")), (400, false, false), "{output}");
    assert_eq!(used(&node).await, 4);
}

/// Compressed messages over gRPC, declared by the gRPC header (refused by tonic) or by that of HTTP. Seen to fail when
/// the guard ignored the latter.
#[tokio::test]
async fn compressed_messages_are_refused() {
    let node = memory_node(&shop(100)).await;
    let message = ConsumeRequest { call: Some(call(account("a"), "model", &[])) }.encode_to_vec();
    let path = "/tollgate.v1.RateLimitService/Consume";
    for (headers, code, status) in [
        ([("grpc-encoding", "gzip")], Code::Unimplemented, StatusCode::OK),
        ([("grpc-encoding", "nonsense")], Code::Unimplemented, StatusCode::OK),
        ([("content-encoding", "gzip")], Code::InvalidArgument, StatusCode::UNSUPPORTED_MEDIA_TYPE),
    ] {
        let answer = raw_as(Some("application/grpc"), &node.grpc_address, path, &message, &headers).await;
        let (found, output) = error_of(&answer);
        assert_eq!((found, answer.status()), (code, status), "{headers:?}: {output}");
    }
    let answer =
        raw_as(Some("application/grpc"), &node.grpc_address, path, &message, &[("grpc-encoding", "identity")]).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let decision = peek(&node.grpc, call(account("a"), "model", &[])).await.unwrap();
    assert_eq!(quota(&decision, "requests_per_minute").used, 1);
}
