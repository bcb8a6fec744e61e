//! Load balancers that send the PROXY protocol.

use std::{net::Ipv4Addr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::harness::{Process, ProcessBuilder, connect_from, folder_with, hash_of, shop};

const BALANCER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
const TOKEN: &str = "tgt_integration-token-of-the-shop-0123456789";

fn node() -> (tempfile::TempDir, Process) {
    let (folder, policy) = folder_with(&shop(100));
    let services = folder.path().join("services.yaml");
    std::fs::write(&services, format!("tokens: [{{ name: shop, hash: '{}', domains: all }}]", hash_of(TOKEN))).unwrap();
    let builder = ProcessBuilder::new(&policy).arg("--proxy-protocol").arg("--trusted-proxies=127.0.0.9");
    let builder = builder.arg("--header-timeout-ms=2000").arg("--max-login-failures=3");
    let node = builder.arg("--service-tokens").arg(&services).start();
    (folder, node)
}

/// The node's response to these bytes; empty if it closes the connection.
async fn response_to(from: Ipv4Addr, to: &str, bytes: &[u8]) -> String {
    let mut stream = connect_from(from, to).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut response_to = Vec::new();
    let read = timeout(Duration::from_secs(15), stream.read_to_end(&mut response_to)).await;
    let _ = read.expect("the node should have closed the connection");
    String::from_utf8_lossy(&response_to).into_owned()
}

fn request(token: &str) -> String {
    format!(
        "POST /v1/check HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}"
    )
}

/// Seen to fail with the balancer's own address counted, and with a header accepted from any peer.
#[tokio::test]
async fn the_client_named_by_the_load_balancer_is_counted() {
    let (_folder, node) = node();
    let of = async |client: &str, token: &str| {
        let header = format!("PROXY TCP4 {client} 10.0.0.1 4711 443\r\n");
        let response_to =
            response_to(BALANCER, &node.http_address, &[header.as_bytes(), request(token).as_bytes()].concat()).await;
        response_to.lines().next().unwrap_or_default().to_owned()
    };
    for _ in 0..5 {
        of("203.0.113.7", "wrong").await;
    }
    let blocked = of("203.0.113.7", "wrong").await;
    assert!(blocked.contains(" 429 "), "{blocked}");
    let other = of("203.0.113.8", "wrong").await;
    assert!(other.contains(" 401 "), "{other}");
    // The token is valid, the body is not.
    let good = of("203.0.113.8", TOKEN).await;
    assert!(good.contains(" 400 "), "{good}");
}

#[tokio::test]
async fn the_proxy_header_is_required_from_trusted_balancers_and_refused_from_others() {
    let (_folder, node) = node();
    let get = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let header = b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 443\r\n";
    let ok = response_to(Ipv4Addr::LOCALHOST, &node.http_address, get).await;
    assert!(ok.starts_with("HTTP/1.1 200 "), "{ok}");
    let no_request = response_to(Ipv4Addr::LOCALHOST, &node.http_address, &[&header[..], get].concat()).await;
    // The response may be lost, as the node closes the connection with data unread.
    assert!(no_request.is_empty() || no_request.starts_with("HTTP/1.1 400 "), "{no_request}");
    assert_eq!(response_to(BALANCER, &node.http_address, get).await, "");
    let proxied = response_to(BALANCER, &node.http_address, &[&header[..], get].concat()).await;
    assert!(proxied.starts_with("HTTP/1.1 200 "), "{proxied}");
    // A header that never comes ends the connection too.
    assert_eq!(response_to(BALANCER, &node.http_address, b"PROXY TCP4 ").await, "");
    let closed = r#"tollgate_connections_closed_total{listener="http",reason="proxy_header"} 2"#;
    node.rest.until_counted(&[closed]).await;
}
