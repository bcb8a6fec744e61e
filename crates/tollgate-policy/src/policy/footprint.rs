//! The maximum size of the ledgers of a policy. The value of one scope in the store must fit in 64 KiB. A sliding window
//! reserves space in it for its entries, whatever its limit. (The counters of a pool's priorities are in separate
//! ledgers, each with one window of four units, which fits.)

use std::{collections::HashMap, sync::Arc};

use tollgate_core::{
    amount::UnitId,
    window::{SlidingWindow, Window},
};

use crate::policy::{AbuseRule, Problem, Quota, Scope, quota::REQUESTS};

/// The most that the sliding windows of one ledger may weigh: the bytes of an entry in each. The fullest log has 2,048
/// entries, so that 30 are 61,440 bytes; the sums of 32 blocks and the header take less than 4 KiB more.
const MAX_WEIGHT: usize = 30;
/// The weight of a window: the time of an entry.
const WINDOW_WEIGHT: usize = 4;
/// The weight of units that are counted one by one: requests, and the counters of abuse rules.
const COUNT_WEIGHT: usize = 2;
/// The weight of any other unit in a window.
const AMOUNT_WEIGHT: usize = 4;

/// The counters in each ledger that a policy can name: for every scope, and for every resource if the scope names it.
/// They are collected over all tiers, because usage stays when an account changes its tier, and because accounts of
/// several tiers share some scopes.
#[derive(Debug, Default)]
pub(super) struct LedgerFootprint {
    counted: Vec<(Arc<Scope>, CountersByResource)>,
}

type CountersByResource = HashMap<Option<usize>, WeightedCounters>;
type WeightedCounters = Vec<WeightedCounter>;

/// A counter, and the weight of its unit.
#[derive(Clone, Copy, Debug)]
struct WeightedCounter {
    window: SlidingWindow,
    unit: UnitId,
    weight: usize,
}

impl LedgerFootprint {
    /// Counts a quota of a resource.
    pub(super) fn add(&mut self, quota: &Quota, resource: usize) {
        count(self.counters_of(&quota.scope, resource), quota);
    }

    /// Adds the counters of an abuse rule for a resource.
    pub(super) fn add_rule(&mut self, rule: &AbuseRule, resource: usize) {
        let counters = self.counters_of(&rule.scope, resource);
        for (window, unit) in rule.counters() {
            add(counters, WeightedCounter { window, unit, weight: COUNT_WEIGHT });
        }
    }

    fn counters_of(&mut self, scope: &Arc<Scope>, resource: usize) -> &mut WeightedCounters {
        let at = self.counted.iter().position(|(known, _)| known == scope).unwrap_or_else(|| {
            self.counted.push((scope.clone(), CountersByResource::new()));
            self.counted.len() - 1
        });
        self.counted[at].1.entry(scope.names_resource().then_some(resource)).or_default()
    }

    /// The ledgers that are too large, with one of their resources.
    pub(super) fn too_large(&self) -> impl Iterator<Item = (Option<usize>, Problem)> {
        self.counted.iter().filter_map(|(scope, ledgers)| {
            let (resource, heaviest) = ledgers.iter().max_by_key(|(at, counters)| (weight(counters), *at))?;
            Some((*resource, problem(scope, heaviest)?))
        })
    }

    /// The problem if `quotas` were added to every ledger of their scope. A ledger that is too large without them is
    /// not reported here.
    pub(super) fn too_large_with(&self, quotas: &[&Quota]) -> Option<Problem> {
        quotas.iter().find_map(|quota| {
            let added = || quotas.iter().filter(|other| other.scope == quota.scope);
            let known = self.counted.iter().find(|(scope, _)| *scope == quota.scope);
            let ledgers = known.into_iter().flat_map(|(_, ledgers)| ledgers.values());
            let ledgers = ledgers.filter(|counters| problem(&quota.scope, counters).is_none()).cloned();
            ledgers.chain([WeightedCounters::new()]).find_map(|mut counters| {
                added().for_each(|quota| count(&mut counters, quota));
                problem(&quota.scope, &counters)
            })
        })
    }
}

fn count(counters: &mut WeightedCounters, quota: &Quota) {
    if let Window::Sliding(window) = quota.window {
        let weight = if quota.unit.id == UnitId::of(REQUESTS) { COUNT_WEIGHT } else { AMOUNT_WEIGHT };
        add(counters, WeightedCounter { window, unit: quota.unit.id, weight });
    }
}

fn add(counters: &mut WeightedCounters, counter: WeightedCounter) {
    if !counters.iter().any(|known| (known.window, known.unit) == (counter.window, counter.unit)) {
        counters.push(counter);
    }
}

fn weight(counters: &[WeightedCounter]) -> usize {
    let is_first =
        |(at, counter): &(usize, &WeightedCounter)| counters[..*at].iter().all(|known| known.window != counter.window);
    let windows = counters.iter().enumerate().filter(is_first).count();
    WINDOW_WEIGHT * windows + counters.iter().map(|counter| counter.weight).sum::<usize>()
}

fn problem(scope: &Scope, counters: &[WeightedCounter]) -> Option<Problem> {
    let weight = weight(counters);
    let too_large = weight > MAX_WEIGHT;
    too_large.then(|| Problem::LedgerTooLarge { scope: scope.to_string(), weight, most: MAX_WEIGHT })
}
