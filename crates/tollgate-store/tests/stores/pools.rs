//! Pools by priority on every store, with several nodes: never above the limit, whatever the demand; and with the
//! shares of the policy.

use std::{collections::HashMap, sync::Arc};

use proptest::prelude::*;
use serde_json::{Map, json};
use tollgate_core::{
    amount::Amount,
    claim::{ApplyResult, Claim, LedgerKey, Mode},
    store::Store,
    time::Timestamp,
};
use tollgate_policy::{Caller, Policy, decision::Verdict, pool::PoolUse};
use tollgate_store::{
    clock::{Clock, ManualClock},
    memory::MemoryStore,
    redis::RedisConfig,
    testing::{RedisServer, check_property, conformance::START},
};

use crate::harness::store_with_clock;

const WINDOW_MS: u64 = 60_000;
const SHARES: [u8; 4] = [10, 20, 30, 40];

/// A model whose capacity in tokens is a pool, and a tier for each priority.
fn policy(limit: u64, shares: [u8; 4]) -> Policy {
    let capacity = json!({
        "name": "capacity",
        "unit": "tokens",
        "per": format!("{WINDOW_MS}ms"),
        "limit": limit,
        "scope": ["resource"],
        "pool": { "shares": shares },
    });
    let tier = |priority: u8| (priority.to_string(), json!({ "is_charged": false, "priority": priority }));
    let file = serde_json::from_value(json!({
        "version": 1,
        "domain": "pools",
        "units": ["tokens"],
        "resources": { "model": { "quotas": [capacity] } },
        "tiers": (1..=4).map(tier).collect::<Map<_, _>>(),
        "default_tier": "1",
    }));
    Policy::compile(&file.unwrap()).unwrap_or_else(|errors| panic!("{errors:?}"))
}

/// Several nodes on one store. Each knows the pool only from its own last answer.
struct Bench<'a> {
    runtime: &'a tokio::runtime::Runtime,
    store: &'a dyn Store,
    clock: &'a ManualClock,
    policy: Arc<Policy>,
    known: HashMap<(usize, LedgerKey), PoolUse>,
    unmet_reported_at: HashMap<(usize, usize), Timestamp>,
    /// When how much was admitted, by priority from 0.
    log: Vec<(u64, usize, u64)>,
    limit: u64,
}

impl Bench<'_> {
    fn apply(&self, claims: &[Claim], mode: Mode) -> tollgate_core::claim::ClaimsDecision {
        match self.runtime.block_on(self.store.apply(claims, mode)).unwrap() {
            ApplyResult::Applied(applied) => applied,
            ApplyResult::OutsidePeriod(_) => panic!("no calendar here"),
        }
    }

    /// Decides like a node: the verdict, and the remaining amount.
    fn decide(&mut self, node: usize, priority: usize, tokens: u64, mode: Mode) -> (Verdict, u64) {
        let account = format!("account {priority}");
        let policy = Arc::clone(&self.policy);
        let tier = policy.tiers()[priority].id;
        let partition = policy.account_partition(&account);
        let caller = Caller { partition, tier, account_overrides: &[], key: None };
        let resolved = policy.resolve(&caller, "model").unwrap();
        let usage = policy.usage([("tokens", tokens)]).unwrap();
        let claim_set = resolved.claim_set(&usage, |_| None, None).unwrap();
        let pool_claim = &claim_set.pool_claims()[0];
        let (decision, allowed) = [true, false]
            .into_iter()
            .find_map(|again| {
                let known = self.known.get(&(node, pool_claim.key())).copied();
                let claims = claim_set.claims(self.clock.now(), &[known]);
                let applied = self.apply(&claims, mode);
                let allowed = applied.allowed;
                let (decision, outcome) = claim_set.decide(mode, again, applied);
                self.known.insert((node, pool_claim.key()), outcome.pools[0]);
                if !outcome.unmet.is_empty() {
                    let last = self.unmet_reported_at.get(&(node, priority));
                    if last.is_none_or(|last| self.clock.now().ms_since(*last) >= WINDOW_MS / 32) {
                        self.unmet_reported_at.insert((node, priority), self.clock.now());
                        self.apply(&[pool_claim.unmet_demand().unwrap()], Mode::Force);
                    }
                }
                (!outcome.retry).then_some((decision, allowed))
            })
            .unwrap();
        assert_eq!(decision.verdict == Verdict::Allowed, allowed, "the statuses say what was decided");
        let now = self.clock.now().as_ms();
        if allowed && mode == Mode::Try {
            self.log.push((now, priority, tokens));
        }
        let used: u64 = self.live().map(|(.., tokens)| tokens).sum();
        assert_eq!(decision.quotas[0].used.get(), used, "the quota counts them all");
        assert!(used <= self.limit, "never over: {used} of {}", self.limit);
        let remaining = decision.quotas[0].remaining().map_or(0, Amount::get);
        assert!(remaining <= self.limit - used);
        (decision.verdict, remaining)
    }

    fn live(&self) -> impl Iterator<Item = &(u64, usize, u64)> {
        let now = self.clock.now().as_ms();
        self.log.iter().rev().take_while(move |(at, ..)| at + WINDOW_MS > now)
    }

    /// Load in calls per window, by priority, spread evenly over time and nodes, for `calls` windows. Returns the
    /// admitted amounts, by priority.
    fn load(&mut self, offered: [u64; 4], tokens: u64, windows_ms: u64, nodes: usize) -> [u64; 4] {
        let (start, from) = (self.clock.now(), self.log.len());
        let mut calls: Vec<(u64, usize)> = Vec::new();
        for (priority, per_window) in offered.iter().enumerate() {
            for call in 0..per_window * windows_ms / WINDOW_MS {
                // Out of step with each other.
                let at = (call * WINDOW_MS + 7 * (priority as u64 + 1) * WINDOW_MS / 31) / per_window;
                calls.push((at, priority));
            }
        }
        calls.sort_unstable();
        for (number, (at, priority)) in calls.into_iter().enumerate() {
            self.clock.set(start.plus_ms(at));
            self.decide(number % nodes, priority, tokens, Mode::Try);
        }
        self.clock.set(start.plus_ms(windows_ms));
        let mut admitted = [0; 4];
        self.log[from..].iter().for_each(|(_, priority, tokens)| admitted[*priority] += tokens);
        admitted
    }
}

/// Runs `property` on memory and on Redis.
fn on_both(limit: u64, shares: [u8; 4], mut property: impl FnMut(Bench<'_>)) {
    let server = RedisServer::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    both(&runtime, &server, "pools", limit, shares, &mut property);
}

fn both(
    runtime: &tokio::runtime::Runtime,
    server: &RedisServer,
    prefix: &str,
    limit: u64,
    shares: [u8; 4],
    property: &mut impl FnMut(Bench<'_>),
) {
    let clock = Arc::new(ManualClock::at(START));
    let memory = MemoryStore::new(Arc::clone(&clock), 10_000);
    let redis = store_with_clock(RedisConfig { key_prefix: prefix.to_owned(), ..server.config() }, &clock, runtime);
    for store in [&memory as &dyn Store, &redis] {
        clock.set(START);
        property(Bench {
            runtime,
            store,
            clock: &clock,
            policy: Arc::new(policy(limit, shares)),
            known: HashMap::new(),
            unmet_reported_at: HashMap::new(),
            log: Vec::new(),
            limit,
        });
    }
}

/// Promises 1 and 4, for pools: never over, and admitted at the promised time, if nobody else calls.
#[test]
fn a_pool_is_never_exceeded_and_retry_after_is_true() {
    let server = RedisServer::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let call = (0..3_usize, 0..4_usize, 1_u64..60, prop_oneof![3 => 0_u64..200, 1 => 0_u64..20_000]);
    let shares =
        prop_oneof![Just(SHARES), (0_u8..25, 0_u8..25, 0_u8..25, 1_u8..25).prop_map(|(a, b, c, d)| [a, b, c, d])];
    let input = (prop::collection::vec(call, 1..120), 30_u64..400, shares);
    check_property(40, &input, |case, (calls, limit, shares)| {
        both(&runtime, &server, &format!("case{case}"), limit, shares, &mut |mut bench| {
            let mut last = None;
            for (node, priority, tokens, pause) in &calls {
                bench.clock.advance_ms(*pause);
                let (verdict, _) = bench.decide(*node, *priority, *tokens, Mode::Try);
                assert_eq!(verdict == Verdict::Never, *tokens > limit, "only what is above the limit itself");
                last = Some((*node, *priority, *tokens));
            }
            let Some((node, priority, tokens)) = last else { return };
            // The first refusal may still be by the numbers of the answer before.
            bench.decide(node, priority, tokens, Mode::Peek);
            if let (Verdict::RetryAt(at), _) = bench.decide(node, priority, tokens, Mode::Peek) {
                bench.clock.set(at);
                assert_eq!(bench.decide(node, priority, tokens, Mode::Try).0, Verdict::Allowed, "when it was promised");
            }
            // The remaining amount of a priority can be admitted, and not one more.
            let (_, remaining) = bench.decide(node, priority, 1, Mode::Peek);
            if remaining > 0 {
                assert_ne!(bench.decide(node, priority, remaining + 1, Mode::Peek).0, Verdict::Allowed);
                assert_eq!(bench.decide(node, priority, remaining, Mode::Try).0, Verdict::Allowed);
            }
        });
        Ok(())
    });
}

/// Twice the capacity from all four, on one node and on three: after four windows from nothing all of the pool is
/// used, and each has its share within a hundredth of the pool.
#[test]
fn at_twice_the_capacity_the_shares_are_those_of_the_policy() {
    for nodes in [1, 3] {
        on_both(6_000, SHARES, |mut bench| {
            bench.load([300; 4], 10, 4 * WINDOW_MS, nodes);
            let admitted = bench.load([300; 4], 10, 2 * WINDOW_MS, nodes);
            for (admitted, share) in admitted.into_iter().zip(SHARES) {
                let due = 2 * 6_000 * u64::from(share) / 100;
                assert!(admitted.abs_diff(due) <= 120, "{admitted} of {due}, with {nodes} nodes");
            }
            let all: u64 = admitted.iter().sum();
            assert!(all >= 12_000 * 97 / 100, "{all} of 12000");
        });
    }
}

#[test]
fn a_single_priority_gets_the_whole_pool() {
    for priority in 0..4 {
        on_both(6_000, SHARES, |mut bench| {
            let mut offered = [0; 4];
            offered[priority] = 1_200;
            bench.load(offered, 10, WINDOW_MS, 2);
            assert_eq!(bench.live().map(|(.., tokens)| tokens).sum::<u64>(), 6_000);
            let admitted = bench.load(offered, 10, WINDOW_MS, 2);
            assert_eq!(admitted[priority], 6_000);
        });
    }
}

/// Up to eight ninths of the limit no call is refused, whatever the demands. When demand grows equally, the lowest
/// priority is refused first, then the next.
#[test]
fn below_saturation_all_borrow_and_the_lowest_priority_is_refused_first() {
    for offered in [[130; 4], [400, 50, 50, 30], [10, 10, 500, 10], [0, 520, 10, 0]] {
        on_both(6_000, SHARES, |mut bench| {
            let admitted = bench.load(offered, 10, 3 * WINDOW_MS, 2);
            assert_eq!(admitted, offered.map(|calls| 3 * 10 * calls));
        });
    }
    for (each, refused) in [(160, 1), (180, 2)] {
        on_both(6_000, SHARES, |mut bench| {
            bench.load([each; 4], 10, 4 * WINDOW_MS, 2);
            let admitted = bench.load([each; 4], 10, 2 * WINDOW_MS, 2);
            for (priority, admitted) in admitted.into_iter().enumerate() {
                let missing = 20 * each - admitted;
                assert_eq!(
                    missing > 20 * each / 20,
                    priority < refused,
                    "{each}: priority {}: {missing}",
                    priority + 1
                );
            }
        });
    }
}

/// A pool full of calls with the lowest priority, which demand more: a critical caller gets its demand within the time
/// in which that much capacity returns anyway, and a single large call is admitted too.
#[test]
fn a_higher_priority_gets_its_share_of_a_full_pool() {
    on_both(6_000, SHARES, |mut bench| {
        bench.load([600, 0, 0, 0], 10, 2 * WINDOW_MS, 2);
        // A tenth of the pool at once, retried now and then by one node, while Lows call at the other.
        let started = bench.clock.now();
        while bench.decide(0, 3, 600, Mode::Try).0 != Verdict::Allowed {
            bench.load([1_200, 0, 0, 0], 10, WINDOW_MS / 60, 1);
            assert!(bench.clock.now().ms_since(started) <= WINDOW_MS / 8, "an eighth of a window is enough");
        }
        assert!(bench.clock.now() > started, "the pool was full");
    });
    on_both(6_000, SHARES, |mut bench| {
        bench.load([600, 0, 0, 0], 10, 2 * WINDOW_MS, 2);
        let admitted = bench.load([1_200, 0, 0, 300], 10, WINDOW_MS, 2);
        assert!(admitted[3] >= 3_000 * 9 / 10, "{admitted:?}: nearly all it asked for, from the start");
        let admitted = bench.load([1_200, 0, 0, 300], 10, WINDOW_MS, 2);
        assert!(admitted[3] >= 3_000 * 98 / 100 && admitted[0] >= 2_500, "{admitted:?}");
    });
}
