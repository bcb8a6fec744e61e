//! The facts that a dialect can render: a decision, and its call.

use tollgate_core::time::Timestamp;

use crate::{
    decision::{QuotaStatus, binding},
    policy::Usage,
    reason::Reason,
};

/// The kind of response to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseKind {
    /// The call is allowed.
    Allowed,
    /// The call is refused.
    Refused(Reason),
}

/// The facts that a dialect can render.
pub struct Facts<'a> {
    /// The kind of response.
    pub kind: ResponseKind,
    /// The time of the decision.
    pub now: Timestamp,
    /// When the same call would be admitted, if it is refused now and the time is known.
    pub retry_at: Option<Timestamp>,
    /// The quotas of the call, in the order of the policy.
    pub quotas: &'a [QuotaStatus<'a>],
    /// The index of the binding quota.
    pub binding: Option<usize>,
    /// The usage of the call.
    pub usage: Option<&'a Usage>,
    /// The message about a block, or about an upload that is too large.
    pub message: Option<String>,
    /// The domain.
    pub domain: Option<&'a str>,
    /// The called resource.
    pub resource: Option<&'a str>,
    /// The tier of the account.
    pub tier: Option<&'a str>,
    /// The priority of the tier, from 1 (low) to 4 (critical).
    pub priority: Option<u8>,
    /// The id of the account.
    pub account: Option<&'a str>,
    /// The id of the API key.
    pub api_key_id: Option<&'a str>,
}

impl<'a> Facts<'a> {
    /// The quota that refuses the call, if a quota decides.
    pub(super) fn refusing_quota(&self) -> Option<&'a QuotaStatus<'a>> {
        match self.kind {
            ResponseKind::Refused(Reason::QuotaExceeded | Reason::CostAboveLimit) => self.quotas.get(self.binding?),
            ResponseKind::Allowed | ResponseKind::Refused(_) => None,
        }
    }
}

impl Facts<'_> {
    /// Whether a quota decides that customers do not see.
    pub(super) fn is_refused_by_hidden(&self) -> bool {
        self.refusing_quota().is_some_and(|status| !status.quota.visible)
    }

    /// The index of the binding quota among those that customers see.
    pub(super) fn shown_binding(&self) -> Option<usize> {
        let shown = self.binding.filter(|at| self.quotas.get(*at).is_some_and(QuotaStatus::is_shown));
        shown.or_else(|| binding(self.quotas, |status| status.is_shown()))
    }
}

impl ResponseKind {
    /// How many there are.
    pub(super) const COUNT: usize = Reason::ALL.len() + 1;

    /// All, in the order of their indexes.
    pub(super) const ALL: [Self; Self::COUNT] = {
        let mut all = [Self::Allowed; Self::COUNT];
        let mut index = 0;
        while index < Reason::ALL.len() {
            all[index + 1] = Self::Refused(Reason::ALL[index]);
            index += 1;
        }
        all
    };

    /// From 0 to one less than [`Self::COUNT`].
    pub(super) fn index(self) -> usize {
        match self {
            Self::Allowed => 0,
            Self::Refused(reason) => 1 + reason.index(),
        }
    }

    /// Its name in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused(reason) => reason.name(),
        }
    }
}
