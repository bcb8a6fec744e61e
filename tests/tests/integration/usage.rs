//! What calls say that they use: amounts of 0, and units that they leave out.

use serde_json::json;
use tollgate_store::testing::RedisServer;
use tonic::Code;

use crate::harness::{
    Node, ProcessBuilder, account, allowed, call, consume, folder_with, memory_node, peek, quota, redis_node, shop,
};

async fn on_both_stores(policy: &str, test: impl AsyncFn(&Node)) {
    test(&memory_node(policy).await).await;
    let redis = RedisServer::start();
    test(&redis_node(policy, redis.url()).await).await;
}

/// Upstreams report amounts of 0. Seen to fail when 0 was "must be at least 1".
#[tokio::test]
async fn an_amount_of_zero_is_admitted_and_charges_nothing() {
    on_both_stores(&shop(2), async |node| {
        for _ in 0..2 {
            let decision = consume(&node.grpc, call(account("a"), "model", &[("tokens", 0)])).await.unwrap();
            assert!(allowed(&decision));
            assert_eq!(quota(&decision, "tokens_per_minute").used, 0);
        }
        // All that is left costs nothing, and so it fits in full quotas too.
        let nothing = call(account("a"), "model", &[("requests", 0), ("tokens", 0)]);
        assert!(allowed(&consume(&node.grpc, nothing).await.unwrap()));
        assert!(!allowed(&consume(&node.grpc, call(account("a"), "model", &[("tokens", 0)])).await.unwrap()));
        let decision = peek(&node.grpc, call(account("a"), "model", &[])).await.unwrap();
        assert_eq!(quota(&decision, "requests_per_minute").used, 2);
    })
    .await;
}

/// Seen to fail: a call without `tokens` was admitted for ever.
#[tokio::test]
async fn a_call_without_a_required_unit_is_refused_and_one_without_another_unit_is_counted() {
    let policy = shop(100)
        .replace("limit: 20000 }", "limit: 20000, required: true }\n      - { unit: images, per: day, limit: 5 }")
        .replace("[tokens]", "[tokens, images]");
    on_both_stores(&policy, async |node| {
        let error = consume(&node.grpc, call(account("a"), "model", &[])).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        let expected = "usage.tokens: is required by the quota tokens_per_minute; write 0 if the call uses none";
        assert_eq!(error.message(), expected);
        let body = json!({"calls": [
            {"caller": {"account": "a"}, "resource": "model"},
            {"caller": {"account": "a"}, "resource": "model", "usage": {"tokens": 0}},
        ]});
        let (status, batch) = node.rest.post("/v1/consume_batch", body.to_string()).await;
        assert_eq!(status.as_u16(), 200, "{batch}");
        assert!(batch["results"][0]["error"]["message"].as_str().unwrap().starts_with(expected), "{batch}");
        assert_eq!(batch["results"][1]["decision"]["verdict"], "allowed", "{batch}");
        let reserve = json!({"caller": {"account": "a"}, "resource": "model"});
        let (status, answer) = node.rest.post("/v1/reserve", reserve.to_string()).await;
        assert_eq!(status.as_u16(), 400, "{answer}");

        let decision = peek(&node.grpc, call(account("a"), "model", &[])).await.unwrap();
        assert_eq!(quota(&decision, "requests_per_minute").used, 1, "nothing else was charged");
        let left_out = |unit: &str, calls: u64| {
            format!("tollgate_units_left_out_total{{domain=\"shop\",unit=\"{unit}\"}} {calls}")
        };
        node.rest.until_counted(&[&left_out("images", 1), &left_out("tokens", 0)]).await;
    })
    .await;
    let (_folder, file) = folder_with(&policy);
    let explain = ProcessBuilder::bare().args(["explain", "--tier=paid", "--resource=model", "--policy"]);
    let (status, text, _) = explain.arg(&file).output();
    assert!(status.success() && text.contains("(required)"), "{text}");
    assert!(text.contains("a call that names no images is not limited by these quotas"), "{text}");
}
