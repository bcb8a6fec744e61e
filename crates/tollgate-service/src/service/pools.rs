//! Pools: the node's knowledge of them from the last answers of the store.

use indexmap::IndexMap;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tollgate_core::{
    claim::{Claim, LedgerKey},
    time::Timestamp,
};
use tollgate_policy::pool::{PRIORITIES, PoolClaim, PoolOutcome, PoolUse};

/// Maximum number of pools that are remembered. One that is forgotten is known again after its next answer.
const MOST_KNOWN: usize = 4_096;
/// How often the store is asked: once more if a call was refused because of stale numbers.
pub(super) const ATTEMPTS: usize = 2;
/// How often a node reports unmet demand, in the time for which a report is remembered.
const WANTS: u64 = 4;

/// The pools as they were last seen.
#[derive(Default)]
pub(super) struct Pools(Mutex<IndexMap<LedgerKey, PoolObservation>>);

#[derive(Clone, Copy, Default)]
struct PoolObservation {
    pool: PoolUse,
    /// When the unmet demand of each priority was last recorded.
    recorded_at: [Option<Timestamp>; PRIORITIES],
}

impl Pools {
    pub(super) fn known(&self, pool_claims: &[PoolClaim<'_>]) -> SmallVec<[Option<PoolUse>; 1]> {
        if pool_claims.is_empty() {
            return SmallVec::new();
        }
        let seen = self.0.lock();
        pool_claims.iter().map(|pool_claim| seen.get(&pool_claim.key()).map(|seen| seen.pool)).collect()
    }

    /// Caches the numbers of an answer, and returns the unmet demand that must be recorded.
    pub(super) fn learn(
        &self,
        pool_claims: &[PoolClaim<'_>],
        found: &PoolOutcome,
        at: Timestamp,
    ) -> SmallVec<[Claim; 1]> {
        let mut unmet = SmallVec::new();
        if pool_claims.is_empty() {
            return unmet;
        }
        let mut known = self.0.lock();
        for (number, (pool_claim, pool)) in pool_claims.iter().zip(&found.pools).enumerate() {
            if known.len() >= MOST_KNOWN && !known.contains_key(&pool_claim.key()) {
                known.swap_remove_index(0);
            }
            let seen = known.entry(pool_claim.key()).or_default();
            seen.pool = *pool;
            if let (true, Some(window)) = (found.unmet.contains(&number), pool_claim.unmet_window()) {
                let last = &mut seen.recorded_at[pool_claim.priority()];
                let recently =
                    last.is_some_and(|last| at.ms_since(last) < u64::from(window.ms()) / WANTS && last <= at);
                if !recently {
                    *last = Some(at);
                    unmet.extend(pool_claim.unmet_demand());
                }
            }
        }
        unmet
    }
}
