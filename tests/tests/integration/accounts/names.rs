//! Names in paths of the admin API.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{ADMIN, Client, Deployment};
use crate::harness::Process;

/// The answer to a request with an unmodified path; HTTP clients would normalize it.
async fn raw(node: &Process, method: &str, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(&node.http_address).await.unwrap();
    let request = format!(
        "{method} /admin/v1{path}?domain=shop HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {ADMIN}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(Duration::from_secs(20), stream.read_to_string(&mut answer)).await.expect("an answer").unwrap();
    answer
}

#[tokio::test]
async fn names_that_a_url_cannot_hold_are_refused() {
    let deployment = Deployment::new();
    let node = deployment.process().start();
    let admin = Client::new(&node);
    admin.create("acme", "basic").await;
    let wrong = r#"cannot be "." or "..", because no URL can contain these"#;
    for dots in [".", ".."] {
        let (status, answer) = admin.send(Method::POST, "/accounts", Some(json!({"id": dots}))).await;
        assert_eq!((status, &answer["error"]["message"]), (StatusCode::BAD_REQUEST, &json!(format!("id: {wrong}"))));
    }
    // A payment creates a missing account.
    let payment = r#"{"id":"p","type":"payment"}"#;
    let limit = r#"{"resource":"model","unit":"requests","per":"hour","limit":1}"#;
    for dots in ["%2e", "%2E%2e"] {
        for (method, path, body, field) in [
            ("POST", format!("/accounts/{dots}/events"), payment, "account"),
            ("PUT", format!("/accounts/acme/overrides/{dots}"), limit, "override"),
        ] {
            let answer = raw(&node, method, &path, body).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{path}: {answer}");
            let output = json!(format!("{field}: {wrong}")).to_string();
            assert!(answer.contains(&output), "{path}: {answer}");
        }
    }
    // Dots are allowed next to other characters.
    for id in ["...", ".a", "a.b.."] {
        admin.create(id, "basic").await;
        assert_eq!(admin.send_ok(Method::GET, &format!("/accounts/{id}"), None).await["id"], id);
    }
    let listed = admin.send_ok(Method::GET, "/accounts", None).await;
    assert_eq!(listed["accounts"].as_array().unwrap().len(), 4, "{listed}");
    let over = json!({"resource": "model", "unit": "requests", "per": "hour", "limit": 1});
    admin.send_ok(Method::PUT, "/accounts/acme/overrides/a..b", Some(over)).await;
}
