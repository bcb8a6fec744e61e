//! The cost of reservations in Redis, next to plain consumption: microseconds of Redis time per operation (`INFO
//! commandstats`), and bytes per open reservation. Run it with `tests/bench-reservations`.
//!
//! Three quotas (requests and tokens in a short window, requests in a long one) of 1,000 accounts, and a concurrency
//! slot where the name says so. The operations take turns; the lower quartile of the parts counts.

#![expect(clippy::print_stdout, reason = "a bench prints its table")]
#![expect(clippy::expect_used, reason = "a bench that cannot go on should stop")]

use std::{sync::Arc, time::Duration};

use redis::{Connection, cmd};
use tokio::task::JoinSet;
use tollgate_core::{
    amount::{Amount, Limit, UnitId},
    claim::{Charge, Claim, Effect, LedgerKey, Mode, Partition, ReservationId},
    reservation::{AdmitOptions, CloseRequest, IdempotencyKey, NewReservation, Reservation, ReservationState},
    store::Store,
    window::{SlidingWindow, WindowInstance},
};
use tollgate_store::{
    redis::{RedisConfig, RedisStore},
    testing::RedisServer,
};
use tollgate_tests::{memory, microseconds_a_call};

const ACCOUNTS: u64 = 1_000;
const PARTS: usize = 9;
const CALLS: u64 = 2_000;
const OUTSTANDING: u64 = 1_000_000;
/// Bound on the memory of one reservation, in bytes.
const MOST_BYTES: u64 = 400;
const TTL_MS: u32 = 3_600_000;
/// A note of the size that a node writes: units, account, key, resource.
const NOTE: &[u8] =
    br#"{"u":[["requests",1],["tokens",1500]],"l":600000,"a":"account-000000","k":"key-000000","r":"llama-3.3-70b"}"#;

#[derive(Clone, Copy, PartialEq)]
enum Operation {
    Consume,
    ConsumeById,
    Reserve,
    ReserveSlot,
    Look,
    Extend,
    SettleLess,
    SettleMore,
    Cancel,
}

const OPERATIONS: [(Operation, &str); 9] = [
    (Operation::Consume, "consume"),
    (Operation::ConsumeById, "consume with a request id"),
    (Operation::Reserve, "reserve"),
    (Operation::ReserveSlot, "reserve with a slot"),
    (Operation::Look, "look (before settle, cancel, extend)"),
    (Operation::Extend, "extend, with a slot"),
    (Operation::SettleLess, "settle for less"),
    (Operation::SettleMore, "settle for more"),
    (Operation::Cancel, "cancel"),
];

fn claims(account: u64, slot: bool) -> Vec<Claim> {
    let partition = Partition::of(["bench", &account.to_string()]);
    let ledger = LedgerKey::of(partition, ["resource"]);
    let window = |ms| WindowInstance::Sliding(SlidingWindow::from_ms(ms).expect("a window"));
    let claim = |span, unit, cost: u32| Claim {
        ledger,
        span,
        unit: UnitId::of(unit),
        cost: Amount::from(cost),
        limit: Limit::Finite(Amount::from(1 << 31)),
        effect: Effect::Charge,
    };
    let mut claims = vec![
        claim(window(60_000), "requests", 1),
        claim(window(60_000), "tokens", 1_500),
        claim(window(300_000), "requests", 1),
    ];
    claims.extend(slot.then(|| claim(WindowInstance::Slots, "concurrent_requests", 1)));
    claims
}

fn id_of(number: u64) -> ReservationId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    id[8..].copy_from_slice(&number.to_le_bytes());
    ReservationId(id)
}

async fn reserve(store: &RedisStore, number: u64, slot: bool) {
    let claims = claims(number % ACCOUNTS, slot);
    let hold = NewReservation { id: id_of(number), ttl_ms: TTL_MS, metadata: NOTE };
    let terms = AdmitOptions { home: claims[0].ledger.partition, hold: Some(hold), request: None };
    store.admit(&claims, &terms).await.expect("an admission");
}

async fn close(store: &RedisStore, number: u64, operation: Operation, known: &Reservation) {
    let claims = claims(number % ACCOUNTS, false);
    let tokens = UnitId::of("tokens");
    let part = |charge: &&Charge| {
        operation == Operation::Cancel || operation == Operation::SettleLess && charge.unit == tokens
    };
    let half = |charge: &Charge| Charge { amount: Amount::from(700), ..*charge };
    let refunds: Vec<Charge> = known
        .charges
        .iter()
        .filter(part)
        .map(|charge| if operation == Operation::Cancel { *charge } else { half(charge) })
        .collect();
    let debts: Vec<Claim> =
        claims.iter().filter(|claim| operation == Operation::SettleMore && claim.unit == tokens).copied().collect();
    let closing =
        CloseRequest { digest: [1; 16], refunds: &refunds, debts: &debts, reservation: known, metadata: NOTE };
    store.close(claims[0].ledger.partition, id_of(number), &closing).await.expect("a close");
}

/// Runs one operation; `known` is its reservation, if it needs one.
async fn run_one(store: Arc<RedisStore>, operation: Operation, number: u64, known: Option<Reservation>) {
    let account = claims(number % ACCOUNTS, false);
    let home = account[0].ledger.partition;
    match operation {
        Operation::Consume => drop(store.apply(&account, Mode::Try).await.expect("an answer")),
        Operation::ConsumeById => {
            let mark = IdempotencyKey { id: id_of(number).0, digest: [5; 16], ttl_ms: TTL_MS };
            let terms = AdmitOptions { home, hold: None, request: Some(mark) };
            store.admit(&account, &terms).await.expect("an admission");
        }
        Operation::Reserve => reserve(&store, number, false).await,
        Operation::ReserveSlot => reserve(&store, number, true).await,
        Operation::Look => drop(store.look(home, id_of(number)).await.expect("a look")),
        Operation::Extend => {
            let known = known.unwrap_or_default();
            store.extend(home, id_of(number), TTL_MS, &known).await.expect("an extension");
        }
        Operation::SettleLess | Operation::SettleMore | Operation::Cancel => {
            close(&store, number, operation, &known.expect("a reservation")).await;
        }
    }
}

async fn run_all(store: &Arc<RedisStore>, operation: Operation, numbers: std::ops::Range<u64>, known: &[Reservation]) {
    let mut tasks = JoinSet::new();
    for (at, number) in numbers.enumerate() {
        tasks.spawn(run_one(Arc::clone(store), operation, number, known.get(at).cloned()));
        if tasks.len() >= 64 {
            tasks.join_next().await;
        }
    }
    tasks.join_all().await;
}

#[tokio::main]
async fn main() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let config = RedisConfig { deadline: Duration::from_mins(1), ..RedisConfig::new(server.url()) };
    let store = Arc::new(RedisStore::connect(config).expect("a store"));
    let mut each: Vec<Vec<f64>> = OPERATIONS.iter().map(|_| Vec::new()).collect();
    let mut next = 0;
    for _ in 0..PARTS {
        for (at, (operation, _)) in OPERATIONS.iter().enumerate() {
            let numbers = next..next + CALLS;
            next += CALLS;
            let mut known = Vec::new();
            if matches!(
                operation,
                Operation::Look | Operation::Extend | Operation::SettleLess | Operation::SettleMore | Operation::Cancel
            ) {
                run_all(
                    &store,
                    if *operation == Operation::Extend { Operation::ReserveSlot } else { Operation::Reserve },
                    numbers.clone(),
                    &[],
                )
                .await;
                for number in numbers.clone() {
                    let home = claims(number % ACCOUNTS, false)[0].ledger.partition;
                    let ReservationState::Open { reservation, .. } =
                        store.look(home, id_of(number)).await.expect("a look")
                    else {
                        continue;
                    };
                    known.push(reservation);
                }
                assert_eq!(known.len() as u64, CALLS, "every reservation is there");
            }
            cmd("CONFIG").arg("RESETSTAT").exec(&mut redis).expect("RESETSTAT");
            run_all(&store, *operation, numbers, &known).await;
            each[at].push(microseconds_a_call(&mut redis));
        }
    }
    let quartile = |parts: &mut Vec<f64>| {
        parts.sort_by(f64::total_cmp);
        parts[parts.len() / 4]
    };
    let figures: Vec<f64> = each.iter_mut().map(quartile).collect();
    for ((_, name), figure) in OPERATIONS.iter().zip(&figures) {
        println!("{name:<40} {figure:>7.2} µs  {:>5.2} of a consume", figure / figures[0]);
    }
    let bytes = bytes_each(&mut redis, &store).await;
    println!("{:<40} {bytes:>7} B", format!("each of {OUTSTANDING} outstanding"));
    assert!(bytes <= MOST_BYTES, "an outstanding reservation may take {MOST_BYTES} B");
}

/// Memory of one reservation in bytes: the average over many, of 1,000 accounts whose counters exist already.
async fn bytes_each(redis: &mut Connection, store: &Arc<RedisStore>) -> u64 {
    cmd("FLUSHALL").exec(redis).expect("FLUSHALL");
    // The counters exist before the first measurement, so that only the records count.
    run_all(store, Operation::Consume, 0..OUTSTANDING, &[]).await;
    let before = memory(redis, "used_memory_dataset");
    run_all(store, Operation::Reserve, 0..OUTSTANDING, &[]).await;
    memory(redis, "used_memory_dataset").saturating_sub(before) / OUTSTANDING
}
