//! A rolling restart: three nodes under load are stopped and replaced one by one. Clients fail over; calls of unknown
//! outcome are repeated only with a request id. No call and no count is lost.

mod clients;

use std::time::{Duration, Instant};

use tollgate_store::testing::RedisServer;
use tonic_health::pb::health_check_response::ServingStatus;

use self::clients::{Load, NodeHealth, Nodes};
use crate::{
    grpc::health,
    harness::{KEY, Process, ProcessBuilder, account, call, folder_with, hash_of, peek, quota, until},
};

const BOUND: Duration = Duration::from_secs(20);
/// Number of refused accounts: so many that none exceeds the size of its log.
const REFUSED: usize = 400;

fn platform() -> String {
    let key = |id: &str, secret: &str| {
        format!(
            "    - {{ id: {id}, tier: paid, keys: [{{ id: key-{id}, kind: admin, hash: '{}' }}] }}\n",
            hash_of(secret)
        )
    };
    let refused: String = (0..REFUSED).map(|number| key(&format!("refused-{number}"), &secret_of(number))).collect();
    format!(
        "version: 1
domain: shop
self_service: venice
resources:
  open: {{ quotas: [{{ unit: requests, per: hour, limit: 100000000 }}] }}
  closed: {{ quotas: [{{ unit: requests, per: hour, limit: 0 }}] }}
tiers:
  paid: {{ is_charged: true }}
default_tier: paid
bootstrap:
  accounts:
{}{refused}",
        key("load", KEY)
    )
}

fn secret_of(number: usize) -> String {
    format!("sk-refused-{number}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_loses_no_call_and_no_count() {
    let redis = RedisServer::start();
    let (_folder, policy) = folder_with(&platform());
    let start = || ProcessBuilder::new(&policy).redis(&redis.url()).arg("--drain-delay-ms=2000").start();
    let mut processes = [start(), start(), start()];
    let nodes = Nodes::of(&processes);
    for process in &processes {
        ready(process).await;
    }
    let load = Load::start(&nodes);
    until("every caller calls", BOUND, async || (load.answered() > 300).then_some(())).await;
    for (slot, process) in processes.iter_mut().enumerate() {
        let refusing = nodes.keep_refusing(slot, REFUSED);
        until("refusals wait for the log", BOUND, async || waiting(process).await.filter(|waiting| *waiting > 0)).await;
        process.signal("TERM");
        until("the health service says so", BOUND, async || {
            (health(&process.channel, "").await == Some(ServingStatus::NotServing)).then_some(())
        })
        .await;
        let ended = process.ended(BOUND).await;
        assert_eq!(ended.code(), Some(0), "{}", process.stderr());
        refusing.await.expect("it refuses until the node is gone");
        let (before, gone) = (load.answered(), Instant::now());
        until("the others carry the load", BOUND, async || (load.answered() > before + 100).then_some(())).await;
        println!("100 calls were answered {:?} after node {slot} was gone", gone.elapsed());
        *process = start();
        ready(process).await;
        nodes.replace(slot, process);
    }
    let (admitted, health) = load.end().await;

    let now = peek(&processes[0].grpc, call(account("load"), "open", &[])).await.unwrap();
    assert_eq!(quota(&now, "requests_per_hour").used, admitted, "callers and Redis count the same");
    let (refused, mut readable) = (nodes.refused(), 0);
    for number in 0..REFUSED {
        let request = processes[number % 3].rest.request(reqwest::Method::GET, "/api_keys/rate_limits/log");
        let answer: serde_json::Value =
            request.bearer_auth(secret_of(number)).send().await.unwrap().json().await.unwrap();
        readable += answer["data"].as_array().unwrap().len();
    }
    assert_eq!(readable, refused, "refusals that were answered are in the log");
    println!("{admitted} calls were admitted and {refused} refused, of three nodes that were replaced under load");
    assert!(refused > 1_000, "hardly anything was refused");
    // Health checks report that a node is draining before it is gone.
    for slot in 0..3 {
        let of_old: Vec<&NodeHealth> = health
            .iter()
            .filter(|(of, _)| *of == slot)
            .map(|(_, seen)| seen)
            .take_while(|seen| **seen != NodeHealth::Gone)
            .collect();
        assert_eq!(of_old.last(), Some(&&NodeHealth::Draining), "node {slot}: {of_old:?}");
    }
}

async fn ready(process: &Process) {
    until("the node is ready", BOUND, async || (process.rest.text("/readyz").await.0.as_u16() == 200).then_some(()))
        .await;
}

async fn waiting(process: &Process) -> Option<u64> {
    let (_, metrics) = process.rest.text("/metrics").await;
    metrics.lines().find_map(|line| line.strip_prefix("tollgate_refusal_log_waiting ")?.parse().ok())
}
