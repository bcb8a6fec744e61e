//! The promises under random interleavings of reserve, settle, cancel, extend, expiry, duplicate ids, lost answers,
//! callers that crash and nodes that crash with a call under way, on memory and on two nodes of one Redis, judged by an
//! exact log that the test keeps itself.

mod place;
mod world;

use std::sync::Arc;

use proptest::prelude::*;
use tollgate_core::{
    amount::Amount,
    claim::{ApplyResult, Claim, Mode, ReservationId},
    reservation::{Admission, AdmitOptions, NewReservation},
    store::Store,
    time::Timestamp,
    window::WindowInstance,
};
use tollgate_store::{
    clock::ManualClock,
    memory::MemoryStore,
    testing::{RedisServer, check_property, conformance::START},
};

use self::{
    place::Place,
    world::{Event, Operation, TOKENS, WINDOWS, claims, home, world},
};
use crate::harness::store_with_clock;

fn events() -> impl Strategy<Value = Vec<Event>> {
    // To the very moment when something leaves, too.
    let exact = prop::sample::select(vec![1, 998, 999, 1_000, 1_001, 59_999, 60_000]);
    let pause = prop_oneof![4 => 0_u64..50, 3 => 0_u64..700, 1 => 0_u64..30_000, 3 => exact];
    let ttl = prop_oneof![1_u32..2_000, 1_000_u32..60_000];
    let request = prop::option::weighted(0.4, 0_u8..4);
    // Now and then more than the limit, and a limit that is another for one call.
    let tokens = prop_oneof![12 => 0_u64..400, 1 => 900_u64..1_200];
    let limit = prop_oneof![9 => Just(TOKENS), 1 => 0_u64..2_000];
    let under = prop_oneof![
        4 => (tokens.clone(), ttl.clone()).prop_map(|(tokens, ttl_ms)| Operation::Reserve { tokens, ttl_ms }),
        4 => (0_usize..6, 0_u64..500).prop_map(|(which, tokens)| Operation::Settle { which, tokens }),
        1 => (0_usize..6).prop_map(|which| Operation::Cancel { which }),
        1 => (0_usize..6, ttl.clone()).prop_map(|(which, ttl_ms)| Operation::Extend { which, ttl_ms }),
    ];
    let back = prop_oneof![1 => 1_u64..40, 1 => 1_u64..2_000];
    let event = prop_oneof![
        1 => back.prop_map(Event::Back),
        5 => pause.prop_map(Event::Pause),
        6 => (tokens.clone(), limit, ttl.clone(), request, any::<bool>())
            .prop_map(|(tokens, limit, ttl_ms, request, lost)| Event::Reserve { tokens, limit, ttl_ms, request, lost }),
        4 => (0_usize..6, 0_u64..500, any::<bool>())
            .prop_map(|(which, tokens, twice)| Event::Settle { which, tokens, twice }),
        1 => (0_usize..6).prop_map(|which| Event::Cancel { which }),
        1 => (0_usize..6, ttl).prop_map(|(which, ttl_ms)| Event::Extend { which, ttl_ms }),
        2 => (prop::option::of(0_usize..40), under).prop_map(|(after, during)| Event::Crash { after, during }),
    ];
    prop::collection::vec(event, 1..120)
}

/// Promises 1 to 8. Broken to try it: an end that is not one step with its debts, a wait from the entry after the
/// one with which there is room, a refund in a window that the charge has left.
#[test]
fn the_promises_hold_for_reservations() {
    let server = RedisServer::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let under_way = std::cell::Cell::new([0; 2]);
    check_property(150, &events(), |case, events| {
        let clock = Arc::new(ManualClock::at(START));
        world(&Place::memory(&clock), 1, &clock, &runtime).play(&events);
        let clock = Arc::new(ManualClock::at(START));
        let place = Place::redis(&server, format!("case{case}"), &clock, &runtime);
        let mut world = world(&place, 2, &clock, &runtime);
        world.play(&events);
        let ([lost, done], [more_lost, more_done]) = (under_way.get(), world.under_way);
        under_way.set([lost + more_lost, done + more_done]);
        Ok(())
    });
    let [lost, done] = under_way.get();
    assert!(lost > 20 && done > 20, "of the calls under way when a node died {lost} were lost and {done} done");
}

/// A refund at the moment when its charge leaves a window finds nothing there, and one a millisecond earlier finds it;
/// with a later entry, so that the log is not expired. Tried by breaking it: entries exactly as old as the window that
/// still count.
#[test]
fn a_refund_when_its_charge_leaves_the_window_refunds_nothing() {
    let server = RedisServer::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let reserve = |tokens| Event::Reserve { tokens, limit: TOKENS, ttl_ms: 60_000, request: None, lost: false };
    for after in [WINDOWS[0] - 1, WINDOWS[0]] {
        let settle = Event::Settle { which: 1, tokens: 100, twice: false };
        let events = [reserve(300), Event::Pause(1), reserve(200), Event::Pause(after - 1), settle];
        let clock = Arc::new(ManualClock::at(START));
        world(&Place::memory(&clock), 1, &clock, &runtime).play(&events);
        let clock = Arc::new(ManualClock::at(START));
        let place = Place::redis(&server, format!("after{after}"), &clock, &runtime);
        world(&place, 2, &clock, &runtime).play(&events);
    }
}

fn slots_alone() -> Vec<Claim> {
    claims(1, TOKENS, START).into_iter().filter(|claim| claim.span == WindowInstance::Slots).collect()
}

/// Promise 6 for slots: none is held for longer than its time to live after a step back of the clock was noticed, and it
/// counts again at its own time. Fails if slots keep their end only, and if they are dated anew.
#[test]
fn a_clock_set_back_holds_no_slot_longer() {
    let server = RedisServer::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let clock = Arc::new(ManualClock::at(START));
    let memory = MemoryStore::new(Arc::clone(&clock), 10_000);
    let redis = store_with_clock(server.config(), &clock, &runtime);
    for store in [&memory as &dyn Store, &redis] {
        clock.set(START);
        let hold = NewReservation { id: ReservationId([3; 16]), ttl_ms: 10_000, metadata: b"" };
        let terms = AdmitOptions { home: home(), hold: Some(hold), request: None };
        let admitted = runtime.block_on(store.admit(&claims(1, TOKENS, START), &terms)).unwrap();
        assert!(matches!(admitted, Admission::Decided(applied) if applied.allowed));
        let in_use = || match runtime.block_on(store.apply(&slots_alone(), Mode::Peek)).unwrap() {
            ApplyResult::Applied(applied) => applied.statuses[0].used.get(),
            ApplyResult::OutsidePeriod(_) => panic!("no calendar here"),
        };
        clock.set(Timestamp::from_ms(START.as_ms() - 3_000_000));
        assert_eq!(in_use(), 1, "nothing is freed early");
        clock.advance_ms(10_000);
        assert_eq!(in_use(), 1, "a reading notices nothing");
        let too_many = slots_alone().into_iter().map(|claim| Claim { cost: Amount::MAX, ..claim }).collect::<Vec<_>>();
        let refused = runtime.block_on(store.apply(&too_many, Mode::Try)).unwrap();
        assert!(matches!(refused, ApplyResult::Applied(applied) if !applied.allowed));
        clock.advance_ms(9_999);
        assert_eq!(in_use(), 1);
        clock.advance_ms(1);
        assert_eq!(in_use(), 0);
        clock.set(START.plus_ms(9_999));
        assert_eq!(in_use(), 1, "it counts again at its own time");
        clock.advance_ms(1);
        assert_eq!(in_use(), 0);
    }
}
