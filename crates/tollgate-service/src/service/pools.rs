//! The states of pools, from the last replies of the store.

use indexmap::IndexMap;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tollgate_core::{
    claim::{Claim, LedgerKey},
    time::Timestamp,
};
use tollgate_policy::pool::{PRIORITIES, PoolClaim, PoolOutcome, PoolUse};

/// The maximum number of pools in the cache.
const MAX_POOLS: usize = 4_096;
/// The maximum number of requests for one call: a second one if the call was refused because of an outdated state.
pub(super) const ATTEMPTS: usize = 2;
/// The maximum number of times that a node charges unmet demand, for each priority of a pool, in the window of the
/// demand.
const MAX_DEMAND_CHARGES: u64 = 4;

/// The last states of pools.
#[derive(Default)]
pub(super) struct PoolStates(Mutex<IndexMap<LedgerKey, PoolState>>);

#[derive(Clone, Copy, Default)]
struct PoolState {
    pool: PoolUse,
    /// When the unmet demand of each priority was last charged.
    demand_charged_at: [Option<Timestamp>; PRIORITIES],
}

impl PoolStates {
    pub(super) fn last_states(&self, pool_claims: &[PoolClaim<'_>]) -> SmallVec<[Option<PoolUse>; 1]> {
        if pool_claims.is_empty() {
            return SmallVec::new();
        }
        let pools = self.0.lock();
        pool_claims.iter().map(|claim| pools.get(&claim.key()).map(|state| state.pool)).collect()
    }

    /// Caches the states in a reply, and returns the claims for the unmet demand that must be charged.
    pub(super) fn update(
        &self,
        pool_claims: &[PoolClaim<'_>],
        outcome: &PoolOutcome,
        now: Timestamp,
    ) -> SmallVec<[Claim; 1]> {
        let mut demand_claims = SmallVec::new();
        if pool_claims.is_empty() {
            return demand_claims;
        }
        let mut pools = self.0.lock();
        for (index, (claim, pool)) in pool_claims.iter().zip(&outcome.pools).enumerate() {
            if pools.len() >= MAX_POOLS && !pools.contains_key(&claim.key()) {
                pools.swap_remove_index(0);
            }
            let state = pools.entry(claim.key()).or_default();
            state.pool = *pool;
            if let (true, Some(window)) = (outcome.unmet.contains(&index), claim.unmet_window()) {
                let last = &mut state.demand_charged_at[claim.priority()];
                let interval_ms = u64::from(window.ms()) / MAX_DEMAND_CHARGES;
                let is_recent = last.is_some_and(|last| now.ms_since(last) < interval_ms && last <= now);
                if !is_recent {
                    *last = Some(now);
                    demand_claims.extend(claim.unmet_demand());
                }
            }
        }
        demand_claims
    }
}
