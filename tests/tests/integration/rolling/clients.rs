//! Clients of several nodes, each of which may stop at any time.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinHandle, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tollgate_api::v1::{
    Call, ConsumeBatchRequest, ConsumeStreamRequest, call_result::Result as Of,
    rate_limit_service_client::RateLimitServiceClient,
};
use tonic::{Code, Status, transport::Channel};

use crate::harness::{Process, Rest, account, allowed, call, consume};

/// Bound on the time that a call searches for a node.
const PATIENCE: Duration = Duration::from_secs(20);
/// Interval between two calls of a caller.
const PACE: Duration = Duration::from_millis(20);

type Grpc = RateLimitServiceClient<Channel>;

/// The addresses of the nodes, and the last results of their health checks.
#[derive(Clone)]
pub(super) struct Nodes(Arc<Shared>);

struct Shared {
    nodes: Mutex<Vec<Node>>,
    /// The last result of each health check.
    ready: [AtomicBool; 3],
    refused: AtomicUsize,
}

#[derive(Clone)]
struct Node {
    rest: Rest,
    grpc: Grpc,
    http_address: String,
}

/// The result of a health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NodeHealth {
    Ready,
    Draining,
    /// Connections are refused.
    Gone,
}

impl Node {
    fn of(process: &Process) -> Self {
        let http_address = process.http_address.clone();
        Self { rest: process.rest.clone(), grpc: process.grpc.clone(), http_address }
    }

    /// Checks the node's health on a new connection.
    async fn check_health(&self) -> NodeHealth {
        let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).timeout(PATIENCE);
        let answer = client.build().expect("a client").get(format!("http://{}/readyz", self.http_address)).send().await;
        match answer {
            Ok(answer) if answer.status().is_success() => NodeHealth::Ready,
            Ok(answer) => {
                let body: Value = answer.json().await.expect("JSON");
                assert_eq!(body["lifecycle"], "draining", "{body}");
                NodeHealth::Draining
            }
            Err(error) if error.is_connect() => NodeHealth::Gone,
            Err(error) => panic!("a health check was neither answered nor refused: {error:?}"),
        }
    }
}

impl Nodes {
    pub(super) fn of(processes: &[Process; 3]) -> Self {
        let nodes = Mutex::new(processes.iter().map(Node::of).collect());
        Self(Arc::new(Shared { nodes, ready: Default::default(), refused: AtomicUsize::new(0) }))
    }

    pub(super) fn replace(&self, slot: usize, process: &Process) {
        self.0.nodes.lock().expect("no panic")[slot] = Node::of(process);
    }

    fn at(&self, slot: usize) -> Node {
        self.0.nodes.lock().expect("no panic")[slot].clone()
    }

    /// The node for a caller's `turn`; with `only_ready`, among those that are ready.
    fn pick(&self, turn: usize, only_ready: bool) -> Option<Node> {
        let good = (turn..turn + 3).find(|slot| !only_ready || self.0.ready[slot % 3].load(Ordering::SeqCst));
        good.map(|slot| self.at(slot % 3))
    }

    /// Sends calls that are refused to a node until it has stopped: from `accounts` accounts in turn, at most 40 of
    /// each.
    pub(super) fn keep_refusing(&self, slot: usize, accounts: usize) -> JoinHandle<()> {
        const AT_ONCE: usize = 100;
        let (nodes, node) = (self.clone(), self.at(slot));
        tokio::spawn(async move {
            loop {
                let from = nodes.0.refused.load(Ordering::SeqCst);
                assert!(from < 40 * accounts, "the node does not end");
                let calls = (from..from + AT_ONCE)
                    .map(|number| call(account(format!("refused-{}", number % accounts)), "closed", &[]))
                    .collect();
                match node.grpc.clone().consume_batch(ConsumeBatchRequest { calls }).await {
                    Ok(answer) => {
                        for result in answer.into_inner().results {
                            assert!(matches!(result.result, Some(Of::Decision(decision)) if !allowed(&decision)));
                        }
                        nodes.0.refused.fetch_add(AT_ONCE, Ordering::SeqCst);
                    }
                    Err(status) if was_not_accepted(&status) => return,
                    Err(status) => panic!("what became of a batch is not known: {status:?}"),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    }

    pub(super) fn refused(&self) -> usize {
        self.0.refused.load(Ordering::SeqCst)
    }
}

/// Whether a call certainly did not reach the node: the connection was refused, or closed before the call was sent
/// (hyper's `Canceled`), or the node did not accept the call (HTTP/2 GOAWAY without an error).
fn was_not_accepted(status: &Status) -> bool {
    let output = format!("{status:?}");
    output.contains("ConnectionRefused")
        || output.contains("hyper::Error(Canceled")
        || (output.contains("GoAway") && output.contains("NO_ERROR"))
}

/// A steady load.
pub(super) struct Load {
    go: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    callers: JoinSet<u64>,
    checks: JoinSet<Vec<(usize, NodeHealth)>>,
}

impl Load {
    pub(super) fn start(nodes: &Nodes) -> Self {
        let (go, answered) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let (mut callers, mut checks) = (JoinSet::new(), JoinSet::new());
        for number in 0..16 {
            let caller = Caller {
                nodes: nodes.clone(),
                go: Arc::clone(&go),
                answered: Arc::clone(&answered),
                number,
                only_ready: number % 2 == 0,
                named: number % 4 < 2,
            };
            match number {
                0..8 => callers.spawn(caller.over_grpc()),
                8..14 => callers.spawn(caller.over_rest()),
                _ => callers.spawn(caller.on_a_stream()),
            };
        }
        for slot in 0..3 {
            checks.spawn(check(nodes.clone(), slot, Arc::clone(&go)));
        }
        Self { go, answered, callers, checks }
    }

    pub(super) fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    /// Number of admitted calls, and the results of the health checks.
    pub(super) async fn end(mut self) -> (u64, Vec<(usize, NodeHealth)>) {
        self.go.store(false, Ordering::SeqCst);
        let (mut admitted, mut health) = (0, Vec::new());
        while let Some(ended) = self.callers.join_next().await {
            admitted += ended.expect("no call is lost");
        }
        while let Some(ended) = self.checks.join_next().await {
            health.extend(ended.expect("every check is answered or refused"));
        }
        (admitted, health)
    }
}

/// Checks the health of one node repeatedly.
async fn check(nodes: Nodes, slot: usize, go: Arc<AtomicBool>) -> Vec<(usize, NodeHealth)> {
    let mut all = Vec::new();
    while go.load(Ordering::SeqCst) {
        let health = nodes.at(slot).check_health().await;
        nodes.0.ready[slot].store(health == NodeHealth::Ready, Ordering::SeqCst);
        all.push((slot, health));
        tokio::time::sleep(PACE).await;
    }
    all
}

struct Caller {
    nodes: Nodes,
    go: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    number: usize,
    /// Whether it calls only nodes that are ready.
    only_ready: bool,
    /// Whether its calls have request ids, so that calls of unknown outcome may be repeated.
    named: bool,
}

impl Caller {
    fn may_continue(&self) -> bool {
        self.go.load(Ordering::SeqCst)
    }

    fn id_of(&self, made: u64) -> String {
        if self.named { format!("{}-{made}", self.number) } else { String::new() }
    }

    /// The next node; fails the test after a bound.
    async fn node(&self, turn: &mut usize, since: Instant) -> Node {
        loop {
            assert!(since.elapsed() < PATIENCE, "no node decides");
            *turn += 1;
            if let Some(node) = self.nodes.pick(*turn, self.only_ready) {
                return node;
            }
            tokio::time::sleep(PACE / 4).await;
        }
    }

    async fn over_grpc(self) -> u64 {
        let (mut made, mut turn) = (0, self.number);
        while self.may_continue() {
            let one = Call { request_id: self.id_of(made), ..call(account("load"), "open", &[]) };
            let since = Instant::now();
            let decision = loop {
                let node = self.node(&mut turn, since).await;
                match consume(&node.grpc, one.clone()).await {
                    Ok(decision) => break decision,
                    Err(status) if self.named || was_not_accepted(&status) => {}
                    Err(status) => panic!("what became of a call is not known: {status:?}"),
                }
            };
            assert!(allowed(&decision));
            made += 1;
            self.answered.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(PACE).await;
        }
        made
    }

    async fn over_rest(self) -> u64 {
        let (mut made, mut turn) = (0, self.number);
        while self.may_continue() {
            let body = json!({"caller": {"account": "load"}, "resource": "open", "request_id": self.id_of(made)});
            let since = Instant::now();
            let answer = loop {
                let node = self.node(&mut turn, since).await;
                match node.rest.request(Method::POST, "/v1/consume").json(&body).send().await {
                    Ok(answer) => break answer.json::<Value>().await.expect("JSON"),
                    Err(error) if self.named || error.is_connect() => {}
                    Err(error) => panic!("what became of a call is not known: {error:?}"),
                }
            };
            assert_eq!(answer["verdict"], "allowed", "{answer}");
            made += 1;
            self.answered.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(PACE).await;
        }
        made
    }

    /// Keeps 16 calls in progress on a stream, and moves unanswered ones to the next stream.
    async fn on_a_stream(self) -> u64 {
        let (mut made, mut turn, mut open) = (0, self.number, BTreeMap::<u64, Call>::new());
        while self.may_continue() || !open.is_empty() {
            let node = self.node(&mut turn, Instant::now()).await;
            let (to, calls) = mpsc::channel(16);
            for (id, call) in &open {
                let again = ConsumeStreamRequest { id: *id, call: Some(call.clone()), timeout_ms: 0 };
                to.try_send(again).expect("there is room for what was open");
            }
            let mut answers = match node.grpc.clone().consume_stream(ReceiverStream::new(calls)).await {
                Ok(answers) => answers.into_inner(),
                Err(status) if was_not_accepted(&status) || status.code() == Code::Unavailable => continue,
                Err(status) => panic!("a stream did not open: {status:?}"),
            };
            let mut to = Some(to);
            loop {
                if !self.may_continue() {
                    to = None;
                }
                while open.len() < 16 {
                    let one = call(account("load"), "open", &[]);
                    let message = ConsumeStreamRequest { id: made, call: Some(one.clone()), timeout_ms: 0 };
                    match &to {
                        Some(to) if to.try_send(message).is_ok() => {}
                        _ => break,
                    }
                    open.insert(made, one);
                    made += 1;
                }
                match answers.message().await {
                    Ok(Some(answer)) => {
                        assert!(
                            matches!(answer.result.unwrap().result, Some(Of::Decision(decision)) if allowed(&decision))
                        );
                        assert!(open.remove(&answer.id).is_some(), "{} was answered twice", answer.id);
                        self.answered.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(None) => break,
                    Err(status) => {
                        assert!(status.message().contains("were not charged"), "{status:?}");
                        break;
                    }
                }
                tokio::time::sleep(PACE / 16).await;
            }
        }
        made
    }
}
