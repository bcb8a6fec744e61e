//! The description of the REST API is unchanged, and complete.
//!
//! Seen to fail without `deny_unknown_fields` on `CallBody` (another snapshot), and with handler names as operation ids
//! (duplicates).

use std::collections::BTreeMap;

use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::harness::{ProcessBuilder, memory_node, shop};

#[tokio::test]
async fn the_openapi_description_is_unchanged() {
    let node = memory_node(&shop(100)).await;
    let (status, description) = node.rest.json("/openapi.json").await;
    assert_eq!(status, StatusCode::OK);
    insta::assert_json_snapshot!("openapi", description);
    let (_, printed, _) = ProcessBuilder::bare().arg("openapi").output();
    assert_eq!(serde_json::from_str::<Value>(&printed).unwrap(), description, "`tollgate openapi` says something else");
}

/// Client generators name functions by operation ids, so duplicates would be lost.
#[tokio::test]
async fn every_operation_has_a_unique_id() {
    let node = memory_node(&shop(100)).await;
    let (_, description) = node.rest.json("/openapi.json").await;
    let mut operations: BTreeMap<String, String> = BTreeMap::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path} has no id"));
            assert!(
                id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'),
                "{method} {path}: {id}"
            );
            if let Some(other) = operations.insert(id.to_owned(), format!("{method} {path}")) {
                panic!("{method} {path} and {other} share the id {id}");
            }
        }
    }
    // Generated clients use these ids as function names: none may change.
    insta::assert_json_snapshot!("operations", operations);
}

#[tokio::test]
async fn every_described_path_answers_as_described() {
    let node = memory_node(&shop(100)).await;
    let (_, description) = node.rest.json("/openapi.json").await;
    let paths = description["paths"].as_object().unwrap();
    assert!(paths.len() >= 7, "{paths:?}");
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().unwrap() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let answer = node.rest.request(method.clone(), path).send().await.unwrap();
            let status = answer.status();
            assert!(
                status != StatusCode::NOT_FOUND && status != StatusCode::METHOD_NOT_ALLOWED,
                "{method} {path}: {status}"
            );
            assert!(
                operation["responses"].get(status.as_str()).is_some(),
                "{method} {path}: {status} is not described"
            );
        }
    }
}
