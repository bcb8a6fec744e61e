//! Three nodes under a fixed rate of calls, and the figures measured.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{task::JoinSet, time::MissedTickBehavior};
use tollgate_api::v1::rate_limit_service_client::RateLimitServiceClient;
use tonic::{Code, Status, transport::Channel};

use super::node_resources::{ResourceGrowth, ResourceUsage, check_steady_resources};
use crate::harness::{Process, ProcessBuilder, account, allowed, call, consume, folder_with, peek, quota, until};

pub(super) const DEADLINE: Duration = Duration::from_millis(250);
pub(super) const NODES: u64 = 3;
/// The limit of the account `full`, which is always exhausted, per [`WINDOW`].
pub(super) const LIMIT: u64 = 60;
const WINDOW: Duration = Duration::from_secs(10);
/// Callers per node, and the interval between two calls of a caller.
pub(super) const CALLERS: u64 = 4;
pub(super) const PACE: Duration = Duration::from_millis(20);
/// Tolerances on top of the bounds, for a busy machine with two cores.
pub(super) const SLACK: Duration = Duration::from_millis(20);
pub(super) const LONGEST: Duration = Duration::from_millis(250);
const RECOVERY_BOUND: Duration = Duration::from_secs(2);

/// The nodes, on one Redis.
pub(super) struct NodeGroup {
    nodes: Vec<Process>,
    _folder: tempfile::TempDir,
}

/// A running case.
pub(super) struct Case {
    name: String,
    go: Arc<AtomicBool>,
    callers: JoinSet<Vec<Answer>>,
    usage_before: ResourceUsage,
}

/// The answer to one call.
struct Answer {
    /// Index of the node.
    node: usize,
    on_full_account: bool,
    at: Instant,
    latency: Duration,
    /// Whether it was admitted, and `decided_by`; or the error.
    result: Result<(bool, String), Status>,
}

impl Answer {
    /// Whether Redis may have charged this failed call: the error does not exclude it.
    fn is_uncertain(&self) -> bool {
        let not_charged = ["the store cannot be reached", "the store is full", "the store refused"];
        let said = self.result.as_ref().err().map(Status::message);
        said.is_some_and(|said| !not_charged.iter().any(|start| said.starts_with(start)))
    }
}

/// Bounds of a case, besides those on latency.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// Maximum number of admissions of the account `full` in any window.
    pub(super) max_admitted: u64,
    /// No call may fail.
    pub(super) no_failures: bool,
    /// Redis may lose writes.
    pub(super) lost_writes: bool,
    /// The failure mode admits calls that Redis does not count.
    pub(super) fallback_admits: bool,
    /// This node is killed: calls to it may fail, calls to the others may not.
    pub(super) killed_node: Option<usize>,
}

impl Bounds {
    pub(super) fn within_limit() -> Self {
        Self { fallback_admits: false, ..Self::with_fallback(LIMIT) }
    }

    /// For cases in which the failure mode decides during the fault.
    pub(super) fn with_fallback(max_admitted: u64) -> Self {
        Self { max_admitted, no_failures: false, lost_writes: false, fallback_admits: true, killed_node: None }
    }
}

/// The result of a case: a row of the table of results.
pub(super) struct Report {
    name: String,
    calls: usize,
    failed: usize,
    pub(super) p99: Duration,
    longest: Duration,
    recovery: Duration,
    max_admitted: u64,
    growth: ResourceGrowth,
    /// Admissions of the account that is never full, as counted by the callers and by Redis.
    pub(super) admitted: u64,
    pub(super) charged: u64,
    /// Calls of the same account that failed and that Redis may have charged.
    uncertain: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, calls, failed, p99, longest, recovery, max_admitted, growth, .. } = self;
        let (p99, longest, recovery) = (p99.as_millis(), longest.as_millis(), recovery.as_millis());
        write!(
            f,
            "| {name} | {calls} | {failed} | {p99} ms | {longest} ms | {recovery} ms | {max_admitted} of {LIMIT} | {growth} |"
        )
    }
}

fn platform(on_failure: &str) -> String {
    format!(
        "version: 1
domain: chaos
on_failure: {on_failure}
resources:
  full: {{ quotas: [{{ unit: requests, per: 10s, limit: {LIMIT} }}] }}
  short: {{ quotas: [{{ unit: requests, per: 2s, limit: 20 }}, {{ unit: requests, per: {{ calendar: hour }}, limit: 100000000 }}] }}
  roomy: {{ quotas: [{{ unit: requests, per: hour, limit: 100000000 }}] }}
tiers:
  paid: {{ is_charged: true }}
default_tier: paid
"
    )
}

impl NodeGroup {
    pub(super) async fn start(url: &str, on_failure: &str) -> Self {
        let (folder, policy) = folder_with(&platform(on_failure));
        let start = |_| {
            let node = ProcessBuilder::new(&policy).redis(url).arg(format!("--node-count={NODES}"));
            node.arg(format!("--store-deadline-ms={}", DEADLINE.as_millis())).start()
        };
        let nodes: Vec<Process> = (0..NODES).map(start).collect();
        for node in &nodes {
            until("a node decides", Duration::from_secs(20), async || {
                consume(&node.grpc, call(account("first"), "roomy", &[])).await.ok()
            })
            .await;
        }
        Self { nodes, _folder: folder }
    }

    /// Kills a node.
    pub(super) fn kill(&mut self, node: usize) {
        self.nodes[node].signal("KILL");
    }

    /// Starts the load, and returns after one second of it.
    pub(super) async fn case(&self, name: &str) -> Case {
        let go = Arc::new(AtomicBool::new(true));
        let mut callers = JoinSet::new();
        for (at, node) in self.nodes.iter().enumerate() {
            for caller in 0..CALLERS {
                let (grpc, on_full_account) = (node.grpc.clone(), caller % 2 == 0);
                callers.spawn(keep_calling(at, grpc, on_full_account, name.to_owned(), Arc::clone(&go)));
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        Case { name: name.to_owned(), go, callers, usage_before: self.resource_usage() }
    }

    /// A client for each node.
    pub(super) fn clients(&self) -> impl Iterator<Item = &RateLimitServiceClient<Channel>> {
        self.nodes.iter().map(|node| &node.grpc)
    }

    pub(super) fn assert_no_panic(&self) {
        for node in &self.nodes {
            assert!(!node.stderr().contains("panicked"), "{}", node.stderr());
        }
    }

    /// Memory and descriptors, the maximum over all nodes.
    pub(super) fn resource_usage(&self) -> ResourceUsage {
        ResourceUsage::largest_of(&self.nodes)
    }

    /// Asserts for this long that no node's memory or descriptors grow.
    pub(super) async fn check_steady(&self, during: Duration) {
        check_steady_resources(&self.nodes, during).await;
    }
}

impl Case {
    /// Waits until every node decides again, ends the case, and checks everything.
    pub(super) async fn end(mut self, node_group: &NodeGroup, bounds: Bounds) -> Report {
        let over = Instant::now();
        let live = || {
            node_group.nodes.iter().enumerate().filter(|(at, _)| bounds.killed_node != Some(*at)).map(|(_, node)| node)
        };
        for node in live() {
            until("service has recovered", Duration::from_secs(20), async || {
                let decision = peek(&node.grpc, call(account("probe"), "roomy", &[])).await.ok()?;
                decision.decided_by.is_empty().then_some(())
            })
            .await;
        }
        let recovery = over.elapsed();
        // Part of the load runs after the fault, so that decisions after the recovery are checked too.
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.go.store(false, Ordering::Relaxed);
        let mut answers: Vec<Answer> = Vec::new();
        while let Some(ended) = self.callers.join_next().await {
            answers.extend(ended.expect("no caller panics"));
        }
        let now = until("Redis reports the charges", Duration::from_secs(10), async || {
            peek(&live().next()?.grpc, call(account(self.name.clone()), "roomy", &[])).await.ok()
        })
        .await;
        let report = self.report(&answers, recovery, quota(&now, "requests_per_hour").used, node_group);
        check(&report, &answers, bounds, node_group);
        report
    }

    fn report(&self, answers: &[Answer], recovery: Duration, charged: u64, node_group: &NodeGroup) -> Report {
        let mut latency: Vec<Duration> = answers.iter().map(|answer| answer.latency).collect();
        latency.sort_unstable();
        let admitted = |answer: &&Answer| matches!(answer.result, Ok((true, _)));
        let mut on_full_account: Vec<Instant> =
            answers.iter().filter(admitted).filter(|answer| answer.on_full_account).map(|a| a.at).collect();
        on_full_account.sort_unstable();
        let mut max_admitted = 0;
        for (first, at) in on_full_account.iter().enumerate() {
            // A little shorter than the window, as an answer arrives later than its decision.
            let end = *at + WINDOW.saturating_sub(2 * DEADLINE);
            max_admitted =
                max_admitted.max(on_full_account[first..].iter().take_while(|next| **next < end).count() as u64);
        }
        Report {
            name: self.name.clone(),
            calls: answers.len(),
            failed: answers.iter().filter(|answer| answer.result.is_err()).count(),
            p99: latency[latency.len() * 99 / 100],
            longest: latency.last().copied().unwrap_or_default(),
            recovery,
            max_admitted,
            growth: node_group.resource_usage().growth_since(self.usage_before),
            admitted: answers.iter().filter(admitted).filter(|answer| !answer.on_full_account).count() as u64,
            charged,
            uncertain: answers.iter().filter(|answer| !answer.on_full_account && answer.is_uncertain()).count() as u64,
        }
    }
}

fn check(report: &Report, answers: &[Answer], bounds: Bounds, node_group: &NodeGroup) {
    assert!(report.calls > 300, "too little load: {report}");
    assert!(report.p99 <= DEADLINE + SLACK, "p99: {report}");
    assert!(report.longest <= DEADLINE + LONGEST, "longest latency: {report}");
    assert!(report.recovery <= RECOVERY_BOUND, "service has not recovered: {report}");
    // In the worst case the new master has lost every admission of the window.
    let most = if bounds.lost_writes { 2 * bounds.max_admitted } else { bounds.max_admitted };
    assert!(report.max_admitted <= most, "over the bound of {most}: {report}");
    report.growth.check(report);
    if !bounds.fallback_admits {
        let elsewhere = answers.iter().find(|answer| answer.result.as_ref().is_ok_and(|(_, by)| !by.is_empty()));
        assert!(elsewhere.is_none(), "a node decided without Redis: {report}");
        let Report { admitted, charged, uncertain, .. } = *report;
        let sums = format!("{admitted} admitted, {charged} charged, {uncertain} without an answer: {report}");
        assert!(charged <= admitted + uncertain, "more charged than called: {sums}");
        assert!(admitted <= charged || bounds.lost_writes, "admitted and not charged: {sums}");
    }
    for answer in answers {
        if let Err(status) = &answer.result {
            if bounds.killed_node == Some(answer.node) {
                assert!(!matches!(status.code(), Code::Internal | Code::InvalidArgument), "{report}: {status:?}");
            } else {
                let may_fail = !bounds.no_failures && bounds.killed_node.is_none();
                assert!(may_fail, "a call to node {} failed: {report}: {status:?}", answer.node);
                assert_eq!(status.code(), Code::Unavailable, "{report}: {status:?}");
            }
        }
    }
    node_group.assert_no_panic();
}

async fn keep_calling(
    node: usize,
    grpc: RateLimitServiceClient<Channel>,
    on_full_account: bool,
    roomy: String,
    go: Arc<AtomicBool>,
) -> Vec<Answer> {
    let mut ticks = tokio::time::interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut answers = Vec::new();
    while go.load(Ordering::Relaxed) {
        ticks.tick().await;
        let one = if on_full_account {
            call(account("full"), "full", &[])
        } else {
            call(account(roomy.clone()), "roomy", &[])
        };
        let started = Instant::now();
        let bound = Duration::from_secs(5);
        let decided = tokio::time::timeout(bound, consume(&grpc, one)).await.expect("a call hangs");
        let result = decided.map(|decision| (allowed(&decision), decision.decided_by));
        answers.push(Answer { node, on_full_account, at: Instant::now(), latency: started.elapsed(), result });
    }
    answers
}
