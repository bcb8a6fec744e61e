//! A client that paces itself exactly at its limit is never refused, over an hour of injected time.
//!
//! Tried by breaking `tollgate-core`: an event that leaves a millisecond late fails those in memory.

use std::sync::Arc;

use tollgate_core::{
    amount::{Amount, Limit, UnitId},
    claim::{Answer, Claim, LedgerKey, Mode, Partition},
    store::Store,
    window::{SlidingWindow, Span},
};
use tollgate_store::{
    clock::{Clock, ManualClock},
    memory::MemoryStore,
    testing::RedisServer,
};

use crate::harness::{START, account, allowed, call, consume, memory_node, redis_on, shop};

const HOUR_MS: u64 = 3_600_000;

/// When call `number` of a client at `a_minute` is due; of a rate that no millisecond divides, the
/// calls of each minute are spread the same way.
fn due_ms(number: u64, a_minute: u64) -> u64 {
    number * 60_000 / a_minute
}

async fn pace(store: &dyn Store, clock: &ManualClock, a_minute: u64) {
    let partition = Partition::of(["pacing", &a_minute.to_string()]);
    let claim = Claim {
        ledger: LedgerKey::of(partition, ["all"]),
        span: Span::Sliding(SlidingWindow::from_ms(60_000).expect("a window")),
        unit: UnitId::of("requests"),
        cost: Amount::from(1),
        limit: Limit::Finite(Amount::try_from(a_minute).expect("a limit")),
    };
    let start = clock.now();
    for number in 0..a_minute * 60 {
        clock.set(start.plus_ms(due_ms(number, a_minute)));
        let answer = store.apply(&[claim], Mode::Try).await.expect("an answer");
        let Answer::Applied(applied) = answer else { panic!("{answer:?}") };
        assert!(applied.allowed, "call {number} at {a_minute} a minute: {applied:?}");
        if number + 1 == a_minute {
            let more = store.apply(&[claim], Mode::Try).await.expect("an answer");
            assert!(matches!(more, Answer::Applied(more) if !more.allowed), "the pace is not the limit");
        }
    }
    clock.set(start.plus_ms(HOUR_MS));
}

#[tokio::test]
async fn a_hundred_a_minute_over_grpc() {
    let node = memory_node(&shop(100)).await;
    for number in 0..6_000 {
        node.clock.set(START.plus_ms(due_ms(number, 100)));
        let decision = consume(&node.grpc, call(account("paced"), "model", &[])).await.expect("a decision");
        assert!(allowed(&decision), "call {number}: {decision:?}");
        if number == 99 {
            let more = consume(&node.grpc, call(account("paced"), "model", &[])).await.expect("a decision");
            assert!(!allowed(&more), "the pace is not the limit");
        }
    }
}

#[tokio::test]
async fn a_hundred_five_hundred_and_a_thousand_in_memory() {
    let clock = Arc::new(ManualClock::at(START));
    let store = MemoryStore::new(Arc::clone(&clock), 1_000);
    for a_minute in [100, 500, 1_000] {
        pace(&store, &clock, a_minute).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_five_hundred_and_a_thousand_in_redis() {
    let redis = RedisServer::start();
    let rates = [100, 500, 1_000].map(|a_minute| {
        let url = redis.url();
        tokio::spawn(async move {
            // Each has a clock of its own, so that they may run side by side.
            let clock = Arc::new(ManualClock::at(START));
            pace(&*redis_on(url, &clock), &clock, a_minute).await;
        })
    });
    for rate in rates {
        rate.await.expect("never refused");
    }
}
