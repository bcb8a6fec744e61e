//! Policies: one platform's tiers, classes, resources and quotas, compiled into a lookup from a
//! call to its claims. [`Policy::compile`] checks a [`PolicyFile`] once and reports every mistake;
//! after that nothing is parsed, locked or validated again.
//!
//! [`PolicyFile`]: crate::format::PolicyFile

use std::{collections::HashMap, sync::Arc};

use tollgate_core::claim::{OnFailure, Partition};

use crate::format::CounterSharing;

mod abuse;
mod builder;
mod compile;
mod error;
mod estimate;
mod explain;
mod footprint;
mod overrides;
mod pattern;
mod plan;
pub mod pool;
mod quota;
mod reach;
mod resolve;
mod rules;
mod scope;
mod shadow;
#[cfg(test)]
mod tests;
mod usage;

pub(crate) use abuse::block_of;
pub use abuse::{AUTHENTICATION, AbuseCounter, AbuseRule, Block, MAX_ABUSE_RULES, Statuses};
pub use compile::Compiled;
pub(crate) use error::closest;
pub use error::{CompileError, Mistake, Place, Problem, Step};
pub use estimate::Estimate;
pub use explain::{Explanation, QuotaExplanation, RuleExplanation, RuleOutcome};
pub use overrides::{MAX_OVERRIDES, Override};
pub use pattern::{InvalidPattern, MAX_NAME_BYTES};
pub(crate) use quota::{CONCURRENCY_EXCEEDED, NamedAnswer, OVERLOADED, QUOTA_EXCEEDED};
pub use quota::{CONCURRENT_REQUESTS, DecisionSource, Quota, Unit};
pub use resolve::{ActiveQuota, Caller, CallerKey, MissingAttribute, ResolveError, ResolvedQuotas};
pub use scope::{Attribute, QuotaLevel, Scope};
pub use usage::{Usage, UsageError};

/// The most quotas a resolved call may have, overrides included.
pub const MAX_QUOTAS: usize = 32;

/// The maximum number of quotas that rules may give one call. The rest of [`MAX_QUOTAS`] is for quotas that overrides
/// add.
const MAX_RULE_QUOTAS: usize = 16;

/// One platform's policy, compiled.
#[derive(Debug)]
pub struct Policy {
    domain: Arc<str>,
    units: Vec<Unit>,
    tiers: Vec<Tier>,
    default_tier: TierId,
    /// The resources in the order of the file, followed by the one for unknown names, if the policy has it.
    resources: Vec<Resource>,
    /// How many of `resources` are in the file.
    listed: usize,
    exact: HashMap<Box<str>, usize>,
    wildcards: HashMap<Box<[u8]>, usize>,
    /// The lengths of the wildcards' prefixes, longest first.
    prefix_lengths: Vec<usize>,
    plans: Vec<Plan>,
    /// Indexes into `plans`: a row for each tier, a column for each resource.
    plan_of: Vec<usize>,
    /// The rules that the plans are made from.
    book: rules::RuleBook,
    scopes: Scopes,
    footprint: footprint::LedgerFootprint,
    inputs: Vec<Arc<str>>,
    abuse: Vec<AbuseRule>,
    authentication: Option<AbuseRule>,
    named_answers: Vec<NamedAnswer>,
    retry_jitter_percent: u8,
    shadow: bool,
    on_failure: OnFailure,
}

/// A tier of accounts.
#[derive(Debug)]
pub struct Tier {
    /// Its handle within this policy.
    pub id: TierId,
    /// Its name, which accounts are stored with.
    pub name: Arc<str>,
    /// Whether its calls are paid for.
    pub is_charged: bool,
    /// From 1 (low) to 4 (critical).
    pub priority: Option<u8>,
}

/// The handle of a tier. It is valid only for the policy that returned it. In another version of the policy, the same
/// tier is found by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TierId(usize);

/// A resource: a model or an endpoint, or a wildcard for several.
#[derive(Debug)]
pub struct Resource {
    /// The name, or the wildcard with its `*`.
    pub name: Arc<str>,
    /// The size class or type.
    pub class: Option<Arc<str>>,
    /// The class of the upstream provider.
    pub provider_class: Option<Arc<str>>,
    /// Whether the matches of a wildcard share one counter.
    pub(crate) counter: CounterSharing,
    /// The amounts that reservations take if the call does not name them.
    pub estimates: Vec<Estimate>,
}

/// The quotas of one tier and resource: first the account's, from `key_from` on the key's.
#[derive(Debug)]
struct Plan {
    quotas: Vec<Quota>,
    key_from: usize,
}

/// Every scope of the policy, each once, and the two that quotas without a scope get.
#[derive(Clone, Debug)]
struct Scopes {
    known: Vec<Arc<Scope>>,
    account: Arc<Scope>,
    key: Arc<Scope>,
}

impl Policy {
    /// The name of the domain.
    pub fn domain(&self) -> &Arc<str> {
        &self.domain
    }

    /// The units; `requests` comes first.
    pub fn units(&self) -> &[Unit] {
        &self.units
    }

    /// The inputs of estimates, by name, sorted.
    pub fn inputs(&self) -> &[Arc<str>] {
        &self.inputs
    }

    /// The tiers, in the order of the file.
    pub fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    /// The tier of a new account.
    pub fn default_tier(&self) -> TierId {
        self.default_tier
    }

    /// The handle of the tier called `name`.
    pub fn tier_named(&self, name: &str) -> Option<TierId> {
        self.tiers.iter().find(|tier| &*tier.name == name).map(|tier| tier.id)
    }

    /// The tier of the handle, unless it came from another policy that had more tiers.
    pub fn tier(&self, id: TierId) -> Option<&Tier> {
        self.tiers.get(id.0)
    }

    /// Every resource and wildcard, in the order of the file.
    pub fn resources(&self) -> &[Resource] {
        &self.resources[..self.listed]
    }

    /// The names of all classes that resources have. They are bounded in number, so they can be values of a label.
    pub fn class_names(&self) -> Vec<&str> {
        sorted(self.resources.iter().filter_map(|resource| resource.class.as_deref()))
    }

    /// The names of all quotas of rules. They are bounded in number, so they can be values of a label.
    pub fn quota_names(&self) -> Vec<&str> {
        sorted(self.plans.iter().flat_map(|plan| plan.quotas.iter()).map(|quota| &*quota.name))
    }

    /// Whether some call may be decided while the store cannot answer.
    pub fn tolerates_outage(&self) -> bool {
        self.on_failure != OnFailure::Deny
            || self.plans.iter().flat_map(|plan| &plan.quotas).any(|quota| quota.on_failure != OnFailure::Deny)
    }

    /// The names of all shadow quotas that rules give, and of all shadow rules about abuse: a bounded set, good for
    /// labels.
    pub fn shadow_names(&self) -> Vec<&str> {
        let quotas = self.plans.iter().flat_map(|plan| plan.quotas.iter()).filter(|quota| quota.shadow);
        let rules = self.abuse.iter().filter(|rule| rule.shadow).map(|rule| &*rule.name);
        sorted(quotas.map(|quota| &*quota.name).chain(rules))
    }

    /// The abuse rules, in the order of the file.
    pub fn abuse_rules(&self) -> &[AbuseRule] {
        &self.abuse
    }

    /// The rule about failed authentications, by the attribute `ip`.
    pub fn authentication_rule(&self) -> Option<&AbuseRule> {
        self.authentication.as_ref()
    }

    /// How much longer than necessary a rendered wait may be, in percent.
    pub fn retry_jitter_percent(&self) -> u8 {
        self.retry_jitter_percent
    }

    /// The answers that quotas name, each as often as it is named.
    pub(crate) fn named_answers(&self) -> &[NamedAnswer] {
        &self.named_answers
    }

    /// The partition with all counters of an account. Compute it once for an account, not for each call.
    pub fn account_partition(&self, account_id: &str) -> Partition {
        Partition::of([&*self.domain, "account", account_id])
    }

    /// The index of the resource for `name`: the exact name, the longest wildcard, or the one for unknown names.
    fn find(&self, name: &str) -> Option<usize> {
        let unknown = || (self.listed < self.resources.len()).then_some(self.listed);
        self.exact.get(name).copied().or_else(|| self.find_wildcard(name)).or_else(unknown)
    }

    fn find_wildcard(&self, name: &str) -> Option<usize> {
        let mut prefixes = self.prefix_lengths.iter().filter_map(|length| name.as_bytes().get(..*length));
        prefixes.find_map(|prefix| self.wildcards.get(prefix)).copied()
    }

    fn plan(&self, tier: TierId, resource: usize) -> Option<&Plan> {
        let at = self.plan_of.get(tier.0 * self.resources.len() + resource)?;
        self.plans.get(*at)
    }
}

fn sorted<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names.dedup();
    names
}
