//! Calls over several slots of a Redis Cluster: charged part by part, and yet all or nothing.
//!
//! An account, a pool that it draws from and an address that it calls from live on three masters.

mod world;

use std::sync::{Arc, atomic::Ordering};

use tollgate_core::{
    claim::{Claim, ClaimsDecision, Effect, Mode, ReservationId},
    reservation::{Admission, AdmitOptions, CloseRequest, CloseResult, Extension, IdempotencyKey, ReservationState},
    store::{Store, StoreError},
    time::Timestamp,
    window::WindowInstance,
};
use tollgate_store::clock::Clock;

use self::world::{TTL_MS, WINDOW_MS, World, applied, decided, dies, until, used};

/// Many concurrent callers on two nodes, with a different limit for each part: the number of admissions is the capacity
/// of the tightest part, each part counts exactly the admissions, and no part ever exceeds its limit.
#[test]
fn a_call_that_loses_a_race_is_charged_in_no_slot() {
    const CALLS: usize = 60;
    let world = World::start();
    let nodes = [world.node(), world.node()];
    for limits in [[5, 1_000, 1_000], [1_000, 90, 1_000], [1_000, 1_000, 9]] {
        let claims = world.limited(10, limits);
        for hold in [false, true] {
            world.clock.advance_ms(2 * WINDOW_MS);
            for node in &nodes {
                node.steps.sent.store(0, Ordering::SeqCst);
            }
            let mut calls = Vec::new();
            for number in 0..CALLS {
                let node = &nodes[number % 2];
                let (store, claims) = (node.store.clone(), claims.clone());
                let mut terms = world.terms(u8::try_from(number).unwrap());
                terms.hold = terms.hold.filter(|_| hold);
                calls.push(node.runtime.spawn(async move {
                    let answer = if hold {
                        store.admit(&claims, &terms).await
                    } else {
                        store.apply_at(terms.home, &claims, Mode::Try).await.map(Admission::from)
                    };
                    decided(answer.unwrap())
                }));
            }
            let answers: Vec<ClaimsDecision> = calls.into_iter().map(|call| nodes[0].run(call).unwrap()).collect();
            let admitted = answers.iter().filter(|answer| answer.allowed).count() as u64;
            for answer in answers.iter().filter(|answer| answer.allowed) {
                let [tokens, share, _, account, _, address] = used(answer)[..] else { panic!("{answer:?}") };
                assert!(tokens == share && tokens <= limits[1] && account <= limits[0] && address <= limits[2]);
            }
            assert!(admitted > 0 && admitted <= limits[0].min(limits[1] / 10).min(limits[2]), "{admitted}");
            let slots = if hold { admitted } else { 0 };
            let stands = [admitted * 10, admitted * 10, slots, admitted, slots, admitted];
            assert_eq!(world.used(&nodes[0]), stands, "{limits:?}, hold: {hold}");
            let sent: usize = nodes.iter().map(|node| node.steps.sent.load(Ordering::SeqCst)).sum();
            assert!(sent > 3 * CALLS + 3 * usize::try_from(admitted).unwrap(), "nobody raced: {sent} scripts");
        }
    }
}

/// Another call takes the last capacity between the check and the charge: the refusal reports the usage without this
/// call.
#[test]
fn a_refusal_after_a_partial_charge_refunds_it_and_reports_the_true_use() {
    let world = Arc::new(World::start());
    let (node, other) = (world.node(), Arc::new(world.node()));
    for hold in [false, true] {
        for full in [0, 1, 2] {
            world.clock.advance_ms(2 * WINDOW_MS);
            // After three checks and two charges before the account's, the last charge in another slot is the fifth
            // step.
            let rival = (Arc::clone(&world), Arc::clone(&other));
            node.at(4, move || {
                let (world, other) = (Arc::clone(&rival.0), Arc::clone(&rival.1));
                let fill = std::thread::spawn(move || {
                    let home = world.homes[full];
                    let mut claims = world.claims(1_000);
                    claims.retain(|claim| claim.ledger.partition == home && claim.span != WindowInstance::Slots);
                    for claim in &mut claims {
                        claim.cost = claim.limit.ceiling();
                    }
                    assert!(applied(other.run(other.store.apply(&claims, Mode::Force)).unwrap()).allowed);
                });
                fill.join().unwrap();
            });
            let answer = if hold {
                world.reserve(&node, 1, 10)
            } else {
                node.run(node.store.apply_at(world.homes[0], &world.claims(10), Mode::Try)).map(Admission::from)
            };
            let answer = decided(answer.unwrap());
            let stands = [[0, 0, 0, 10, 0, 0], [1_000, 1_000, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1_000]][full];
            assert!(!answer.allowed);
            assert_eq!(used(&answer), stands, "what the refusal says, hold: {hold}");
            assert_eq!(world.used(&other), stands, "what is so");
        }
    }
}

/// The same with a part that cannot be written: an error that says that nothing was charged is true.
#[test]
fn an_error_leaves_no_charge_in_other_slots() {
    let world = World::alone();
    let node = world.node();
    for (number, full) in [0, 1, 2].into_iter().enumerate() {
        world.fill(full, true);
        let error = node.run(node.store.apply_at(world.homes[0], &world.claims(10), Mode::Try)).unwrap_err();
        assert!(matches!(error, StoreError::Overloaded(_) | StoreError::Refused(_)), "{error:?}");
        let error = world.reserve(&node, u8::try_from(number).unwrap(), 10).unwrap_err();
        assert!(matches!(error, StoreError::Overloaded(_) | StoreError::Refused(_)), "{error:?}");
        world.fill(full, false);
        assert_eq!(world.used(&node), [0; 6], "{full}");
    }
}

/// Less, more, all and none of it, and a longer life, seen from another node than the one that reserved.
#[test]
fn a_reservation_over_several_slots_is_closed_in_all_of_them() {
    let world = World::start();
    let (one, other) = (world.node(), world.node());
    for (id, reserved, actual) in [(1, 100, 40), (2, 100, 100), (3, 100, 170)] {
        assert!(decided(world.reserve(&one, id, reserved).unwrap()).allowed);
        let before = world.used(&other);
        let CloseResult::Done(closed) = world.settle(&other, id, (reserved, actual)).unwrap() else { panic!() };
        let less = reserved.saturating_sub(actual);
        assert!(closed.refunded.iter().all(|refunded| refunded.get() == less), "{closed:?}");
        let tokens = before[0] + actual - reserved;
        assert_eq!(world.used(&one), [tokens, tokens, 0, before[3], 0, before[5]], "from {reserved} to {actual}");
        let ReservationState::Closed(known) = one.run(one.store.look(world.homes[0], ReservationId([id; 16]))).unwrap()
        else {
            panic!()
        };
        assert_eq!(known, closed);
    }
    let before = world.used(&one);
    decided(world.reserve(&one, 4, 100).unwrap());
    let held = world.look(&other, 4);
    let closing =
        CloseRequest { digest: [9; 16], refunds: &held.charges, debts: &[], reservation: &held, metadata: b"" };
    let id = ReservationId([4; 16]);
    let closed = other.run(other.store.close(world.homes[0], id, &closing)).unwrap();
    let CloseResult::Done(closed) = closed else { panic!("{closed:?}") };
    assert_eq!(closed.refunded, held.charges.iter().map(|charge| charge.amount).collect::<Vec<_>>());
    assert_eq!(world.used(&one), before, "a cancellation gives all back, in the order it was asked");

    decided(world.reserve(&one, 5, 100).unwrap());
    let held = world.look(&other, 5);
    world.clock.advance_ms(u64::from(TTL_MS) - 1);
    let extended = other.run(other.store.extend(world.homes[0], ReservationId([5; 16]), TTL_MS, &held)).unwrap();
    assert_eq!(extended, Extension::Until(world.clock.now().plus_ms(u64::from(TTL_MS))));
    world.clock.advance_ms(u64::from(TTL_MS) - 1);
    assert_eq!((world.used(&one)[2], world.used(&one)[4]), (1, 1), "its slots live on in each part");
    assert!(matches!(world.settle(&one, 5, (100, 0)).unwrap(), CloseResult::Done(_)), "and so do its records");
    assert_eq!(world.used(&one), [before[0], before[1], 0, before[3] + 1, 0, before[5] + 1]);
}

/// A node dies before each step of a settlement. The completed steps count once, and the same end, repeated by another
/// node, completes the rest; a different end is too late as soon as one part is closed.
#[test]
fn an_interrupted_settlement_is_completed_by_its_repetition() {
    let world = World::start();
    let other = world.node();
    let cases = [(2, 30, 0), (2, 130, 0), (3, 30, 1), (3, 130, 1), (4, 30, 2), (4, 130, 2)];
    for (id, (step, actual, closed_parts)) in (1..).zip(cases) {
        decided(world.reserve(&other, id, 100).unwrap());
        let before = world.used(&other);
        let node = world.node();
        node.at(step, dies);
        // After the look, the script that would be the next is not sent any more.
        let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.settle(&node, id, (100, actual))));
        assert!(died.is_err());
        drop(node);
        if closed_parts > 0 {
            let CloseResult::Before(instead) = world.settle(&other, id, (100, 77)).unwrap() else { panic!() };
            assert_eq!(instead.digest, [u8::try_from(actual).unwrap(); 16], "another end is under way");
        }
        let CloseResult::Done(closed) = world.settle(&other, id, (100, actual)).unwrap() else { panic!() };
        assert!(closed.refunded.iter().all(|refunded| refunded.get() == 100_u64.saturating_sub(actual)), "{closed:?}");
        let tokens = before[0] + actual - 100;
        assert_eq!(world.used(&other), [tokens, tokens, 0, before[3], 0, before[5]], "{step}, {actual}");
    }
}

/// A part that cannot be written stops a settlement. The error says whether something was changed, and repeating it is
/// safe.
#[test]
fn a_settlement_that_one_slot_refused_can_be_repeated() {
    let world = World::alone();
    let node = world.node();
    let mut uncertain = 0;
    for (id, full) in [(1, 1), (2, 2)] {
        decided(world.reserve(&node, id, 100).unwrap());
        let before = world.used(&node);
        world.fill(full, true);
        let error = world.settle(&node, id, (100, 30)).unwrap_err();
        world.fill(full, false);
        uncertain += usize::from(matches!(error, StoreError::Indeterminate(_)));
        assert!(matches!(world.settle(&node, id, (100, 30)).unwrap(), CloseResult::Done(_)));
        assert_eq!(world.used(&node), [before[0] - 70, before[1] - 70, 0, before[3], 0, before[5]]);
    }
    assert_eq!(uncertain, 1, "where the first part was closed before the second refused");
}

/// Request ids over slots: the first answer comes again, whole, and nothing is charged twice.
#[test]
fn a_repeated_request_id_gets_the_whole_first_answer() {
    let world = World::start();
    let (one, other) = (world.node(), world.node());
    let mark = |id, digest| Some(IdempotencyKey { id: [id; 16], digest: [digest; 16], ttl_ms: 60_000 });
    let all_charged = world.claims(10);
    // As a guard against an address, which is only looked at.
    let judged = all_charged
        .iter()
        .filter(|claim| claim.ledger.partition == world.homes[0] || claim.span != WindowInstance::Slots);
    let judged: Vec<Claim> = judged
        .map(|claim| {
            let effect = if claim.ledger.partition == world.homes[0] { Effect::Charge } else { Effect::CheckOnly };
            Claim { effect, ..*claim }
        })
        .collect();
    for (id, hold, claims) in
        [(1, false, &all_charged), (2, true, &all_charged), (3, false, &judged), (4, true, &judged)]
    {
        let terms = AdmitOptions { request: mark(id, 1), ..world.terms(id) };
        let terms = AdmitOptions { hold: terms.hold.filter(|_| hold), ..terms };
        let first = decided(one.run(one.store.admit(claims, &terms)).unwrap());
        let stands = world.used(&one);
        // A reservation with a new id, as in a repeated call.
        let again = AdmitOptions { hold: world.terms(id + 100).hold.filter(|_| hold), ..terms };
        let Admission::Replayed(replay) = other.run(other.store.admit(claims, &again)).unwrap() else { panic!() };
        assert_eq!((&replay.applied, replay.held.map(|held| held.0)), (&first, terms.hold.map(|hold| hold.id)));
        let other_call = AdmitOptions { request: mark(id, 2), ..again };
        assert_eq!(other.run(other.store.admit(claims, &other_call)).unwrap(), Admission::IdempotencyConflict);
        assert_eq!(world.used(&one), stands);
    }
}

/// The clock stepped back, and a call is repeated: the other slots are read before the home says that it is a repetition.
/// A reading changes nothing.
#[test]
fn a_repeated_call_after_a_step_back_changes_nothing() {
    let world = World::start();
    let node = world.node();
    let request = Some(IdempotencyKey { id: [1; 16], digest: [1; 16], ttl_ms: 60_000 });
    let terms = AdmitOptions { hold: None, request, ..world.terms(1) };
    let call = || node.run(node.store.admit(&world.claims(10), &terms)).unwrap();
    let start = world.clock.now();
    assert!(decided(call()).allowed);
    world.clock.set(Timestamp::from_ms(start.as_ms() - 10_000));
    assert!(matches!(call(), Admission::Replayed(_)));
    world.clock.set(start.plus_ms(WINDOW_MS - 1));
    assert_eq!(world.used(&node), [10, 10, 0, 1, 0, 1]);
    world.clock.set(start.plus_ms(WINDOW_MS));
    assert_eq!(world.used(&node), [0; 6]);
}

/// Two calls with one id at the same time: one of them is charged, also where both had looked before either charged, and
/// where the pool had room for one.
#[test]
fn two_simultaneous_calls_with_one_request_id_are_charged_once() {
    let world = Arc::new(World::start());
    let (node, other) = (world.node(), Arc::new(world.node()));
    let mark = |digest| Some(IdempotencyKey { id: [1; 16], digest: [digest; 16], ttl_ms: 60_000 });
    let cases =
        [1_000, 10].into_iter().flat_map(|pool| [(1, false, pool), (2, false, pool), (1, true, pool), (2, true, pool)]);
    for (digest, hold, pool) in cases {
        world.clock.advance_ms(2 * WINDOW_MS);
        let terms = move |world: &World, id, digest| AdmitOptions {
            hold: world.terms(id).hold.filter(|_| hold),
            request: mark(digest),
            ..world.terms(id)
        };
        let rival = (Arc::clone(&world), Arc::clone(&other));
        node.at(4, move || {
            let (world, other) = (Arc::clone(&rival.0), Arc::clone(&rival.1));
            let first = std::thread::spawn(move || {
                let admitted =
                    other.run(other.store.admit(&world.limited(10, [10, pool, 1_000]), &terms(&world, 1, 1))).unwrap();
                assert!(decided(admitted).allowed);
            });
            first.join().unwrap();
        });
        let second =
            node.run(node.store.admit(&world.limited(10, [10, pool, 1_000]), &terms(&world, 2, digest))).unwrap();
        match second {
            Admission::Replayed(replay) => {
                assert_eq!(digest, 1);
                assert_eq!(used(&replay.applied)[..2], [10, 10], "the first answer, whole");
            }
            second => assert_eq!((second, digest), (Admission::IdempotencyConflict, 2)),
        }
        let slots = u64::from(hold);
        assert_eq!(world.used(&node), [10, 10, slots, 1, slots, 1]);
    }
}

/// A node dies before any of its steps. Only the charges in other slots by then stay, for their window, and their slots
/// for the time to live; the account is charged nothing, and no other caller waits.
#[test]
fn a_node_that_dies_between_slots_leaves_charges_that_expire() {
    let world = World::start();
    let other = world.node();
    for step in 1..=6 {
        let node = world.node();
        node.at(step, dies);
        let (store, claims, terms) = (node.store.clone(), world.claims(10), world.terms(u8::try_from(step).unwrap()));
        let call = node.runtime.spawn(async move { store.admit(&claims, &terms).await });
        let answer = node.run(call);
        assert!(!matches!(answer, Ok(Ok(_))), "it is dead: {answer:?}");
        node.runtime.shutdown_background();
        let stands = world.used(&other);
        match step {
            1..=4 => assert_eq!(stands, [0; 6], "it only looked"),
            6 => assert_eq!(stands, [10, 10, 1, 0, 0, 1], "all but the account"),
            _ => assert!([0, 10].contains(&stands[0]) && stands[3] == 0 && stands[4] == 0, "{stands:?}"),
        }
        world.clock.advance_ms(u64::from(TTL_MS));
        assert_eq!(world.used(&other)[2], 0, "its slot is back");
        world.clock.advance_ms(WINDOW_MS);
        assert_eq!(world.used(&other), [0; 6]);
        assert!(decided(world.reserve(&other, 100, 10).unwrap()).allowed);
        world.clock.advance_ms(2 * WINDOW_MS);
    }
}

/// A caller that gives up leaves nothing incomplete: its node continues without it.
#[test]
fn a_call_is_completed_when_its_caller_leaves() {
    let world = World::start();
    let (node, other) = (world.node(), world.node());
    let left = Arc::new(tokio::sync::Notify::new());
    let leaves = Arc::clone(&left);
    node.at(5, move || leaves.notify_one());
    let (claims, terms) = (world.claims(10), world.terms(1));
    let answered = node.run(async {
        tokio::select! {
            biased;
            () = left.notified() => false,
            _ = node.store.admit(&claims, &terms) => true,
        }
    });
    assert!(!answered, "it left before the account was charged");
    let stands = until("the call is made", || Some(world.used(&other)).filter(|used| used[3] == 1));
    assert_eq!(stands, [10, 10, 1, 1, 1, 1]);
    assert!(matches!(world.settle(&other, 1, (10, 0)).unwrap(), CloseResult::Done(_)));
}
