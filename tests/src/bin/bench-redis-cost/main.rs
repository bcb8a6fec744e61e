//! The cost of a decision in Redis: microseconds of Redis time (`INFO commandstats`) and bytes per scope, for several
//! algorithms, in one run on one private server. Run it with `tests/bench-redis-cost`; an argument such as `"3 1 "`
//! selects the rows whose "quotas keys events" begin with it. It fails when a bound is exceeded.
//!
//! Time is simulated, so that windows are in steady state (old events leave as new ones come, which every row
//! verifies). Every script but the empty one still calls `TIME`, as it must in production.

#![expect(clippy::print_stdout, reason = "a bench prints its table")]
#![expect(clippy::expect_used, reason = "a bench that cannot go on should stop")]

mod scripts;

use std::process::ExitCode;

use redis::{Connection, Script, Value, cmd};
use tollgate_core::{
    amount::{Amount, Limit, UnitId},
    claim::{Claim, Effect, LedgerKey, Mode, Partition},
    window::{SlidingWindow, WindowInstance},
};
use tollgate_store::{redis::raw, testing::RedisServer};
use tollgate_tests::microseconds_a_call;

use self::scripts::{CLOCK, EMPTY, FIXED, SORTED_SETS};

/// Simulated milliseconds of the short window.
const SHORT: u64 = 60_000;

/// When every row begins.
const START: u64 = 1_800_000_000_000;

/// Number of calls behind each figure, and number of parts. The algorithms take turns, and the part at the lower
/// quartile counts, so that other load on the machine has little influence.
const CALLS_MEASURED: u64 = 10_000;
const PARTS: usize = 20;

/// Calls per pipeline: the same in every row, so that the overhead per call is the same.
const PIPELINE: usize = 500;

/// Keys start up to this many rounds late, so that work which a script does every few calls falls into every part.
const LATEST_START: u64 = 3;

/// Calls per admission in the rows with refusals.
const CALLS_PER_ADMISSION: u64 = 20;

/// One quota of the load: its window in ms, its unit, and whether it counts per key rather than per account.
struct Quota(u64, &'static str, bool);

#[derive(Clone, Copy, PartialEq)]
enum Algorithm {
    Empty,
    Fixed,
    SortedSets,
    Tollgate,
}

const ALGORITHMS: [Algorithm; 4] = [Algorithm::Empty, Algorithm::Fixed, Algorithm::SortedSets, Algorithm::Tollgate];

/// The calls of a key: `live` of them in a short window, `ratio` times as many in a long one.
#[derive(Clone, Copy)]
struct Load {
    quotas: usize,
    keys: u64,
    live: u64,
    ratio: u64,
}

impl Load {
    fn pace(self) -> u64 {
        SHORT / self.live
    }

    fn long(self) -> u64 {
        SHORT * self.ratio
    }

    fn quotas(self) -> Vec<Quota> {
        let long = self.long();
        let mut all =
            vec![Quota(SHORT, "requests", false), Quota(SHORT, "tokens", false), Quota(long, "requests", false)];
        all.extend([Quota(long, "tokens", false), Quota(SHORT, "images", false), Quota(long, "images", false)]);
        all.extend([Quota(SHORT, "requests", true), Quota(long, "requests", true)]);
        all.truncate(self.quotas);
        all
    }
}

/// A key and the time of its call.
type Call = (u64, u64);

/// The keys and the arguments of a script.
type Encoded = (Vec<String>, Vec<Vec<u8>>);

/// The cost of one algorithm under one load: µs per admission, µs per call where 95 % are refused, bytes per scope.
#[derive(Clone, Copy, Default)]
struct Cost {
    admitted: f64,
    refused: f64,
    bytes: u64,
}

fn main() -> ExitCode {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let info: String = cmd("INFO").arg("server").query(&mut redis).expect("INFO");
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or("?");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("Redis {version}, {cores} cores. µs of Redis time a decision (lower quartile of {PARTS} parts, in turns)");
    println!(
        "and bytes a scope (all its windows); events: live in the short and in the long window; refused: of the calls"
    );
    println!();
    println!(
        "{:>6} {:>7} {:>11} {:>8} | {:>6} {:>6} {:>6} {:>8} | {:>7} {:>7} | {:>7} {:>7} {:>8}",
        "quotas",
        "keys",
        "events",
        "refused",
        "empty",
        "fixed",
        "zsets",
        "tollgate",
        "/fixed",
        "/zsets",
        "B fixed",
        "B zsets",
        "tollgate"
    );
    let only = std::env::args().nth(1).unwrap_or_default();
    let mut rows = Vec::new();
    for quotas in [1, 3, 8] {
        for (keys, live, ratio) in
            [(1, 5, 10), (1, 300, 10), (1, 1_000, 10), (1_000, 5, 10), (1_000, 60, 5), (100_000, 2, 2)]
        {
            let load = Load { quotas, keys, live, ratio };
            if format!("{quotas} {keys} {live} ").starts_with(&only) {
                let costs = measure(&mut redis, load);
                print_row(load, "0 %", costs, costs.map(|cost| cost.admitted));
                print_row(load, "95 %", costs, costs.map(|cost| cost.refused));
                rows.push((load, costs));
            }
        }
    }
    println!();
    let mut bounds = time_bounds(&rows);
    #[expect(clippy::cast_precision_loss, reason = "bytes are few")]
    bounds.extend([
        (
            "bytes of a scope with ten events in each of two windows, requests and tokens",
            ten_events(&mut redis) as f64,
            799.0,
        ),
        ("bytes of a scope at its fullest, two windows of requests and tokens", fullest(&mut redis) as f64, 65_536.0),
        ("replicated bytes of an admission over three quotas (about 300)", replicated(&mut redis) as f64, 330.0),
    ]);
    let mut code = ExitCode::SUCCESS;
    for (name, measured, bound) in bounds {
        let verdict = if measured <= bound { "ok" } else { "EXCEEDED" };
        println!("{name:<84} {measured:>9.2}  at most {bound:>9.2}  {verdict}");
        if measured > bound {
            code = ExitCode::FAILURE;
        }
    }
    code
}

fn print_row(load: Load, refused: &str, costs: [Cost; 4], [empty, fixed, zsets, ours]: [f64; 4]) {
    println!(
        "{:>6} {:>7} {:>11} {refused:>8} | {empty:>6.2} {fixed:>6.2} {zsets:>6.2} {ours:>8.2} | {:>7.2} {:>7.2} | {:>7} {:>7} {:>8}",
        load.quotas,
        load.keys,
        format!("{}, {}", load.live, load.live * load.ratio),
        ours / fixed,
        ours / zsets,
        costs[1].bytes,
        costs[2].bytes,
        costs[3].bytes
    );
}

/// The worst row with three quotas, and its bound.
fn time_bounds(rows: &[(Load, [Cost; 4])]) -> Vec<(&'static str, f64, f64)> {
    let three: Vec<_> = rows.iter().filter(|(load, _)| load.quotas == 3).collect();
    let worst = |ratio: &dyn Fn(&[Cost; 4]) -> f64| three.iter().map(|(_, costs)| ratio(costs)).fold(0.0, f64::max);
    let mut bounds = vec![
        ("admission, of three fixed windows", worst(&|[_, fixed, _, ours]| ours.admitted / fixed.admitted), 2.5),
        ("admission, of three sorted-set logs", worst(&|[_, _, zsets, ours]| ours.admitted / zsets.admitted), 0.6),
        ("95 % refused, of three fixed windows", worst(&|[_, fixed, _, ours]| ours.refused / fixed.refused), 4.0),
    ];
    let one_key = |live| three.iter().find(|(load, _)| load.keys == 1 && load.live == live).map(|(_, costs)| costs[3]);
    if let (Some(few), Some(some), Some(many)) = (one_key(5), one_key(300), one_key(1_000)) {
        let growth = some.admitted.max(many.admitted) / few.admitted;
        bounds.push(("admission with 300 and 1,000 events, of one with 5 (does not grow)", growth, 1.15));
    }
    bounds
}

/// Runs the load with every algorithm, in steady state.
fn measure(redis: &mut Connection, load: Load) -> [Cost; 4] {
    cmd("FLUSHALL").exec(redis).expect("FLUSHALL");
    let pace = load.pace();
    // Fills the long window once over.
    let rounds = load.long() / pace + 2 + LATEST_START;
    // The calls of the keys are spread over the interval, so that their windows do not turn at the same moment.
    let spread = |key: u64| START + key * 7_919 % pace;
    let admitted_keys = load.keys.min(CALLS_MEASURED);
    let more_rounds = CALLS_MEASURED / admitted_keys;
    let all = (0..rounds).flat_map(|round| {
        let begun = (0..load.keys).filter(move |key| round >= key % (LATEST_START + 1));
        begun.map(move |key| (key, spread(key) + round * pace))
    });
    let admitted: Vec<Call> = (0..more_rounds)
        .flat_map(|round| (0..admitted_keys).map(move |key| (key, spread(key) + (rounds + round) * pace)))
        .collect();
    // Each key starts at another point between two admissions, so that every part has its share of them.
    let refused_keys = load.keys.min(CALLS_MEASURED / CALLS_PER_ADMISSION);
    let last = rounds + more_rounds - 1;
    let refused: Vec<Call> = (0..CALLS_MEASURED / refused_keys)
        .flat_map(|step| {
            (0..refused_keys).map(move |key| {
                (key, spread(key) + last * pace + (step + key % CALLS_PER_ADMISSION) * pace / CALLS_PER_ADMISSION)
            })
        })
        .collect();

    let mut ways = ALGORITHMS.map(|way| Runner::new(redis, way, load));
    for runner in ways.iter_mut().filter(|runner| runner.way != Algorithm::Empty) {
        runner.run(redis, all.clone(), false);
    }
    let admitted = measure_in_turn(redis, &mut ways, &admitted, false);
    let bytes = [0, 1, 2, 3].map(|way| ways[way].scope_bytes(redis, spread(0) + last * pace));
    let refused = measure_in_turn(redis, &mut ways, &refused, true);
    [0, 1, 2, 3].map(|way| Cost { admitted: admitted[way], refused: refused[way], bytes: bytes[way] })
}

/// Microseconds per call, for each algorithm.
fn measure_in_turn(redis: &mut Connection, ways: &mut [Runner; 4], calls: &[Call], full: bool) -> [f64; 4] {
    let mut each: [Vec<f64>; 4] = Default::default();
    let mut denied = [0; 4];
    for part in calls.chunks(calls.len() / PARTS) {
        for (way, runner) in ways.iter_mut().enumerate() {
            cmd("CONFIG").arg("RESETSTAT").exec(redis).expect("RESETSTAT");
            denied[way] += runner.run(redis, part.iter().copied(), full);
            each[way].push(microseconds_a_call(redis));
        }
    }
    for (runner, denied) in ways.iter().zip(denied) {
        if matches!(runner.way, Algorithm::SortedSets | Algorithm::Tollgate) {
            let share = denied * 100 / calls.len();
            assert!(if full { (93..=97).contains(&share) } else { share == 0 }, "{share} % of the calls were refused");
        }
    }
    each.map(|mut parts| {
        parts.sort_by(f64::total_cmp);
        parts[parts.len() / 4]
    })
}

/// One algorithm under one load.
struct Runner {
    way: Algorithm,
    hash: String,
    load: Load,
    quotas: Vec<Quota>,
    /// The sorted sets of each key.
    sets: Vec<Vec<String>>,
    /// Keys and arguments for Tollgate's script, for each key: with limits out of reach, and with limits in reach.
    encoded: Vec<[Encoded; 2]>,
    calls: u64,
}

impl Runner {
    fn new(redis: &mut Connection, way: Algorithm, load: Load) -> Self {
        let quotas = load.quotas();
        let keys = if way == Algorithm::Tollgate { load.keys } else { 0 };
        let claims = |key, full| -> Vec<Claim> {
            quotas.iter().map(|quota| claim(quota, key, limit(quota, load, full))).collect()
        };
        let encode = |key, full| raw::encode("tg", &claims(key, full), Mode::Try);
        let encoded = (0..keys).map(|key| [encode(key, false), encode(key, true)]).collect();
        let script = Script::new(&match way {
            Algorithm::Empty => EMPTY.to_owned(),
            Algorithm::Fixed => FIXED.to_owned(),
            Algorithm::SortedSets => SORTED_SETS.to_owned(),
            Algorithm::Tollgate => raw::script(CLOCK, &claims(0, false), Mode::Try),
        });
        let hash = script.prepare_invoke().load(redis).expect("the script loads");
        let mut runner = Self { way, hash, load, quotas, sets: Vec::new(), encoded, calls: 0 };
        if way == Algorithm::SortedSets {
            runner.sets = (0..load.keys).map(|key| runner.keys(key, 0)).collect();
        }
        runner
    }

    /// Makes the calls, pipelined, and returns the number of refusals. With `full`, each limit equals the usage at the
    /// pace of the load.
    fn run(&mut self, redis: &mut Connection, calls: impl IntoIterator<Item = Call>, full: bool) -> usize {
        let mut denied = 0;
        let mut calls = calls.into_iter().peekable();
        while calls.peek().is_some() {
            let mut pipeline = redis::pipe();
            let settled = !full && self.calls > self.load.keys * (self.load.live + LATEST_START + 1);
            for (key, now) in calls.by_ref().take(PIPELINE) {
                self.add(&mut pipeline, key, now, full);
            }
            let replies: Vec<Value> = pipeline.query(redis).expect("the calls run");
            denied += replies.iter().filter(|reply| self.is_denied(reply, settled)).count();
        }
        denied
    }

    fn add(&mut self, pipeline: &mut redis::Pipeline, key: u64, now: u64, full: bool) {
        self.calls += 1;
        let call = pipeline.cmd("EVALSHA").arg(&self.hash);
        match self.way {
            Algorithm::Empty => call.arg(0),
            Algorithm::Fixed => {
                call.arg(self.quotas.len()).arg(self.keys(key, now));
                for quota in &self.quotas {
                    call.arg(cost(quota)).arg(limit(quota, self.load, full)).arg(quota.0);
                }
                call.arg(now)
            }
            Algorithm::SortedSets => {
                let keys = &self.sets[usize::try_from(key).expect("few keys")];
                call.arg(keys.len()).arg(keys);
                let mut sums = 0;
                for quota in &self.quotas {
                    let sum = if cost(quota) > 1 { sums + 1 } else { 0 };
                    sums = sums.max(sum);
                    call.arg(cost(quota)).arg(limit(quota, self.load, full)).arg(quota.0).arg(sum);
                }
                call.arg(self.calls).arg(now)
            }
            Algorithm::Tollgate => {
                let (keys, args) = &self.encoded[usize::try_from(key).expect("few keys")][usize::from(full)];
                call.arg(keys.len()).arg(keys).arg(args).arg(now)
            }
        };
    }

    fn is_denied(&self, reply: &Value, settled: bool) -> bool {
        match (self.way, reply) {
            (Algorithm::Tollgate, reply) => {
                let bytes = raw::replies(reply).next().expect("one call was asked for");
                if settled {
                    // In steady state the short window holds exactly `live` events, this call included.
                    let used = bytes[7..14].iter().rev().fold(0, |used, byte| used << 8 | u64::from(*byte));
                    assert!(used == self.load.live, "{used} events in the short window");
                }
                bytes[0] == 0
            }
            (Algorithm::SortedSets, Value::Array(reply)) => reply.first() == Some(&Value::Int(0)),
            _ => false,
        }
    }

    /// The names of a scope's keys.
    fn keys(&self, key: u64, now: u64) -> Vec<String> {
        let name = |Quota(window, unit, of_key): &Quota| format!("{{{key:016}}}{of_key}{unit}{window}");
        match self.way {
            Algorithm::Empty => Vec::new(),
            Algorithm::Fixed => {
                self.quotas.iter().map(|quota| format!("fw{}:{}", name(quota), now / quota.0)).collect()
            }
            Algorithm::SortedSets => {
                let sums =
                    self.quotas.iter().filter(|quota| cost(quota) > 1).map(|quota| format!("zs{}sum", name(quota)));
                self.quotas.iter().map(|quota| format!("zs{}", name(quota))).chain(sums).collect()
            }
            Algorithm::Tollgate => self.encoded[usize::try_from(key).expect("few keys")][0].0.clone(),
        }
    }

    /// `MEMORY USAGE` of the keys of one scope, averaged over up to 100 scopes.
    fn scope_bytes(&self, redis: &mut Connection, now: u64) -> u64 {
        let scopes = self.load.keys.min(100);
        let total: u64 = (0..scopes).flat_map(|key| self.keys(key, now)).map(|name| memory(redis, &name)).sum();
        total / scopes
    }
}

fn memory(redis: &mut Connection, key: &str) -> u64 {
    cmd("MEMORY").arg("USAGE").arg(key).arg("SAMPLES").arg(0).query::<Option<u64>>(redis).expect("MEMORY").unwrap_or(0)
}

fn cost(quota: &Quota) -> u64 {
    if quota.1 == "tokens" { 1_500 } else { 1 }
}

fn limit(quota: &Quota, load: Load, full: bool) -> u64 {
    if full { quota.0 / load.pace() * cost(quota) } else { 1 << 50 }
}

fn claim(quota: &Quota, key: u64, limit: u64) -> Claim {
    let partition = Partition::of([key.to_string().as_str()]);
    Claim {
        ledger: LedgerKey::of(partition, [if quota.2 { "key" } else { "account" }]),
        span: WindowInstance::Sliding(SlidingWindow::from_ms(quota.0).expect("a window")),
        unit: UnitId::of(quota.1),
        cost: Amount::try_from(cost(quota)).expect("a cost"),
        limit: Limit::Finite(Amount::try_from(limit).expect("a limit")),
        effect: Effect::Charge,
    }
}

fn ten_events(redis: &mut Connection) -> u64 {
    grow(redis, 10, |event| event * 1_000)
}

/// A window is fullest after a burst of 1,024 events and then one event in each cell.
fn fullest(redis: &mut Connection) -> u64 {
    grow(redis, 12_000, |event| if event < 1_024 { event } else { 1_024 + (event - 1_024) * 55 })
}

/// Peak memory of two windows of requests and tokens while `events` come, in bytes.
fn grow(redis: &mut Connection, events: u64, at: impl Fn(u64) -> u64) -> u64 {
    cmd("FLUSHALL").exec(redis).expect("FLUSHALL");
    let mut runner = Runner::new(redis, Algorithm::Tollgate, Load { quotas: 4, keys: 1, live: events, ratio: 10 });
    let key = runner.keys(0, 0).concat();
    let mut largest = 0;
    for event in 0..events {
        runner.run(redis, [(0, START + at(event))], false);
        if event % 64 == 63 || event + 1 == events {
            largest = memory(redis, &key).max(largest);
        }
    }
    largest
}

/// Bytes that one admission adds to the replication stream in steady state.
fn replicated(redis: &mut Connection) -> u64 {
    cmd("FLUSHALL").exec(redis).expect("FLUSHALL");
    cmd("CONFIG").arg("SET").arg("appendonly").arg("yes").exec(redis).expect("appendonly");
    let size = |redis: &mut Connection| -> u64 {
        let info: String = cmd("INFO").arg("persistence").query(redis).expect("INFO");
        let field =
            |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).and_then(|n| n.trim().parse().ok());
        field("aof_current_size:").expect("aof_current_size")
    };
    let load = Load { quotas: 3, keys: 1, live: 300, ratio: 10 };
    let mut runner = Runner::new(redis, Algorithm::Tollgate, load);
    let mut run = |redis: &mut Connection, events: std::ops::Range<u64>| {
        runner.run(redis, events.map(|event| (0, START + event * load.pace())), false);
        size(redis)
    };
    let before = run(redis, 0..5_000);
    (run(redis, 5_000..8_200) - before) / 3_200
}
