//! Metrics and logs: what they say, and what they must never say.
//!
//! Tried by breaking the server: a series named by the call's resource, and buckets from 70 µs.

use std::collections::HashSet;

use tollgate_proto::v1::Call;

use crate::harness::{
    KEY, ProcessBuilder, account, allowed, api_key, call, consume, folder_with, memory_node, peek, shop,
};

fn value(metrics: &str, series: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test]
async fn decisions_are_counted_by_domain_tier_class_verdict_and_quota() {
    let node = memory_node(&shop(3)).await;
    for number in 0..5 {
        assert_eq!(allowed(&consume(&node.grpc, call(account("a"), "model", &[])).await.unwrap()), number < 3);
    }
    consume(&node.grpc, call(account("b"), "model", &[("tokens", 20_001)])).await.unwrap();
    consume(&node.grpc, call(account("a"), "free", &[])).await.unwrap();
    consume(&node.grpc, call(account("a"), "no-such-model", &[])).await.unwrap_err();
    consume(&node.grpc, call(api_key("sk-nobody"), "model", &[])).await.unwrap();
    peek(&node.grpc, call(account("a"), "model", &[])).await.unwrap();
    // It looks at the store.
    assert_eq!(node.rest.text("/readyz").await.0.as_u16(), 200);
    let (_, metrics) = node.rest.text("/metrics").await;
    let decisions = |class: &str, verdict: &str, quota: &str| {
        let labels = format!("domain=\"shop\",tier=\"paid\",class=\"{class}\",verdict=\"{verdict}\",quota=\"{quota}\"");
        let series = format!("tollgate_decisions_total{{{labels}}}");
        value(&metrics, &series).unwrap_or_else(|| panic!("no {series} in\n{metrics}"))
    };
    for (class, verdict, quota, count) in [
        ("text", "allowed", "", 3.0),
        ("text", "denied", "requests_per_minute", 2.0),
        ("text", "denied", "tokens_per_minute", 1.0),
        ("", "allowed", "", 1.0),
        ("tiny", "allowed", "", 0.0),
    ] {
        let counted = decisions(class, verdict, quota);
        assert!((counted - count).abs() < f64::EPSILON, "{class} {verdict} {quota}: {counted}");
    }
    for (series, at_least) in [
        ("tollgate_bad_requests_total", 1.0),
        ("tollgate_key_refusals_total{reason=\"unknown\"}", 1.0),
        ("tollgate_store_up{store=\"memory\"}", 1.0),
        ("tollgate_policy_generation{domain=\"shop\"}", 1.0),
        ("tollgate_build_info{version=\"0.1.0\"}", 1.0),
        ("tollgate_decision_duration_seconds_count", 8.0),
        ("tollgate_store_duration_seconds_count{store=\"memory\"}", 7.0),
    ] {
        let found = value(&metrics, series).unwrap_or_else(|| panic!("no {series} in\n{metrics}"));
        assert!(found >= at_least, "{series} is {found}");
    }
    for series in ["tollgate_decision_duration_seconds_bucket{", "tollgate_store_duration_seconds_bucket{"] {
        let first = metrics.lines().find(|line| line.starts_with(series)).unwrap();
        assert!(
            first.contains("le=\"0.00005\"") || first.contains("le=\"5e-5\"") || first.contains("le=\"5e-05\""),
            "{first}"
        );
    }
    for line in metrics.lines().filter(|line| line.starts_with("# TYPE ")) {
        let name = line.split(' ').nth(2).unwrap();
        assert!(metrics.contains(&format!("# HELP {name} ")), "{name} has no help");
    }
}

fn series(metrics: &str) -> HashSet<String> {
    let lines = metrics.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.rsplit_once(' ')).map(|(series, _)| series.to_owned()).collect()
}

/// Whatever callers send, no series comes to be, and no name of theirs is in one.
#[tokio::test]
async fn no_label_comes_from_a_caller() {
    let node = memory_node(&shop(3)).await;
    // Histograms come to be with the first call.
    consume(&node.grpc, call(account("a"), "model", &[])).await.unwrap();
    let (_, before) = node.rest.text("/metrics").await;
    for number in 0..50 {
        let weird = format!("weird-{number}");
        let with = |call: Call| Call { attributes: [(weird.clone(), weird.clone())].into(), ..call };
        for call in [
            with(call(account(weird.clone()), "model", &[])),
            with(call(account(weird.clone()), &format!("prompt/{weird}"), &[])),
            with(call(account(weird.clone()), &weird, &[])),
            with(call(api_key(weird.clone()), "model", &[])),
            with(call(account("a"), "model", &[(&weird, 1)])),
            Call { domain: weird.clone(), ..call(account("a"), "model", &[]) },
        ] {
            let _ = consume(&node.grpc, call).await;
        }
    }
    let (_, after) = node.rest.text("/metrics").await;
    assert!(!after.contains("weird"), "{after}");
    let (before, after) = (series(&before), series(&after));
    let new: Vec<&String> = after.difference(&before).collect();
    assert!(new.is_empty(), "{new:?}");
}

/// At the most talkative, over every way in.
#[tokio::test]
async fn no_secret_is_logged_or_measured() {
    let (_folder, policy) = folder_with(&shop(2));
    let password = "hunter2-hunter2";
    let redis = tollgate_store::testing::RedisServer::start();
    let _: () =
        redis::cmd("CONFIG").arg("SET").arg("requirepass").arg(password).query(&mut redis.connection()).unwrap();
    let url = redis.url().replace("redis://", &format!("redis://:{password}@"));
    let node = ProcessBuilder::new(&policy).redis(&url).arg("--log-filter=trace").start();
    let secrets = [KEY, "sk-integration-revoked", "sk-nobody-has-this-one"];
    for secret in secrets {
        for _ in 0..3 {
            consume(&node.grpc, call(api_key(secret), "model", &[])).await.unwrap();
        }
        consume(&node.grpc, call(api_key(secret), "no-such-model", &[])).await.ok();
        let body = serde_json::json!({ "caller": { "api_key": secret }, "resource": "model" });
        node.rest.post("/v1/consume", body.to_string()).await;
        node.rest.post("/v1/consume", body.to_string().replace("resource", "colour")).await;
        let request = node.rest.request(reqwest::Method::GET, "/api_keys/rate_limits").bearer_auth(secret);
        request.send().await.unwrap();
    }
    node.signal("HUP");
    let (_, metrics) = node.rest.text("/metrics").await;
    let log = node.stderr();
    assert!(log.contains("DEBUG") || log.contains("TRACE"), "nothing was logged: {log}");
    for secret in secrets.into_iter().chain([password]) {
        assert!(!metrics.contains(secret), "{secret} is in the metrics");
        let line = log.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{secret} is in the log: {line:?}");
    }
}
