//! What the benches share.

#![expect(clippy::expect_used, clippy::missing_panics_doc, reason = "a bench that cannot go on should stop")]

use redis::{Connection, cmd};
use tollgate_core::{
    amount::{Amount, Limit, UnitId},
    claim::{Claim, Effect, LedgerKey, Partition},
    window::{SlidingWindow, WindowInstance},
};

/// How long `EVALSHA` took Redis on average since its statistics were reset, in microseconds.
pub fn microseconds_a_call(redis: &mut Connection) -> f64 {
    let stats: String = cmd("INFO").arg("commandstats").query(redis).expect("INFO");
    let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:")).expect("evalsha was called");
    let each = line.split(',').find_map(|field| field.strip_prefix("usec_per_call=")).expect("usec_per_call");
    each.parse().expect("a number")
}

/// A number of bytes from `INFO memory`, such as `used_memory`.
pub fn memory(redis: &mut Connection, name: &str) -> u64 {
    let info: String = cmd("INFO").arg("memory").query(redis).expect("INFO");
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.expect("a field of INFO").parse().expect("a number")
}

/// The claims of one account: requests per minute, tokens per minute, requests per day. The limits are never reached.
pub fn claims(account: u64) -> [Claim; 3] {
    let partition = Partition::of(["bench", "account", &account.to_string()]);
    let claim = |ms, unit, cost: u32| Claim {
        ledger: LedgerKey::of(partition, ["llama-3.3-70b"]),
        span: WindowInstance::Sliding(SlidingWindow::from_ms(ms).expect("a window")),
        unit: UnitId::of(unit),
        cost: Amount::from(cost),
        limit: Limit::Finite(Amount::from(1 << 31)),
        effect: Effect::Charge,
    };
    [claim(60_000, "requests", 1), claim(60_000, "tokens", 1_500), claim(86_400_000, "requests", 1)]
}
