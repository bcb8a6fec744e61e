//! What a node logs in the middle of a call.

use std::time::Duration;

use reqwest::{Method, header};
use serde_json::{Value, json};
use tollgate_proto::v1::ConsumeRequest;

use crate::harness::{KEY, ProcessBuilder, account, call, folder_with, hash_of, shop, until};

const ADMIN: &str = "tgt_integration-token-of-the-administrators-31";

/// The trace id of each way, and the header with it.
fn trace(number: u8) -> (String, String) {
    let id = format!("{number:032x}");
    let header = format!("00-{id}-00f067aa0ba902b7-01");
    (id, header)
}

/// Whoever follows a call by its trace finds what the node said of it, whichever way it came.
///
/// Tried by breaking the server: REST, or gRPC, that takes no notice of the header.
#[tokio::test]
async fn what_is_logged_in_a_call_carries_its_trace() {
    // A shadow that refuses is logged, once in a while for each domain: so each way has a node of its own.
    let (folder, policy) = folder_with(&shop(0).replace("domain: shop\n", "domain: shop\nshadow: true\n"));
    let tokens = folder.path().join("admins.yaml");
    std::fs::write(&tokens, format!("tokens: [{{ name: root, hash: '{}', domains: all }}]\n", hash_of(ADMIN))).unwrap();
    for (number, way) in ["grpc", "/v1/consume", "/admin/v1/accounts"].into_iter().enumerate() {
        let node = ProcessBuilder::new(&policy).arg("--log-format=json").arg("--admin-tokens").arg(&tokens).start();
        let (id, traceparent) = trace(u8::try_from(number).unwrap() + 1);
        let says = match way {
            "grpc" => {
                let mut request = tonic::Request::new(ConsumeRequest { call: Some(call(account("a"), "model", &[])) });
                request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
                node.grpc.clone().consume(request).await.unwrap();
                "a shadow would have refused a call"
            }
            path => {
                let (body, says) = if path == "/v1/consume" {
                    let call = json!({ "caller": { "api_key": KEY }, "resource": "model" });
                    (call, "a shadow would have refused a call")
                } else {
                    (json!({ "id": "new" }), "account created")
                };
                let request = node.rest.request(Method::POST, path).header(header::CONTENT_TYPE, "application/json");
                let request = request.bearer_auth(ADMIN).header("traceparent", traceparent).body(body.to_string());
                let answer = request.send().await.unwrap();
                assert!(answer.status().is_success(), "{way}: {}", answer.text().await.unwrap());
                says
            }
        };
        let line = until(&format!("{way}: {says:?} is logged"), Duration::from_secs(10), async || {
            let stderr = node.stderr();
            let mut lines = stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.find(|line| line["message"] == says)
        })
        .await;
        assert_eq!(line["span"]["trace_id"], id, "{way}: {line}");
    }
}
