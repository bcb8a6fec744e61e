//! The conformance suite: generated sequences of calls, whose every answer must be the same on every
//! store. The core's algorithm, which [`crate::memory`] runs, is the specification.

use std::sync::Arc;

use proptest::prelude::*;
use tollgate_core::{
    amount::{Amount, Limit, UnitId},
    claim::{Answer, Claim, Effect, LedgerKey, Mode, Partition},
    store::Store,
    time::Timestamp,
    window::{Period, SlidingWindow, Span},
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
    /// Periods of this many milliseconds; `late` ones are of a node whose clock is behind.
    Calendar {
        ms: u64,
        late: bool,
    },
}

/// Where every sequence starts: Monday, 2025-03-03T00:00:00Z.
pub const START: Timestamp = Timestamp::from_ms(1_740_960_000_000);

impl ClaimSpec {
    fn claim(&self, now: Timestamp) -> Claim {
        let partition = Partition::of(["conformance", &self.account.to_string()]);
        let span = match self.window {
            WindowSpec::Sliding(ms) => Span::Sliding(SlidingWindow::from_ms(ms).expect("a window length")),
            WindowSpec::Calendar { ms, late } => {
                let number = now.as_ms() / ms - u64::from(late);
                let start = Timestamp::from_ms(number * ms);
                Span::Calendar {
                    id: u32::try_from(ms).expect("short"),
                    period: Period { start, end: start.plus_ms(ms) },
                }
            }
        };
        Claim {
            ledger: LedgerKey::of(partition, [self.scope.to_string().as_str()]),
            span,
            unit: UnitId::of(["requests", "tokens", "images"][usize::from(self.unit)]),
            cost: Amount::try_from(self.cost).expect("a cost"),
            limit: self
                .limit
                .map_or(Limit::Unlimited, |limit| Limit::Finite(Amount::try_from(limit).expect("a limit"))),
            effect: self.effect,
        }
    }
}

/// Plays `steps` on the specification and on `others`, which take turns and so stand for several nodes on
/// one set of counters, and compares every answer. Returns the most that the first claim of a call had used,
/// so that a suite can make sure that it got anywhere.
///
/// # Panics
/// On the first difference.
pub async fn compare(
    specification: &dyn Store,
    others: &[Box<dyn Store>],
    clock: &Arc<ManualClock>,
    steps: &[Step],
) -> u64 {
    let (mut calls, mut most_used) = (0, 0);
    for (at, step) in steps.iter().enumerate() {
        match step {
            Step::Forward(ms) => clock.advance_ms(*ms),
            Step::Back(ms) => clock.set(Timestamp::from_ms(clock.now().as_ms() - ms)),
            Step::Apply(mode, specs) => {
                let claims: Vec<Claim> = specs.iter().map(|spec| spec.claim(clock.now())).collect();
                let expected = specification.apply(&claims, *mode).await;
                let answer = others[calls % others.len()].apply(&claims, *mode).await;
                assert_eq!(answer, expected, "step {at} at {}: {step:?}", clock.now());
                if let Ok(Answer::Applied(applied)) = &answer {
                    most_used = applied.statuses.first().map_or(0, |status| status.used.get()).max(most_used);
                }
                calls += 1;
            }
        }
    }
    most_used
}

/// Short sequences of everything: windows from 1 ms to 31 days, calendars, several scopes, units and limits
/// at once, costs up to 2^53 - 1, every mode and effect, and a clock that goes both ways.
pub fn mixed() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => duration().prop_map(Step::Forward),
        1 => duration().prop_map(Step::Back),
        15 => (mode(), prop::collection::vec(claim(), 1..6)).prop_map(|(mode, claims)| Step::Apply(mode, claims)),
    ];
    prop::collection::vec(step, 1..120)
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
        [pause, Step::Apply(mode, vec![claim(0, 1, 1 << 50), claim(1, cost, limit)])]
    });
    prop::collection::vec(call, calls / 2..calls).prop_map(|calls| calls.into_iter().flatten().collect())
}

fn duration() -> impl Strategy<Value = u64> {
    prop_oneof![Just(1), 0_u64..60, 0_u64..1_100, 0_u64..70_000, 0_u64..90_000_000]
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![8 => Just(Mode::Try), 1 => Just(Mode::Force), 2 => Just(Mode::Peek)]
}

fn claim() -> impl Strategy<Value = ClaimSpec> {
    let window = prop_oneof![
        3 => prop::sample::select(vec![1, 50, 1_000, 60_000, 86_400_000, u64::from(SlidingWindow::MAX_MS)])
            .prop_map(WindowSpec::Sliding),
        1 => (prop::sample::select(vec![1_000, 60_000, 86_400_000]), prop::bool::weighted(0.05))
            .prop_map(|(ms, late)| WindowSpec::Calendar { ms, late }),
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
    let effect = prop_oneof![6 => Just(Effect::Charge), 1 => Just(Effect::Judge)];
    (0_u8..2, 0_u8..2, 0_u8..3, window, cost, limit, effect).prop_map(
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
