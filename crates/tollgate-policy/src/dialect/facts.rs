//! The facts that a dialect can render: a decision, and its call.

use tollgate_core::time::Timestamp;

use crate::{
    decision::{QuotaStatus, binding},
    policy::Usage,
    reason::Reason,
};

/// The name of the response to a call that the store did not decide.
pub(super) const UNAVAILABLE: &str = "unavailable";

/// The kind of response to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseKind {
    /// The call is allowed.
    Allowed,
    /// The call is refused.
    Refused(Reason),
    /// The store did not decide the call.
    Unavailable,
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
    /// The facts of a call without a decision: its kind and its time.
    pub const fn of_kind(kind: ResponseKind, now: Timestamp) -> Self {
        Self {
            kind,
            now,
            retry_at: None,
            quotas: &[],
            binding: None,
            usage: None,
            message: None,
            domain: None,
            resource: None,
            tier: None,
            priority: None,
            account: None,
            api_key_id: None,
        }
    }

    /// The quota that refuses the call, if a quota decides.
    pub(super) fn refusing_quota(&self) -> Option<&'a QuotaStatus<'a>> {
        match self.kind {
            ResponseKind::Refused(Reason::QuotaExceeded | Reason::CostAboveLimit) => self.quotas.get(self.binding?),
            ResponseKind::Allowed | ResponseKind::Refused(_) | ResponseKind::Unavailable => None,
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
        shown.or_else(|| binding(self.quotas, is_shown))
    }
}

fn is_shown(status: &QuotaStatus<'_>) -> bool {
    status.is_shown()
}

impl ResponseKind {
    /// How many there are.
    pub(super) const COUNT: usize = Reason::ALL.len() + 2;

    /// All, in the order of their indexes.
    pub(super) const ALL: [Self; Self::COUNT] = {
        let mut all = [Self::Allowed; Self::COUNT];
        let mut index = 0;
        while index < Reason::ALL.len() {
            all[index + 1] = Self::Refused(Reason::ALL[index]);
            index += 1;
        }
        all[index + 1] = Self::Unavailable;
        all
    };

    /// From 0 to one less than [`Self::COUNT`].
    pub(super) fn index(self) -> usize {
        match self {
            Self::Allowed => 0,
            Self::Refused(reason) => 1 + reason.index(),
            Self::Unavailable => Self::COUNT - 1,
        }
    }

    /// Its name in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused(reason) => reason.name(),
            Self::Unavailable => UNAVAILABLE,
        }
    }
}
