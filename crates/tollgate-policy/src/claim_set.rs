//! The claims of a call, and the decision that follows from the store's answer.

use smallvec::SmallVec;
use tollgate_core::{
    amount::Limit,
    claim::{Claim, Claims, ClaimsDecision, Effect, LedgerKey, Mode, OnFailure, Partition},
    time::Timestamp,
};

use crate::{
    decision::Decision,
    policy::{
        AbuseCounter, AbuseRule, ActiveQuota, DecisionSource, MissingAttribute, ResolvedQuotas, Usage,
        pool::{PoolClaim, PoolOutcome, PoolUse, read_outcome},
    },
};

/// The claims of one call: for its quotas, for the abuse rules that may block it, and for its pools.
///
/// It is created once for a call. [`ClaimSet::claims`] returns the claims of one moment, and [`ClaimSet::decide`] reads
/// the answer to them. No other code knows their order.
#[derive(Debug)]
pub struct ClaimSet<'r, 'a> {
    resolved: &'r ResolvedQuotas<'a>,
    usage: &'r Usage,
    /// The counters of the quotas, in their order.
    ledgers: SmallVec<[LedgerKey; 4]>,
    guards: SmallVec<[AbuseCounter<'a>; 2]>,
    pool_claims: SmallVec<[PoolClaim<'a>; 1]>,
}

impl<'a> ResolvedQuotas<'a> {
    /// The claims of a call with this usage. `attributes` returns the values of attributes in scopes other than
    /// account, key and resource; `address_check` checks for a block of the client address, if there is a rule for
    /// that.
    pub fn claim_set<'r, 'v>(
        &'r self,
        usage: &'r Usage,
        attributes: impl Fn(&str) -> Option<&'v str>,
        address_check: Option<AbuseCounter<'a>>,
    ) -> Result<ClaimSet<'r, 'a>, MissingAttribute>
    where
        'a: 'v,
    {
        let ledgers = self.quota_ledgers(&attributes)?;
        let guards = self.guards(&ledgers, &attributes).chain(address_check).collect();
        let pool_claims = self.pool_claims(usage, &ledgers);
        Ok(ClaimSet { resolved: self, usage, ledgers, guards, pool_claims })
    }
}

impl<'a> ClaimSet<'_, 'a> {
    /// The caller's partition.
    pub fn partition(&self) -> Partition {
        self.resolved.partition()
    }

    /// How many claims there are.
    pub fn len(&self) -> usize {
        self.ledgers.len() + self.guards.len() + self.pool_claims.iter().map(PoolClaim::claim_count).sum::<usize>()
    }

    /// Whether there are no claims, so that the store need not be asked.
    pub fn is_empty(&self) -> bool {
        self.ledgers.is_empty() && self.guards.is_empty()
    }

    /// The quotas, with the limits in force.
    pub fn quotas(&self) -> &[ActiveQuota<'a>] {
        self.resolved.quotas()
    }

    /// The usage of the call.
    pub fn usage(&self) -> &Usage {
        self.usage
    }

    /// The abuse rules that apply to the call.
    pub fn guards(&self) -> &[AbuseCounter<'a>] {
        &self.guards
    }

    /// The claims on pools.
    pub fn pool_claims(&self) -> &[PoolClaim<'a>] {
        &self.pool_claims
    }

    /// The claims at `now`, if `pools` are the last known states of the pools, in the order of the pool claims.
    pub fn claims(&self, now: Timestamp, pools: &[Option<PoolUse>]) -> Claims {
        let mut claims = Claims::with_capacity(self.len());
        claims.extend(self.quota_claims(now));
        claims.extend(self.guards.iter().map(AbuseCounter::block_check));
        for (at, pool_claim) in self.pool_claims.iter().enumerate() {
            claims.extend(pool_claim.claims(pools.get(at).and_then(Option::as_ref), now));
        }
        claims
    }

    /// Reads the store's answer to [`ClaimSet::claims`]: the decision, and the outcome for the pools. `can_retry`
    /// says whether the store can be asked once more; if not, the numbers that it used are final.
    pub fn decide(&self, mode: Mode, can_retry: bool, mut applied: ClaimsDecision) -> (Decision<'a>, PoolOutcome) {
        let (outcome, remaining) = read_outcome(&self.pool_claims, mode, can_retry, &mut applied);
        self.resolved.apply_shadow_limits(self.usage, self.rules(), mode, &mut applied);
        let decision = Decision::merge(self.resolved.quotas(), self.rules(), &applied).with_pools_remaining(&remaining);
        (decision, outcome)
    }

    /// The claims of the quotas only, at `now`: those that a node can decide without the store.
    pub fn quota_claims(&self, now: Timestamp) -> impl Iterator<Item = Claim> {
        self.resolved.quotas().iter().zip(&self.ledgers).map(move |(active, ledger)| Claim {
            ledger: *ledger,
            span: active.quota.window.span_at(now),
            unit: active.quota.unit.id,
            cost: self.usage.of(active.quota.unit.id),
            limit: active.enforced_limit(),
            effect: Effect::Charge,
        })
    }

    /// The behaviour of each of [`ClaimSet::quota_claims`] during an outage of the store.
    pub fn on_failure(&self) -> SmallVec<[OnFailure; 4]> {
        // A shadow quota refuses no call, so it must not leave a call undecided.
        let of =
            |active: &ActiveQuota<'_>| if active.quota.shadow { OnFailure::Allow } else { active.quota.on_failure };
        self.resolved.quotas().iter().map(of).collect()
    }

    /// Reads this node's own answer to [`ClaimSet::quota_claims`]. `share` returns this node's part of a limit, which
    /// applies to quotas that nodes enforce locally.
    pub fn decide_locally(
        &self,
        mode: Mode,
        share: impl Fn(Limit) -> Limit,
        mut applied: ClaimsDecision,
    ) -> Decision<'a> {
        let nobody = std::iter::empty::<&AbuseRule>;
        self.resolved.apply_shadow_limits(self.usage, nobody(), mode, &mut applied);
        let in_force = |active: &ActiveQuota<'a>| match active.quota.on_failure {
            OnFailure::Local => ActiveQuota { limit: share(active.limit), ..*active },
            OnFailure::Deny | OnFailure::Allow => *active,
        };
        let in_force: SmallVec<[ActiveQuota<'a>; 4]> = self.resolved.quotas().iter().map(in_force).collect();
        let mut decision = Decision::merge(&in_force, nobody(), &applied);
        let is_local = self.on_failure().contains(&OnFailure::Local);
        decision.decided_by = if is_local { DecisionSource::Local } else { DecisionSource::Allow };
        decision
    }

    fn rules(&self) -> impl Iterator<Item = &'a AbuseRule> {
        self.guards.iter().map(|guard| guard.rule)
    }
}
