//! The promises of the README, each tested with random load on every store, against an exact log kept by the test. Each
//! test says which deliberate defects make it fail.

use std::sync::Arc;

use proptest::prelude::*;
use tollgate_core::{
    EXACT_ENTRIES,
    amount::{Amount, Limit, UnitId},
    claim::{ApplyResult, Claim, ClaimStatus, ClaimsDecision, Effect, Fit, LedgerKey, Mode, Partition},
    store::Store,
    time::Timestamp,
    window::{CalendarUnit, CalendarWindow, SlidingWindow, WindowInstance},
};
use tollgate_store::{
    clock::{Clock, ManualClock},
    memory::MemoryStore,
    redis::RedisConfig,
    testing::{RedisServer, check_property, conformance::START},
};

use crate::harness::store_with_clock;

/// A store and its clock, and the exact log of its charges.
struct Bench<'a> {
    store: &'a dyn Store,
    clock: &'a ManualClock,
    runtime: &'a tokio::runtime::Runtime,
    log: Vec<(Timestamp, u64, u64)>,
    claims: Vec<Claim>,
}

const WINDOWS: [u32; 2] = [1_000, 60_000];

/// Requests and tokens in a short window, requests in a long one.
fn claims(limits: [u64; 3], tokens: u64) -> Vec<Claim> {
    claims_in(WINDOWS.map(|ms| WindowInstance::Sliding(SlidingWindow::from_ms(u64::from(ms)).unwrap())), limits, tokens)
}

fn claims_in([short, long]: [WindowInstance; 2], limits: [u64; 3], tokens: u64) -> Vec<Claim> {
    let ledger = LedgerKey::of(Partition::of(["promises"]), ["resource"]);
    let rows =
        [(short, "requests", 1, limits[0]), (short, "tokens", tokens, limits[1]), (long, "requests", 1, limits[2])];
    rows.map(|(span, unit, cost, limit)| Claim {
        ledger,
        span,
        unit: UnitId::of(unit),
        cost: Amount::try_from(cost).unwrap(),
        limit: Limit::Finite(Amount::try_from(limit).unwrap()),
        effect: Effect::Charge,
    })
    .to_vec()
}

impl Bench<'_> {
    fn ask(&self, claims: &[Claim], mode: Mode) -> ApplyResult {
        self.runtime.block_on(self.store.apply(claims, mode)).unwrap()
    }

    fn apply(&self, claims: &[Claim], mode: Mode) -> ClaimsDecision {
        match self.ask(claims, mode) {
            ApplyResult::Applied(applied) => applied,
            ApplyResult::OutsidePeriod(at) => panic!("the periods are those of {at}"),
        }
    }

    /// Consumes, and keeps the exact log.
    fn consume(&mut self, limits: [u64; 3], tokens: u64) -> ClaimsDecision {
        self.claims = claims(limits, tokens);
        let applied = self.apply(&self.claims, Mode::Try);
        if applied.allowed {
            self.log.push((self.clock.now(), 1, tokens));
        }
        applied
    }

    /// The usage in the trailing `ms` by the exact log: requests, tokens, events.
    fn exact(&self, ms: u64) -> (u64, u64, usize) {
        self.exact_since(Timestamp::from_ms(self.clock.now().as_ms() + 1 - ms))
    }

    /// The same from `start` on.
    fn exact_since(&self, start: Timestamp) -> (u64, u64, usize) {
        let inside = self.log.iter().rev().take_while(|(at, ..)| *at >= start);
        inside.fold((0, 0, 0), |sum, (_, requests, tokens)| (sum.0 + requests, sum.1 + tokens, sum.2 + 1))
    }
}

/// Runs `property` for generated input on memory and on Redis, each time on empty counters.
fn check<S: Strategy>(cases: u32, strategy: S, property: impl Fn(&mut Bench<'_>, &S::Value))
where
    S::Value: Clone,
{
    let server = RedisServer::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    check_property(cases, &strategy, |case, input| {
        let clock = Arc::new(ManualClock::at(START));
        let memory = MemoryStore::new(Arc::clone(&clock), 10_000);
        property(&mut Bench { store: &memory, clock: &clock, runtime: &runtime, log: vec![], claims: vec![] }, &input);
        clock.set(START);
        let redis =
            store_with_clock(RedisConfig { key_prefix: format!("case{case}"), ..server.config() }, &clock, &runtime);
        property(&mut Bench { store: &redis, clock: &clock, runtime: &runtime, log: vec![], claims: vec![] }, &input);
        Ok(())
    });
}

/// Pauses and costs of a load, with limits that change on the way.
fn load(calls: usize) -> impl Strategy<Value = Vec<(u64, u64, [u64; 3])>> {
    prop::collection::vec(call(), 1..calls)
}

fn call() -> impl Strategy<Value = (u64, u64, [u64; 3])> {
    let pause = prop_oneof![5 => 0_u64..40, 2 => 0_u64..400, 1 => 0_u64..5_000];
    let limits =
        prop_oneof![9 => Just([8, 400, 60]), 1 => (0_u64..12, 0_u64..600, 0_u64..80).prop_map(|(a, b, c)| [a, b, c])];
    (pause, 1_u64..120, limits)
}

/// Promises 1, 2 and 3. Broken to try it: a verdict that lets one more in, entries that leave a millisecond
/// late, refusals that are charged.
#[test]
fn a_limit_is_never_exceeded_no_refusal_is_false_and_charges_are_all_or_nothing() {
    check(60, load(150), |bench, load| {
        for (pause, tokens, limits) in load {
            bench.clock.advance_ms(*pause);
            let before: Vec<Amount> =
                bench.apply(&claims(*limits, *tokens), Mode::Peek).statuses.iter().map(|s| s.used).collect();
            let (requests, spent, _) = bench.exact(1_000);
            let (long, ..) = bench.exact(60_000);
            let fits = requests < limits[0] && spent + tokens <= limits[1] && long < limits[2];
            let applied = bench.consume(*limits, *tokens);
            assert_eq!(applied.allowed, fits, "the exact log decides the same");
            let after: Vec<u64> = applied.statuses.iter().map(|status| status.used.get()).collect();
            if applied.allowed {
                assert_eq!(after, [requests + 1, spent + tokens, long + 1]);
                assert!(
                    after.iter().zip(limits).all(|(used, limit)| used <= limit),
                    "never over: {after:?} {limits:?}"
                );
            } else {
                assert_eq!(
                    after,
                    before.iter().map(|used| used.get()).collect::<Vec<_>>(),
                    "a refusal charges nothing"
                );
            }
        }
    });
}

/// Promises 1 to 5 and 7 in calendar periods. The exact log predicts every status completely, because a period ends for
/// all its usage at once. The node's own clock, which is not the store's, never counts. Tried by breaking it: usage
/// that outlives its period, periods that a store does not check or that include their end, `cost >= limit` for never,
/// one more that fits, unlimited claims not charged.
#[test]
fn calendar_periods_keep_the_promises_with_any_node_clock() {
    let units = [CalendarUnit::Second, CalendarUnit::Minute, CalendarUnit::Day];
    let skew_ms = prop_oneof![6 => Just(0), 2 => -2_000_i64..2_000, 1 => -100_000_000_i64..100_000_000];
    // To the end of the shorter period, or just before it.
    let edge_ms = prop::option::weighted(0.2, 0_u64..2);
    let steps = prop::collection::vec((call(), edge_ms, skew_ms, prop::bool::weighted(0.1)), 1..150);
    let windows = units.map(|unit| CalendarWindow::new(unit, "Asia/Kolkata").unwrap());
    let midnight = windows[2].period_at(START).end.as_ms();
    let two_units = prop::sample::subsequence(vec![0, 1, 2], 2);
    check(60, (two_units, 0_u64..70_000, steps), |bench, (two, before_midnight, steps)| {
        let periods = |at| [two[0], two[1]].map(|index| windows[index].period_at(at));
        bench.clock.set(Timestamp::from_ms(midnight - before_midnight));
        for ((pause, tokens, limits), edge, skew, unlimited) in steps {
            let edge = edge.map(|edge| Timestamp::from_ms(periods(bench.clock.now())[0].end.as_ms() - edge));
            bench.clock.set(edge.unwrap_or(bench.clock.now().plus_ms(*pause)));
            let now = bench.clock.now();
            let consume = |by: Timestamp| {
                let spans = [0, 1]
                    .map(|index| WindowInstance::Calendar { id: windows[two[index]].id(), period: periods(by)[index] });
                let mut claims = claims_in(spans, *limits, *tokens);
                claims.iter_mut().filter(|_| *unlimited).for_each(|claim| claim.limit = Limit::Unlimited);
                bench.ask(&claims, Mode::Try)
            };
            let by = Timestamp::from_ms(now.as_ms().saturating_add_signed(*skew));
            let mut answer = consume(by);
            if periods(by) != periods(now) {
                assert_eq!(answer, ApplyResult::OutsidePeriod(now), "dated {by}");
                answer = consume(now);
            }
            let [short, long] = periods(now);
            let (requests, spent, _) = bench.exact_since(short.start);
            let (in_long, ..) = bench.exact_since(long.start);
            let counters = [(requests, 1, short.end), (spent, *tokens, short.end), (in_long, 1, long.end)];
            let fit = |((used, cost, end), limit): ((u64, u64, Timestamp), u64)| match limit {
                limit if *unlimited || used + cost <= limit => Fit::Now,
                limit if cost > limit => Fit::Never,
                _ => Fit::At(end),
            };
            let fits = [0, 1, 2].map(|index| fit((counters[index], limits[index])));
            let allowed = fits.iter().all(|fit| *fit == Fit::Now);
            let statuses = counters.iter().zip(fits).map(|((used, cost, end), fit)| ClaimStatus {
                used: Amount::try_from(used + if allowed { *cost } else { 0 }).unwrap(),
                resets_at: *end,
                fit,
            });
            assert_eq!(
                answer,
                ApplyResult::Applied(ClaimsDecision { decided_at: now, allowed, statuses: statuses.collect() })
            );
            bench.log.extend(allowed.then_some((now, 1, *tokens)));
        }
    });
}

/// Promise 2 beyond 1,024 events: a refusal may last window/1024 too long, not more. Broken to try it: cells
/// twice as long.
#[test]
fn a_full_window_merges_entries_within_a_1024th() {
    check(3, (1_u64..30, 1_500_u64..3_000), |bench, (pause, limit)| {
        let window = u64::from(WINDOWS[1]);
        let limits = [1 << 40, 1 << 40, *limit];
        for _ in 0..4_000 {
            bench.clock.advance_ms(*pause);
            let (exact, _, events) = bench.exact(window);
            let (blurred, ..) = bench.exact(window + window / 1024 + 1);
            let applied = bench.consume(limits, 1);
            let after = if applied.allowed { exact + 1 } else { exact };
            assert!(after <= *limit, "never over");
            if events < EXACT_ENTRIES {
                assert_eq!(applied.allowed, exact < *limit, "exact below 1,024 events");
            } else if blurred < *limit {
                assert!(applied.allowed, "refused for longer than window/1024");
            }
        }
    });
}

/// A client that paces itself exactly at a limit of up to 1,024 calls a window is not refused. Broken to try
/// it: coalescing from 512 entries on.
#[test]
fn an_exactly_paced_client_is_never_refused() {
    check(1, Just(()), |bench, ()| {
        for per_minute in [100, 500, 1_000, 1_024] {
            let start = bench.clock.now().plus_ms(120_000);
            for call in 0..per_minute * 60_u64 {
                // The call's own moment, rounded to whole milliseconds as a clock has them.
                bench.clock.set(start.plus_ms((call * 60_000).div_ceil(per_minute)));
                let applied = bench.apply(&claims([1 << 40, 1 << 40, per_minute], 1), Mode::Try);
                assert!(applied.allowed, "call {call} at {per_minute} a minute");
                if call + 1 == per_minute {
                    let more = bench.apply(&claims([1 << 40, 1 << 40, per_minute], 1), Mode::Try);
                    assert!(!more.allowed, "the pace is not the limit");
                }
            }
            bench.clock.advance_ms(60_000);
        }
    });
}

/// A guard is judged like any other claim, and never charged, in whatever mode. Broken to try it: one that
/// [`Mode::Force`] charges, one that is not judged.
#[test]
fn a_block_stops_calls_and_is_not_charged_by_them() {
    let step = (0_u64..700, prop::bool::weighted(0.2), prop_oneof![4 => Just(Mode::Try), 1 => Just(Mode::Force)]);
    check(60, prop::collection::vec(step, 1..100), |bench, steps| {
        let limits = [8, 400, 60];
        let charged =
            Claim { unit: UnitId::of("blocks"), limit: Limit::Finite(Amount::from(1)), ..claims(limits, 1)[0] };
        let guard = Claim { effect: Effect::CheckOnly, ..charged };
        let mut on_until = START;
        for (pause, sets, mode) in steps {
            bench.clock.advance_ms(*pause);
            let now = bench.clock.now();
            if *sets {
                let set = bench.apply(&[charged], Mode::Try).allowed;
                assert_eq!(set, on_until <= now, "a guard that is set stays as it is");
                on_until = if set { now.plus_ms(1_000) } else { on_until };
            }
            let on = on_until > now;
            let (requests, spent, _) = bench.exact(1_000);
            let fits = requests < limits[0] && spent + 10 <= limits[1] && bench.exact(60_000).0 < limits[2];
            let applied = bench.apply(&[&[guard][..], &claims(limits, 10)].concat(), *mode);
            assert_eq!(applied.allowed, fits && !on);
            assert_eq!(applied.statuses[0].fit, if on { Fit::At(on_until) } else { Fit::Now });
            assert_eq!(applied.statuses[0].used, Amount::from(u32::from(on)), "the guard is charged by nobody");
            let counted = applied.allowed || *mode == Mode::Force;
            assert_eq!(applied.statuses[1].used.get(), requests + u64::from(counted));
            if counted {
                bench.log.push((now, 1, 10));
            }
        }
    });
}

/// Promise 4. Broken to try it: a retry time one millisecond early.
#[test]
fn remaining_and_retry_after_are_true() {
    check(60, (load(80), 1_u64..300), |bench, (load, tokens)| {
        let limits = [8, 400, 60];
        for (pause, tokens, _) in load {
            bench.clock.advance_ms(*pause);
            bench.consume(limits, *tokens);
        }
        let refused = bench.apply(&claims(limits, *tokens), Mode::Peek);
        let retry_at = refused.statuses.iter().map(|status| match status.fit {
            Fit::Now => bench.clock.now(),
            Fit::At(at) => at,
            Fit::Never => panic!("{tokens} fit into 400"),
        });
        let retry_at = retry_at.max().unwrap();
        if !refused.allowed {
            bench.clock.set(Timestamp::from_ms(retry_at.as_ms() - 1));
            assert!(!bench.apply(&claims(limits, *tokens), Mode::Peek).allowed, "not a millisecond earlier");
        }
        bench.clock.set(retry_at);
        let now = bench.apply(&claims(limits, *tokens), Mode::Peek);
        assert!(now.allowed, "admitted when it was promised");
        // The remaining amount can be admitted, and not one more.
        let remaining = limits[1] - now.statuses[1].used.get();
        assert!(bench.apply(&claims([1 << 40, limits[1], 1 << 40], remaining), Mode::Try).allowed);
        assert!(!bench.apply(&claims([1 << 40, limits[1], 1 << 40], 1), Mode::Try).allowed);
        // And it is empty at the promised time.
        let resets_at = bench.apply(&claims(limits, 1), Mode::Peek).statuses[1].resets_at;
        bench.clock.set(resets_at);
        assert_eq!(bench.apply(&claims(limits, 1), Mode::Peek).statuses[1].used, Amount::ZERO);
    });
}

/// Promise 5. Broken to try it: `cost >= limit`.
#[test]
fn a_cost_above_the_limit_is_refused_for_good() {
    check(30, (load(40), 0_u64..500), |bench, (load, limit)| {
        for (pause, tokens, limits) in load {
            bench.clock.advance_ms(*pause);
            bench.consume(*limits, *tokens);
        }
        let fit = |cost| bench.apply(&claims([1 << 40, *limit, 1 << 40], cost), Mode::Peek).statuses[1].fit;
        assert_eq!(fit(limit + 1), Fit::Never);
        assert_ne!(fit(*limit), Fit::Never);
    });
}

/// A step of a random walk of the clock.
#[derive(Clone, Debug)]
enum Walk {
    Forward(u64),
    Back(u64),
    /// A call that is only read.
    Look,
    /// A call of this many tokens, often too many.
    Consume(u64),
    /// To the end of the short calendar period, or one millisecond before it.
    Edge(u64),
}

fn walk() -> impl Strategy<Value = Vec<Walk>> {
    let length = || {
        prop_oneof![
            4 => 1_u64..2_000,
            2 => 1_u64..70_000,
            1 => 1_u64..7_200_000,
            1 => 1_u64..6_000_000_000,
        ]
    };
    let step = prop_oneof![
        3 => length().prop_map(Walk::Forward),
        2 => length().prop_map(Walk::Back),
        2 => Just(Walk::Look),
        7 => (1_u64..60).prop_map(Walk::Consume),
        1 => (0_u64..2).prop_map(Walk::Edge),
    ];
    prop::collection::vec(step, 1..60)
}

/// The charges of one calendar, as far as they must be remembered: those of the current period and the last one before it,
/// and of all later ones.
#[derive(Default)]
struct PeriodLog {
    current: Option<Timestamp>,
    charged: std::collections::BTreeMap<Timestamp, [u64; 2]>,
}

impl PeriodLog {
    /// A call in an earlier period makes that the current one.
    fn notice(&mut self, start: Timestamp) {
        self.current = self.current.map(|current| current.min(start));
    }

    fn charge(&mut self, start: Timestamp, tokens: u64) {
        if let Some(current) = self.current.filter(|current| *current < start) {
            self.charged.retain(|period, _| *period >= current);
        }
        self.current = Some(start);
        let charged = self.charged.entry(start).or_default();
        *charged = [charged[0] + 1, charged[1] + tokens];
    }
}

/// Promise 6: whatever the clock does, a charge counts whenever the clock is within a window from its time, and in its
/// calendar period; readings change nothing; and nothing counts once the clock has passed all of it. Fails if entries are
/// dated anew when they are read, if usage is forgotten when the period before begins again, and if what is set
/// aside is dropped.
#[test]
fn a_clock_that_steps_frees_nothing_early_and_holds_nothing_for_good() {
    let limits = [8, 400, 60];
    let calendars =
        [CalendarUnit::Second, CalendarUnit::Month].map(|unit| CalendarWindow::new(unit, "Europe/Rome").unwrap());
    check(100, walk(), |bench, steps| {
        let mut periods = [PeriodLog::default(), PeriodLog::default()];
        let mut windows: [Vec<(Timestamp, u64)>; 2] = Default::default();
        let mut last = bench.clock.now();
        let claims_now = |now: Timestamp, tokens| {
            let spans = [0, 1]
                .map(|at| WindowInstance::Calendar { id: calendars[at].id(), period: calendars[at].period_at(now) });
            [claims(limits, tokens), claims_in(spans, limits, tokens)].concat()
        };
        for step in steps {
            let now = bench.clock.now();
            match step {
                Walk::Forward(ms) => bench.clock.advance_ms(*ms),
                Walk::Back(ms) => bench.clock.set(Timestamp::from_ms(now.as_ms().saturating_sub(*ms).max(1 << 38))),
                Walk::Edge(before) => {
                    bench.clock.set(Timestamp::from_ms(calendars[0].period_at(now).end.as_ms() - before));
                }
                Walk::Look => {
                    let look = || bench.apply(&claims_now(now, 1), Mode::Peek);
                    assert_eq!(look(), look());
                }
                Walk::Consume(tokens) => {
                    let all = claims_now(now, *tokens);
                    let looked = bench.apply(&all, Mode::Peek);
                    let applied = bench.apply(&all, Mode::Try);
                    assert_eq!(looked.allowed, applied.allowed);
                    for (at, log) in periods.iter_mut().enumerate() {
                        log.notice(calendars[at].period_at(now).start);
                    }
                    if !applied.allowed {
                        continue;
                    }
                    for (at, window) in WINDOWS.iter().enumerate() {
                        // What has expired at a charge is forgotten.
                        let horizon = now.as_ms().saturating_sub(u64::from(*window));
                        windows[at].retain(|(time, _)| time.as_ms() > horizon);
                        windows[at].push((now, *tokens));
                    }
                    for (log, (window, [requests, tokens])) in
                        windows.iter().zip(WINDOWS.iter().zip([[8, 400], [60, u64::MAX]]))
                    {
                        let inside = log.iter().filter(|(at, _)| *at <= now);
                        let used = inside.fold([0, 0], |sum, (_, cost)| [sum[0] + 1, sum[1] + cost]);
                        assert!(used[0] <= requests && used[1] <= tokens, "{used:?} in {window} ms at {now}");
                    }
                    for (at, log) in periods.iter_mut().enumerate() {
                        let start = calendars[at].period_at(now).start;
                        log.charge(start, *tokens);
                        let most = [[8, 400], [60, u64::MAX]][at];
                        let used = log.charged[&start];
                        assert!(used[0] <= most[0] && used[1] <= most[1], "{used:?} in the period of {start}");
                    }
                }
            }
            last = last.max(bench.clock.now());
        }
        bench.clock.set(last.plus_ms(40 * 86_400_000));
        let end = bench.apply(&claims_now(bench.clock.now(), 1), Mode::Peek);
        assert!(end.statuses.iter().all(|status| status.used == Amount::ZERO), "{end:?}");
    });
}

/// Promise 6 for the usual step: after a clock that was ahead is set right, capacity is back one window after the first
/// call, and a charge that the step made late counts again at its own time.
#[test]
fn capacity_is_back_one_window_after_a_large_step_back() {
    check(20, (load(60), 200_000_u64..20_000_000), |bench, (load, back)| {
        let limits = [8, 400, 60];
        for (pause, tokens, _) in load {
            bench.clock.advance_ms(*pause);
            bench.consume(limits, *tokens);
        }
        let ahead = bench.clock.now();
        let used = |bench: &Bench<'_>| {
            bench.apply(&claims(limits, 1), Mode::Peek).statuses.iter().map(|s| s.used).collect::<Vec<_>>()
        };
        let before = used(bench);
        let right = Timestamp::from_ms(ahead.as_ms() - back);
        bench.clock.set(right);
        assert!(used(bench).iter().zip(&before).all(|(after, before)| after >= before), "nothing is freed early");
        // A call that is refused for good notices the step.
        assert!(!bench.apply(&claims(limits, 401), Mode::Try).allowed);
        for (window, free) in [(WINDOWS[0], 2), (WINDOWS[1], 3)] {
            bench.clock.set(right.plus_ms(u64::from(window)));
            assert!(used(bench)[..free].iter().all(|used| *used == Amount::ZERO), "one window of {window} ms later");
        }
        bench.clock.set(ahead);
        assert!(used(bench).iter().zip(&before).all(|(after, before)| after >= before), "it counts at its own time");
    });
}

/// Promise 7. Broken to try it: unlimited claims not charged.
#[test]
fn limits_change_at_once_and_usage_stays() {
    check(30, (1_u64..50, 1_u64..50), |bench, (calls, limit)| {
        let unlimited: Vec<Claim> =
            claims([0; 3], 1).into_iter().map(|claim| Claim { limit: Limit::Unlimited, ..claim }).collect();
        for _ in 0..*calls {
            assert!(bench.apply(&unlimited, Mode::Try).allowed);
        }
        let limited = bench.apply(&claims([*limit; 3], 1), Mode::Try);
        assert_eq!(limited.allowed, calls < limit, "the new limit knows the past");
        let raised = bench.apply(&claims([calls + 10; 3], 1), Mode::Try);
        assert!(raised.allowed, "a raised limit has room at once");
    });
}

/// Promise 8, for a counter's memory; the conformance suite checks expiry and sizes after all its sequences. The
/// heaviest ledgers of one policy, with the costs of README.md. Tried by breaking it: no coalescing, and costs that all
/// have seven bytes, or requests four.
#[test]
fn a_counter_never_outgrows_64_kib() {
    let server = RedisServer::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let clock = Arc::new(ManualClock::at(START));
    let store = store_with_clock(server.config(), &clock, &runtime);
    let bench = Bench { store: &store, clock: &clock, runtime: &runtime, log: vec![], claims: vec![] };
    let narrow = |unit: u64| if unit == 0 { 20_000 } else { 1 << 30 };
    for (windows, units, is_wide) in [(3, 2, false), (2, 3, false), (5, 1, false), (1, 7, false), (5, 1, true)] {
        let mut claims: Vec<Claim> = (0..windows * units)
            .map(|at| Claim {
                ledger: LedgerKey::of(Partition::of(["bound"]), ["account"]),
                span: WindowInstance::Sliding(SlidingWindow::from_ms(60_000 + at / units * 100).unwrap()),
                // The first is requests.
                unit: UnitId::of(&format!("unit {}", at % units)),
                cost: Amount::try_from(if is_wide { 1_u64 << 49 } else { narrow(at % units) }).unwrap(),
                limit: Limit::Unlimited,
                effect: Effect::Charge,
            })
            .collect();
        let most = if is_wide { 117_760 } else { 65_536 };
        // A burst of 1,024 distinct moments, and then more than one in every cell of all windows.
        let mut bytes = 0;
        for call in 0..4_000 {
            clock.advance_ms(if call < 1_024 { 1 } else { 40 });
            bench.apply(&claims, Mode::Force);
            if is_wide {
                // One makes wide columns; many of them would be more than can be counted.
                for claim in &mut claims {
                    claim.cost = Amount::from(1);
                }
            }
            if call % 100 == 0 {
                let keys: Vec<String> = server.run("KEYS *");
                let length = |key: &String| server.run::<usize>(&format!("STRLEN {key}"));
                bytes = keys.iter().map(length).max().unwrap().max(bytes);
            }
        }
        assert!(bytes > most * 9 / 10 && bytes <= most, "{windows} windows of {units} units: {bytes} bytes");
        server.run::<()>("FLUSHALL");
    }
}
