//! Counters, records and slots that were changed by hand: any byte at any place. Whatever that does to their own callers,
//! others on the same connection, in the same batch, are decided every time; no connection is given up; and no reply and
//! no value grows beyond its bounds.
//!
//! Seen to fail without `guarded` (errors that are no UTF-8 broke the connection), with a straight line that is not
//! caught (a whole batch failed with one counter), and without the bounds of `read_header` (Redis made values of 268 MB).

use std::time::Duration;

use futures_util::future::join;
use redis::Connection;
use tollgate_core::{
    amount::{Amount, Limit, UnitId},
    claim::{ApplyResult, Claim, Effect, LedgerKey, Mode, Partition, ReservationId},
    reservation::{
        Admission, AdmitOptions, CloseRequest, IdempotencyKey, NewReservation, Reservation, ReservationState,
    },
    store::{Store, StoreError},
    window::{SlidingWindow, WindowInstance},
};
use tollgate_store::{
    redis::{Fault, RedisStore},
    testing::RedisServer,
};

const HOUR: u32 = 3_600_000;
const ID: ReservationId = ReservationId([7; 16]);
/// Zero, the bounds of ASCII and of other bytes, and the characters of `struct` formats.
const HOSTILE: [u8; 10] = [0x00, 0x01, 0x10, 0x7f, 0x80, 0xfe, 0xff, b'c', b'9', b'!'];

/// Far more than any value of ours has.
const LARGE: usize = 32 << 20;

/// One connection for everybody.
fn store(server: &RedisServer) -> RedisStore {
    RedisStore::connect(server.config()).unwrap()
}

fn claims(account: &str) -> Vec<Claim> {
    let claim = |ms: u32, unit| Claim {
        ledger: LedgerKey::of(Partition::of([account]), ["model"]),
        span: WindowInstance::Sliding(SlidingWindow::from_ms(ms.into()).unwrap()),
        unit: UnitId::of(unit),
        cost: Amount::from(1),
        limit: Limit::Unlimited,
        effect: Effect::Charge,
    };
    vec![claim(HOUR, "requests"), claim(HOUR, "tokens"), claim(24 * HOUR, "requests")]
}

fn with_slot(account: &str) -> Vec<Claim> {
    let mut claims = claims(account);
    let slot = Claim { span: WindowInstance::Slots, limit: Limit::Finite(Amount::from(100)), ..claims[0] };
    claims.push(slot);
    claims
}

/// Somebody else, on the same connection.
struct Bystander<'a> {
    store: &'a RedisStore,
    used: u64,
}

impl Bystander<'_> {
    /// Lets `work` happen while the bystander makes a call, which must be decided.
    async fn beside<T>(&mut self, what: &str, work: impl Future<Output = T>) -> T {
        let claims = claims("bystander");
        let (done, answer) = join(work, self.store.apply(&claims, Mode::Try)).await;
        self.used += 1;
        match answer {
            Ok(ApplyResult::Applied(applied)) => {
                assert_eq!((applied.allowed, applied.statuses[0].used.get()), (true, self.used), "{what}");
            }
            other => panic!("{what}: the bystander got {other:?}"),
        }
        done
    }
}

/// The possible results of a call on a broken counter: an answer, or an error that concerns only this call and is plain
/// text.
fn concerns_itself<T>(what: &str, answer: Result<T, StoreError>) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer),
        Err(StoreError::Refused(text)) => {
            let plain = text.len() < 400 && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
            assert!(plain, "{what}: {text:?}");
            None
        }
        Err(StoreError::CounterCapReached(_)) => None,
        Err(other) => panic!("{what}: {other:?}"),
    }
}

fn raw(redis: &mut Connection, key: &str) -> Vec<u8> {
    redis::cmd("GET").arg(key).query(redis).unwrap()
}

fn put(redis: &mut Connection, key: &str, value: &[u8]) {
    redis::cmd("SET").arg(key).arg(value).arg("PX").arg(HOUR).exec(redis).unwrap();
}

fn keys(redis: &mut Connection) -> Vec<String> {
    redis::cmd("KEYS").arg("*").query(redis).unwrap()
}

/// The connection never broke, no answer was missing, and Redis made nothing large.
fn nothing_else_happened(store: &RedisStore, server: &RedisServer) {
    for (fault, met) in store.link().status().faults {
        let expected = matches!(fault, Fault::NoScript | Fault::Unreadable | Fault::OtherVersion | Fault::Refused);
        assert!(met == 0 || expected, "{fault:?}: {met}");
    }
    let info: String = server.run("INFO memory");
    let peak = info.lines().find_map(|line| line.strip_prefix("used_memory_peak:")).unwrap();
    assert!(peak.parse::<u64>().unwrap() < 64 << 20, "used_memory_peak: {peak}");
}

/// Every corruption of `value`: a hostile byte at each place of the first `all` bytes and at some of the others, and the
/// value cut there.
fn corruptions(value: &[u8], all: usize) -> impl Iterator<Item = (String, Vec<u8>)> {
    let places = (0..value.len()).filter(move |at| *at < all || at % 61 == 0);
    places.flat_map(move |at| {
        let with = |byte: u8| {
            let mut bad = value.to_vec();
            bad[at] = byte;
            (format!("byte {at} of {} is {byte:#04x}", value.len()), bad)
        };
        let cut = (format!("cut at {at} of {}", value.len()), value[..at].to_vec());
        HOSTILE.into_iter().chain([!value[at]]).map(with).chain([cut]).collect::<Vec<_>>()
    })
}

#[tokio::test]
async fn a_corrupt_counter_fails_its_own_callers_only() {
    let server = RedisServer::start();
    let (store, mut redis) = (store(&server), server.connection());
    let mut bystander = Bystander { store: &store, used: 0 };
    for (account, entries) in [("short", 3), ("long", 90)] {
        let claims = claims(account);
        let before = keys(&mut redis);
        for _ in 0..entries {
            // Apart, so that each has an entry of its own.
            tokio::time::sleep(Duration::from_millis(2)).await;
            store.apply(&claims, Mode::Try).await.unwrap();
        }
        let key = keys(&mut redis).into_iter().find(|key| !before.contains(key)).unwrap();
        let good = raw(&mut redis, &key);
        let header = usize::from(u16::from_le_bytes([good[1], good[2]]));
        let mut failed = 0;
        for (what, bad) in corruptions(&good, header) {
            put(&mut redis, &key, &bad);
            let twice = join(store.apply(&claims, Mode::Try), store.apply(&claims, Mode::Try));
            let (first, second) = bystander.beside(&what, twice).await;
            failed += u32::from(concerns_itself(&what, first).is_none());
            concerns_itself(&what, second);
            put(&mut redis, &key, &bad);
            let peek = bystander.beside(&what, store.apply(&claims, Mode::Peek)).await;
            concerns_itself(&what, peek);
        }
        assert!(failed > 100, "{account}: only {failed} corruptions were met");
    }
    nothing_else_happened(&store, &server);
}

#[tokio::test]
async fn corrupt_records_and_slots_fail_their_own_callers_only() {
    let server = RedisServer::start();
    let (store, mut redis) = (store(&server), server.connection());
    let mut bystander = Bystander { store: &store, used: 0 };
    let (home, claims) = (Partition::of(["victim"]), with_slot("victim"));
    let hold = NewReservation { id: ID, ttl_ms: HOUR, metadata: b"note" };
    let request = IdempotencyKey { id: [5; 16], digest: [9; 16], ttl_ms: HOUR };
    let terms = AdmitOptions { home, hold: Some(hold), request: Some(request) };
    let Admission::Decided(_) = store.admit(&claims, &terms).await.unwrap() else { panic!("not decided") };
    let ReservationState::Open { reservation, .. } = store.look(home, ID).await.unwrap() else { panic!("not open") };
    let good: Vec<(String, Vec<u8>)> = keys(&mut redis)
        .into_iter()
        .map(|key| (key.clone(), redis::cmd("DUMP").arg(&key).query(&mut redis).unwrap()))
        .collect();
    let restore = |redis: &mut Connection| {
        for (key, dumped) in &good {
            redis::cmd("RESTORE").arg(key).arg(HOUR).arg(dumped).arg("REPLACE").exec(redis).unwrap();
        }
    };
    let all_ways =
        async |bystander: &mut Bystander<'_>, redis: &mut Connection, what: &str, corrupt: &dyn Fn(&mut Connection)| {
            for way in 0..4 {
                restore(redis);
                corrupt(redis);
                let what = format!("{what}, way {way}");
                let closing = |reservation: &Reservation| (reservation.charges.clone(), reservation.clone());
                match way {
                    0 => drop(concerns_itself(&what, bystander.beside(&what, store.admit(&claims, &terms)).await)),
                    1 => drop(concerns_itself(&what, bystander.beside(&what, store.look(home, ID)).await)),
                    2 => {
                        let extended = store.extend(home, ID, HOUR, &reservation);
                        concerns_itself(&what, bystander.beside(&what, extended).await);
                    }
                    _ => {
                        let (refunds, reservation) = closing(&reservation);
                        let closing = CloseRequest {
                            digest: [1; 16],
                            refunds: &refunds,
                            debts: &[],
                            reservation: &reservation,
                            metadata: b"",
                        };
                        concerns_itself(&what, bystander.beside(&what, store.close(home, ID, &closing)).await);
                    }
                }
            }
        };
    for (key, _) in &good {
        let kind: String = redis::cmd("TYPE").arg(key).query(&mut redis).unwrap();
        if kind == "string" {
            let value = raw(&mut redis, key);
            for (what, bad) in corruptions(&value, 80) {
                let what = format!("{key}: {what}");
                all_ways(&mut bystander, &mut redis, &what, &|redis| put(redis, key, &bad)).await;
            }
        }
        // A value that no version has written.
        let what = format!("{key} is a list");
        let other = |redis: &mut Connection| {
            redis::cmd("DEL").arg(key).exec(redis).unwrap();
            redis::cmd("RPUSH").arg(key).arg(&[0xff_u8; 40][..]).exec(redis).unwrap();
        };
        all_ways(&mut bystander, &mut redis, &what, &other).await;
        for member in [&b""[..], b"x", &[0x80; 17], &[0xff; 20], &[0; 4_000]] {
            for score in ["0", "inf", "-inf", "9e18", "4e12", "0.5"] {
                let what = format!("{key} has the member {member:?} at {score}");
                let other = |redis: &mut Connection| {
                    if kind == "string" {
                        redis::cmd("DEL").arg(key).exec(redis).unwrap();
                    }
                    redis::cmd("ZADD").arg(key).arg(score).arg(member).exec(redis).unwrap();
                };
                all_ways(&mut bystander, &mut redis, &what, &other).await;
            }
        }
    }
    nothing_else_happened(&store, &server);
}

/// A value of any size is refused without being sent.
#[tokio::test]
async fn no_corrupt_value_makes_a_large_reply() {
    let server = RedisServer::start();
    let (store, mut redis) = (store(&server), server.connection());
    let (home, claims) = (Partition::of(["victim"]), with_slot("victim"));
    let hold = NewReservation { id: ID, ttl_ms: HOUR, metadata: b"note" };
    let request = IdempotencyKey { id: [5; 16], digest: [9; 16], ttl_ms: HOUR };
    let terms = AdmitOptions { home, hold: Some(hold), request: Some(request) };
    store.admit(&claims, &terms).await.unwrap();
    for key in keys(&mut redis) {
        if redis::cmd("TYPE").arg(&key).query::<String>(&mut redis).unwrap() == "string" {
            redis::cmd("SETRANGE").arg(&key).arg(LARGE).arg("end").exec(&mut redis).unwrap();
        }
    }
    let sent = || {
        let info: String = server.run("INFO stats");
        let sent = info.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:")).unwrap();
        sent.parse::<usize>().unwrap()
    };
    let before = sent();
    for _ in 0..2 {
        concerns_itself("admit", store.admit(&claims, &terms).await);
        concerns_itself("look", store.look(home, ID).await);
        concerns_itself("apply", store.apply(&claims[..3], Mode::Try).await);
        concerns_itself("extend", store.extend(home, ID, HOUR, &Reservation::default()).await);
    }
    assert!(sent() - before < 200_000, "{} bytes were sent", sent() - before);
}
