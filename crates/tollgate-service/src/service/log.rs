//! The log of refusals: its content and its readers.

use tollgate_core::api_key::KeyKind;
use tollgate_policy::reason::{InvalidKey, Reason};
use tollgate_store::refusals::Refusal;

use crate::{
    scope::DomainScope,
    service::{
        Answer, CallError, CallerRef, DecisionService, Outcome, Rejection, RejectionCause, attributes::Attributes,
    },
};

/// The label of a refusal because of a block.
const FAILED_REQUESTS: &str = "FAILED_REQUESTS";

/// The label of a refusal by a quota that customers do not see.
const OVERLOADED: &str = "OVERLOADED";

/// Why the log of refusals is not shown.
pub enum RefusalsError<'a> {
    /// The caller is rejected.
    Rejected(Rejection<'a>),
    /// The key does not have the right to read this.
    NotAdmin,
}

impl DecisionService {
    /// The last refusals of the account of a key: all of them for an ADMIN key, its own for an INFERENCE key.
    /// With `of_key`, those of that key, which an ADMIN key may ask for.
    pub async fn refusals<R>(
        &self,
        secret: &str,
        attributes: &[(&str, &str)],
        of_key: Option<&str>,
        render: impl FnOnce(Result<&[Refusal], &RefusalsError<'_>>) -> R,
    ) -> Result<R, CallError> {
        let domains = self.domains.load().clone();
        let now = self.clock.now();
        let attributes = Attributes::check(attributes)?;
        let caller = CallerRef::Secret(secret);
        let authenticated =
            self.authenticate(&domains, &DomainScope::SelfService, "", caller, &attributes, now).await?;
        let (domain, identity) = match authenticated {
            Ok(caller) => caller,
            Err(rejection) => return Ok(render(Err(&RefusalsError::Rejected(rejection)))),
        };
        let rejected = |cause| RefusalsError::Rejected(Rejection { domain: Some(domain), cause, at: now });
        identity.check()?;
        if let Some(block) = self.address_block(domain, caller, &attributes, now).await? {
            return Ok(render(Err(&rejected(RejectionCause::Blocked(block)))));
        }
        let Some(key) = &identity.key else {
            return Ok(render(Err(&rejected(RejectionCause::InvalidKey(InvalidKey::Unknown)))));
        };
        let of_key = match key.kind {
            KeyKind::Admin => of_key,
            KeyKind::Inference if of_key.is_none_or(|asked| *asked == *key.id) => Some(&*key.id),
            KeyKind::Inference => return Ok(render(Err(&RefusalsError::NotAdmin))),
        };
        let mut refusals = self.refusals.latest(identity.account.partition).await?;
        refusals.retain(|refusal| of_key.is_none_or(|key| refusal.key.as_deref() == Some(key)));
        Ok(render(Ok(&refusals)))
    }

    /// Adds a refusal to the log.
    pub(super) fn log_refusal(&self, answer: &Answer<'_>) {
        let Ok(Outcome { identity, resolved, decision, .. }) = &answer.outcome else { return };
        let label = match answer.reason() {
            Some(Reason::Blocked) => FAILED_REQUESTS,
            Some(Reason::QuotaExceeded | Reason::CostAboveLimit) => match decision.binding_quota() {
                // The account does not see this quota, so it does not see its label.
                Some(speaking) if !speaking.quota.visible => OVERLOADED,
                Some(speaking) => &*speaking.quota.label,
                None => return,
            },
            Some(Reason::UploadTooLarge | Reason::UnknownResource | Reason::InvalidKey(_)) | None => return,
        };
        self.refusals.record(
            identity.account.partition,
            Refusal {
                key: identity.key.as_ref().map(|key| key.id.to_string()),
                resource: resolved.resource().to_owned(),
                tier: resolved.tier().name.to_string(),
                label: label.to_owned(),
                at_ms: decision.decided_at.as_ms(),
            },
        );
    }
}
