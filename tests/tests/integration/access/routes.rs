//! Every route, called without the authentication that it needs.

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tollgate_server::settings::Options;

use crate::harness::{KEY, Node, folder_with, hash_of, memory_node_with, shop};

/// The routes without authentication. A new one must be added here by hand.
const OPEN: [&str; 4] = ["/healthz", "/metrics", "/openapi.json", "/readyz"];
const SERVICE: &str = "tgt_integration-token-of-the-shop-0123456789";
const ADMIN: &str = "tgt_integration-token-of-the-administrators-31";

async fn node() -> (tempfile::TempDir, Node) {
    let (folder, _) = folder_with("");
    let file = |name: &str, token: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("tokens: [{{ name: a, hash: '{}', domains: all }}]", hash_of(token))).unwrap();
        Some(path)
    };
    let options = Options {
        service_tokens: file("services.yaml", SERVICE),
        admin_tokens: file("admins.yaml", ADMIN),
        ..Options::default()
    };
    let node = memory_node_with(options, &shop(100)).await;
    (folder, node)
}

/// Every method of every route with its parameters filled in, and some unknown paths.
async fn routes(node: &Node) -> Vec<(Method, String, Value)> {
    let (_, description) = node.rest.json("/openapi.json").await;
    let mut routes = Vec::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let path = path.split('/').map(|part| if part.starts_with('{') { "acme" } else { part });
            routes.push((method, path.collect::<Vec<_>>().join("/"), operation.clone()));
        }
    }
    assert!(routes.len() >= 8, "{routes:?}");
    for path in ["/", "/v1", "/v1/", "/admin/v1", "/admin/v1/nothing", "/nothing", "//v1/consume", "/metrics/x"] {
        routes.push((Method::GET, path.to_owned(), Value::Null));
    }
    routes.push((Method::GET, "/openapi.json".to_owned(), Value::Null));
    routes
}

async fn status(node: &Node, method: &Method, path: &str, authorization: Option<&[u8]>) -> StatusCode {
    let mut request = node.rest.request(method.clone(), path).header("content-type", "application/json");
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    // A body that would be valid with authentication.
    request.body(r#"{"caller":{"account":"a"},"resource":"free"}"#).send().await.unwrap().status()
}

#[tokio::test]
async fn every_route_without_authentication_is_listed() {
    let (_folder, node) = node().await;
    for (method, path, operation) in routes(&node).await {
        let open = OPEN.contains(&path.as_str());
        assert_eq!(open || operation.is_null(), operation["security"].is_null(), "{path}: described as it is");
        let service = format!("Bearer {SERVICE}").into_bytes();
        let admin = format!("Bearer {ADMIN}").into_bytes();
        let key = format!("Bearer {KEY}").into_bytes();
        let tried: &[Option<&[u8]>] = match () {
            () if path.starts_with("/v1/") => &[None, Some(&admin), Some(&key)],
            () if path.starts_with("/admin/") => &[None, Some(&service), Some(&key)],
            () => &[None, Some(&admin), Some(&service)],
        };
        for shown in tried {
            let status = status(&node, &method, &path, *shown).await;
            if open {
                assert_eq!(status, StatusCode::OK, "{method} {path}");
            } else if operation.is_null() {
                assert!(
                    matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED),
                    "{method} {path}: {status}"
                );
            } else {
                assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path} with {shown:?}");
            }
        }
    }
}

/// With open loopback, services need no token, and administrators still do.
#[tokio::test]
async fn open_loopback_gives_no_admin_access() {
    let node = memory_node_with(Options::default(), &shop(100)).await;
    for (method, path, _) in routes(&node).await {
        let anything = format!("Bearer {ADMIN}").into_bytes();
        for shown in [None, Some(&b"Bearer "[..]), Some(&anything)] {
            let status = status(&node, &method, &path, shown).await;
            if path.starts_with("/admin/v1/") && path != "/admin/v1/nothing" {
                assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path}");
            } else if path == "/v1/consume" {
                assert_eq!(status, StatusCode::OK, "{method} {path}");
            }
        }
    }
}

/// Any `authorization` header gets a client error, never a server error.
#[test]
fn no_authorization_header_breaks_the_node() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_folder, node) = runtime.block_on(node());
    let routes = runtime.block_on(routes(&node));
    // A header may contain any byte but control characters other than tab.
    let byte = any::<u8>().prop_map(|byte| if (byte < 32 && byte != 9) || byte == 127 { b'x' } else { byte });
    let noise = prop::collection::vec(byte, 0..600);
    let near = prop_oneof![
        Just(SERVICE.as_bytes().to_vec()),
        Just(ADMIN.as_bytes().to_vec()),
        Just(KEY.as_bytes().to_vec()),
        noise.clone()
    ];
    let scheme =
        prop_oneof![Just("Bearer "), Just("bearer  "), Just("Bearer"), Just("Basic "), Just("BEARER\t"), Just("")];
    let value = (scheme, near, prop_oneof![4 => Just(Vec::new()), 1 => noise])
        .prop_map(|(scheme, token, more)| [scheme.as_bytes(), &token, &more].concat());
    let mut runner = TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&value, |value| {
        runtime.block_on(async {
            for (method, path, _) in &routes {
                let status = status(&node, method, path, Some(&value)).await;
                prop_assert!(!status.is_server_error(), "{} {}: {}", method, path, status);
            }
            let mut request = tonic::Request::new(tollgate_api::v1::ConsumeRequest {
                call: Some(crate::harness::call(crate::harness::account("a"), "free", &[])),
            });
            if let Ok(text) = std::str::from_utf8(&value)
                && let Ok(metadata) = text.parse()
            {
                request.metadata_mut().insert("authorization", metadata);
            }
            if let Err(refused) = node.grpc.clone().consume(request).await {
                prop_assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{}", refused);
            }
            Ok(())
        })
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}
