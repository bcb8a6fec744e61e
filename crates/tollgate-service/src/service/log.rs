//! Reading and writing the log of refusals.

use tollgate_core::api_key::KeyKind;
use tollgate_policy::reason::{InvalidKey, Reason};
use tollgate_store::refusals::Refusal;

use crate::{
    scope::DomainScope,
    service::{
        CallError, CallResponse, CallerRef, DecisionService, Outcome, Rejection, RejectionCause, attributes::Attributes,
    },
};

/// The label of a refusal because of a block.
const BLOCK_LABEL: &str = "FAILED_REQUESTS";

/// The label of a refusal by a quota that customers do not see.
const OVERLOADED: &str = "OVERLOADED";

/// The error of reading the log of refusals.
pub enum RefusalsError<'a> {
    /// The caller is rejected.
    Rejected(Rejection<'a>),
    /// The key is not an ADMIN key.
    NotAdmin,
}

impl DecisionService {
    /// The last refusals of a key's account: all of them for an ADMIN key, its own for an INFERENCE key. `key_id`
    /// selects the refusals of one key.
    pub async fn refusals<R>(
        &self,
        secret: &str,
        attributes: &[(&str, &str)],
        key_id: Option<&str>,
        render: impl FnOnce(Result<&[Refusal], &RefusalsError<'_>>) -> R,
    ) -> Result<R, CallError> {
        let domains = self.domains.load().clone();
        let now = self.clock.now();
        let attributes = Attributes::check(attributes)?;
        let caller = CallerRef::Secret(secret);
        let authentication =
            self.authenticate(&domains, &DomainScope::SelfService, "", caller, &attributes, now).await?;
        let (domain, identity) = match authentication {
            Ok(caller) => caller,
            Err(rejection) => return Ok(render(Err(&RefusalsError::Rejected(rejection)))),
        };
        let rejected = |cause| RefusalsError::Rejected(Rejection { domain: Some(domain), cause, time: now });
        identity.check()?;
        if let Some(block) = self.address_block(domain, caller, &attributes, now).await? {
            return Ok(render(Err(&rejected(RejectionCause::Blocked(block)))));
        }
        let Some(key) = &identity.key else {
            return Ok(render(Err(&rejected(RejectionCause::InvalidKey(InvalidKey::Unknown)))));
        };
        let key_id = match key.kind {
            KeyKind::Admin => key_id,
            KeyKind::Inference if key_id.is_none_or(|id| *id == *key.id) => Some(&*key.id),
            KeyKind::Inference => return Ok(render(Err(&RefusalsError::NotAdmin))),
        };
        let mut refusals = self.refusals.latest(identity.account.partition).await?;
        refusals.retain(|refusal| key_id.is_none_or(|key| refusal.key.as_deref() == Some(key)));
        Ok(render(Ok(&refusals)))
    }

    /// Adds a refusal to the log.
    pub(super) fn log_refusal(&self, response: &CallResponse<'_>) {
        let Ok(Outcome { identity, resolved_quotas, decision, .. }) = &response.outcome else { return };
        let label = match response.reason() {
            Some(Reason::Blocked) => BLOCK_LABEL,
            Some(Reason::QuotaExceeded | Reason::CostAboveLimit) => match decision.binding_quota() {
                // The account does not see this quota, so it does not see its label.
                Some(status) if !status.quota.visible => OVERLOADED,
                Some(status) => &*status.quota.label,
                None => return,
            },
            Some(Reason::UploadTooLarge | Reason::UnknownResource | Reason::InvalidKey(_)) | None => return,
        };
        self.refusals.record(
            identity.account.partition,
            Refusal {
                key: identity.key.as_ref().map(|key| key.id.to_string()),
                resource: resolved_quotas.resource().to_owned(),
                tier: resolved_quotas.tier().name.to_string(),
                label: label.to_owned(),
                at_ms: decision.decided_at.as_ms(),
            },
        );
    }
}
