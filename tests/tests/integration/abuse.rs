//! Abuse protection: callers with too many failures are blocked for the time in the policy, and no others.

mod domains;

use std::collections::BTreeMap;

use serde_json::json;
use tollgate_api::v1::{
    Call, Caller, Decision, GetRateLimitsRequest, Reason, ReportOutcomeRequest, ReportOutcomeResponse, Verdict,
};
use tollgate_store::testing::RedisServer;

use crate::harness::{
    KEY, Node, account, allowed, api_key, api_key_id, call, consume, decided_at_ms, hash_of, memory_node, ms, peek,
    quota, redis_node,
};

const SENTENCE: &str =
    "Too many failed attempts (> 20) resulting in a non-success status code. Please wait 30s and try again.";

/// Venice's own policy.
fn venice() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/policies/venice.yaml")).unwrap()
}

/// A policy with these abuse rules.
fn guarded(abuse: &str) -> String {
    format!(
        "version: 1\ndomain: guarded\nresources:\n  chat: {{ quotas: [{{ unit: requests, per: minute, limit: 5 }}] }}\n  \
         free: {{ quotas: [] }}\ntiers:\n  paid: {{ is_charged: true }}\ndefault_tier: paid\nabuse:\n{abuse}\
         bootstrap:\n  accounts:\n    - id: acme\n      tier: paid\n      keys:\n        \
         - {{ id: good, hash: \"{}\", kind: inference }}\n        \
         - {{ id: gone, hash: \"{}\", kind: inference, revoked: true }}\n",
        hash_of(KEY),
        hash_of("sk-integration-revoked")
    )
}

fn from(ip: &str, call: Call) -> Call {
    Call { attributes: BTreeMap::from([("ip".to_owned(), ip.to_owned())]), ..call }
}

async fn report(node: &Node, caller: Caller, resource: &str, status: u32, ip: Option<&str>) -> ReportOutcomeResponse {
    let attributes = ip.map(|ip| ("ip".to_owned(), ip.to_owned())).into_iter().collect();
    let request = ReportOutcomeRequest {
        caller: Some(caller),
        resource: resource.to_owned(),
        attributes,
        status,
        ..ReportOutcomeRequest::default()
    };
    node.grpc.clone().report_outcome(request).await.unwrap().into_inner()
}

async fn used(node: &Node, account_id: &str, resource: &str) -> u64 {
    quota(&peek(&node.grpc, call(account(account_id), resource, &[])).await.unwrap(), "requests_per_minute").used
}

/// The document: more than 20 failed requests in 30 seconds block further requests for 30 seconds.
async fn check_twenty_failures_then_a_block(node: &Node) {
    let model = "llama-3.3-70b";
    let attempt = || consume(&node.grpc, call(account("acme"), model, &[("tokens", 7)]));
    for failure in 1..=20 {
        assert!(allowed(&attempt().await.unwrap()));
        let status = [400, 404, 429, 500, 503][failure % 5];
        let reported = report(node, account("acme"), model, status, None).await;
        assert_eq!((reported.counted, &reported.blocked_until), (1, &None), "failure {failure}");
        assert_eq!(report(node, account("acme"), model, 200, None).await.counted, 0, "a success is no failure");
        node.clock.advance_ms(1_000);
    }
    assert!(allowed(&attempt().await.unwrap()), "20 failures are borne");
    let crossing = report(node, account("acme"), model, 500, None).await;
    let began = ms(crossing.decided_at.as_ref().unwrap());
    assert_eq!(crossing.blocked_until.as_ref().map(ms), Some(began + 30_000));
    assert_eq!(crossing.block_message, SENTENCE);

    let before = used(node, "acme", model).await;
    for _ in 0..3 {
        node.clock.advance_ms(5_000);
        let refused = attempt().await.unwrap();
        assert_eq!((refused.verdict(), refused.reason()), (Verdict::Denied, Reason::Blocked));
        assert_eq!(refused.blocked_until.as_ref().map(ms), Some(began + 30_000));
        assert_eq!(refused.block_message, SENTENCE);
        assert_eq!(refused.retry_after_ms, Some(began + 30_000 - decided_at_ms(&refused)));
        assert_eq!(refused.quotas.len(), 2, "the quotas are shown all the same");
        assert!(refused.quotas.iter().all(|quota| !quota.denies));
        // Calls in progress at the start of the block neither lengthen it nor count for the next one.
        let late = report(node, account("acme"), model, 500, None).await;
        assert_eq!((late.counted, late.blocked_until.as_ref().map(ms)), (0, Some(began + 30_000)));
    }
    assert_eq!(used(node, "acme", model).await, before, "a blocked call charges nothing");
    assert!(allowed(&consume(&node.grpc, call(account("other"), model, &[])).await.unwrap()), "others go on");
    let listing = GetRateLimitsRequest { caller: Some(account("acme")), page_size: 100, ..Default::default() };
    let listed = node.grpc.clone().get_rate_limits(listing).await.unwrap().into_inner();
    for resource in listed.resources {
        let until = resource.blocked_until.as_ref().map(ms);
        assert_eq!(until, (resource.resource == model).then_some(began + 30_000), "{}", resource.resource);
    }

    node.clock.advance_ms(14_999);
    assert!(!allowed(&attempt().await.unwrap()), "until the last millisecond");
    node.clock.advance_ms(1);
    assert!(allowed(&attempt().await.unwrap()), "and not longer");
    assert_eq!(report(node, account("acme"), model, 500, None).await.blocked_until, None, "one failure is no block");
}

#[tokio::test]
async fn more_than_twenty_failures_block_for_thirty_seconds_in_memory() {
    check_twenty_failures_then_a_block(&memory_node(&venice()).await).await;
}

#[tokio::test]
async fn more_than_twenty_failures_block_for_thirty_seconds_in_redis() {
    let redis = RedisServer::start();
    check_twenty_failures_then_a_block(&redis_node(&venice(), redis.url()).await).await;
}

/// The node counts its own refusals; a backend reports only the failures of its own.
#[tokio::test]
async fn refusals_by_a_quota_are_failures_unless_the_rule_says_otherwise() {
    let rule = "  rules:\n    failed: { limit: 3, per: 30s, block: 30s }\n";
    let node = memory_node(&guarded(rule)).await;
    let attempt = || consume(&node.grpc, call(account("a"), "chat", &[]));
    let mut reasons = Vec::new();
    for _ in 0..11 {
        reasons.push(attempt().await.unwrap().reason());
    }
    let exceeded = |count| std::iter::repeat_n(Reason::QuotaExceeded, count);
    let expected = std::iter::repeat_n(Reason::Unspecified, 5).chain(exceeded(4)).chain([Reason::Blocked; 2]);
    assert_eq!(reasons, expected.collect::<Vec<_>>(), "5 pass, 4 are refused by the quota, the rest is blocked");
    node.clock.advance_ms(30_000);
    assert_eq!(attempt().await.unwrap().reason(), Reason::QuotaExceeded, "blocked answers never count");
    for _ in 0..10 {
        assert_eq!(peek(&node.grpc, call(account("a"), "chat", &[])).await.unwrap().reason(), Reason::QuotaExceeded);
    }
    let above = consume(&node.grpc, call(account("b"), "chat", &[("requests", 6)])).await.unwrap();
    assert_eq!(above.reason(), Reason::CostAboveLimit);

    let rule = "  rules:\n    failed: { limit: 3, per: 30s, block: 30s, count_refusals: false }\n";
    let node = memory_node(&guarded(rule)).await;
    for call_number in 0..20 {
        let decision = consume(&node.grpc, call(account("a"), "chat", &[])).await.unwrap();
        assert_eq!(decision.reason(), if call_number < 5 { Reason::Unspecified } else { Reason::QuotaExceeded });
    }
}

#[tokio::test]
async fn failures_count_against_the_scope_of_the_rule() {
    let node = memory_node(&guarded(
        "  rules:\n    keys: { limit: 1, per: 30s, block: 30s, scope: [api_key], statuses: [400] }\n    \
         addresses: { limit: 1, per: 30s, block: 60s, scope: [ip], statuses: [5xx] }\n",
    ))
    .await;
    let by_key = |resource: &str, ip: &str| consume(&node.grpc, from(ip, call(api_key(KEY), resource, &[])));
    // The scope is the key, on any resource, not the account.
    assert_eq!(report(&node, account("acme"), "chat", 400, None).await.counted, 0, "no key, no failure");
    for resource in ["chat", "free"] {
        assert_eq!(report(&node, api_key(KEY), resource, 400, None).await.counted, 1);
    }
    assert_eq!(by_key("free", "192.0.2.1").await.unwrap().reason(), Reason::Blocked, "even where nothing limits");
    assert!(allowed(&consume(&node.grpc, call(account("acme"), "free", &[])).await.unwrap()));
    node.clock.advance_ms(30_000);
    assert!(allowed(&by_key("free", "192.0.2.1").await.unwrap()));
    // The scope is the address, for any caller; IPv6 by /64.
    assert_eq!(report(&node, api_key(KEY), "free", 500, None).await.counted, 0, "no address, no failure");
    for (account_id, ip) in [("a", "2001:db8::1"), ("b", "2001:db8::2:3")] {
        assert_eq!(report(&node, account(account_id), "free", 502, Some(ip)).await.counted, 1);
    }
    let refused = by_key("free", "2001:db8:0:0:ffff::").await.unwrap();
    assert_eq!(refused.reason(), Reason::Blocked);
    assert_eq!(refused.retry_after_ms, Some(60_000));
    assert!(allowed(&by_key("free", "2001:db8:0:1::1").await.unwrap()), "the next /64 is somebody else's");
}

#[tokio::test]
async fn an_invalid_report_names_its_error_and_counts_nothing() {
    let node =
        memory_node(&guarded("  rules:\n    failed: { limit: 0, per: 30s, block: 30s, scope: [account] }\n")).await;
    let good = || ReportOutcomeRequest {
        caller: Some(account("a")),
        resource: "free".to_owned(),
        status: 500,
        ..ReportOutcomeRequest::default()
    };
    let ip = |ip: &str| BTreeMap::from([("ip".to_owned(), ip.to_owned())]);
    for (request, start) in [
        (ReportOutcomeRequest { status: 99, ..good() }, "status: must be an HTTP status from 100 to 599"),
        (ReportOutcomeRequest { status: 600, ..good() }, "status: "),
        (ReportOutcomeRequest { caller: None, ..good() }, "caller: "),
        (ReportOutcomeRequest { resource: "nothing".to_owned(), ..good() }, "resource: "),
        (ReportOutcomeRequest { attributes: ip("localhost"), ..good() }, "attributes.ip: must be an IP address"),
        (ReportOutcomeRequest { attributes: ip("192.0.2.1:80"), ..good() }, "attributes.ip: "),
        (ReportOutcomeRequest { domain: "elsewhere".to_owned(), ..good() }, "domain: "),
    ] {
        let error = node.grpc.clone().report_outcome(request).await.unwrap_err();
        assert!(error.message().starts_with(start), "{start}: {error}");
    }
    let bad = from("not-an-address", call(account("a"), "free", &[]));
    let error = consume(&node.grpc, bad).await.unwrap_err();
    assert!(error.message().starts_with("attributes.ip: "), "{error}");
    assert!(allowed(&consume(&node.grpc, call(account("a"), "free", &[])).await.unwrap()), "nothing was counted");

    let (status, body) = node
        .rest
        .post("/v1/report_outcome", json!({"caller": {"account": "a"}, "resource": "free", "status": 500}).to_string())
        .await;
    assert_eq!((status.as_u16(), &body["counted"]), (200, &json!(1)), "{body}");
    assert!(body["blocked_until"].is_string() && body["block_message"].is_string(), "{body}");
    let refused = json!({"caller": {"account": "a"}, "resource": "free"}).to_string();
    let (_, body) = node.rest.post("/v1/consume", refused).await;
    assert_eq!((&body["verdict"], &body["reason"]), (&json!("denied"), &json!("blocked")), "{body}");
    let (status, body) = node
        .rest
        .post("/v1/report_outcome", json!({"caller": {"account": "a"}, "resource": "free", "status": 1}).to_string())
        .await;
    assert_eq!(status.as_u16(), 400, "{body}");
    let (_, metrics) = node.rest.text("/metrics").await;
    for line in [
        "tollgate_blocks_total{domain=\"guarded\",rule=\"failed\"} 1",
        "tollgate_outcome_reports_total{domain=\"guarded\",counted=\"true\"} 1",
        "verdict=\"denied\",quota=\"failed\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

async fn guess(node: &Node, ip: &str, secret: &str) -> Decision {
    consume(&node.grpc, from(ip, call(api_key(secret), "free", &[]))).await.unwrap()
}

/// An address that guesses keys is blocked, and a correct guess is refused too during the block.
#[tokio::test]
async fn an_address_that_guesses_keys_is_blocked() {
    let redis = RedisServer::start();
    let policy = guarded("  authentication: { limit: 3, per: minute, block: 5m }\n");
    let node = redis_node(&policy, redis.url()).await;
    let elsewhere = redis_node(&policy, redis.url()).await;
    for secret in ["sk-1", "sk-integration-revoked", "tg_mistyped", "sk-4"] {
        assert_ne!(guess(&node, "192.0.2.1", secret).await.reason(), Reason::Blocked, "{secret}");
    }
    for each_node in [&node, &elsewhere] {
        let refused = guess(each_node, "::ffff:192.0.2.1", KEY).await;
        assert_eq!((refused.verdict(), refused.reason()), (Verdict::Denied, Reason::Blocked));
        assert_eq!(refused.retry_after_ms, Some(300_000));
        assert!(refused.block_message.contains("(> 3) to authenticate"), "{}", refused.block_message);
        // From then on the node remembers the block, and does not look the key up.
        assert!(guess(each_node, "192.0.2.1", "sk-5").await.account.is_empty());
        assert_eq!(guess(each_node, "192.0.2.1", KEY).await.account, "", "the key is not looked up");
    }
    assert!(allowed(&guess(&node, "192.0.2.2", KEY).await), "another address is not blocked");
    let vouched = from("192.0.2.1", call(api_key_id("good"), "free", &[]));
    assert!(
        allowed(&consume(&node.grpc, vouched).await.unwrap()),
        "a caller authenticated by the backend does not count as guessing"
    );
    assert!(allowed(&consume(&node.grpc, call(api_key(KEY), "free", &[])).await.unwrap()), "no address, no block");

    let commands = || -> u64 {
        let info: String = redis::cmd("INFO").arg("commandstats").query(&mut redis.connection()).unwrap();
        let line = info.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap().to_owned();
        line.split(['=', ',']).nth(1).unwrap().parse().unwrap()
    };
    let before = commands();
    for number in 0..200 {
        assert_eq!(guess(&node, "192.0.2.1", &format!("sk-{number}")).await.reason(), Reason::Blocked);
    }
    assert_eq!(commands(), before, "a flood from a blocked address does not reach Redis");

    for each_node in [&node, &elsewhere] {
        each_node.clock.advance_ms(300_000);
    }
    assert!(allowed(&guess(&node, "192.0.2.1", KEY).await));
    assert_eq!(guess(&node, "192.0.2.1", "sk-6").await.reason(), Reason::UnknownKey);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Consume,
    Report(u32),
}

/// A model of the rule: three failures in two seconds are tolerated, a fourth blocks for three seconds.
#[derive(Default)]
struct Model {
    admitted: Vec<u64>,
    failures: Vec<u64>,
    blocked_until: u64,
}

impl Model {
    fn fail(&mut self, now: u64) {
        if self.blocked_until > now {
            return;
        }
        self.failures.push(now);
        if self.failures.iter().filter(|at| **at + 2_000 > now).count() > 3 {
            self.blocked_until = now + 3_000;
        }
    }

    /// The reason of the refusal, and the usage.
    fn consume(&mut self, now: u64) -> (Reason, u64) {
        let used = self.admitted.iter().filter(|at| **at + 60_000 > now).count() as u64;
        if self.blocked_until > now {
            (Reason::Blocked, used)
        } else if used < 5 {
            self.admitted.push(now);
            (Reason::Unspecified, used + 1)
        } else {
            self.fail(now);
            (Reason::QuotaExceeded, used)
        }
    }
}

/// The block starts with the fourth failure and lasts exactly as long as the rule states; a blocked call charges
/// nothing.
fn check_blocks_against_model(runtime: &tokio::runtime::Runtime, node: &Node, cases: u32) {
    use proptest::prelude::*;
    let act = prop_oneof![3 => Just(Step::Consume), 4 => Just(Step::Report(500)), 1 => Just(Step::Report(204))];
    let pause = prop_oneof![4 => 0_u64..400, 2 => 0_u64..3_500, 1 => Just(2_000), 1 => Just(3_000), 1 => 0_u64..70_000];
    let case = std::cell::Cell::new(0);
    let config = ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 200, ..Default::default() };
    let outcome =
        proptest::test_runner::TestRunner::new(config).run(&prop::collection::vec((pause, act), 1..80), |steps| {
            case.set(case.get() + 1);
            let case_account = || account(format!("case-{}", case.get()));
            let mut model = Model::default();
            runtime.block_on(async {
                for (pause, act) in steps {
                    node.clock.advance_ms(pause);
                    let now = tollgate_store::clock::Clock::now(&node.clock).as_ms();
                    match act {
                        Step::Consume => {
                            let decision = consume(&node.grpc, call(case_account(), "chat", &[])).await.unwrap();
                            let used = quota(&decision, "requests_per_minute").used;
                            assert_eq!((decision.reason(), used), model.consume(now));
                            if decision.reason() == Reason::Blocked {
                                let until = decision.blocked_until.as_ref().map(ms);
                                assert_eq!(until, Some(model.blocked_until));
                            }
                        }
                        Step::Report(status) => {
                            let blocked_before = model.blocked_until > now;
                            if status >= 400 {
                                model.fail(now);
                            }
                            let reported = report(node, case_account(), "chat", status, None).await;
                            assert_eq!(reported.counted, u32::from(status >= 400 && !blocked_before));
                            let until = (model.blocked_until > now).then_some(model.blocked_until);
                            assert_eq!(reported.blocked_until.as_ref().map(ms), until);
                        }
                    }
                }
            });
            Ok(())
        });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

const MODELLED: &str = "  rules:\n    failed: { limit: 3, per: 2s, block: 3s }\n";

#[test]
fn blocks_agree_with_a_model_in_memory() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let node = runtime.block_on(memory_node(&guarded(MODELLED)));
    check_blocks_against_model(&runtime, &node, 60);
}

#[test]
fn blocks_agree_with_a_model_in_redis() {
    let redis = RedisServer::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let node = runtime.block_on(redis_node(&guarded(MODELLED), redis.url()));
    check_blocks_against_model(&runtime, &node, 40);
}
