//! From a call to its claims.

use smallvec::SmallVec;
use tollgate_core::{
    amount::Limit,
    claim::{LedgerKey, Partition},
};

use crate::{
    format::CounterSharing,
    policy::{
        AbuseCounter, Attribute, Estimate, Override, Policy, Quota, QuotaLevel, Resource, Scope, Tier, TierId,
        pattern::{MAX_NAME_BYTES, is_name},
    },
};

/// The caller of a call.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The value of [`Policy::account_partition`] for the account.
    pub partition: Partition,
    /// The account's tier.
    pub tier: TierId,
    /// The account's overrides, from [`Policy::overrides`]. Overrides of another level have no effect.
    pub account_overrides: &'a [Override],
    /// The key, if the call has one. Without it, no quota of a key applies.
    pub key: Option<CallerKey<'a>>,
}

/// The API key of a call.
#[derive(Clone, Copy, Debug)]
pub struct CallerKey<'a> {
    /// The key's id, unique within the account.
    pub id: &'a str,
    /// The key's overrides, from [`Policy::overrides`]. Overrides of another level have no effect.
    pub overrides: &'a [Override],
}

/// Why the quotas of a call cannot be resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The name of the resource is invalid.
    #[error("resource: must have 1 to {MAX_NAME_BYTES} bytes and no control or invisible characters")]
    InvalidResource,
    /// The policy does not know the resource, and refuses unknown ones.
    #[error("resource: there is no such resource")]
    UnknownResource,
    /// The tier belongs to another policy.
    #[error("there is no such tier")]
    UnknownTier,
}

/// A scope names an attribute that the call does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("attributes.{name}: is required here")]
pub struct MissingAttribute {
    /// The attribute.
    pub name: String,
}

/// The quotas of a call, and its other properties in the policy.
#[derive(Debug)]
pub struct ResolvedQuotas<'a> {
    pub(super) policy: &'a Policy,
    pub(super) partition: Partition,
    key_id: Option<&'a str>,
    tier: &'a Tier,
    resource: &'a Resource,
    name: &'a str,
    quotas: SmallVec<[ActiveQuota<'a>; 4]>,
}

/// A quota and the limit in force, which an override may have replaced.
#[derive(Clone, Copy, Debug)]
pub struct ActiveQuota<'a> {
    /// The quota.
    pub quota: &'a Quota,
    /// The limit in force.
    pub limit: Limit,
}

impl Policy {
    /// The quotas of a call. For the account's and the key's quotas separately, the first rule that applies wins: the
    /// tier's for the resource, its wildcards, its provider class, its class; then the resource's own, the provider
    /// class's, the class's; then the tier's default. Overrides change the result.
    pub fn resolve<'a>(&'a self, caller: &Caller<'a>, resource: &'a str) -> Result<ResolvedQuotas<'a>, ResolveError> {
        if !is_name(resource) {
            return Err(ResolveError::InvalidResource);
        }
        let at = self.find(resource).ok_or(ResolveError::UnknownResource)?;
        let known = &self.resources[at];
        let name = match known.counter {
            CounterSharing::Shared => &known.name,
            CounterSharing::PerName => resource,
        };
        self.resolve_at(caller, at, name)
    }

    /// All of [`Policy::resources`], resolved. A wildcard whose matches have separate counters has its limits, and a
    /// counter that is never charged.
    pub fn resolve_all<'a>(
        &'a self,
        caller: &Caller<'a>,
    ) -> impl ExactSizeIterator<Item = Result<ResolvedQuotas<'a>, ResolveError>> + use<'a> {
        let caller = *caller;
        self.resources().iter().enumerate().map(move |(at, known)| self.resolve_at(&caller, at, &known.name))
    }

    fn resolve_at<'a>(
        &'a self,
        caller: &Caller<'a>,
        at: usize,
        name: &'a str,
    ) -> Result<ResolvedQuotas<'a>, ResolveError> {
        let tier = self.tier(caller.tier).ok_or(ResolveError::UnknownTier)?;
        let plan = self.plan(caller.tier, at).ok_or(ResolveError::UnknownTier)?;
        let (of_account, of_key) = plan.quotas.split_at(plan.key_from);
        let mut quotas = SmallVec::new();
        add_level(&mut quotas, of_account, QuotaLevel::Account, caller.account_overrides, name);
        if let Some(key) = caller.key {
            add_level(&mut quotas, of_key, QuotaLevel::Key, key.overrides, name);
        }
        let key_id = caller.key.map(|key| key.id);
        let resource = &self.resources[at];
        Ok(ResolvedQuotas { policy: self, partition: caller.partition, key_id, tier, resource, name, quotas })
    }
}

/// Adds the quotas of one level, changed by its overrides. The most specific override is applied last, so it wins.
fn add_level<'a>(
    quotas: &mut SmallVec<[ActiveQuota<'a>; 4]>,
    of_level: &'a [Quota],
    level: QuotaLevel,
    overrides: &'a [Override],
    name: &str,
) {
    let start = quotas.len();
    quotas.extend(of_level.iter().map(|quota| ActiveQuota { quota, limit: quota.limit }));
    for over in overrides.iter().filter(|over| over.level() == level && over.applies_to(name)) {
        let mut found = false;
        for active in quotas[start..].iter_mut().filter(|active| over.patches(active.quota)) {
            active.limit = over.quota.limit;
            found = true;
        }
        if !found {
            quotas.push(ActiveQuota { quota: &over.quota, limit: over.quota.limit });
        }
    }
}

impl<'a> ResolvedQuotas<'a> {
    /// The caller's partition.
    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// The quotas: the account's, then the key's.
    pub fn quotas(&self) -> &[ActiveQuota<'a>] {
        &self.quotas
    }

    /// The abuse rules that apply to the call, with the ledgers of their counters.
    pub fn abuse_counters<'v>(
        &self,
        attributes: impl Fn(&str) -> Option<&'v str>,
    ) -> impl Iterator<Item = AbuseCounter<'a>>
    where
        'a: 'v,
    {
        self.guards(&[], attributes)
    }

    /// Keeps only the quotas whose scopes name account, key, resource and `known` attributes.
    #[must_use]
    pub fn with_attributes(mut self, known: impl Fn(&str) -> bool) -> Self {
        let at_hand = |attribute: &Attribute| !matches!(attribute, Attribute::Other(name) if !known(name));
        self.quotas.retain(|active| active.quota.scope.attributes().iter().all(at_hand));
        self
    }

    /// The canonical name of the resource: the name in the policy, or the called name if the matches of a wildcard have
    /// separate counters. Callers choose the latter, so it cannot be a label of a metric.
    pub fn resource(&self) -> &'a str {
        self.name
    }

    /// The resource's size class or type, a name from the policy.
    pub fn class(&self) -> Option<&'a str> {
        self.resource.class.as_deref()
    }

    /// The amounts that a reservation charges if the call does not name them.
    pub(super) fn estimates(&self) -> &'a [Estimate] {
        &self.resource.estimates
    }

    /// The class of the upstream provider.
    pub fn provider_class(&self) -> Option<&'a str> {
        self.resource.provider_class.as_deref()
    }

    /// The caller's tier.
    pub fn tier(&self) -> &'a Tier {
        self.tier
    }

    /// The counters of the quotas, in their order.
    pub(crate) fn quota_ledgers<'v>(
        &self,
        attributes: impl Fn(&str) -> Option<&'v str>,
    ) -> Result<SmallVec<[LedgerKey; 4]>, MissingAttribute>
    where
        'a: 'v,
    {
        let mut ledgers: SmallVec<[LedgerKey; 4]> = SmallVec::with_capacity(self.quotas.len());
        for active in &self.quotas {
            let scope = &active.quota.scope;
            let ledger = match self.known_ledger(scope, &ledgers) {
                Some(ledger) => ledger,
                None => self.ledger(scope, |attribute| {
                    let found = self.value(attribute, &attributes);
                    found.ok_or_else(|| MissingAttribute { name: attribute.name().to_owned() })
                })?,
            };
            ledgers.push(ledger);
        }
        Ok(ledgers)
    }

    /// The abuse rules that apply to the call, with the ledgers of their counters. A rule whose scope names an
    /// attribute that the call does not have cannot be counted, and is left out. `ledgers` are those of the quotas.
    pub(crate) fn guards<'v>(
        &self,
        ledgers: &[LedgerKey],
        attributes: impl Fn(&str) -> Option<&'v str>,
    ) -> impl Iterator<Item = AbuseCounter<'a>>
    where
        'a: 'v,
    {
        self.policy.abuse_rules().iter().filter_map(move |rule| {
            let named = || self.ledger(&rule.scope, |attribute| self.value(attribute, &attributes).ok_or(())).ok();
            let ledger = self.known_ledger(&rule.scope, ledgers).or_else(named)?;
            Some(AbuseCounter { rule, ledger })
        })
    }

    /// The ledger of a scope, if a quota has the same scope. This saves the hash that names a ledger.
    fn known_ledger(&self, scope: &Scope, ledgers: &[LedgerKey]) -> Option<LedgerKey> {
        let same = self.quotas.iter().zip(ledgers).find(|(active, _)| *active.quota.scope == *scope);
        same.map(|(_, ledger)| *ledger)
    }

    /// Names the account's own counters for this call: calls `found` with each quota and abuse rule (or only those
    /// called `name`) and its ledger. Returns whether some ledgers are named by callers; if the call lacks an attribute
    /// of such a ledger, `found` gets the quota without a ledger.
    pub fn own_ledgers(&self, name: Option<&str>, mut found: impl FnMut(&str, Option<LedgerKey>)) -> bool {
        let quotas = self.quotas.iter().map(|active| (&active.quota.name, &active.quota.scope));
        let rules = self.policy.abuse_rules().iter().map(|rule| (&rule.name, &rule.scope));
        let mut caller_named = false;
        for (of, scope) in quotas.chain(rules) {
            if !scope.within_account() || name.is_some_and(|name| *name != **of) {
                continue;
            }
            let each = self.resource.counter == CounterSharing::PerName && scope.names_resource();
            let chosen = scope.attributes().iter().any(|attribute| matches!(attribute, Attribute::Other(_)));
            caller_named |= each || chosen;
            if chosen {
                found(of, None);
            } else if let Ok(ledger) = self.ledger(scope, |attribute| self.value(attribute, |_| None).ok_or(())) {
                found(of, Some(ledger));
            }
        }
        caller_named
    }

    /// The ledger of a scope.
    pub(super) fn ledger<'v, E>(
        &self,
        scope: &Scope,
        value: impl FnMut(&Attribute) -> Result<&'v str, E>,
    ) -> Result<LedgerKey, E> {
        let is_open = *self.name != *self.resource.name;
        scope.ledger(&self.policy.domain, self.partition, is_open, value)
    }

    /// The value that names the counter of `attribute`. The account is already in the partition.
    pub(super) fn value<'v>(
        &self,
        attribute: &Attribute,
        attributes: impl Fn(&str) -> Option<&'v str>,
    ) -> Option<&'v str>
    where
        'a: 'v,
    {
        match attribute {
            Attribute::Account => Some(""),
            Attribute::Resource => Some(self.name),
            Attribute::ApiKey => self.key_id,
            Attribute::Other(name) => attributes(name),
        }
    }
}
