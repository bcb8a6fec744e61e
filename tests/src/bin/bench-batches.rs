//! The cost of batched decisions: microseconds of Redis time per decision (`INFO commandstats`) when one script run
//! decides several calls, of one account or of several. Run it with `tests/bench-batches`.
//!
//! Each call has three quotas, whose windows are in steady state: old events leave as new ones come. Time is simulated
//! as in `bench-redis-cost`. The batch shapes take turns; the lower quartile of the parts counts.

#![expect(clippy::print_stdout, reason = "a bench prints its table")]
#![expect(clippy::expect_used, reason = "a bench that cannot go on should stop")]

use redis::{Connection, Script, Value, cmd};
use tollgate_core::claim::Mode;
use tollgate_store::{redis::raw, testing::RedisServer};
use tollgate_tests::{claims, microseconds_a_call};

const CLOCK: &str = "redis.call('TIME') local now = tonumber(ARGV[#ARGV]) local shortest_ttl = 3600000 ";
const START: u64 = 1_800_000_000_000;
/// Number of accounts, which take turns.
const ACCOUNTS: u64 = 96;
/// Calls of one account per minute, which is also the number of live events in the short window.
const A_MINUTE: u64 = 300;
const PARTS: usize = 20;
/// Calls per part, a multiple of every batch shape.
const PART: u64 = 9_600;
/// The batch shapes: accounts per batch, and calls per account.
const SHAPES: [(u64, u8); 7] = [(1, 1), (1, 4), (1, 32), (4, 1), (4, 8), (32, 1), (96, 1)];

/// Makes calls in one batch shape, on accounts of its own.
struct Runner {
    /// Each batch's keys and arguments.
    batches: Vec<(Vec<String>, Vec<Vec<u8>>)>,
    calls: u64,
    made: u64,
}

impl Runner {
    fn new(shape: usize) -> Self {
        let (accounts, each) = SHAPES[shape];
        let prefix = format!("way{shape}");
        let batch = |first: u64| {
            let of_accounts: Vec<_> = (first..first + accounts).map(claims).collect();
            raw::encode_together(&prefix, of_accounts.iter().map(|claims| (&claims[..], each)))
        };
        let batches = (0..ACCOUNTS / accounts).map(|number| batch(number * accounts)).collect();
        Self { batches, calls: accounts * u64::from(each), made: 0 }
    }

    /// Makes this many calls, pipelined, at the pace of the load.
    fn run(&mut self, redis: &mut Connection, hash: &str, calls: u64) {
        let mut left = calls / self.calls;
        while left > 0 {
            let mut pipeline = redis::pipe();
            for _ in 0..left.min(200) {
                let batch = usize::try_from(self.made).expect("few") % self.batches.len();
                let now = START + self.made * self.calls * 60_000 / (ACCOUNTS * A_MINUTE);
                let (keys, args) = &self.batches[batch];
                pipeline.cmd("EVALSHA").arg(hash).arg(keys.len()).arg(keys).arg(args).arg(now);
                self.made += 1;
            }
            left -= left.min(200);
            let replies: Vec<Value> = pipeline.query(redis).expect("the calls run");
            let admitted = replies.iter().flat_map(raw::replies).filter(|reply| reply[0] == 1).count();
            assert_eq!(admitted as u64 % self.calls, 0, "a call was refused");
        }
    }
}

fn main() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let script = Script::new(&raw::script(CLOCK, &claims(0), Mode::Try));
    let hash = script.prepare_invoke().load(&mut redis).expect("the script loads");
    let mut runners: Vec<Runner> = (0..SHAPES.len()).map(Runner::new).collect();
    for runner in &mut runners {
        runner.run(&mut redis, &hash, 2 * ACCOUNTS * A_MINUTE);
    }
    let mut figures = vec![Vec::new(); SHAPES.len()];
    for _ in 0..PARTS {
        for (runner, figures) in runners.iter_mut().zip(&mut figures) {
            cmd("CONFIG").arg("RESETSTAT").exec(&mut redis).expect("RESETSTAT");
            runner.run(&mut redis, &hash, PART);
            #[expect(clippy::cast_precision_loss, reason = "few calls")]
            figures.push(microseconds_a_call(&mut redis) / runner.calls as f64);
        }
    }
    println!("accounts  calls of each  µs a decision  of one alone");
    let mut alone = None;
    for ((accounts, each), mut figures) in SHAPES.into_iter().zip(figures) {
        figures.sort_by(f64::total_cmp);
        let took = figures[PARTS / 4];
        let ratio = took / *alone.get_or_insert(took);
        println!("{accounts:>8}  {each:>13}  {took:>13.2}  {ratio:>12.2}");
    }
}
