//! Faults of Redis under a fixed, moderate load from three nodes. In each case: latency stays bounded, service
//! recovers, admissions stay within the bound of the failure mode, every counter has a time to live, and memory and
//! descriptors do not grow. `tests/run` runs this short form; `tests/run --chaos` repeats it and adds ten minutes of
//! load.

mod clock;
mod load;
mod node_resources;

use std::time::Duration;

use tollgate_store::testing::{
    RedisServer,
    topologies::{RedisCluster, SentinelTrio},
};

use self::load::{Bounds, Case, DEADLINE, LIMIT, NODES, NodeGroup, Report};
use crate::harness::{Proxy, until};

/// Duration of a fault, unless the case has its own.
const FAULT: Duration = Duration::from_secs(3);

fn print(report: &Report) {
    println!("{report}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "bound in time: tests/run runs it alone"]
async fn a_single_redis_fails_and_recovers() {
    let mut redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let node_group = NodeGroup::start(&redis.url(), "deny").await;

    let case = node_group.case("kill -9 the master, start it again (AOF always)").await;
    redis.kill();
    tokio::time::sleep(FAULT).await;
    redis.restart();
    print(&case.end(&node_group, Bounds::within_limit()).await);

    let case = node_group.case("SIGSTOP the master for 5 s").await;
    redis.pause();
    tokio::time::sleep(Duration::from_secs(5)).await;
    redis.resume();
    print(&case.end(&node_group, Bounds::within_limit()).await);

    assert_every_counter_expires(&[&redis]);

    // Without persistence, as a busy disk would stall Redis.
    let redis = RedisServer::start();
    let node_group = NodeGroup::start(&redis.url(), "deny").await;
    let case = node_group.case("SCRIPT FLUSH every 20 ms").await;
    for _ in 0..100 {
        let _: () = redis.run("SCRIPT FLUSH");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    print(&case.end(&node_group, Bounds { no_failures: true, ..Bounds::within_limit() }).await);

    let case = node_group.case("memory full (maxmemory, noeviction)").await;
    let _: () = redis.run("CONFIG SET maxmemory 1");
    tokio::time::sleep(FAULT).await;
    let _: () = redis.run("CONFIG SET maxmemory 0");
    print(&case.end(&node_group, Bounds::within_limit()).await);
    assert_every_counter_expires(&[&redis]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "bound in time: tests/run runs it alone"]
async fn calls_survive_a_bad_network() {
    let redis = RedisServer::start();
    let proxy = Proxy::start(redis.port()).await;
    let node_group = NodeGroup::start(&proxy.url(), "deny").await;

    let case = node_group.case("all traffic is dropped").await;
    proxy.drop_traffic(true);
    tokio::time::sleep(FAULT).await;
    proxy.drop_traffic(false);
    print(&case.end(&node_group, Bounds::within_limit()).await);

    let case = node_group.case("every answer is delayed by 100 ms").await;
    proxy.delay(Duration::from_millis(100));
    tokio::time::sleep(FAULT).await;
    proxy.delay(Duration::ZERO);
    print(&case.end(&node_group, Bounds { no_failures: true, ..Bounds::within_limit() }).await);

    let case = node_group.case("connections are cut every 100 ms").await;
    for _ in 0..30 {
        proxy.cut();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    print(&case.end(&node_group, Bounds::within_limit()).await);
    assert_every_counter_expires(&[&redis]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "bound in time: tests/run runs it alone"]
async fn failure_modes_keep_their_bounds_under_load() {
    for (mode, bounds) in [
        ("local", Bounds::with_fallback(LIMIT + NODES * (LIMIT / NODES))),
        // Every call during the outage may be admitted.
        ("allow", Bounds::with_fallback(u64::MAX)),
    ] {
        let mut redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
        let node_group = NodeGroup::start(&redis.url(), mode).await;
        let case = node_group.case(&format!("kill -9 the master, on_failure: {mode}")).await;
        redis.kill();
        tokio::time::sleep(FAULT).await;
        redis.restart();
        print(&case.end(&node_group, Bounds { no_failures: true, ..bounds }).await);
        assert_every_counter_expires(&[&redis]);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "bound in time: tests/run runs it alone"]
async fn calls_follow_failovers_under_load() {
    let mut cluster = RedisCluster::start();
    let node_group = NodeGroup::start(&cluster.url_of_user(), "deny").await;
    let case = node_group.case("CLUSTER FAILOVER by command").await;
    cluster.fail_over_to(3);
    cluster.wait_until_whole();
    print(&case.end(&node_group, Bounds::within_limit()).await);

    // A replica needs the node timeout (1 s) and an election.
    cluster.allow_failover();
    let case = node_group.case("kill -9 a master of the cluster").await;
    cluster.servers[1].kill();
    cluster.servers[2].wait_for("CLUSTER INFO", "cluster_state:ok").await;
    cluster.servers[4].wait_for("INFO replication", "role:master").await;
    print(&case.end(&node_group, Bounds { lost_writes: true, ..Bounds::within_limit() }).await);
    // By now two replicas are masters.
    assert_every_counter_expires(&[3, 4, 2].map(|master| &cluster.servers[master]));
    drop(node_group);

    let mut trio = SentinelTrio::start();
    trio.allow_failover();
    let node_group = NodeGroup::start(&trio.url_of_user(), "deny").await;
    let case = node_group.case("kill -9 the master under Sentinel").await;
    trio.servers[0].kill();
    let master = until("another server is master", Duration::from_secs(30), async || {
        trio.master().filter(|master| *master != 0)
    })
    .await;
    print(&case.end(&node_group, Bounds { lost_writes: true, ..Bounds::within_limit() }).await);
    assert_every_counter_expires(&[&trio.servers[master]]);
}

/// One of three nodes is killed under load: the others continue.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "bound in time: tests/run runs it alone"]
async fn other_nodes_continue_when_one_is_killed() {
    let redis = RedisServer::start();
    let mut node_group = NodeGroup::start(&redis.url(), "deny").await;
    let case = node_group.case("kill -9 one node of three").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    node_group.kill(2);
    tokio::time::sleep(Duration::from_secs(1)).await;
    print(&case.end(&node_group, Bounds { killed_node: Some(2), ..Bounds::within_limit() }).await);
    assert_every_counter_expires(&[&redis]);
}

/// Asserts that every counter on these masters has a time to live, and that there is one. A single master of a cluster
/// may have none.
fn assert_every_counter_expires(masters: &[&RedisServer]) {
    let mut seen = 0;
    for master in masters {
        let mut connection = master.connection();
        for key in master.run::<Vec<String>>("KEYS tg{*") {
            // A key that expired since then has -2.
            let ttl: i64 = redis::cmd("PTTL").arg(&key).query(&mut connection).expect("Redis answers");
            assert_ne!(ttl, -1, "{key} has no time to live");
            seen += 1;
        }
    }
    assert!(seen > 0, "there is no counter");
}

/// Memory and descriptors do not grow, and callers and Redis count the same, for `TOLLGATE_SOAK_SECONDS` (default: 5).
#[tokio::test(flavor = "multi_thread")]
#[ignore = "bound in time: tests/run runs it alone"]
async fn memory_and_descriptors_do_not_grow_under_load() {
    let seconds = std::env::var("TOLLGATE_SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let redis = RedisServer::start();
    let node_group = NodeGroup::start(&redis.url(), "deny").await;
    let case: Case = node_group.case(&format!("no failure, for {seconds} s")).await;
    node_group.check_steady(Duration::from_secs(seconds)).await;
    let report = case.end(&node_group, Bounds { no_failures: true, ..Bounds::within_limit() }).await;
    print(&report);
    assert_eq!(report.admitted, report.charged, "callers and Redis count the same");
    assert!(report.p99 < DEADLINE, "{report}");
    assert_every_counter_expires(&[&redis]);
}
