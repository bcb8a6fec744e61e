//! The log of refusals: what goes into it, and who reads it.

use tollgate_core::{api_key::KeyKind, time::Timestamp};
use tollgate_policy::{Block, reason::Reason};
use tollgate_store::refusals::Refusal;

use crate::{
    scope::DomainScope,
    service::{CallError, CallerRef, DecisionService, Outcome, abuse::TurnedAway, attributes::Attributes},
};

/// The label of a refusal because of a block.
const FAILED_REQUESTS: &str = "FAILED_REQUESTS";

/// The answer to who reads the log.
pub enum Logged<'a> {
    /// Newest first.
    Refusals(Vec<Refusal>),
    /// The API key is no good.
    BadKey,
    /// The client address is blocked.
    Barred { block: Block<'a>, at: Timestamp },
    /// The key may not read what it asked for.
    NotAdmin,
}

impl DecisionService {
    /// The last refusals of the account of a key: all of them for an ADMIN key, its own for an INFERENCE key.
    /// With `of_key`, those of that key, which an ADMIN key may ask for.
    pub async fn log<R>(
        &self,
        secret: &str,
        attributes: &[(&str, &str)],
        of_key: Option<&str>,
        render: impl FnOnce(&Logged<'_>) -> R,
    ) -> Result<R, CallError> {
        let domains = self.domains.load().clone();
        let now = self.clock.now();
        let attributes = Attributes::check(attributes)?;
        let caller = CallerRef::Secret(secret);
        let (domain, identity) =
            match self.enter(&domains, &DomainScope::SelfService, "", caller, &attributes, now).await? {
                Ok(entered) => entered,
                Err(TurnedAway::BadKey(_)) => return Ok(render(&Logged::BadKey)),
                Err(TurnedAway::Barred { block, .. }) => return Ok(render(&Logged::Barred { block, at: now })),
            };
        identity.check()?;
        if let Some(block) = self.gate_block(domain, caller, &attributes, now).await? {
            return Ok(render(&Logged::Barred { block, at: now }));
        }
        let Some(key) = &identity.key else { return Ok(render(&Logged::BadKey)) };
        let of_key = match key.kind {
            KeyKind::Admin => of_key,
            KeyKind::Inference if of_key.is_none_or(|asked| *asked == *key.id) => Some(&*key.id),
            KeyKind::Inference => return Ok(render(&Logged::NotAdmin)),
        };
        let mut refusals = self.refusals.latest(identity.account.partition).await?;
        refusals.retain(|refusal| of_key.is_none_or(|key| refusal.key.as_deref() == Some(key)));
        Ok(render(&Logged::Refusals(refusals)))
    }

    /// Notes a refusal for the log.
    pub(super) fn note_refusal(&self, outcome: &Outcome<'_>) {
        let Outcome::Decided { identity, resolved, decision, .. } = outcome else { return };
        let label = match outcome.reason() {
            Some(Reason::Blocked) => FAILED_REQUESTS,
            Some(Reason::QuotaExceeded | Reason::CostAboveLimit) => match decision.speaking() {
                Some(speaking) => &*speaking.quota.label,
                None => return,
            },
            Some(Reason::UploadTooLarge | Reason::InvalidKey(_)) | None => return,
        };
        self.refusals.note(
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
