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
/// Maximum number of reports of unmet demand that a node sends, for each priority of a pool, in the time for which a
/// report is remembered.
const UNMET_REPORTS: u64 = 4;

/// The last known state of the pools.
#[derive(Default)]
pub(super) struct Pools(Mutex<IndexMap<LedgerKey, PoolObservation>>);

#[derive(Clone, Copy, Default)]
struct PoolObservation {
    pool: PoolUse,
    /// When the unmet demand of each priority was last reported.
    unmet_reported_at: [Option<Timestamp>; PRIORITIES],
}

impl Pools {
    pub(super) fn known(&self, pool_claims: &[PoolClaim<'_>]) -> SmallVec<[Option<PoolUse>; 1]> {
        if pool_claims.is_empty() {
            return SmallVec::new();
        }
        let pools = self.0.lock();
        pool_claims.iter().map(|claim| pools.get(&claim.key()).map(|known| known.pool)).collect()
    }

    /// Caches the numbers of an answer, and returns the unmet demand that must be recorded.
    pub(super) fn learn(
        &self,
        pool_claims: &[PoolClaim<'_>],
        outcome: &PoolOutcome,
        at: Timestamp,
    ) -> SmallVec<[Claim; 1]> {
        let mut unmet = SmallVec::new();
        if pool_claims.is_empty() {
            return unmet;
        }
        let mut pools = self.0.lock();
        for (number, (claim, pool)) in pool_claims.iter().zip(&outcome.pools).enumerate() {
            if pools.len() >= MOST_KNOWN && !pools.contains_key(&claim.key()) {
                pools.swap_remove_index(0);
            }
            let known = pools.entry(claim.key()).or_default();
            known.pool = *pool;
            if let (true, Some(window)) = (outcome.unmet.contains(&number), claim.unmet_window()) {
                let last = &mut known.unmet_reported_at[claim.priority()];
                let recently =
                    last.is_some_and(|last| at.ms_since(last) < u64::from(window.ms()) / UNMET_REPORTS && last <= at);
                if !recently {
                    *last = Some(at);
                    unmet.extend(claim.unmet_demand());
                }
            }
        }
        unmet
    }
}
