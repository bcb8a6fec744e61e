//! The response to a call: its outcome, or the rejection of its caller.

use tollgate_core::time::Timestamp;
use tollgate_policy::{
    Block, ResolvedQuotas, Usage,
    decision::{Decision, QuotaStatus, Verdict},
    dialect::{Dialect, Facts, Rendered, ResponseKind},
    reason::{InvalidKey, Reason},
    uploads::UploadTooLarge,
};

use crate::{directory::Identity, domains::Domain, service::AdmissionRecord};

/// The response to a call.
pub struct CallResponse<'a> {
    /// The dialect for rendering the response.
    pub dialect: &'a Dialect,
    /// The decision about the call, or the rejection of its caller.
    pub outcome: Result<Outcome<'a>, Rejection<'a>>,
}

/// The decision about a call.
pub struct Outcome<'a> {
    /// The domain of the call.
    pub domain: &'a Domain,
    /// The caller.
    pub identity: &'a Identity,
    /// The quotas of the call.
    pub resolved_quotas: ResolvedQuotas<'a>,
    /// The usage of the call.
    pub usage: Usage,
    /// The decision by quotas and abuse rules.
    pub decision: Decision<'a>,
    /// The error of an upload that is too large.
    pub too_large: Option<UploadTooLarge>,
    /// The records of the admission.
    pub record: AdmissionRecord,
}

/// A caller that was rejected.
#[derive(Debug)]
pub struct Rejection<'a> {
    /// The domain of the call or of the key, if it is known.
    pub domain: Option<&'a Domain>,
    /// The cause.
    pub cause: RejectionCause<'a>,
    /// The time by the node's clock.
    pub time: Timestamp,
}

/// The cause of a rejection.
#[derive(Debug)]
pub enum RejectionCause<'a> {
    /// Its API key is invalid.
    InvalidKey(InvalidKey),
    /// Its address is blocked, because it sent too many invalid keys.
    Blocked(Block<'a>),
    /// It calls a resource that the policy does not have.
    UnknownResource(&'a str),
}

impl<'a> Rejection<'a> {
    /// The reason, as for a refused call.
    pub fn reason(&self) -> Reason {
        match self.cause {
            RejectionCause::InvalidKey(invalid_key) => Reason::InvalidKey(invalid_key),
            RejectionCause::Blocked(_) => Reason::Blocked,
            RejectionCause::UnknownResource(_) => Reason::UnknownResource,
        }
    }

    /// The block of the address, if it is the cause.
    pub fn block(&self) -> Option<Block<'a>> {
        match self.cause {
            RejectionCause::InvalidKey(_) | RejectionCause::UnknownResource(_) => None,
            RejectionCause::Blocked(block) => Some(block),
        }
    }

    /// The resource that the policy does not have, if that is the cause.
    fn resource(&self) -> Option<&'a str> {
        match self.cause {
            RejectionCause::UnknownResource(resource) => Some(resource),
            RejectionCause::InvalidKey(_) | RejectionCause::Blocked(_) => None,
        }
    }
}

impl<'a> CallResponse<'a> {
    /// The reason why the call is not allowed; `None` if it is allowed.
    pub fn reason(&self) -> Option<Reason> {
        match &self.outcome {
            Ok(outcome) => outcome.reason(),
            Err(rejection) => Some(rejection.reason()),
        }
    }

    /// The binding quota; `None` if no quota decides.
    pub fn binding_quota(&self) -> Option<&QuotaStatus<'a>> {
        self.outcome.as_ref().ok().filter(|outcome| outcome.too_large.is_none())?.decision.binding_quota()
    }

    /// The HTTP status that the platform's customers see.
    pub(super) fn status(&self) -> u16 {
        self.dialect.status(&self.facts())
    }

    /// Renders the response that the platform's customers see.
    pub fn render(&self) -> Rendered {
        let facts = self.facts();
        let domain = match &self.outcome {
            Ok(outcome) => Some(outcome.domain),
            Err(rejection) => rejection.domain,
        };
        let jitter = domain.map_or(0, |domain| domain.policy.retry_jitter_percent());
        let retry_at = match facts.retry_at {
            Some(at) if jitter > 0 => Some(later(at, facts.now, jitter)),
            retry_at => retry_at,
        };
        self.dialect.render(&Facts { retry_at, ..facts })
    }

    /// The facts for a dialect.
    fn facts(&self) -> Facts<'_> {
        let kind = self.reason().map_or(ResponseKind::Allowed, ResponseKind::Refused);
        let outcome = match &self.outcome {
            Ok(outcome) => outcome,
            Err(rejection) => {
                let (block, now) = (rejection.block(), rejection.time);
                return Facts {
                    retry_at: block.map(|block| block.until),
                    message: block.map(|block| block.message(now)),
                    domain: rejection.domain.map(|domain| &**domain.policy.domain()),
                    resource: rejection.resource(),
                    ..Facts::of_kind(kind, now)
                };
            }
        };
        let Outcome { domain, identity, resolved_quotas, usage, decision, too_large, .. } = outcome;
        Facts {
            kind,
            now: decision.decided_at,
            // A block has an end even for a call that a quota never allows.
            retry_at: match decision.verdict {
                Verdict::Allowed => None,
                Verdict::RetryAt(time) => Some(time),
                Verdict::Never => decision.block.map(|block| block.until),
            },
            quotas: &decision.quotas,
            binding: decision.binding,
            usage: Some(usage),
            message: match (&decision.block, too_large) {
                (Some(block), _) => Some(block.message(decision.decided_at)),
                (None, too_large) => too_large.as_ref().map(ToString::to_string),
            },
            domain: Some(domain.policy.domain()),
            resource: Some(resolved_quotas.resource()),
            tier: Some(&resolved_quotas.tier().name),
            priority: resolved_quotas.tier().priority,
            account: Some(&identity.account.id),
            api_key_id: identity.key.as_ref().map(|key| &*key.id),
        }
    }
}

/// A time that is later than `at` by a random part of the wait, at most `percent` of it.
fn later(at: Timestamp, now: Timestamp, percent: u8) -> Timestamp {
    let most = at.ms_since(now).saturating_mul(u64::from(percent)) / 100;
    at.plus_ms(rand::random_range(0..=most))
}

impl Outcome<'_> {
    /// The reason why the call is not allowed; `None` if it is allowed.
    pub fn reason(&self) -> Option<Reason> {
        if self.decision.block.is_some() {
            return Some(Reason::Blocked);
        }
        if self.too_large.is_some() {
            return Some(Reason::UploadTooLarge);
        }
        match self.decision.verdict {
            Verdict::Allowed => None,
            Verdict::RetryAt(_) => Some(Reason::QuotaExceeded),
            Verdict::Never => Some(Reason::CostAboveLimit),
        }
    }
}
