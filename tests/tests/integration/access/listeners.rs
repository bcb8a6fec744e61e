//! Listeners: their routes, the host names they accept, and the connections they close.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::harness::{
    KEY, PREFACE, Process, ProcessBuilder, account, allowed, assert_watch_open, call, consume, folder_with, hash_of,
    shop,
};

const ADMIN: &str = "tgt_integration-token-of-the-administrators-31";

fn node(settings: &[&str]) -> (tempfile::TempDir, Process) {
    let (folder, policy) = folder_with(&shop(100));
    let builder = ProcessBuilder::new(&policy).arg("--ops-listen=127.0.0.1:0");
    (folder, settings.iter().fold(builder, ProcessBuilder::arg).start())
}

/// Waits until the node has closed the connection. Returns what it sent before.
async fn closed(stream: &mut TcpStream) -> String {
    let mut output = Vec::new();
    let read = timeout(Duration::from_secs(15), stream.read_to_end(&mut output)).await;
    // A reset counts as closed.
    let _ = read.expect("the node should have closed the connection");
    String::from_utf8_lossy(&output).into_owned()
}

#[tokio::test]
async fn health_and_metrics_move_to_their_own_listener() {
    let (_folder, node) = node(&[]);
    let ops = node.ops();
    for route in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(ops.text(route).await.0, StatusCode::OK, "{route}");
        assert_eq!(node.rest.text(route).await.0, StatusCode::NOT_FOUND, "{route}");
    }
    for route in ["/openapi.json", "/api_keys/rate_limits", "/v1/consume"] {
        assert_eq!(ops.text(route).await.0, StatusCode::NOT_FOUND, "{route}");
    }
    assert_eq!(node.rest.text("/openapi.json").await.0, StatusCode::OK);
    let (_, metrics) = ops.text("/metrics").await;
    assert!(metrics.contains(r#"tollgate_connections{listener="ops"} 1"#), "{metrics}");
}

/// A web page in a browser on the same machine cannot call the node under a host name of its own.
#[tokio::test]
async fn loopback_accepts_its_own_host_names_only() {
    let (folder, policy) = folder_with(&shop(100));
    let admins = folder.path().join("admins.yaml");
    std::fs::write(&admins, format!("tokens: [{{ name: root, hash: '{}', domains: all }}]", hash_of(ADMIN))).unwrap();
    let builder = ProcessBuilder::new(&policy).arg("--allowed-hosts=limits.example").arg("--admin-tokens");
    let node = builder.arg(&admins).start();
    let port = node.http_address.rsplit(':').next().unwrap();
    let (_, description) = node.rest.json("/openapi.json").await;
    let routes: Vec<&String> = description["paths"].as_object().unwrap().keys().collect();
    let status = async |method: &Method, route: &str, token: &str, host: &str| {
        let request = node.rest.request(method.clone(), route).bearer_auth(token).header("host", host);
        request.send().await.unwrap().status()
    };
    for (route, method, token) in [("/v1/consume", Method::POST, "none"), ("/api_keys/rate_limits", Method::GET, KEY)] {
        assert!(routes.iter().any(|known| *known == route), "{route}");
        for host in
            ["evil.example", &format!("evil.example:{port}"), "127.0.0.1.evil.example", "user@localhost", "10.0.0.1"]
        {
            assert_eq!(status(&method, route, token, host).await, StatusCode::MISDIRECTED_REQUEST, "{route} {host}");
        }
        for host in ["localhost", &format!("LOCALHOST:{port}"), "127.0.0.1", &format!("[::1]:{port}"), "limits.example"]
        {
            assert_ne!(status(&method, route, token, host).await, StatusCode::MISDIRECTED_REQUEST, "{route} {host}");
        }
    }
    // The host is checked before the token, so that a page cannot test a token.
    for route in routes.into_iter().filter(|route| route.starts_with("/admin/")) {
        let answer = status(&Method::GET, route, ADMIN, "evil.example").await;
        assert!(matches!(answer, StatusCode::MISDIRECTED_REQUEST | StatusCode::METHOD_NOT_ALLOWED), "{route} {answer}");
    }
    // Probes use the address.
    assert_eq!(status(&Method::GET, "/healthz", "none", "10.0.0.1").await, StatusCode::OK);
}

#[tokio::test]
async fn silent_and_slow_connections_are_closed() {
    let (_folder, node) = node(&["--header-timeout-ms=300", "--idle-timeout-ms=600"]);
    let ops = node.ops();
    let mut watch =
        HealthClient::new(node.channel.clone()).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());

    // One header after another, without end.
    let mut slow = TcpStream::connect(&node.http_address).await.unwrap();
    slow.write_all(b"GET /api_keys/rate_limits HTTP/1.1\r\nhost: localhost\r\n").await.unwrap();
    let cut = timeout(Duration::from_secs(15), async {
        while slow.write_all(b"x-more: 1\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    cut.await.expect("the node should have closed the connection");

    // No byte at all, on each listener.
    for address in [&node.http_address, &node.grpc_address] {
        let mut silent = TcpStream::connect(address).await.unwrap();
        closed(&mut silent).await;
    }
    // A part of the HTTP/2 preface.
    for address in [&node.http_address, &node.grpc_address] {
        let mut half = TcpStream::connect(address).await.unwrap();
        half.write_all(&PREFACE[..20]).await.unwrap();
        closed(&mut half).await;
    }
    // HTTP/2 without a call: the preface only.
    let mut idle = TcpStream::connect(&node.grpc_address).await.unwrap();
    idle.write_all(&[PREFACE, &b"\0\0\0\x04\0\0\0\0\0"[..]].concat()).await.unwrap();
    closed(&mut idle).await;

    // A connection with a call in progress stays open.
    assert_watch_open(&mut watch, &node.channel).await;
    assert!(allowed(&consume(&node.grpc, call(account("a"), "free", &[])).await.unwrap()));
    let closed = [("http", "no_request"), ("grpc", "no_request"), ("grpc", "idle")].map(|(listener, reason)| {
        format!(r#"tollgate_connections_closed_total{{listener="{listener}",reason="{reason}"}}"#)
    });
    ops.until_counted(&closed.each_ref().map(String::as_str)).await;
}

#[tokio::test]
async fn headers_over_the_limit_are_refused() {
    let (_folder, node) = node(&[]);
    let large = node.rest.request(Method::GET, "/api_keys/rate_limits").bearer_auth("k".repeat(20_000));
    assert_eq!(large.send().await.unwrap().status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    let many = (0..200).fold(node.rest.request(Method::GET, "/api_keys/rate_limits"), |request, n| {
        request.header(format!("x-{n}"), "1")
    });
    assert_eq!(many.send().await.unwrap().status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    assert_eq!(node.rest.text("/openapi.json").await.0, StatusCode::OK);
}
