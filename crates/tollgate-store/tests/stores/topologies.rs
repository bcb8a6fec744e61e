//! The conformance suite on Redis as in production, and the effects of a failover and of moving slots on calls.

use std::{sync::Arc, time::Duration};

use proptest::strategy::Strategy;
use tokio::runtime::Runtime;
use tollgate_core::{
    amount::{Amount, Limit, UnitId},
    claim::{ApplyResult, Claim, Effect, LedgerKey, Mode, Partition},
    store::{Store, StoreError},
    window::{SlidingWindow, WindowInstance},
};
use tollgate_store::{
    clock::ManualClock,
    memory::MemoryStore,
    redis::{RedisConfig, RedisStore},
    testing::{
        PATIENCE, Program, RedisServer, check_property,
        conformance::{Placement, START, Step, compare, crowded, mixed, paced, reserved},
        patient,
        topologies::{OtherServer, RedisCluster, SecureRedis, SentinelTrio},
    },
};

use crate::harness::{faults, store_with_clock};

/// Plays generated sequences of each kind as `conformance.rs` does, on whatever `config` leads to: `cases` of everything
/// mixed, and fewer of the others.
fn conforms(config: &RedisConfig, cases: u32, prefix: impl Fn(&str) -> String) {
    conforms_on(config, cases, |case| prefix(&format!("mixed{case}")), &mixed());
    conforms_on(config, cases / 3, |case| prefix(&format!("reserved{case}")), &reserved());
    conforms_on(config, cases / 10, |case| prefix(&format!("paced{case}")), &paced());
    conforms_on(config, 1, |case| prefix(&format!("crowded{case}")), &crowded(60_000, 36, 3_000));
}

fn conforms_on(
    config: &RedisConfig,
    cases: u32,
    prefix: impl Fn(u32) -> String,
    sequences: &impl Strategy<Value = Vec<Step>>,
) {
    let runtime = Runtime::new().unwrap();
    let placement = if config.url.contains("+cluster:") { Placement::Slots } else { Placement::OneServer };
    check_property(cases, sequences, |case, steps| {
        let clock = Arc::new(ManualClock::at(START));
        let memory = MemoryStore::that_forgets_nothing(Arc::clone(&clock));
        let config = RedisConfig { key_prefix: prefix(case), connections: 1, ..config.clone() };
        let nodes: Vec<Box<dyn Store>> =
            (0..2).map(|_| Box::new(store_with_clock(config.clone(), &clock, &runtime)) as _).collect();
        runtime.block_on(compare(&memory, &nodes, placement, &clock, &steps));
        Ok(())
    });
}

/// Where any key may be used.
fn any_key(case: &str) -> String {
    case.to_owned()
}

/// Within the keys that the ACL allows.
fn allowed_key(case: &str) -> String {
    format!("tg{{{case}}}")
}

#[test]
fn a_cluster_conforms_over_several_slots() {
    let cluster = RedisCluster::start();
    conforms(&patient(cluster.url()), 100, any_key);
}

#[test]
fn a_master_under_sentinels_conforms() {
    let trio = SentinelTrio::start();
    conforms(&patient(trio.url()), 40, any_key);
}

#[test]
fn tls_with_client_certificates_and_an_acl_conforms() {
    let secure = SecureRedis::start();
    conforms(&secure.config(), 40, allowed_key);
}

#[test]
fn an_older_redis_conforms() {
    other_conforms(Program::Redis62);
}

#[test]
fn a_valkey_conforms() {
    other_conforms(Program::Valkey);
}

/// With the rights of the documentation. A refusal by the server has a name here, even if an older version words it
/// differently.
fn other_conforms(program: Program) {
    let server = OtherServer::start(program);
    conforms(&patient(server.url()), 60, allowed_key);
    Runtime::new().unwrap().block_on(async {
        let store = RedisStore::connect(patient(server.url())).unwrap();
        let call = async || store.apply(&[claim("a", 10)], Mode::Try).await;
        for (command, back, fault) in [
            ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "oom"),
            ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "readonly"),
        ] {
            let _: () = server.run(command);
            assert!(call().await.is_err(), "{command}");
            assert_eq!(faults(&store, fault), 1, "{command}: {:?}", store.link().status());
            let _: () = server.run(back);
        }
        assert_eq!(used(&call().await.unwrap()), 1, "what was refused was charged");
    });
}

#[test]
fn a_unix_socket_conforms() {
    let server = RedisServer::start_with(&["--unixsocket", "{folder}/redis.sock"]);
    conforms(&patient(format!("unix://{}/redis.sock", server.folder().display())), 20, any_key);
}

/// An attempt to connect is not given up while calls wait for it.
#[tokio::test]
async fn connecting_may_take_as_long_as_calls_wait() {
    let server = RedisServer::start();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let port = server.port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(1_500)).await;
                let mut server = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    let store = RedisStore::connect(patient(url)).unwrap();
    assert_eq!(used(&store.apply(&[claim("a", 1)], Mode::Try).await.unwrap()), 1);
}

fn claim(account: &str, limit: u32) -> Claim {
    Claim {
        ledger: LedgerKey::of(Partition::of([account]), ["r"]),
        span: WindowInstance::Sliding(SlidingWindow::from_ms(3_600_000).unwrap()),
        unit: UnitId::of("requests"),
        cost: Amount::from(1),
        limit: Limit::Finite(Amount::from(limit)),
        effect: Effect::Charge,
    }
}

fn used(answer: &ApplyResult) -> u64 {
    match answer {
        ApplyResult::Applied(applied) => applied.statuses[0].used.get(),
        ApplyResult::OutsidePeriod(at) => panic!("outside a period at {at}"),
    }
}

/// Calls once for each of 40 accounts, which live in as many slots, until every one is admitted. Returns the errors
/// met on the way.
async fn one_each(store: &RedisStore, round: u64) -> Vec<StoreError> {
    let mut errors = Vec::new();
    for account in 0..40 {
        let claims = [claim(&account.to_string(), 1_000)];
        let started = std::time::Instant::now();
        loop {
            assert!(started.elapsed() < PATIENCE, "{errors:?}");
            match store.apply(&claims, Mode::Try).await {
                Ok(answer) => {
                    assert!(used(&answer) >= round, "a charge is lost");
                    break;
                }
                Err(error) => errors.push(error),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    errors
}

/// Slots on the move: half of their keys are here (TRYAGAIN, ASK), then all are there (MOVED).
#[tokio::test]
async fn calls_follow_slots_on_the_move() {
    let cluster = RedisCluster::start();
    let store = RedisStore::connect(RedisConfig { connections: 1, ..patient(cluster.url_of_user()) }).unwrap();
    one_each(&store, 1).await;
    let (from, to) = (&cluster.servers[0], &cluster.servers[1]);
    let (from_id, to_id): (String, String) = (from.run("CLUSTER MYID"), to.run("CLUSTER MYID"));
    let keys: Vec<String> = from.run("KEYS *");
    let slots: Vec<u16> = keys.iter().map(|key| from.run(&format!("CLUSTER KEYSLOT {key}"))).collect();
    assert!(slots.len() > 3, "the accounts are spread over the masters: {keys:?}");
    for slot in &slots {
        let _: () = to.run(&format!("CLUSTER SETSLOT {slot} IMPORTING {from_id}"));
        let _: () = from.run(&format!("CLUSTER SETSLOT {slot} MIGRATING {to_id}"));
    }
    assert_eq!(one_each(&store, 2).await, [], "keys that are still here");
    for key in &keys {
        let _: () = from.run(&format!("MIGRATE 127.0.0.1 {} {key} 0 5000", to.port()));
    }
    assert_eq!(one_each(&store, 3).await, [], "keys that are there already: ASK");
    assert!(faults(&store, "ask") >= slots.len() as u64, "nobody was asked: {:?}", store.link().status());
    for slot in &slots {
        for server in &cluster.servers[..3] {
            let _: () = server.run(&format!("CLUSTER SETSLOT {slot} NODE {to_id}"));
        }
    }
    assert_eq!(one_each(&store, 4).await, [], "slots that are there: MOVED");
    assert!(faults(&store, "moved") >= 1, "nobody was moved: {:?}", store.link().status());
}

/// A replica takes over, by command and then because its master died.
#[tokio::test]
async fn calls_follow_a_failover_of_the_cluster() {
    let mut cluster = RedisCluster::start();
    let store = RedisStore::connect(RedisConfig::new(cluster.url_of_user())).unwrap();
    one_each(&store, 1).await;
    cluster.fail_over_to(3);
    one_each(&store, 2).await;
    cluster.wait_until_whole();
    one_each(&store, 3).await;
    // A charge that no replica has yet would be lost, which is another matter.
    cluster.wait_until_whole();
    cluster.allow_failover();
    cluster.servers[1].kill();
    one_each(&store, 4).await;
}

#[tokio::test]
async fn calls_follow_a_failover_of_the_sentinels() {
    let mut trio = SentinelTrio::start();
    let store = RedisStore::connect(RedisConfig::new(trio.url_of_user())).unwrap();
    one_each(&store, 1).await;
    // A charge that no replica has yet would be lost, which is another matter.
    trio.wait_until_whole();
    let master = trio.fail_over();
    // Until the store follows, which it hears of at once, the old master takes charges in that are lost.
    let switched = std::time::Instant::now();
    while !trio.servers[master].says("INFO commandstats", "cmdstat_eval") {
        assert!(switched.elapsed() < PATIENCE, "the store does not follow");
        let _ = store.apply(&[claim("another", 1_000)], Mode::Try).await;
    }
    one_each(&store, 2).await;
    trio.wait_until_whole();
    trio.allow_failover();
    trio.servers[master].kill();
    one_each(&store, 3).await;
}

/// All or nothing across slots, within its bounds: a refusal that a part reports at the check charges nothing.
#[tokio::test]
async fn a_refusal_by_one_slot_charges_no_other() {
    let cluster = RedisCluster::start();
    let store = RedisStore::connect(patient(cluster.url_of_user())).unwrap();
    let claims = [claim("account", 1_000), claim("pool", 3), claim("address", 1_000)];
    for number in 1..=10 {
        let ApplyResult::Applied(applied) = store.apply(&claims, Mode::Try).await.unwrap() else { panic!() };
        assert_eq!(applied.allowed, number <= 3);
        assert!(applied.statuses.iter().all(|status| status.used.get() == number.min(3)), "{applied:?}");
    }
}

/// Wrong credentials, a wrong authority and a missing right are reported by name, and nothing waits without a bound.
#[tokio::test]
async fn errors_of_a_secure_server_name_their_cause() {
    let secure = SecureRedis::start();
    let error = async |config: RedisConfig| {
        let store = RedisStore::connect(config).unwrap();
        store.apply(&[claim("a", 1)], Mode::Try).await.unwrap_err().to_string()
    };
    let good = secure.config();
    let said = error(RedisConfig { url: good.url.replace(SecureRedis::PASSWORD, "wrong"), ..good.clone() }).await;
    assert!(said.contains("WRONGPASS") || said.contains("uthentication"), "{said}");
    assert!(!said.contains("wrong\""), "the password is said: {said}");
    let said = error(RedisConfig { tls: SecureRedis::start().config().tls, ..good.clone() }).await;
    assert!(said.contains("ertificate"), "{said}");
    let said = error(RedisConfig { key_prefix: "other".into(), ..good.clone() }).await;
    assert!(said.to_lowercase().contains("permission") || said.contains("NoPerm"), "{said}");
    assert!(RedisStore::connect(good).unwrap().apply(&[claim("a", 1)], Mode::Try).await.is_ok());
}
