//! What a dialect can say about an outcome.

use tollgate_policy::{
    decision::Verdict,
    dialect::{Facts, ResponseKind},
};

use super::Outcome;

impl Outcome<'_> {
    /// What a dialect can say about it.
    pub fn facts(&self) -> Facts<'_> {
        let kind = self.reason().map_or(ResponseKind::Allowed, ResponseKind::Refused);
        match self {
            Self::BadKey { rejected, at, .. } => Facts {
                kind,
                now: *at,
                retry_at: None,
                quotas: &[],
                speaker: None,
                usage: None,
                message: None,
                domain: rejected.domain.as_ref().map(|domain| &**domain.policy.domain()),
                resource: None,
                tier: None,
                priority: None,
                account: None,
                api_key_id: None,
            },
            Self::Barred { domain, block, at, .. } => Facts {
                kind,
                now: *at,
                retry_at: Some(block.until),
                quotas: &[],
                speaker: None,
                usage: None,
                message: Some(block.message(*at)),
                domain: domain.map(|domain| &**domain.policy.domain()),
                resource: None,
                tier: None,
                priority: None,
                account: None,
                api_key_id: None,
            },
            Self::Decided { domain, identity, resolved, usage, decision, too_large, .. } => Facts {
                kind,
                now: decision.decided_at,
                // A block ends also for a call that a quota then refuses for ever.
                retry_at: match decision.verdict {
                    Verdict::Allowed => None,
                    Verdict::Wait(at) => Some(at),
                    Verdict::Never => decision.block.map(|block| block.until),
                },
                quotas: &decision.quotas,
                speaker: decision.speaker,
                usage: Some(usage),
                message: match (&decision.block, too_large) {
                    (Some(block), _) => Some(block.message(decision.decided_at)),
                    (None, too_large) => too_large.as_ref().map(ToString::to_string),
                },
                domain: Some(domain.policy.domain()),
                resource: Some(resolved.resource()),
                tier: Some(&resolved.tier().name),
                priority: resolved.tier().priority,
                account: Some(&identity.account.id),
                api_key_id: identity.key.as_ref().map(|key| &*key.id),
            },
        }
    }
}
