//! The cost of waiting for a replica: decisions per second and their latency through a store with 64 concurrent
//! callers, with and without `WAIT 1`, on a master and a replica on loopback. Run it with `tests/bench-wait`.
//!
//! The configurations take turns; the median of the rounds counts. `WAIT` blocks its connection, and every call behind
//! it, until the replica answers, so the number of connections decides the throughput.

#![expect(clippy::print_stdout, reason = "a bench prints its table")]
#![expect(clippy::expect_used, reason = "a bench that cannot go on should stop")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use tollgate_core::{claim::Mode, store::Store};
use tollgate_store::{
    redis::{RedisConfig, RedisStore},
    testing::RedisServer,
};
use tollgate_tests::claims;

const CALLERS: u64 = 64;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
/// Number of connections, and of replicas to wait for.
const WAYS: [(usize, usize); 6] = [(2, 0), (2, 1), (8, 0), (8, 1), (32, 0), (32, 1)];

/// Calls per second, median latency, 99th percentile.
#[derive(Clone, Copy)]
struct Figures {
    rate: f64,
    p50: Duration,
    p99: Duration,
}

async fn round(store: &Arc<RedisStore>) -> Figures {
    let started = Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let store = Arc::clone(store);
        callers.spawn(async move {
            let claims = claims(caller);
            let mut took = Vec::new();
            while started.elapsed() < ROUND {
                let begun = Instant::now();
                store.apply(&claims, Mode::Try).await.expect("an answer");
                took.push(begun.elapsed());
            }
            took
        });
    }
    let mut took: Vec<Duration> = callers.join_all().await.into_iter().flatten().collect();
    took.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "a few hundred thousand")]
    let rate = took.len() as f64 / started.elapsed().as_secs_f64();
    Figures { rate, p50: took[took.len() / 2], p99: took[took.len() * 99 / 100] }
}

#[tokio::main]
async fn main() {
    let master = RedisServer::start();
    let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &master.port().to_string()]);
    replica.wait_for("INFO replication", "master_link_status:up").await;
    master.wait_for("INFO replication", "state=online").await;
    let open = |(connections, wait_replicas)| {
        let deadline = Duration::from_mins(1);
        let wait = Duration::from_secs(10);
        let config = RedisConfig { connections, wait_replicas, wait, deadline, ..RedisConfig::new(master.url()) };
        Arc::new(RedisStore::connect(config).expect("a store"))
    };
    let stores = WAYS.map(open);
    let mut each = WAYS.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for (store, figures) in stores.iter().zip(&mut each) {
            figures.push(round(store).await);
        }
    }
    println!("connections  replicas  decisions/s     p50      p99");
    for ((connections, replicas), mut rounds) in WAYS.into_iter().zip(each) {
        rounds.sort_by(|one, other| one.rate.total_cmp(&other.rate));
        let Figures { rate, p50, p99 } = rounds[rounds.len() / 2];
        println!("{connections:>11}  {replicas:>8}  {rate:>11.0}  {p50:>6.1?}  {p99:>7.1?}");
    }
}
