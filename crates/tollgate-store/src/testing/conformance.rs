//! The conformance suite: generated sequences of calls, whose every answer must be the same on every
//! store. The core's algorithm, which [`crate::memory`] runs, is the specification.

use std::{pin::Pin, sync::Arc};

use futures_util::{FutureExt, future::maybe_done};
use proptest::prelude::*;
use tollgate_core::{
    admission::claims_fingerprint,
    amount::{Amount, Limit, UnitId},
    claim::{ApplyResult, Charge, Claim, Effect, LedgerKey, Mode, Partition, ReservationId},
    ledger::outside_period,
    reservation::{
        Admission, AdmitOptions, CloseRequest, IdempotencyKey, NewReservation, Reservation, ReservationState,
    },
    store::Store,
    time::Timestamp,
    window::{Period, SlidingWindow, WindowInstance},
};

use crate::clock::{Clock, ManualClock};

/// One step of a sequence.
#[derive(Clone, Debug)]
pub enum Step {
    /// Moves the clock forward.
    Forward(u64),
    /// Moves the clock back.
    Back(u64),
    /// Calls a store.
    Apply(Mode, Vec<ClaimSpec>),
    /// Calls a store for all of these at the same moment, in the order that [`together`] makes.
    Together(Vec<Vec<ClaimSpec>>),
    /// Admits: as a reservation for so long, with a request id, remembered for so long.
    Admit(Vec<ClaimSpec>, Option<u32>, Option<(u8, u32)>),
    /// Closes one of the reservations made so far, or one that never was: gives back a share of each charge (in
    /// quarters, in turn), and charges debts.
    Close(u8, Vec<u8>, Vec<ClaimSpec>),
    /// Extends one of them.
    Extend(u8, u32),
}

/// A claim before the time is known.
#[derive(Clone, Debug)]
pub struct ClaimSpec {
    account: u8,
    scope: u8,
    unit: u8,
    window: WindowSpec,
    cost: u64,
    limit: Option<u64>,
    effect: Effect,
}

#[derive(Clone, Copy, Debug)]
enum WindowSpec {
    Sliding(u64),
    /// Periods of this many milliseconds; `late` ones are those of a node whose clock is behind.
    Calendar {
        ms: u64,
        late: bool,
    },
    Slots,
}

/// Where every sequence starts: Monday, 2025-03-03T00:00:00Z.
pub const START: Timestamp = Timestamp::from_ms(1_740_960_000_000);

/// Scopes from this one on are caller-named.
const CLOSED_SCOPES: u8 = 2;

impl ClaimSpec {
    fn claim(&self, now: Timestamp) -> Claim {
        // All caller-named ledgers of a call are those of one account.
        let account = if self.scope < CLOSED_SCOPES { self.account } else { 0 };
        let partition = Partition::of(["conformance", &account.to_string()]);
        let span = match self.window {
            WindowSpec::Sliding(ms) => WindowInstance::Sliding(SlidingWindow::from_ms(ms).expect("a window length")),
            WindowSpec::Calendar { ms, late } => {
                let number = now.as_ms() / ms - u64::from(late);
                let start = Timestamp::from_ms(number * ms);
                WindowInstance::Calendar {
                    id: u32::try_from(ms).expect("short"),
                    period: Period { start, end: start.plus_ms(ms) },
                }
            }
            WindowSpec::Slots => WindowInstance::Slots,
        };
        let scope = self.scope.to_string();
        let ledger = if self.scope < CLOSED_SCOPES { LedgerKey::of } else { LedgerKey::caller_named };
        Claim {
            ledger: ledger(partition, [scope.as_str()]),
            span,
            unit: UnitId::of(["requests", "tokens", "images", "slots"][usize::from(self.unit)]),
            cost: Amount::try_from(self.cost).expect("a cost"),
            limit: self
                .limit
                .map_or(Limit::Unlimited, |limit| Limit::Finite(Amount::try_from(limit).expect("a limit"))),
            effect: self.effect,
        }
    }
}

/// Where the stores that are compared keep their counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// All in one place: a call is one step.
    OneServer,
    /// In the slots of a cluster: a call over several is one step for each.
    Slots,
}

/// Plays `steps` on the specification and on `others`, which take turns like several nodes on one set of counters, and
/// compares every answer. Returns the highest usage of the first claim of a call, so that a suite can check that the
/// sequence had an effect.
///
/// # Panics
/// On the first difference.
pub async fn compare(
    specification: &dyn Store,
    others: &[Box<dyn Store>],
    placement: Placement,
    clock: &Arc<ManualClock>,
    steps: &[Step],
) -> u64 {
    play(&[specification], others, placement, clock, steps, |_| ()).await
}

/// Plays `steps` on all of `references`, each of which decides one call after the other, and on `others`, which take
/// turns. Compares every answer, and calls `after_step` with a description of each step. Returns the result of
/// [`compare`].
///
/// # Panics
/// On the first difference.
pub async fn play(
    references: &[&dyn Store],
    others: &[Box<dyn Store>],
    placement: Placement,
    clock: &Arc<ManualClock>,
    steps: &[Step],
    mut after_step: impl FnMut(&dyn Fn() -> String),
) -> u64 {
    let (mut calls, mut most_used, mut reservations) = (0, 0, Vec::new());
    for (at, step) in steps.iter().enumerate() {
        let other = others[calls % others.len()].as_ref();
        let place = || format!("step {at} at {}: {step:?}", clock.now());
        let claims = |specs: &[ClaimSpec]| specs.iter().map(|spec| spec.claim(clock.now())).collect::<Vec<_>>();
        calls += 1;
        match step {
            Step::Forward(ms) => clock.advance_ms(*ms),
            Step::Back(ms) => clock.set(Timestamp::from_ms(clock.now().as_ms() - ms)),
            Step::Apply(mode, specs) => {
                let claims = claims(specs);
                let answer = other.apply(&claims, *mode).await;
                for reference in references {
                    assert_eq!(answer, reference.apply(&claims, *mode).await, "{}", place());
                }
                if let Ok(ApplyResult::Applied(applied)) = &answer {
                    most_used = applied.statuses.first().map_or(0, |status| status.used.get()).max(most_used);
                }
            }
            Step::Together(calls) => {
                let calls: Vec<Vec<Claim>> = calls.iter().map(|specs| claims(specs)).collect();
                let mut answers: Vec<_> =
                    calls.iter().map(|claims| maybe_done(other.apply(claims, Mode::Try))).collect();
                for answer in &mut answers {
                    let _ = answer.now_or_never();
                }
                for (number, (claims, mut answer)) in calls.iter().zip(answers).enumerate() {
                    (&mut answer).await;
                    let answer = Pin::new(&mut answer).take_output().expect("it is done");
                    for reference in references {
                        let expected = reference.apply(claims, Mode::Try).await;
                        assert_eq!(answer, expected, "call {number} of {}", place());
                    }
                }
            }
            Step::Admit(specs, hold_ms, request) => {
                let claims = claims(specs);
                let home = claims.first().map_or(Partition::of(["nobody"]), |claim| claim.ledger.partition);
                let id = ReservationId(made_id(at));
                let metadata = at.to_le_bytes();
                let hold = hold_ms.map(|ttl_ms| NewReservation { id, ttl_ms, metadata: &metadata });
                let digest = |number: u8| [claims_fingerprint(&claims).to_le_bytes(), [number; 8]].concat();
                let request = request.map(|(number, ttl_ms)| IdempotencyKey {
                    id: [number; 16],
                    digest: digest(number).try_into().expect("16 bytes"),
                    ttl_ms,
                });
                let terms = AdmitOptions { home, hold, request };
                let answer = other.admit(&claims, &terms).await;
                for reference in references {
                    assert_eq!(answer, reference.admit(&claims, &terms).await, "{}", place());
                }
                if matches!((&answer, hold), (Ok(Admission::Decided(applied)), Some(_)) if applied.allowed) {
                    reservations.push((home, id));
                }
                if placement == Placement::Slots
                    && matches!(answer, Ok(Admission::Replayed(_) | Admission::IdempotencyConflict))
                {
                    for reference in references {
                        look_besides(*reference, home, &claims, clock.now()).await;
                    }
                }
            }
            Step::Close(which, shares, debts) => {
                let (home, id) = pick(&reservations, *which);
                let mine = other.look(home, id).await;
                let mut debts = claims(debts);
                debts.retain(|claim| claim.span != WindowInstance::Slots && is_part(mine.as_ref().ok(), home, claim));
                let metadata = [*which; 3];
                let answer = end(other, (home, id), mine.clone().ok(), shares, &debts, &metadata).await;
                for reference in references {
                    let looked = reference.look(home, id).await;
                    assert_eq!(numberless(mine.clone()), numberless(looked.clone()), "{}", place());
                    let expected = end(*reference, (home, id), looked.ok(), shares, &debts, &metadata).await;
                    assert_eq!(answer, expected, "{}", place());
                }
            }
            Step::Extend(which, ttl_ms) => {
                let (home, id) = pick(&reservations, *which);
                let held = match references[0].look(home, id).await {
                    Ok(ReservationState::Open { reservation, .. }) => reservation,
                    _ => Reservation::default(),
                };
                let answer = other.extend(home, id, *ttl_ms, &held).await;
                for reference in references {
                    assert_eq!(answer, reference.extend(home, id, *ttl_ms, &held).await, "{}", place());
                }
            }
        }
        after_step(&place);
    }
    most_used
}

/// A store over several slots learns that a call repeats another one from the home, and reads the other parts at the
/// same time. Reading a counter changes it if the clock went back: later-dated entries count as of now from then on. So
/// the specification, which asks only the home, reads them too.
async fn look_besides(specification: &dyn Store, home: Partition, claims: &[Claim], now: Timestamp) {
    if !outside_period(claims, now) {
        let mut others = claims.to_vec();
        others.retain(|claim| claim.ledger.partition != home);
        let _ = specification.apply(&others, Mode::Peek).await;
    }
}

/// Closes a reservation with the data that the store itself returned.
async fn end(
    store: &dyn Store,
    (home, id): (Partition, ReservationId),
    looked: Option<ReservationState>,
    shares: &[u8],
    debts: &[Claim],
    metadata: &[u8],
) -> Result<tollgate_core::reservation::CloseResult, tollgate_core::store::StoreError> {
    let Some(ReservationState::Open { reservation, .. }) = looked else {
        let closing =
            CloseRequest { digest: [0; 16], refunds: &[], debts, reservation: &Reservation::default(), metadata };
        return store.close(home, id, &closing).await;
    };
    let mut refunds = reservation.charges.clone();
    refunds.sort_by_key(place_of);
    for (charge, quarters) in refunds.iter_mut().zip(shares.iter().cycle()) {
        let share = u128::from(charge.amount.get()) * u128::from(*quarters) / 4;
        charge.amount = Amount::try_from(u64::try_from(share).expect("a share")).expect("a share");
    }
    let closing = CloseRequest { digest: [7; 16], refunds: &refunds, debts, reservation: &reservation, metadata };
    store.close(home, id, &closing).await
}

/// Whether a debt is in a partition of its reservation.
fn is_part(looked: Option<&ReservationState>, home: Partition, debt: &Claim) -> bool {
    let Some(ReservationState::Open { reservation, .. }) = looked else { return true };
    let charged = reservation.charges.iter().map(|charge| charge.ledger);
    let all = charged.chain(reservation.slots.iter().copied()).map(|ledger| ledger.partition);
    all.chain([home]).any(|partition| partition == debt.ledger.partition)
}

fn pick(made: &[(Partition, ReservationId)], which: u8) -> (Partition, ReservationId) {
    let recent = made.len().saturating_sub(usize::from(which) + 1);
    made.get(recent).copied().unwrap_or((Partition::of(["nobody"]), ReservationId([0; 16])))
}

fn made_id(at: usize) -> [u8; 16] {
    let mut id = [1; 16];
    id[..8].copy_from_slice(&at.to_le_bytes());
    id
}

/// Stores number their entries as they like, and have them in their own order.
fn numberless(
    looked: Result<ReservationState, tollgate_core::store::StoreError>,
) -> Result<ReservationState, tollgate_core::store::StoreError> {
    looked.map(|mut looked| {
        if let ReservationState::Open { reservation, .. } = &mut looked {
            reservation.charges.iter_mut().for_each(|charge| charge.number = 0);
            reservation.charges.sort_by_key(place_of);
            reservation.slots.sort_by_key(|scope| (scope.partition, scope.scope_bytes()));
        }
        looked
    })
}

fn place_of(charge: &Charge) -> (LedgerKey, tollgate_core::window::WindowId, UnitId) {
    (charge.ledger, charge.window, charge.unit)
}

/// Short sequences of all operations: windows from 1 ms to 31 days, calendars, several scopes, units and limits at
/// once, costs up to 2^53 - 1, every mode and effect, and a clock that goes forward and back.
pub fn mixed() -> impl Strategy<Value = Vec<Step>> {
    mixed_in(CLOSED_SCOPES)
}

/// The same with more scopes, most of them caller-named, for stores that have few places for these.
pub fn caller_named() -> impl Strategy<Value = Vec<Step>> {
    mixed_in(CLOSED_SCOPES + 6)
}

fn mixed_in(scopes: u8) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => duration().prop_map(Step::Forward),
        1 => duration().prop_map(Step::Back),
        15 => (mode(), prop::collection::vec(claim_in(scopes), 1..6))
            .prop_map(|(mode, claims)| Step::Apply(mode, claims)),
        6 => admission(prop::collection::vec(claim_in(scopes), 0..6)),
        4 => closing(),
        1 => (0_u8..4, ttl()).prop_map(|(which, ttl)| Step::Extend(which, ttl)),
    ];
    prop::collection::vec(step, 1..120)
}

/// Sequences of reservations on one account: few counters, so that refunds concern shared and coalesced entries,
/// expired ones, and other reservations' slots, and a clock that goes forward and back.
pub fn reserved() -> impl Strategy<Value = Vec<Step>> {
    let claims = |slots: bool, tokens: u64, limit: u64, window: u64| {
        let claim = |unit, window, cost, limit| ClaimSpec {
            account: 0,
            scope: 0,
            unit,
            window,
            cost,
            limit: Some(limit),
            effect: Effect::Charge,
        };
        let mut claims = vec![
            claim(0, WindowSpec::Sliding(window), 1, 1 << 40),
            claim(1, WindowSpec::Sliding(window), tokens, limit),
            claim(1, WindowSpec::Sliding(86_400_000), tokens, 1 << 40),
            claim(1, WindowSpec::Calendar { ms: 60_000, late: false }, tokens, 1 << 40),
        ];
        if slots {
            claims.push(claim(3, WindowSpec::Slots, 1, 5));
            claims.push(ClaimSpec { scope: 1, ..claim(3, WindowSpec::Slots, 1, 8) });
        }
        claims
    };
    let specs = (any::<bool>(), 0_u64..70_000, 1_u64..400_000, prop::sample::select(vec![50, 1_000, 60_000]))
        .prop_map(move |(slots, tokens, limit, window)| claims(slots, tokens, limit, window));
    let step = prop_oneof![
        6 => prop_oneof![Just(1), 0_u64..60, 0_u64..5_000, 0_u64..70_000].prop_map(Step::Forward),
        1 => prop_oneof![0_u64..60, 0_u64..70_000].prop_map(Step::Back),
        8 => admission(specs.clone()),
        2 => (mode(), specs).prop_map(|(mode, claims)| Step::Apply(mode, claims)),
        7 => closing(),
        2 => (0_u8..8, ttl()).prop_map(|(which, ttl)| Step::Extend(which, ttl)),
    ];
    prop::collection::vec(step, 1..300)
}

fn admission(claims: impl Strategy<Value = Vec<ClaimSpec>>) -> impl Strategy<Value = Step> {
    let hold = prop::option::weighted(0.8, ttl());
    let request = prop::option::weighted(0.3, (0_u8..6, ttl()));
    (claims, hold, request).prop_map(|(claims, hold, request)| Step::Admit(claims, hold, request))
}

fn closing() -> impl Strategy<Value = Step> {
    let debts = prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(claim(), 0..3)];
    let which = prop_oneof![3 => 0_u8..3, 1 => 0_u8..20];
    (which, prop::collection::vec(0_u8..5, 1..4), debts)
        .prop_map(|(which, shares, debts)| Step::Close(which, shares, debts))
}

fn ttl() -> impl Strategy<Value = u32> {
    prop_oneof![1_u32..100, 1_u32..10_000, 1_u32..3_600_000]
}

/// Long sequences on one counter of `window_ms`, with steps of up to `pause_ms` in between: windows that
/// fill, coalesce, expire in part and as a whole, refuse for want of room and overflow their columns.
pub fn crowded(window_ms: u64, pause_ms: u64, calls: usize) -> impl Strategy<Value = Vec<Step>> {
    let claim = move |unit, cost, limit| ClaimSpec {
        account: 0,
        scope: 0,
        unit,
        window: WindowSpec::Sliding(window_ms),
        cost,
        limit: Some(limit),
        effect: Effect::Charge,
    };
    let cost = prop_oneof![20 => 1_u64..300, 2 => 1_u64..70_000, 1 => Just(5_000_000_000)];
    let limit = prop_oneof![9 => Just(1 << 50), 2 => 1_u64..200_000, 1 => 1_u64..20_000_000_000];
    let pause = prop_oneof![4_000 => 0..=pause_ms, 1 => 0..=window_ms, 1 => Just(window_ms * 2 / 3)];
    let call = (mode(), cost, limit, pause, 0_u32..1_000).prop_map(move |(mode, cost, limit, pause, odd)| {
        let pause = if odd == 0 { Step::Back(pause) } else { Step::Forward(pause) };
        let claims = vec![claim(0, 1, 1 << 50), claim(1, cost, limit)];
        // Some are reserved, and closed at once or when many others have come.
        match odd {
            1..200 => [pause, Step::Admit(claims, Some(3_600_000), None)],
            200..300 => [pause, Step::Close(u8::try_from(odd % 100).unwrap_or(0), vec![4, 2, 3], Vec::new())],
            _ => [pause, Step::Apply(mode, claims)],
        }
    });
    prop::collection::vec(call, calls / 2..calls).prop_map(|calls| calls.into_iter().flatten().collect())
}

/// Calls that come at a pace, now and then late, of which a few are in a short window at a time and some more in a long
/// one: groups of entries begin and end at every place of a ring.
pub fn paced() -> impl Strategy<Value = Vec<Step>> {
    let sequence = (1_u64..12, 1_u64..4, 1_u64..60, any::<bool>());
    sequence.prop_flat_map(|(live, ratio, pace, calendar)| {
        let claim = |unit, window, cost, limit| ClaimSpec {
            account: 0,
            scope: 0,
            unit,
            window,
            cost,
            limit,
            effect: Effect::Charge,
        };
        let short = WindowSpec::Sliding(live * pace);
        let long = if calendar {
            WindowSpec::Calendar { ms: 1_000, late: false }
        } else {
            WindowSpec::Sliding(live * pace * (ratio + 1))
        };
        let late = prop_oneof![20 => Just(1_u64), 4 => Just(0), 3 => 2_u64..4, 1 => 2_u64..20];
        let limit = prop_oneof![6 => Just(None), 1 => (1..=300 * live).prop_map(Some)];
        let call = (late, 0_u64..300, limit).prop_map(move |(late, cost, limit)| {
            let claims = vec![claim(0, short, 1, None), claim(1, short, cost, limit), claim(0, long, 1, None)];
            [Step::Forward(late * pace), Step::Apply(Mode::Try, claims)]
        });
        prop::collection::vec(call, 50..200).prop_map(|calls| calls.into_iter().flatten().collect())
    })
}

/// Calls that arrive at the same moment and go to a store together: of several forms, on few counters and on many, on
/// new ones and on some beyond the cap, with and without capacity, more of them than one batch takes, a short or a long
/// time before the next, with a clock that goes forward and back. A store may decide calls of the same moment in any
/// order; these are ordered so that the result does not depend on it: calls of one form, and so of one counter, are
/// consecutive.
pub fn together() -> impl Strategy<Value = Vec<Step>> {
    let windows = prop::sample::select(vec![
        [WindowSpec::Sliding(1_000), WindowSpec::Sliding(20)],
        [WindowSpec::Sliding(60_000), WindowSpec::Calendar { ms: 1_000, late: false }],
    ]);
    windows.prop_flat_map(|[one, other]| {
        let limit =
            || prop_oneof![3 => Just(None), 2 => (1_u64..40).prop_map(Some), 1 => (1_u64..9_000).prop_map(Some)];
        let scope = prop_oneof![4 => Just(0), 3 => 0..CLOSED_SCOPES, 2 => CLOSED_SCOPES..CLOSED_SCOPES + 5];
        let cost = prop_oneof![20 => 1_u64..300, 1 => 1_u64..70_000];
        let claims_of = move |form: u8, scope: u8, cost, some, more| {
            let claim = |unit, window, cost, limit| ClaimSpec {
                account: 0,
                scope,
                unit,
                window,
                cost,
                limit,
                effect: Effect::Charge,
            };
            if form == 0 {
                // Of one form, and yet not of the same counters.
                return vec![ClaimSpec { account: 1, ..claim(u8::from(cost > 200), one, cost, some) }];
            }
            let mut claims = vec![claim(0, one, 1, some), claim(1, one, cost, more), claim(0, other, 1, some)];
            if form > 1 {
                // A guard, which counts no call.
                let guard =
                    ClaimSpec { scope: 1 - scope.min(1), effect: Effect::CheckOnly, ..claim(2, one, 1, Some(3)) };
                claims.push(guard);
            }
            claims
        };
        let call = (0_u8..3, scope, cost, limit(), limit())
            .prop_map(move |(form, scope, cost, some, more)| (form, claims_of(form, scope, cost, some, more)));
        let calls = prop::collection::vec(call, 1..80).prop_map(|mut calls| {
            calls.sort_by_key(|(form, claims)| (*form, claims[0].scope));
            Step::Together(calls.into_iter().map(|(_, claims)| claims).collect())
        });
        let step = prop_oneof![
            9 => prop_oneof![Just(1), Just(0), 0_u64..60, 0_u64..2_000].prop_map(Step::Forward),
            1 => prop_oneof![0_u64..60, 0_u64..70_000].prop_map(Step::Back),
            10 => calls,
            1 => claim().prop_map(|claim| Step::Apply(Mode::Force, vec![claim])),
        ];
        // Scripts that Redis does not know yet and nodes that are not connected yet would upset the order.
        let known = (0..3).map(move |form| Step::Apply(Mode::Try, claims_of(form, 0, 1, None, None)));
        prop::collection::vec(step, 1..60).prop_map(move |steps| known.clone().chain(steps).collect())
    })
}

fn duration() -> impl Strategy<Value = u64> {
    prop_oneof![Just(1), 0_u64..60, 0_u64..1_100, 0_u64..70_000, 0_u64..90_000_000]
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![8 => Just(Mode::Try), 1 => Just(Mode::Force), 2 => Just(Mode::Peek)]
}

fn claim() -> impl Strategy<Value = ClaimSpec> {
    claim_in(CLOSED_SCOPES)
}

fn claim_in(scopes: u8) -> impl Strategy<Value = ClaimSpec> {
    let window = prop_oneof![
        3 => prop::sample::select(vec![1, 50, 1_000, 60_000, 86_400_000, u64::from(SlidingWindow::MAX_MS)])
            .prop_map(WindowSpec::Sliding),
        1 => (prop::sample::select(vec![1_000, 60_000, 86_400_000]), prop::bool::weighted(0.05))
            .prop_map(|(ms, late)| WindowSpec::Calendar { ms, late }),
        1 => Just(WindowSpec::Slots),
    ];
    let cost =
        prop_oneof![1 => Just(0), 10 => 1_u64..4, 4 => 1_u64..70_000, 1 => 1_u64..1 << 40, 1 => Just((1 << 53) - 1)];
    let limit = prop_oneof![
        1 => Just(None),
        1 => Just(Some(0)),
        8 => (1_u64..12).prop_map(Some),
        4 => (1_u64..200_000).prop_map(Some),
        1 => (1_u64..1 << 53).prop_map(Some),
    ];
    let effect = prop_oneof![6 => Just(Effect::Charge), 1 => Just(Effect::CheckOnly)];
    (0_u8..2, 0..scopes, 0_u8..3, window, cost, limit, effect).prop_map(
        |(account, scope, unit, window, cost, limit, effect)| ClaimSpec {
            account,
            scope,
            unit,
            window,
            cost,
            limit,
            effect,
        },
    )
}
