//! What a dialect can speak of: a decision, and the call it is about.

use tollgate_core::{
    decision::{QuotaStatus, Verdict},
    policy::Usage,
    time::Timestamp,
};

use crate::{
    directory::BadKey,
    service::{Outcome, Reason},
};

/// What a call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// It may pass.
    Allowed,
    /// It may not.
    Refused(Reason),
}

/// What a dialect can speak of.
pub(crate) struct Facts<'a> {
    pub(crate) occasion: Occasion,
    /// The time of the decision.
    pub(crate) now: Timestamp,
    /// From when on the same call is admitted, if it is refused now and that is known.
    pub(crate) retry_at: Option<Timestamp>,
    pub(crate) quotas: &'a [QuotaStatus<'a>],
    /// Which of the quotas speaks.
    pub(crate) speaker: Option<usize>,
    pub(crate) usage: Option<&'a Usage>,
    /// What there is to say about a block, or about an upload that is too large.
    pub(crate) message: Option<String>,
    pub(crate) domain: Option<&'a str>,
    pub(crate) resource: Option<&'a str>,
    pub(crate) tier: Option<&'a str>,
    pub(crate) priority: Option<u8>,
    pub(crate) account: Option<&'a str>,
    pub(crate) api_key_id: Option<&'a str>,
}

impl Occasion {
    /// How many there are.
    pub(super) const COUNT: usize = 8;

    /// All, in the order of their indexes.
    pub(super) const ALL: [Self; Self::COUNT] = [
        Self::Allowed,
        Self::Refused(Reason::QuotaExceeded),
        Self::Refused(Reason::CostAboveLimit),
        Self::Refused(Reason::Blocked),
        Self::Refused(Reason::UploadTooLarge),
        Self::Refused(Reason::BadKey(BadKey::Unknown)),
        Self::Refused(Reason::BadKey(BadKey::Revoked)),
        Self::Refused(Reason::BadKey(BadKey::Expired)),
    ];

    /// From 0 to one less than [`Self::COUNT`].
    pub(super) fn index(self) -> usize {
        match self {
            Self::Allowed => 0,
            Self::Refused(Reason::QuotaExceeded) => 1,
            Self::Refused(Reason::CostAboveLimit) => 2,
            Self::Refused(Reason::Blocked) => 3,
            Self::Refused(Reason::UploadTooLarge) => 4,
            Self::Refused(Reason::BadKey(BadKey::Unknown)) => 5,
            Self::Refused(Reason::BadKey(BadKey::Revoked)) => 6,
            Self::Refused(Reason::BadKey(BadKey::Expired)) => 7,
        }
    }

    /// Its name in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused(Reason::QuotaExceeded) => "quota_exceeded",
            Self::Refused(Reason::CostAboveLimit) => "cost_above_limit",
            Self::Refused(Reason::Blocked) => "blocked",
            Self::Refused(Reason::UploadTooLarge) => "upload_too_large",
            Self::Refused(Reason::BadKey(BadKey::Unknown)) => "unknown_key",
            Self::Refused(Reason::BadKey(BadKey::Revoked)) => "revoked_key",
            Self::Refused(Reason::BadKey(BadKey::Expired)) => "expired_key",
        }
    }
}

impl<'a> Facts<'a> {
    /// What there is to say about an outcome.
    pub(crate) fn of(outcome: &'a Outcome<'_>) -> Self {
        let occasion = outcome.reason().map_or(Occasion::Allowed, Occasion::Refused);
        match outcome {
            Outcome::BadKey { rejected, at, .. } => Self {
                occasion,
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
            Outcome::Barred { domain, block, at, .. } => Self {
                occasion,
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
            Outcome::Decided { domain, identity, resolved, usage, decision, too_large, .. } => Self {
                occasion,
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
