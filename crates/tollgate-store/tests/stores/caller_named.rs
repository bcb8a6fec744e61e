//! Counters whose names callers choose: a partition has a bounded number, and those that have ended make room.

use std::sync::Arc;

use tollgate_core::{
    amount::{Amount, Limit, UnitId},
    claim::{ApplyResult, Claim, Effect, LedgerKey, Mode, Partition, ReservationId},
    ledger::CounterCapReached,
    reservation::{Admission, AdmitOptions, NewReservation, ReservationState},
    store::{Store, StoreError},
    window::{SlidingWindow, WindowInstance},
};
use tollgate_store::{
    clock::ManualClock,
    memory::MemoryStore,
    redis::{Fault, RedisConfig, RedisStore},
    testing::{RedisServer, conformance::START},
};

const WINDOW_MS: u64 = 3_600_000;

fn home() -> Partition {
    Partition::of(["account"])
}

fn claim(ledger: LedgerKey) -> Claim {
    Claim {
        ledger,
        span: WindowInstance::Sliding(SlidingWindow::from_ms(WINDOW_MS).unwrap()),
        unit: UnitId::of("requests"),
        cost: Amount::from(1),
        limit: Limit::Finite(Amount::from(100)),
        effect: Effect::Charge,
    }
}

/// A call with a counter of the account's own beside that of a session.
fn of_session(name: &str) -> [Claim; 2] {
    [claim(LedgerKey::of(home(), ["all"])), claim(LedgerKey::caller_named(home(), ["session", name]))]
}

async fn used(store: &dyn Store, claims: &[Claim]) -> Vec<u64> {
    match store.apply(claims, Mode::Peek).await.unwrap() {
        ApplyResult::Applied(applied) => applied.statuses.iter().map(|status| status.used.get()).collect(),
        ApplyResult::OutsidePeriod(_) => panic!("no calendar here"),
    }
}

/// Fills a store with three places, and sees that a fourth session gets none and is charged nowhere.
async fn fill(store: &dyn Store) {
    for name in ["a", "b", "c", "a"] {
        store.apply(&of_session(name), Mode::Try).await.unwrap();
    }
    let refused = store.apply(&of_session("d"), Mode::Try).await;
    assert_eq!(refused, Err(StoreError::CounterCapReached(CounterCapReached)));
    let hold = NewReservation { id: ReservationId([7; 16]), ttl_ms: 60_000, metadata: b"" };
    let terms = AdmitOptions { home: home(), hold: Some(hold), request: None };
    assert_eq!(store.admit(&of_session("d"), &terms).await, Err(StoreError::CounterCapReached(CounterCapReached)));
    assert_eq!(store.look(home(), hold.id).await, Ok(ReservationState::Unknown));
    assert_eq!(used(store, &of_session("d")).await, [4, 0], "a refusal charges nothing");
    // Those that are there go on, and whatever names no session does.
    store.apply(&of_session("c"), Mode::Try).await.unwrap();
    store.apply(&of_session("x")[..1], Mode::Try).await.unwrap();
    let admitted = store.admit(&of_session("b"), &terms).await.unwrap();
    assert!(matches!(admitted, Admission::Decided(applied) if applied.allowed));
    // Charges regardless of the limits, such as debts, are not bounded here either.
    store.apply(&of_session("forced"), Mode::Force).await.unwrap();
    assert_eq!(used(store, &of_session("forced")).await, [8, 1]);
}

/// Tried by breaking it: names are not checked again; names of live counters are removed.
#[tokio::test]
async fn in_redis_an_expired_counter_frees_its_place() {
    let server = RedisServer::start();
    let config = RedisConfig { max_caller_named: 3, ..RedisConfig::new(server.url()) };
    let store = RedisStore::connect(config).unwrap();
    fill(&store).await;
    let crowded = store.link().status().faults.into_iter().find(|(fault, _)| *fault == Fault::CounterCapReached);
    assert_eq!(crowded, Some((Fault::CounterCapReached, 2)));

    let mut connection = server.connection();
    let places: Vec<String> = redis::cmd("KEYS").arg("*}o").query(&mut connection).unwrap();
    let names = |connection: &mut redis::Connection| -> Vec<String> {
        redis::cmd("ZRANGE").arg(&places[0]).arg("0").arg("-1").query(connection).unwrap()
    };
    let known = names(&mut connection);
    assert_eq!((places.len(), known.len()), (1, 3));
    // One counter expires, as Redis expires it. Its name is removed when the time for the next check of all names has
    // come, and also when that time is far ahead because the clock went back. Not before: otherwise every call would
    // check every name.
    let mut known = known;
    for (when, session) in [(1, "d"), (i64::MAX >> 12, "e")] {
        let () = redis::cmd("DEL").arg(&known[1]).query(&mut connection).unwrap();
        assert_eq!(
            store.apply(&of_session(session), Mode::Try).await,
            Err(StoreError::CounterCapReached(CounterCapReached))
        );
        for name in &known {
            let () = redis::cmd("ZADD").arg(&places[0]).arg(when).arg(name).query(&mut connection).unwrap();
        }
        store.apply(&of_session(session), Mode::Try).await.unwrap();
        let now = names(&mut connection);
        assert_eq!(now.len(), 3);
        assert!(now.contains(&known[0]) && now.contains(&known[2]) && !now.contains(&known[1]), "{known:?} {now:?}");
        assert_eq!(
            store.apply(&of_session("f"), Mode::Try).await,
            Err(StoreError::CounterCapReached(CounterCapReached))
        );
        known = now;
    }
}

#[tokio::test]
async fn in_memory_an_expired_counter_frees_its_place() {
    let clock = Arc::new(ManualClock::at(START));
    let store = MemoryStore::new(Arc::clone(&clock), 10_000).with_max_caller_named(3);
    fill(&store).await;
    clock.advance_ms(WINDOW_MS);
    store.sweep();
    assert_eq!(store.ledgers(), 0);
    for name in ["d", "e", "f"] {
        store.apply(&of_session(name), Mode::Try).await.unwrap();
    }
    assert_eq!(store.apply(&of_session("g"), Mode::Try).await, Err(StoreError::CounterCapReached(CounterCapReached)));
    // Another account has places of its own.
    let other = [claim(LedgerKey::caller_named(Partition::of(["other"]), ["session", "a"]))];
    store.apply(&other, Mode::Try).await.unwrap();
}
