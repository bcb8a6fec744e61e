//! Decisions that the store did not make.

use smallvec::SmallVec;
use tollgate_core::{
    claim::{Answer, Claim, Mode, OnFailure},
    store::StoreError,
    time::Timestamp,
};
use tollgate_policy::{ActiveQuota, DecidedBy, Resolved, Usage, decision::Decision};

use super::{CallError, DecisionService, PERIOD_ATTEMPTS, attributes::Attributes};

impl DecisionService {
    /// Decides as the quotas ask for while the store cannot answer, or passes the store's `error` on.
    pub(super) fn decide_alone<'a>(
        &self,
        resolved: &Resolved<'a>,
        usage: &Usage,
        attributes: &Attributes<'_>,
        mode: Mode,
        mut now: Timestamp,
        error: StoreError,
    ) -> Result<Decision<'a>, CallError> {
        let Some(fallback) = &self.without_store.fallback else { return Err(error.into()) };
        let quotas = resolved.quotas();
        let modes: SmallVec<[OnFailure; 4]> = quotas
            .iter()
            // A shadow refuses nobody, and so keeps nobody waiting.
            .map(|active| if active.quota.shadow { OnFailure::Allow } else { active.quota.on_failure })
            .collect();
        for _ in 0..PERIOD_ATTEMPTS {
            let claims: SmallVec<[Claim; 4]> = resolved.claims(usage, |name| attributes.get(name), now)?;
            let mut applied = match fallback.decide(&claims, &modes, mode) {
                Some(Ok(Answer::Applied(applied))) => applied,
                Some(Ok(Answer::OutsidePeriod(at))) => {
                    now = at;
                    continue;
                }
                Some(Err(full)) => return Err(full.into()),
                None => break,
            };
            let guards = || resolved.guards(|name| attributes.get(name));
            resolved.judge_shadow(usage, guards(), mode, &mut applied);
            // What is in force is this node's share, and what is left is what is left of it.
            let in_force = |active: &ActiveQuota<'a>| match active.quota.on_failure {
                OnFailure::Local => ActiveQuota { limit: fallback.share(active.limit), ..*active },
                OnFailure::Deny | OnFailure::Allow => *active,
            };
            let in_force: SmallVec<[ActiveQuota<'a>; 4]> = quotas.iter().map(in_force).collect();
            let mut decision = Decision::merge(&in_force, guards(), &applied);
            let local = modes.contains(&OnFailure::Local);
            decision.decided_by = if local { DecidedBy::Local } else { DecidedBy::Allow };
            self.metrics.decided_without_store(decision.decided_by, decision.is_allowed(), &error);
            return Ok(decision);
        }
        self.metrics.denied_without_store(&error);
        Err(error.into())
    }
}
