//! The memory store: one admission over three quotas, hot and cold, and a refusal in a full window.

#![expect(clippy::unwrap_used, reason = "a bench")]

use std::{future::Future, pin::pin, sync::Arc, task::Context};

use criterion::{Criterion, criterion_group, criterion_main};
use tollgate_core::{
    amount::{Amount, Limit, UnitId},
    claim::{Claim, Effect, LedgerKey, Mode, Partition},
    store::Store,
    time::Timestamp,
    window::{SlidingWindow, WindowInstance},
};
use tollgate_store::{clock::ManualClock, memory::MemoryStore};

fn claims(account: &str, limit: u32) -> [Claim; 3] {
    let ledger = LedgerKey::of(Partition::of([account]), ["resource"]);
    [(60_000, "requests", 1), (60_000, "tokens", 1_500), (86_400_000, "requests", 1)].map(|(ms, unit, cost)| Claim {
        ledger,
        span: WindowInstance::Sliding(SlidingWindow::from_ms(ms).unwrap()),
        unit: UnitId::of(unit),
        cost: Amount::from(cost),
        limit: Limit::Finite(Amount::from(limit)),
        effect: Effect::Charge,
    })
}

/// The memory store answers at once.
fn apply(store: &impl Store, claims: &[Claim]) {
    let waker = std::task::Waker::noop();
    assert!(pin!(store.apply(claims, Mode::Try)).poll(&mut Context::from_waker(waker)).is_ready());
}

fn memory(criterion: &mut Criterion) {
    let clock = Arc::new(ManualClock::at(Timestamp::from_ms(1_800_000_000_000)));
    let store = MemoryStore::new(Arc::clone(&clock), 1_000_000);
    let hot = claims("hot", u32::MAX);
    criterion.bench_function("admit, one hot key, windows full", |bench| {
        bench.iter(|| {
            clock.advance_ms(40);
            apply(&store, &hot);
        });
    });
    let many: Vec<_> = (0..100_000).map(|n| claims(&n.to_string(), u32::MAX)).collect();
    let mut next = many.iter().cycle();
    criterion.bench_function("admit, 100,000 keys", |bench| {
        bench.iter(|| {
            clock.advance_ms(1);
            apply(&store, next.next().unwrap());
        });
    });
    let full = claims("full", 1_500_000);
    (0..1_000).for_each(|_| {
        clock.advance_ms(59);
        apply(&store, &full);
    });
    criterion.bench_function("refuse, 1,000 events in the window", |bench| bench.iter(|| apply(&store, &full)));
}

criterion_group!(benches, memory);
criterion_main!(benches);
