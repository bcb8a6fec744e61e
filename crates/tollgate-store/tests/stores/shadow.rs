//! Shadow mode on every store: it admits the same calls as without it, and reports exactly the refusals that follow
//! from an exact log of the calls.
//!
//! Tried by breaking the core: shadow quotas that are sent with their limit, and judged with the call's own cost
//! counted twice.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;
use tollgate_core::{
    claim::{ApplyResult, Fit, Mode},
    store::Store,
};
use tollgate_policy::{Caller, Policy, decision::Verdict};
use tollgate_store::{
    clock::{Clock, ManualClock},
    memory::MemoryStore,
    redis::RedisConfig,
    testing::{RedisServer, check_property, conformance::START},
};

use crate::harness::store_with_clock;

/// A quota of a generated policy: unit, window, limit, whether it is a shadow.
type Row = (usize, usize, u64, bool);
const UNITS: [&str; 2] = ["requests", "tokens"];
const WINDOWS: [u64; 2] = [1_000, 20_000];

fn policy(domain: &str, rows: &[Row], all: bool) -> Policy {
    let quotas = rows.iter().enumerate().map(|(at, (unit, window, limit, shadow))| {
        let per = format!("{}ms", WINDOWS[*window]);
        json!({ "name": format!("quota_{at}"), "unit": UNITS[*unit], "per": per, "limit": limit, "shadow": shadow })
    });
    let file = serde_json::from_value(json!({
        "version": 1,
        "domain": domain,
        "units": ["tokens"],
        "resources": { "model": { "quotas": quotas.collect::<Vec<_>>() } },
        "tiers": { "paid": { "is_charged": false } },
        "default_tier": "paid",
        "shadow": all,
    }));
    Policy::compile(&file.unwrap()).unwrap_or_else(|errors| panic!("{errors:?}"))
}

/// Decides as a node does: the verdict, and the numbers of the shadows that would have refused.
fn decide(
    runtime: &tokio::runtime::Runtime,
    store: &dyn Store,
    clock: &ManualClock,
    policy: &Policy,
    tokens: u64,
    mode: Mode,
) -> (Verdict, Vec<usize>) {
    let partition = policy.account_partition("a");
    let caller = Caller { partition, tier: policy.default_tier(), account_overrides: &[], key: None };
    let resolved = policy.resolve(&caller, "model").unwrap();
    let usage = policy.usage([("tokens", tokens)]).unwrap();
    let claim_set = resolved.claim_set(&usage, |_| None, None).unwrap();
    let claims = claim_set.claims(clock.now(), &[]);
    if claims.is_empty() {
        return (Verdict::Allowed, Vec::new());
    }
    let ApplyResult::Applied(applied) = runtime.block_on(store.apply(&claims, mode)).unwrap() else {
        panic!("no calendar here")
    };
    let (decision, _) = claim_set.decide(mode, false, applied);
    assert!(decision.binding_quota().is_none_or(|status| !status.quota.shadow), "a shadow says nothing aloud");
    for status in decision.quotas.iter().filter(|status| status.fit != Fit::Now) {
        assert!(status.denies() != status.would_deny());
    }
    let number = |name: &Arc<str>| name.strip_prefix("quota_").unwrap().parse().unwrap();
    (decision.verdict, decision.shadow_refusals().map(number).collect())
}

fn check(
    runtime: &tokio::runtime::Runtime,
    store: &dyn Store,
    clock: &ManualClock,
    rows: &[Row],
    all: bool,
    load: &[(u64, u64, bool)],
) {
    clock.set(START);
    let with = policy("with", rows, all);
    let enforced: Vec<Row> = rows.iter().filter(|(.., shadow)| !shadow && !all).copied().collect();
    let without = policy("without", &enforced, false);
    let mut log: Vec<(u64, [u64; 2])> = Vec::new();
    for (pause, tokens, peeks) in load {
        clock.advance_ms(*pause);
        let now = clock.now().as_ms();
        let cost = [1, *tokens];
        // A refusal of the exact log, of calls that were admitted.
        let refuses = |(_, (unit, window, limit, shadow)): &(usize, &Row)| {
            let inside = log.iter().filter(|(at, _)| at + WINDOWS[*window] > now);
            let used: u64 = inside.map(|(_, costs)| costs[*unit]).sum();
            (*shadow || all) && used + cost[*unit] > *limit
        };
        let expected: Vec<usize> = rows.iter().enumerate().filter(refuses).map(|(at, _)| at).collect();
        let mode = if *peeks { Mode::Peek } else { Mode::Try };
        let (verdict, refusals) = decide(runtime, store, clock, &with, *tokens, mode);
        let (plain, _) = decide(runtime, store, clock, &without, *tokens, mode);
        assert_eq!(verdict, plain, "shadows change no verdict");
        assert_eq!(refusals, expected, "{rows:?} at {now}");
        if verdict == Verdict::Allowed && mode == Mode::Try {
            log.push((now, cost));
        }
    }
}

#[test]
fn shadow_quotas_refuse_nothing_and_report_what_they_would_refuse() {
    let server = RedisServer::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let row = (0..2_usize, 0..2_usize, 0_u64..30, any::<bool>());
    let rows = prop::collection::vec(row, 1..6).prop_map(|mut rows| {
        // A counter has one enforced quota, and one shadow beside it.
        let mut seen = Vec::new();
        rows.retain(|(unit, window, _, shadow)| {
            let new = !seen.contains(&(*unit, *window, *shadow));
            seen.push((*unit, *window, *shadow));
            new
        });
        rows
    });
    let load = prop::collection::vec((0_u64..600, 1_u64..12, prop::bool::weighted(0.2)), 1..60);
    check_property(60, &(rows, prop::bool::weighted(0.2), load), |case, (mut rows, all, load)| {
        if all {
            for row in &mut rows {
                row.3 = false;
            }
            rows.sort_by_key(|(unit, window, ..)| (*unit, *window));
            rows.dedup_by_key(|(unit, window, ..)| (*unit, *window));
        }
        let clock = Arc::new(ManualClock::at(START));
        let memory = MemoryStore::new(Arc::clone(&clock), 10_000);
        check(&runtime, &memory, &clock, &rows, all, &load);
        let redis =
            store_with_clock(RedisConfig { key_prefix: format!("case{case}"), ..server.config() }, &clock, &runtime);
        check(&runtime, &redis, &clock, &rows, all, &load);
        Ok(())
    });
}
