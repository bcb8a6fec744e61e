//! A call that waits for replicas: it is answered once they have its charge, and otherwise fails by name.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tollgate_core::{
    amount::{Amount, Limit, UnitId},
    claim::{ApplyResult, Claim, ClaimsDecision, Effect, LedgerKey, Mode, Partition, ReservationId},
    reservation::{Admission, AdmitOptions, CloseRequest, CloseResult, NewReservation, ReservationState},
    store::{Store, StoreError},
    window::{SlidingWindow, WindowInstance},
};
use tollgate_store::{
    redis::{RedisClient, RedisConfig, RedisStore},
    refusals::{Refusal, RefusalLog, redis::RedisRefusals},
    testing::RedisServer,
};

use crate::harness::faults;

const WAIT: Duration = Duration::from_millis(200);
const DEADLINE: Duration = Duration::from_secs(10);
const ID: ReservationId = ReservationId([7; 16]);

fn home() -> Partition {
    Partition::of(["replicas"])
}

fn claims() -> [Claim; 1] {
    [Claim {
        ledger: LedgerKey::of(home(), ["resource"]),
        span: WindowInstance::Sliding(SlidingWindow::from_ms(3_600_000).unwrap()),
        unit: UnitId::of("requests"),
        cost: Amount::from(1),
        limit: Limit::Finite(Amount::from(1_000)),
        effect: Effect::Charge,
    }]
}

fn config(url: String, wait_replicas: usize) -> RedisConfig {
    RedisConfig { deadline: DEADLINE, wait: WAIT, wait_replicas, ..RedisConfig::new(url) }
}

fn store(server: &RedisServer, wait_replicas: usize) -> RedisStore {
    RedisStore::connect(config(server.url(), wait_replicas)).unwrap()
}

async fn apply(store: &RedisStore, mode: Mode) -> Result<ClaimsDecision, StoreError> {
    match store.apply(&claims(), mode).await? {
        ApplyResult::Applied(applied) => Ok(applied),
        ApplyResult::OutsidePeriod(_) => panic!("there are no periods"),
    }
}

async fn reserve(store: &RedisStore) -> Result<Admission, StoreError> {
    let hold = NewReservation { id: ID, ttl_ms: 600_000, metadata: b"" };
    store.admit(&claims(), &AdmitOptions { home: home(), hold: Some(hold), request: None }).await
}

async fn replicated() -> [RedisServer; 2] {
    let master = RedisServer::start();
    let port = master.port().to_string();
    let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]);
    replica.wait_for("INFO replication", "master_link_status:up").await;
    master.wait_for("INFO replication", "state=online").await;
    [master, replica]
}

/// Everything that a server has.
fn everything(server: &RedisServer) -> Vec<(String, Vec<u8>)> {
    let mut redis = server.connection();
    let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut redis).unwrap();
    keys.sort();
    keys.into_iter().map(|key| (key.clone(), redis::cmd("DUMP").arg(key).query(&mut redis).unwrap())).collect()
}

/// The number of `WAIT` commands on a server.
fn waits(server: &RedisServer) -> u64 {
    let stats: String = server.run("INFO commandstats");
    let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_wait:calls="));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

fn is_by_name<T: std::fmt::Debug>(answer: Result<T, StoreError>, said: &str) {
    match answer {
        Err(StoreError::Indeterminate(text)) if text.contains(said) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_answer_means_that_the_replica_has_the_charge() {
    let [master, replica] = replicated().await;
    let store = store(&master, 1);
    for number in 1..=50 {
        let applied = apply(&store, Mode::Try).await.unwrap();
        assert_eq!((applied.allowed, applied.statuses[0].used.get()), (true, number));
        assert_eq!(everything(&replica), everything(&master), "after call {number}");
    }
    reserve(&store).await.unwrap();
    assert_eq!(everything(&replica), everything(&master));
    // The first script was sent once more in full, and waited with.
    assert_eq!(waits(&master), 50 + 1 + 1 + 1);
    apply(&store, Mode::Peek).await.unwrap();
    assert_eq!(waits(&master), 53, "a look waits for nobody");
}

#[tokio::test]
async fn no_call_waits_for_replicas_unless_configured() {
    let [master, _replica] = replicated().await;
    let store = store(&master, 0);
    apply(&store, Mode::Try).await.unwrap();
    reserve(&store).await.unwrap();
    assert_eq!(waits(&master), 0);
}

#[tokio::test]
async fn without_the_replica_a_charge_is_indeterminate_by_name_and_nothing_else_is() {
    let [master, replica] = replicated().await;
    let store = store(&master, 1);
    apply(&store, Mode::Try).await.unwrap();
    replica.pause();
    // More than a breaker would bear, were it one that counts for it.
    for _ in 0..6 {
        let started = Instant::now();
        is_by_name(apply(&store, Mode::Try).await, "0 of 1 replicas had the charge within 200ms");
        let took = started.elapsed();
        assert!(took >= WAIT && took < DEADLINE, "{took:?}");
    }
    is_by_name(reserve(&store).await, "0 of 1 replicas");
    assert_eq!((faults(&store, "unreplicated"), store.link().status().resting), (7, 0));
    // Operations that charge nothing still work, and show that the charges were made.
    let looked = apply(&store, Mode::Peek).await.unwrap();
    assert_eq!(looked.statuses[0].used.get(), 8);
    let ReservationState::Open { reservation, .. } = store.look(home(), ID).await.unwrap() else {
        panic!("no reservation")
    };
    let closing = CloseRequest {
        digest: [1; 16],
        refunds: &reservation.charges,
        debts: &[],
        reservation: &reservation,
        metadata: b"",
    };
    is_by_name(store.close(home(), ID, &closing).await, "0 of 1 replicas");
    let log = RedisRefusals::on(RedisClient::open(config(master.url(), 1)).unwrap());
    let refusal = Refusal { key: None, resource: "m".into(), tier: "t".into(), label: "RPM".into(), at_ms: 1 };
    log.append(home(), &[refusal]).await.unwrap();

    replica.resume();
    let mut passed = false;
    for _ in 0..100 {
        passed = apply(&store, Mode::Try).await.is_ok();
        if passed {
            break;
        }
    }
    assert!(passed, "the replica is back");
    // The end was made, and a repetition reports this.
    assert!(matches!(store.close(home(), ID, &closing).await.unwrap(), CloseResult::Before(_)));
}

#[tokio::test]
async fn without_the_right_to_wait_a_charge_is_indeterminate_by_name() {
    let [master, _replica] = replicated().await;
    let _: () = master.run("ACL SETUSER hasty on >pass ~* &* +@all -wait");
    let url = master.url().replace("redis://", "redis://hasty:pass@");
    let store = RedisStore::connect(config(url, 1)).unwrap();
    is_by_name(apply(&store, Mode::Try).await, "WAIT: ");
    assert_eq!((faults(&store, "unreplicated"), faults(&store, "noperm")), (1, 0));
}

/// A failover under load, in its worst order: the replica becomes master while the old one still accepts calls. No
/// answered charge is lost, and additional charges on the new master belong to calls whose result was unknown. Tried by
/// breaking it: a store that waits for no replica.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_loses_no_answered_charge() {
    const CALLERS: u64 = 4;
    let [mut master, replica] = replicated().await;
    let (store, answered, unanswered) = (store(&master, 1), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..CALLERS {
        let (store, answered, unanswered) = (store.clone(), Arc::clone(&answered), Arc::clone(&unanswered));
        callers.spawn(async move {
            loop {
                match apply(&store, Mode::Try).await {
                    Ok(applied) if applied.allowed => answered.fetch_add(1, Ordering::SeqCst),
                    Ok(_) => return,
                    Err(_) => unanswered.fetch_add(1, Ordering::SeqCst),
                };
            }
        });
    }
    let made = || answered.load(Ordering::SeqCst) + unanswered.load(Ordering::SeqCst);
    let reaches = async |wanted: u64| {
        let reached = async {
            while made() < wanted {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(2 * DEADLINE, reached).await.expect("calls go on");
    };
    reaches(100).await;
    let () = replica.run("REPLICAOF NO ONE");
    // Each caller has met the old master without its replica.
    reaches(made() + 3 * CALLERS).await;
    callers.shutdown().await;
    master.kill();
    let promoted = self::store(&replica, 0);
    let used = apply(&promoted, Mode::Peek).await.unwrap().statuses[0].used.get();
    let answered = answered.load(Ordering::SeqCst);
    assert!((answered..=answered + CALLERS).contains(&used), "{answered} answered, {used} kept");
}
