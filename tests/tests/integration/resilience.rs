//! A Redis that is absent, loses its scripts, or restarts under load.
//!
//! Seen to fail when failed calls are held for 600 and for 800 ms more, which is 100 and 300 ms beyond the deadline.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use tollgate_api::v1::{Decision, Reason};
use tollgate_store::testing::RedisServer;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::{
    grpc::{SERVICE, health},
    harness::{
        P99_SLACK, Process, ProcessBuilder, SLACK, account, allowed, call, consume, folder_with, peek, quota, shop,
        until,
    },
};

const DEADLINE: Duration = Duration::from_millis(500);
/// The store deadline of a node whose calls must all succeed.
const PATIENT: Duration = Duration::from_secs(4);

fn node_on(url: &str, deadline: Duration) -> (tempfile::TempDir, Process) {
    let (folder, policy) = folder_with(&shop(100));
    let deadline = format!("--store-deadline-ms={}", deadline.as_millis());
    (folder, ProcessBuilder::new(&policy).redis(url).arg(deadline).start())
}

async fn until_health(node: &Process, service: &str, status: ServingStatus) {
    until(&format!("health of {service:?} is {status:?}"), Duration::from_secs(5), async || {
        (health(&node.channel, service).await == Some(status)).then_some(())
    })
    .await;
}

/// Load balancers and Kubernetes probes ask for the whole node, whose service name is empty.
#[tokio::test]
async fn the_health_of_the_whole_node_follows_its_store() {
    let port = RedisServer::free_port();
    let (_folder, node) = node_on(&format!("redis://127.0.0.1:{port}"), DEADLINE);
    until_health(&node, SERVICE, ServingStatus::NotServing).await;
    until_health(&node, "", ServingStatus::NotServing).await;
    let _redis = RedisServer::start_on(port);
    until_health(&node, "", ServingStatus::Serving).await;
}

#[tokio::test]
async fn a_node_without_redis_is_not_ready_and_recovers() {
    let port = RedisServer::free_port();
    let (_folder, node) = node_on(&format!("redis://127.0.0.1:{port}"), DEADLINE);
    let one = || call(account("a"), "model", &[]);

    let (status, body) = node.rest.json("/readyz").await;
    assert_eq!((status.as_u16(), &body["ready"]), (503, &serde_json::json!(false)), "{body}");
    assert_eq!(body["store"]["ok"], false, "{body}");
    assert_eq!(body["store"]["detail"], "cannot be reached: no charge is possible", "{body}");
    assert_eq!(body["policies"]["ok"], true, "{body}");
    assert_eq!(node.rest.text("/healthz").await.0.as_u16(), 200, "the process lives");
    until_health(&node, SERVICE, ServingStatus::NotServing).await;
    // The policy file contains the second account, so that Redis holds nothing but its counters.
    for caller in ["a", "acme", "a", "acme"] {
        let started = Instant::now();
        let error = consume(&node.grpc, call(account(caller), "model", &[])).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{error:?}");
        assert!(started.elapsed() < DEADLINE + SLACK, "{:?}", started.elapsed());
        let started = Instant::now();
        let body = serde_json::json!({ "caller": { "account": caller }, "resource": "model" });
        let (status, body) = node.rest.post("/v1/consume", body.to_string()).await;
        assert_eq!((status.as_u16(), body["error"]["code"].as_str()), (503, Some("unavailable")), "{body}");
        assert!(started.elapsed() < DEADLINE + SLACK, "{:?}", started.elapsed());
    }
    let limits = node.rest.request(reqwest::Method::GET, "/api_keys/rate_limits").bearer_auth(crate::harness::KEY);
    assert_eq!(limits.send().await.unwrap().status().as_u16(), 503);
    // An invalid call is refused with or without Redis.
    let wrong = consume(&node.grpc, call(account("a"), "no\nmodel", &[])).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    let unknown = consume(&node.grpc, call(account("a"), "no-such-model", &[])).await.unwrap();
    assert_eq!(unknown.reason(), Reason::UnknownResource);

    let _redis = RedisServer::start_on(port);
    let decision =
        until("the node decides", Duration::from_secs(10), async || consume(&node.grpc, one()).await.ok()).await;
    assert!(allowed(&decision));
    assert_eq!(quota(&decision, "requests_per_minute").used, 1, "refused calls were charged later");
    until("it is ready", Duration::from_secs(10), async || {
        (node.rest.text("/readyz").await.0.as_u16() == 200).then_some(())
    })
    .await;
    until_health(&node, SERVICE, ServingStatus::Serving).await;
}

/// The account of the load: in the policy file, so that Redis holds nothing but its counters.
const LOAD: &str = "acme";

/// The answer to a call, and its latency.
type Answer = (Result<Decision, Status>, Duration);

/// 16 callers, which run until stopped.
struct Load {
    stops: Arc<AtomicBool>,
    failed: Arc<AtomicUsize>,
    callers: JoinSet<Vec<Answer>>,
}

impl Load {
    fn start(node: &Process) -> Self {
        let (stops, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut callers = JoinSet::new();
        for _ in 0..16 {
            let (grpc, stops, failed) = (node.grpc.clone(), Arc::clone(&stops), Arc::clone(&failed));
            callers.spawn(async move {
                let mut answers = Vec::new();
                while !stops.load(Ordering::Relaxed) {
                    let started = Instant::now();
                    let answer = consume(&grpc, call(account(LOAD), "bulk", &[("tokens", 3)])).await;
                    let took = started.elapsed();
                    if answer.is_err() {
                        failed.fetch_add(1, Ordering::Relaxed);
                        // Only paces the load: a caller that is refused at once must not spin.
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    answers.push((answer, took));
                }
                answers
            });
        }
        Self { stops, failed, callers }
    }

    /// Number of failed calls so far.
    fn failed(&self) -> usize {
        self.failed.load(Ordering::Relaxed)
    }

    /// Stops the callers, and returns every answer.
    async fn stop(self) -> Vec<Answer> {
        self.stops.store(true, Ordering::Relaxed);
        self.callers.join_all().await.into_iter().flatten().collect()
    }
}

fn assert_within_deadline(answers: &[Answer], deadline: Duration) {
    for (answer, took) in answers {
        if let Err(error) = answer {
            assert_eq!(error.code(), Code::Unavailable, "{error:?}");
        }
        assert!(*took < deadline + SLACK, "{took:?}: {answer:?}");
    }
    let most = answers.iter().filter(|(_, took)| *took <= deadline + P99_SLACK).count();
    assert!(most * 100 >= answers.len() * 99, "{most} of {} calls came in time", answers.len());
}

fn admitted(answers: &[Answer]) -> u64 {
    answers.iter().filter(|(answer, _)| answer.as_ref().is_ok_and(allowed)).count() as u64
}

/// Number of failed calls that may have been charged according to their error.
fn uncertain_calls(answers: &[Answer]) -> u64 {
    let errors = answers.iter().filter_map(|(answer, _)| answer.as_ref().err());
    errors.filter(|status| status.message().starts_with("the store did not answer")).count() as u64
}

/// Number of failed calls of which the node does not know whether they were charged.
fn unanswered_calls(answers: &[Answer]) -> u64 {
    answers.iter().filter(|(answer, _)| answer.is_err()).count() as u64
}

async fn charged(node: &Process) -> u64 {
    let now = until("the node decides", Duration::from_secs(10), async || {
        peek(&node.grpc, call(account(LOAD), "bulk", &[])).await.ok()
    })
    .await;
    let requests = quota(&now, "requests_per_hour").used;
    assert_eq!(quota(&now, "tokens_per_hour").used, 3 * requests, "a call charged one quota and not the other");
    requests
}

#[tokio::test(flavor = "multi_thread")]
async fn script_flush_under_load_loses_and_repeats_no_charge() {
    let redis = RedisServer::start();
    let (_folder, node) = node_on(&redis.url(), PATIENT);
    let load = Load::start(&node);
    let mut connection = redis.connection();
    for _ in 0..40 {
        let _: () = redis::cmd("SCRIPT").arg("FLUSH").query(&mut connection).unwrap();
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let answers = load.stop().await;
    assert_within_deadline(&answers, PATIENT);
    let (admitted, unanswered_calls, charged) = (admitted(&answers), unanswered_calls(&answers), charged(&node).await);
    assert!(admitted > 100, "only {admitted} calls were admitted");
    assert_eq!((unanswered_calls, charged), (0, admitted), "a call failed, or was charged twice or not at all");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_redis_under_load_repeats_no_charge() {
    restart_under_load().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "bound in time: tests/run runs it alone"]
async fn no_call_takes_longer_than_its_deadline_while_redis_restarts() {
    assert_within_deadline(&restart_under_load().await, DEADLINE);
}

/// Restarts Redis under load, checks the charges, and returns every answer.
async fn restart_under_load() -> Vec<Answer> {
    let mut redis = RedisServer::start();
    let (_folder, node) = node_on(&redis.url(), DEADLINE);
    let load = Load::start(&node);
    until("calls are charged", Duration::from_secs(10), async || (charged(&node).await > 50).then_some(())).await;
    redis.kill();
    let failed_before = load.failed();
    until("the outage is reported", Duration::from_secs(10), async || {
        consume(&node.grpc, call(account("other"), "bulk", &[])).await.err()
    })
    .await;
    // On a busy machine no caller may have run since the restart.
    until("a call of the load meets the outage", Duration::from_mins(1), async || {
        (load.failed() > failed_before).then_some(())
    })
    .await;
    redis.restart();
    until("calls are charged again", Duration::from_secs(10), async || (charged(&node).await > 50).then_some(())).await;
    let answers = load.stop().await;
    let after_restart = charged(&node).await;
    // The server came back empty, so its counters hold only charges made after the restart, by calls that were
    // answered or whose answer was lost. Each answer's `used` continues from the one before.
    let answered: Vec<u64> = answers
        .iter()
        .filter_map(|(answer, _)| answer.as_ref().ok())
        .filter(|decision| allowed(decision))
        .map(|decision| quota(decision, "requests_per_hour").used)
        .collect();
    assert!(unanswered_calls(&answers) > 0, "no call met the outage");
    for used in 1..=after_restart {
        let times = answered.iter().filter(|seen| **seen == used).count();
        assert!(times <= 2, "{times} admissions with {used} used: once before the restart and once after it");
    }
    let missing = (1..=after_restart).filter(|used| !answered.contains(used)).count() as u64;
    let uncertain_calls = uncertain_calls(&answers);
    assert!(
        missing <= uncertain_calls,
        "{missing} charges belong to no call; of {uncertain_calls} calls the node was not sure"
    );
    answers
}
