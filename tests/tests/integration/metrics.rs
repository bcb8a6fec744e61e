//! Metrics and logs: what they must contain, and what they must never contain.
//!
//! Seen to fail: with a series per resource or unknown path of a call, with buckets from 70 µs on or for decisions
//! only, with a constant number of connections, with calls that stay in flight, with failed reloads counted as
//! successful, and with milliseconds in place of seconds.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use tollgate_api::v1::Call;
use tollgate_store::testing::RedisServer;

use crate::harness::{
    KEY, ProcessBuilder, account, allowed, api_key, call, consume, folder_with, memory_node, peek, shop, until,
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
    consume(&node.grpc, call(account("a"), "model", &[("bananas", 1)])).await.unwrap_err();
    assert!(!allowed(&consume(&node.grpc, call(account("a"), "no-such-model", &[])).await.unwrap()));
    consume(&node.grpc, call(api_key("sk-nobody"), "model", &[])).await.unwrap();
    peek(&node.grpc, call(account("a"), "model", &[])).await.unwrap();
    // A read of the store.
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

/// The buckets of a histogram (upper bound in seconds, cumulative count), its sum and its count.
fn histogram(metrics: &str, name: &str, labels: &str) -> (Vec<(f64, f64)>, f64, f64) {
    let comma = if labels.is_empty() { "" } else { "," };
    let bucket = format!("{name}_bucket{{{labels}{comma}le=\"");
    let number = |text: &str| text.parse::<f64>().unwrap();
    let buckets = metrics.lines().filter_map(|line| line.strip_prefix(&bucket)?.split_once("\"} "));
    let buckets = buckets.map(|(bound, count)| (number(bound), number(count))).collect();
    let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    let beside = |what| value(metrics, &format!("{name}_{what}{labels}")).unwrap();
    (buckets, beside("sum"), beside("count"))
}

/// The metrics of a node on Redis exist before the first event, and change with events.
#[tokio::test]
async fn redis_latency_and_the_policy_are_measured() {
    let mut redis = RedisServer::start();
    let (_folder, policy) = folder_with(&shop(100));
    let node = ProcessBuilder::new(&policy).redis(&redis.url()).arg("--redis-connections=3").start();
    let scrape = async || node.rest.text("/metrics").await.1;
    let is = |metrics: &str, series: &str, expected: f64| {
        let found = value(metrics, series).unwrap_or_else(|| panic!("no {series} in\n{metrics}"));
        assert!((found - expected).abs() < f64::EPSILON, "{series} is {found}, not {expected}");
    };
    let error = |kind: &str| format!("tollgate_store_errors_total{{store=\"redis\",error=\"{kind}\"}}");
    let reloads = |result: &str| format!("tollgate_policy_reloads_total{{result=\"{result}\"}}");
    let (in_flight, generation) =
        ("tollgate_store_in_flight{store=\"redis\"}", "tollgate_policy_generation{domain=\"shop\"}");

    let started = Instant::now();
    for _ in 0..20 {
        assert!(allowed(&consume(&node.grpc, call(account("acme"), "model", &[])).await.unwrap()));
    }
    let took = started.elapsed();
    let connected = async |number: f64| {
        until(&format!("{number} connections"), Duration::from_secs(10), async || {
            let metrics = scrape().await;
            value(&metrics, "tollgate_store_connections").filter(|up| (up - number).abs() < 0.5).map(|_| metrics)
        })
        .await
    };
    let metrics = connected(3.0).await;
    for kind in ["unreachable", "indeterminate", "overloaded", "counter_cap_reached", "refused"] {
        is(&metrics, &error(kind), 0.0);
    }
    for (series, expected) in [
        ("tollgate_store_connections", 3.0),
        ("tollgate_store_servers", 1.0),
        ("tollgate_store_breakers_open", 0.0),
        ("tollgate_failure_replay_waiting", 0.0),
        ("tollgate_refusal_log_waiting", 0.0),
        (in_flight, 0.0),
        (generation, 1.0),
        (&reloads("success"), 0.0),
        (&reloads("failure"), 0.0),
    ] {
        is(&metrics, series, expected);
    }
    let bounds = |buckets: &[(f64, f64)]| buckets.iter().map(|(bound, _)| *bound).collect::<Vec<_>>();
    let (decisions, whole, decided) = histogram(&metrics, "tollgate_decision_duration_seconds", "");
    let (calls, in_store, asked) = histogram(&metrics, "tollgate_store_duration_seconds", "store=\"redis\"");
    assert_eq!(bounds(&decisions), bounds(&calls), "they can be compared");
    assert!(bounds(&calls).is_sorted_by(|one, next| one < next), "{calls:?}");
    assert_eq!((calls[0].0, calls.last().unwrap().0), (50e-6, f64::INFINITY));
    assert!(calls.iter().filter(|(bound, _)| (50e-6..0.01).contains(bound)).count() > 6, "{calls:?}");
    for (buckets, count) in [(&decisions, decided), (&calls, asked)] {
        assert!(buckets.is_sorted_by_key(|(_, so_far)| *so_far), "{buckets:?}");
        assert_eq!((buckets.last().unwrap().1, count), (20.0, 20.0), "one for each call: {buckets:?}");
    }
    assert!(0.0 < in_store && in_store < whole && whole < took.as_secs_f64(), "{in_store} s of {whole} s of {took:?}");

    let fingerprint = |metrics: &str| value(metrics, "tollgate_policy_fingerprint{domain=\"shop\"}").unwrap();
    let first = fingerprint(&metrics);
    std::fs::write(&policy, "nothing of the kind").unwrap();
    node.signal("HUP");
    until("the bad file is counted", Duration::from_secs(10), async || {
        value(&scrape().await, &reloads("failure")).filter(|count| *count > 0.0)
    })
    .await;
    let metrics = scrape().await;
    is(&metrics, generation, 1.0);
    is(&metrics, "tollgate_policy_fingerprint{domain=\"shop\"}", first);
    std::fs::write(&policy, shop(99)).unwrap();
    node.signal("HUP");
    until("the good file is counted", Duration::from_secs(10), async || {
        value(&scrape().await, generation).filter(|version| *version > 1.0)
    })
    .await;
    let metrics = scrape().await;
    assert!(value(&metrics, &reloads("success")).is_some_and(|count| count > 0.0));
    assert!((fingerprint(&metrics) - first).abs() > 0.5, "another policy");
    redis.kill();
    // The account is in the policy file, so that only the decision uses Redis.
    for _ in 0..5 {
        consume(&node.grpc, call(account("acme"), "model", &[])).await.unwrap_err();
    }
    let metrics = scrape().await;
    let errors = ["unreachable", "indeterminate"].map(|kind| value(&metrics, &error(kind)).unwrap());
    assert!((errors.iter().sum::<f64>() - 5.0).abs() < f64::EPSILON, "one for each call not decided: {metrics}");
    is(&metrics, in_flight, 0.0);
    connected(0.0).await;
}

fn series(metrics: &str) -> HashSet<String> {
    let lines = metrics.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.rsplit_once(' ')).map(|(series, _)| series.to_owned()).collect()
}

/// No input of a caller creates a series or appears in one.
#[tokio::test]
async fn no_label_comes_from_a_caller() {
    let node = memory_node(&shop(3)).await;
    // Histograms appear with the first call.
    consume(&node.grpc, call(account("acme"), "model", &[])).await.unwrap();
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
            Call { domain: weird.clone(), ..call(account("acme"), "model", &[]) },
        ] {
            let _ = consume(&node.grpc, call).await;
        }
        let body = serde_json::json!({ "caller": { "account": weird }, "resource": format!("prompt/{weird}") });
        assert_eq!(node.rest.post("/v1/consume", body.to_string()).await.0.as_u16(), 200);
        assert_eq!(node.rest.text(&format!("/{weird}")).await.0.as_u16(), 404);
    }
    let (_, after) = node.rest.text("/metrics").await;
    assert!(!after.contains("weird"), "{after}");
    let (before, after) = (series(&before), series(&after));
    let new: Vec<&String> = after.difference(&before).collect();
    assert!(new.is_empty(), "{new:?}");
}

/// With the most verbose log, through every API.
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
