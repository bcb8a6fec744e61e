//! Invalid numbers in JSON bodies, for every number field of the API description.
//!
//! Seen to fail with a field of a plain integer type, whose error names `u32`, and with errors without the field's
//! path.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_server::settings::Options;

use crate::harness::{Node, folder_with, hash_of, memory_node_with, shop};

const ADMIN: &str = "tgt_integration-token-of-the-administrators-31";

/// Collects the paths of number fields, such as `call.usage.*`.
fn numbers_of(schema: &Value, all: &Value, path: &str, found: &mut BTreeSet<String>) {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return numbers_of(&all[name], all, path, found);
    }
    let kinds = schema["type"].as_array().cloned().unwrap_or_else(|| vec![schema["type"].clone()]);
    if kinds.iter().any(|kind| kind == "integer" || kind == "number") {
        found.insert(path.trim_start_matches('.').to_owned());
    }
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        numbers_of(inner, all, &format!("{path}.{name}"), found);
    }
    for of_each in ["additionalProperties", "items"] {
        if schema[of_each].is_object() {
            numbers_of(&schema[of_each], all, &format!("{path}.*"), found);
        }
    }
    for of_some in ["oneOf", "anyOf", "allOf"] {
        schema[of_some].as_array().into_iter().flatten().for_each(|inner| numbers_of(inner, all, path, found));
    }
}

/// A valid body with `null` in place of a number: the field in the description, and its name in errors.
struct Case {
    method: Method,
    path: &'static str,
    body: Value,
    described: &'static str,
    named: &'static str,
}

fn cases() -> Vec<Case> {
    let call = |change: Value| {
        let mut call = json!({"caller": {"account": "a"}, "resource": "model"});
        call.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        call
    };
    let of_call = [
        (json!({"usage": {"tokens": null}}), "usage.*", "usage.tokens"),
        (json!({"upload": {"media_type": "image", "bytes": null}}), "upload.bytes", "upload.bytes"),
        (
            json!({"upload": {"media_type": "audio", "duration_seconds": null}}),
            "upload.duration_seconds",
            "upload.duration_seconds",
        ),
    ];
    let mut cases = Vec::new();
    let mut case = |method: Method, path, body, described: String, named: String| {
        let (described, named) = (described.leak(), named.leak());
        cases.push(Case { method, path, body, described, named });
    };
    for (change, described, named) in of_call {
        for path in ["/v1/check", "/v1/consume"] {
            case(Method::POST, path, call(change.clone()), described.to_owned(), named.to_owned());
        }
        let batch = json!({"calls": [call(change.clone())]});
        case(Method::POST, "/v1/consume_batch", batch, format!("calls.*.{described}"), format!("call: {named}"));
        let reserve = json!({"call": call(change)});
        case(Method::POST, "/v1/reserve", reserve, format!("call.{described}"), format!("call.{named}"));
    }
    for (path, body, described, named) in [
        ("/v1/reserve", json!({"call": call(json!({})), "inputs": {"n": null}}), "inputs.*", "inputs.n"),
        ("/v1/reserve", json!({"call": call(json!({})), "ttl_ms": null}), "ttl_ms", "ttl_ms"),
        ("/v1/extend", json!({"reservation_id": "rs_x", "ttl_ms": null}), "ttl_ms", "ttl_ms"),
        ("/v1/settle", json!({"reservation_id": "rs_x", "usage": {"tokens": null}}), "usage.*", "usage.tokens"),
        ("/v1/settle", json!({"reservation_id": "rs_x", "status": null}), "status", "status"),
        ("/v1/cancel", json!({"reservation_id": "rs_x", "status": null}), "status", "status"),
        ("/v1/report_outcome", call(json!({"status": null})), "status", "status"),
        ("/v1/get_rate_limits", json!({"caller": {"account": "a"}, "page_size": null}), "page_size", "page_size"),
        ("/admin/v1/accounts", json!({"id": "a", "balances": {"USD": null}}), "balances.*", "balances.USD"),
        ("/admin/v1/keys/{key}/rotate", json!({"overlap_s": null}), "overlap_s", "overlap_s"),
    ] {
        case(Method::POST, path, body, described.to_owned(), named.to_owned());
    }
    let balances = json!({"balances": {"USD": null}});
    let path = "/admin/v1/accounts/{account}";
    case(Method::PATCH, path, balances, "balances.*".to_owned(), "balances.USD".to_owned());
    cases
}

async fn send(node: &Node, method: &Method, path: &str, body: String) -> (StatusCode, Value) {
    let path = path.replace("{account}", "acme").replace("{key}", "acme-good").replace("{name}", "own");
    let request = node.rest.request(method.clone(), &path).header("content-type", "application/json");
    let answer = request.bearer_auth(ADMIN).body(body).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

async fn node() -> (tempfile::TempDir, Node) {
    let (folder, _) = folder_with("");
    let tokens = folder.path().join("admins.yaml");
    std::fs::write(&tokens, format!("tokens: [{{ name: root, hash: '{}', domains: all }}]", hash_of(ADMIN))).unwrap();
    let options = Options { admin_tokens: Some(tokens), ..Options::default() };
    let node = memory_node_with(options, &shop(100)).await;
    (folder, node)
}

#[tokio::test]
async fn the_error_for_an_invalid_number_names_the_valid_range() {
    let (_folder, node) = node().await;
    let cases = cases();
    let (_, description) = node.rest.json("/openapi.json").await;
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            let mut found = BTreeSet::new();
            numbers_of(schema, &description["components"]["schemas"], "", &mut found);
            let method: Method = method.to_uppercase().parse().unwrap();
            let known = cases.iter().filter(|case| case.method == method && case.path == path);
            let known: BTreeSet<String> = known.map(|case| case.described.to_owned()).collect();
            assert_eq!(found, known, "{method} {path}: a new number wants a case");
        }
    }
    for Case { method, path, body, named, .. } in &cases {
        let whole = !named.starts_with("balances");
        for value in [
            "1e3",
            "1000.0",
            "1.5",
            "-1",
            "18446744073709551616",
            "1e400",
            "\"1000\"",
            "\"1e3\"",
            "\"\"",
            "true",
            "[]",
            "{}",
        ] {
            if !whole && !matches!(value.as_bytes()[0], b'"' | b't' | b'[' | b'{') && value != "1e400" {
                continue;
            }
            let body = body.to_string().replace("null", value);
            let (status, answer) = send(&node, method, path, body.clone()).await;
            let error = if *path == "/v1/consume_batch" && status == StatusCode::OK {
                &answer["results"][0]["error"]
            } else {
                assert_eq!(status, StatusCode::BAD_REQUEST, "{method} {path} {body}: {answer}");
                &answer["error"]
            };
            let message = error["message"].as_str().unwrap_or_else(|| panic!("{method} {path} {body}: {answer}"));
            // Invalid JSON makes the whole batch fail.
            let spoils = *path == "/v1/consume_batch" && value == "1e400";
            assert!(spoils || message.starts_with(&format!("{named}: ")), "{method} {path} {body}: {message}");
            let right = if whole { "a whole number from 0 to " } else { "a number, such as 12.5" };
            assert!(value == "1e400" || message.contains(right), "{method} {path} {body}: {message}");
            for word in ["u64", "u32", "f64", "untagged", "struct"] {
                assert!(!message.contains(word), "{method} {path} {body}: {message}");
            }
        }
    }
}

/// The limit of an override has the format of policy files.
#[tokio::test]
async fn an_override_limit_must_be_a_whole_number() {
    let (_folder, node) = node().await;
    let (status, made) = send(&node, &Method::POST, "/admin/v1/accounts", r#"{"id": "stored"}"#.to_owned()).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    for value in ["1e3", "1000.0", "1.5", "-1", "\"1000\"", "9007199254740992", "18446744073709551616", "true", "[]"] {
        let body = format!(r#"{{"unit": "requests", "per": "minute", "limit": {value}}}"#);
        let (status, answer) = send(&node, &Method::PUT, "/admin/v1/accounts/stored/overrides/own", body).await;
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{value}: {answer}");
        assert!(message.starts_with("limit: ") && message.contains("be"), "{value}: {message}");
        assert!(!message.contains("untagged"), "{value}: {message}");
    }
}
