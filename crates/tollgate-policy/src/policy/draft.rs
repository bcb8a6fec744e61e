//! What a policy is compiled from. The shape is that of the policy file, so that the [`Place`] of a
//! mistake here is its place there.
//!
//! [`Place`]: super::Place

use std::ops::RangeInclusive;

use indexmap::IndexMap;
use tollgate_core::{claim::OnFailure, window::CalendarUnit};

use crate::policy::pool::PRIORITIES;

/// A policy as written, not yet checked.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// The name of the domain.
    pub domain: String,
    /// What is counted besides `requests`.
    pub units: Vec<String>,
    /// The scopes of quotas and overrides that name none.
    pub scopes: DefaultScopes,
    /// Size classes and types.
    pub classes: IndexMap<String, RuleDraft>,
    /// Classes of upstream providers.
    pub provider_classes: IndexMap<String, RuleDraft>,
    /// What can be called, by name or wildcard.
    pub resources: IndexMap<String, ResourceDraft>,
    /// What unknown names are. `None` refuses them.
    pub unknown_resources: Option<ResourceDraft>,
    /// The tiers of accounts.
    pub tiers: IndexMap<String, TierDraft>,
    /// The tier of a new account.
    pub default_tier: String,
    /// Who fails too often.
    pub abuse: AbuseDraft,
    /// Whether every quota and every abuse rule is a shadow.
    pub shadow: bool,
    /// What quotas that do not say it do while the store cannot answer.
    pub on_failure: OnFailure,
    /// Estimates where neither the resource nor its class has one of the unit.
    pub estimates: EstimatesDraft,
    /// Estimates of classes.
    pub class_estimates: IndexMap<String, EstimatesDraft>,
}

/// What reservations take of a unit where the call does not say: the sum of these inputs.
pub type EstimatesDraft = IndexMap<String, Vec<InputDraft>>;

/// A number that comes with a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputDraft {
    /// Its name, such as `max_tokens`.
    pub input: String,
    /// What it is where the call does not bring it.
    pub default: u64,
    /// More than this counts as this.
    pub at_most: Option<u64>,
}

/// What is done about callers that fail too often.
#[derive(Clone, Debug, Default)]
pub struct AbuseDraft {
    /// The rules, by name.
    pub rules: IndexMap<String, AbuseRuleDraft>,
    /// The rule about failed authentications, by the attribute `ip`. Its statuses and scope say nothing.
    pub authentication: Option<AbuseRuleDraft>,
}

/// One rule: more than `limit` failures block.
#[derive(Clone, Debug)]
pub struct AbuseRuleDraft {
    /// Which answers are failures; none stands for all from 400 on.
    pub statuses: Vec<RangeInclusive<u16>>,
    /// Whether what the quotas refuse is a failure, if its status is.
    pub counts_refusals: bool,
    /// How many failures are borne.
    pub limit: u64,
    /// The length of the window in which they are counted, in milliseconds.
    pub per_ms: u64,
    /// The length of a block, in milliseconds.
    pub block_ms: u64,
    /// Whose failures; the default scope of the account's quotas if `None`.
    pub scope: Option<Vec<String>>,
    /// What a blocked caller is told, with `{limit}`, `{window_seconds}`, `{block_seconds}` and
    /// `{wait_seconds}` in it.
    pub message: Option<String>,
}

/// The scopes of quotas and overrides that name none.
#[derive(Clone, Debug)]
pub struct DefaultScopes {
    /// Of quotas, and of overrides of accounts.
    pub account: Vec<String>,
    /// Of overrides of keys.
    pub key: Vec<String>,
}

impl Default for DefaultScopes {
    fn default() -> Self {
        let names = |names: [&str; 2]| names.map(str::to_owned).to_vec();
        Self { account: names(["account", "resource"]), key: names(["api_key", "resource"]) }
    }
}

/// Quotas, if the rule says anything about them. An empty list says: not limited.
pub type RuleDraft = Option<Vec<QuotaDraft>>;

/// One quota.
#[derive(Clone, Debug)]
pub struct QuotaDraft {
    /// The unit's name.
    pub unit: String,
    /// The window.
    pub per: WindowDraft,
    /// The limit; `None` is unlimited.
    pub limit: Option<u64>,
    /// The attributes that name the counter.
    pub scope: Option<Vec<String>>,
    /// The quota's name, instead of one such as `requests_per_minute`.
    pub name: Option<String>,
    /// The quota's label, instead of one such as `RPM`.
    pub label: Option<String>,
    /// What it does while the store cannot answer, if not what the policy says.
    pub on_failure: Option<OnFailure>,
    /// Whether it only says whom it would refuse.
    pub shadow: bool,
    /// The shares of its callers' priorities, from the lowest on, in percent.
    pub pool: Option<[u8; PRIORITIES]>,
}

/// A window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WindowDraft {
    /// Trailing, of this many milliseconds.
    Sliding {
        /// The length.
        ms: u64,
    },
    /// Calendar periods.
    Calendar {
        /// Of which unit.
        unit: CalendarUnit,
        /// In which time zone of the IANA database.
        zone: String,
    },
    /// None, for concurrent requests.
    Concurrent,
}

/// One resource or wildcard.
#[derive(Clone, Debug, Default)]
pub struct ResourceDraft {
    /// Its size class or type.
    pub class: Option<String>,
    /// The class of its upstream provider.
    pub provider_class: Option<String>,
    /// Its own rule.
    pub quotas: RuleDraft,
    /// The counters of a wildcard's matches.
    pub counter: Counter,
    /// Its own estimates; for other units, those of its class.
    pub estimates: EstimatesDraft,
}

/// How the matches of a wildcard count, where a scope names the resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Counter {
    /// All matches share one counter, named by the wildcard.
    #[default]
    Shared,
    /// Each name has its own. Whoever serves the policy bounds how many names come into being.
    Each,
}

/// One tier.
#[derive(Clone, Debug, Default)]
pub struct TierDraft {
    /// Whether its calls are paid for.
    pub is_charged: bool,
    /// From 1 (low) to 4 (critical).
    pub priority: Option<u8>,
    /// The tier's default, where no other rule speaks.
    pub quotas: RuleDraft,
    /// The tier's rules for resources, by name or wildcard. They go before everything but overrides.
    pub resources: IndexMap<String, RuleDraft>,
    /// The tier's rules for classes.
    pub classes: IndexMap<String, RuleDraft>,
    /// The tier's rules for provider classes.
    pub provider_classes: IndexMap<String, RuleDraft>,
}

/// An override of an account or a key: it replaces the limit of the quota with the same unit and
/// window, or adds a quota where there is none.
#[derive(Clone, Debug)]
pub struct OverrideDraft {
    /// Only for these resources: a name or a wildcard.
    pub resource: Option<String>,
    /// The unit's name.
    pub unit: String,
    /// The window.
    pub per: WindowDraft,
    /// The limit; `None` is unlimited.
    pub limit: Option<u64>,
    /// Only for the quota of this scope.
    pub scope: Option<Vec<String>>,
}
