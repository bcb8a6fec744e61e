//! Redis at a large number of accounts: its memory, the size of its snapshot, and its time per admission. Run it with
//! `tests/bench-sizing`; the arguments are numbers of accounts (default: 100,000 and 1,000,000).
//!
//! Each account has one scope (requests and tokens per minute, requests per day) and was called a few times. The
//! scripts are those of production, with Redis's own clock. Calls fill the counters of some accounts; the counters of
//! all others are copies, because a new counter grows with its first calls, which takes three times as long as a call
//! in steady state.

#![expect(clippy::print_stdout, reason = "a bench prints its table")]
#![expect(clippy::expect_used, reason = "a bench that cannot go on should stop")]

use std::time::Instant;

use redis::{Connection, Script, cmd};
use tollgate_core::claim::Mode;
use tollgate_store::{redis::raw, testing::RedisServer};
use tollgate_tests::{claims, memory, microseconds_a_call};

const CLOCK: &str = include_str!("../../../lua/clock.lua");
const EVENTS: u64 = 5;
/// Number of accounts whose counters are filled by calls.
const FIRST: u64 = 1_000;
/// Number of admissions that are timed, over all accounts; the lower quartile of the parts counts.
const MEASURED: u64 = 50_000;
const PARTS: u64 = 20;
const PIPELINE: u64 = 500;

fn admit(redis: &mut Connection, hash: &str, accounts: impl Iterator<Item = u64>) {
    let mut pipeline = redis::pipe();
    for account in accounts {
        let (keys, args) = raw::encode("tg", &claims(account), Mode::Try);
        pipeline.cmd("EVALSHA").arg(hash).arg(keys.len()).arg(keys).arg(args).ignore();
    }
    pipeline.exec(redis).expect("the calls run");
}

fn key(account: u64) -> String {
    raw::encode("tg", &claims(account), Mode::Try).0.swap_remove(0)
}

/// Calls the first accounts. Returns the µs of a call.
fn fill(redis: &mut Connection, hash: &str) -> f64 {
    cmd("CONFIG").arg("RESETSTAT").exec(redis).expect("RESETSTAT");
    for _ in 0..EVENTS {
        admit(redis, hash, 0..FIRST);
    }
    microseconds_a_call(redis)
}

/// Copies the counters of the first accounts to all others.
fn copy(redis: &mut Connection, accounts: u64) {
    let mut dump = |account| cmd("DUMP").arg(key(account)).query::<Vec<u8>>(redis).expect("DUMP");
    let dumps: Vec<Vec<u8>> = (0..FIRST).map(&mut dump).collect();
    let mut account = FIRST;
    while account < accounts {
        let mut pipeline = redis::pipe();
        for (dump, account) in dumps.iter().zip(account..accounts) {
            pipeline.cmd("RESTORE").arg(key(account)).arg(86_400_000).arg(dump).ignore();
        }
        pipeline.exec(redis).expect("RESTORE");
        account += FIRST;
    }
}

fn measure(accounts: u64) {
    assert!(accounts >= FIRST, "at least {FIRST} accounts");
    let server = RedisServer::start();
    let mut redis = server.connection();
    let script = Script::new(&raw::script(CLOCK, &claims(0), Mode::Try));
    script.prepare_invoke().load(&mut redis).expect("the script is loaded");
    let empty = memory(&mut redis, "used_memory");
    let started = Instant::now();
    let of_new = fill(&mut redis, script.get_hash());
    copy(&mut redis, accounts);
    let filled = started.elapsed();
    let keys: u64 = cmd("DBSIZE").query(&mut redis).expect("DBSIZE");
    assert_eq!(keys, accounts, "a counter each");
    let taken = memory(&mut redis, "used_memory") - empty;
    let mut usage =
        |account| -> u64 { cmd("MEMORY").arg("USAGE").arg(key(account)).query(&mut redis).expect("a size") };
    let (made, copied) = (usage(FIRST - 1), usage(accounts - 1));
    assert_eq!(made, copied, "a copy takes what a counter takes");
    let value: u64 = cmd("STRLEN").arg(key(0)).query(&mut redis).expect("STRLEN");

    let mut parts: Vec<f64> = Vec::new();
    for part in 0..PARTS {
        cmd("CONFIG").arg("RESETSTAT").exec(&mut redis).expect("RESETSTAT");
        let number = MEASURED / PARTS;
        for first in (part * number..(part + 1) * number).step_by(usize::try_from(PIPELINE).expect("small")) {
            // Accounts far apart, so that the processor's caches do not hold their counters.
            let all_over = (first..first + PIPELINE).map(|call| call * 7_368_787 % accounts);
            admit(&mut redis, script.get_hash(), all_over);
        }
        parts.push(microseconds_a_call(&mut redis));
    }
    parts.sort_by(f64::total_cmp);
    let microseconds = parts[parts.len() / 4];

    cmd("SAVE").exec(&mut redis).expect("SAVE");
    let snapshot = std::fs::metadata(server.folder().join("dump.rdb")).expect("a snapshot").len();
    println!(
        "{accounts:>9} accounts  {:>5} MB  {:>4} B an account (the value {value}, the key {})  {microseconds:>5.1} µs an admission, \
         {of_new:.1} µs of a new account  snapshot {:>4} MB  (filled in {:.0} s)",
        taken / 1_000_000,
        taken / accounts,
        key(0).len(),
        snapshot / 1_000_000,
        filled.as_secs_f64(),
    );
}

fn main() {
    let told: Vec<u64> = std::env::args().skip(1).map(|word| word.parse().expect("a number of accounts")).collect();
    for accounts in if told.is_empty() { vec![100_000, 1_000_000] } else { told } {
        measure(accounts);
    }
}
