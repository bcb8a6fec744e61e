use std::sync::Arc;

use tollgate_core::{
    amount::{Limit, UnitId},
    claim::{Effect, Partition},
    reservation::IdempotencyKey,
    window::SlidingWindow,
};

use super::*;
use crate::clock::ManualClock;

fn claim(account: &str) -> Claim {
    Claim {
        ledger: LedgerKey::of(Partition::of([account]), ["r"]),
        span: WindowInstance::Sliding(SlidingWindow::from_ms(1000).unwrap()),
        unit: UnitId::of("requests"),
        cost: Amount::from(1),
        limit: Limit::Finite(Amount::from(1)),
        effect: Effect::Charge,
    }
}

#[test]
fn expired_ledgers_leave_by_themselves_and_live_ones_are_never_dropped() {
    let clock = Arc::new(ManualClock::at(Timestamp::from_ms(1_000_000)));
    let store = MemoryStore::new(Arc::clone(&clock), SHARDS * MAX_CLAIMS);
    let mut refused = 0;
    for n in 0..50_000 {
        refused += usize::from(store.apply_now(&[claim(&n.to_string())], Mode::Try).is_err());
    }
    assert!(store.ledgers() <= SHARDS * MAX_CLAIMS, "bounded: {}", store.ledgers());
    assert_eq!(refused, 50_000 - store.ledgers());
    clock.advance_ms(1000);
    for n in 0..10_000 {
        store.apply_now(&[claim(&format!("later {}", n % 10))], Mode::Try).unwrap();
    }
    assert!(store.ledgers() < SHARDS * MAX_CLAIMS, "calls sweep as they go: {}", store.ledgers());
    clock.advance_ms(1000);
    store.sweep();
    assert_eq!(store.ledgers(), 0);
}

/// However many names one domain chooses, and in whichever shard they are, others find space. Seen to fail with an
/// unkeyed hash, which lets a name determine its shard, and without bounds for each owner.
#[test]
fn one_owner_leaves_room_for_the_others() {
    let clock = Arc::new(ManualClock::at(Timestamp::from_ms(1_000_000)));
    let store = MemoryStore::new(clock, 64 * 256);
    let of = |domain: &str, number: usize| {
        let partition = Partition::of([domain, "account", &number.to_string()]);
        Claim { ledger: LedgerKey::of(partition, ["r"]), ..claim("") }
    };
    let admitted = |domain: &str, numbers: std::ops::Range<usize>| {
        numbers.filter(|number| store.apply_now(&[of(domain, *number)], Mode::Try).is_ok()).count()
    };
    // Names that fall together by the bytes of their partition.
    let alike = (0..400_000).filter(|number| of("shop", *number).ledger.partition.bytes()[0].is_multiple_of(64));
    let fitted = alike.take(5_000).filter(|number| store.apply_now(&[of("shop", *number)], Mode::Try).is_ok());
    assert_eq!(fitted.count(), 5_000, "they spread over all shards");
    let most = 64 * 256 * 3 / 4 + 64;
    let of_shop = 5_000 + admitted("shop", 1_000_000..1_060_000);
    assert!(of_shop > most * 9 / 10 && of_shop <= most, "{of_shop} of at most {most}");
    assert_eq!(admitted("other", 0..1_000), 1_000, "others find room");
    let admit = |domain: &str, number: u32| {
        let home = Partition::of([domain, "account", "one of a few"]);
        let mut id = [0; 16];
        id.iter_mut().zip(number.to_le_bytes()).for_each(|(to, from)| *to = from);
        let request = Some(IdempotencyKey { id, digest: [0; 16], ttl_ms: 60_000 });
        let free = Claim { ledger: LedgerKey::of(home, ["r"]), limit: Limit::Unlimited, ..claim("") };
        store.admit_now(&[free], &AdmitOptions { home, hold: None, request }).is_ok()
    };
    let remembered = (0..1_000).filter(|number| admit("third", *number)).count();
    assert!((100..=193).contains(&remembered), "{remembered} of 256 records of one shard");
    // Existing counters still work.
    assert!(store.apply_now(&[of("shop", 1_000_000)], Mode::Force).is_ok());
}
