//! Which rules win for a tier and a resource.

use std::collections::{HashMap, HashSet};

use crate::policy::{
    Chain, Place, Plan, Problem, Quota, Resource, builder::Builder, pattern::Pattern, pool::MAX_POOLS, quota::MAX_PLAN,
};

/// A rule's quotas, in the builder's list of rules.
pub(super) type RuleId = usize;

pub(super) struct CompiledResource {
    pub(super) known: Resource,
    /// `None` where the name is no pattern, which is a mistake of its own.
    pub(super) pattern: Option<Pattern>,
    pub(super) rule: Option<RuleId>,
    pub(super) place: Place,
}

pub(super) struct TierRules {
    pub(super) default: Option<RuleId>,
    /// The most specific first.
    pub(super) resources: Vec<(Pattern, RuleId)>,
    pub(super) classes: HashMap<String, RuleId>,
    pub(super) provider_classes: HashMap<String, RuleId>,
}

/// Every rule that could speak for one resource in one tier.
pub(super) struct Rules<'a> {
    pub(super) tier: &'a TierRules,
    pub(super) resource: &'a CompiledResource,
    pub(super) classes: &'a HashMap<String, RuleId>,
    pub(super) provider_classes: &'a HashMap<String, RuleId>,
}

impl Rules<'_> {
    /// The rules in the order of resolution.
    fn in_order(&self) -> impl Iterator<Item = RuleId> {
        let Self { tier, resource, classes, provider_classes } = self;
        let class = resource.known.class.as_deref();
        let provider = resource.known.provider_class.as_deref();
        let pattern = resource.pattern.as_ref();
        let of_tier =
            tier.resources.iter().filter(move |(rule, _)| pattern.is_some_and(|pattern| rule.covers(pattern)));
        let of = |rules: &HashMap<String, RuleId>, name: Option<&str>| name.and_then(|name| rules.get(name).copied());
        let others = [
            of(&tier.provider_classes, provider),
            of(&tier.classes, class),
            resource.rule,
            of(provider_classes, provider),
            of(classes, class),
            tier.default,
        ];
        of_tier.map(|(_, rule)| *rule).chain(others.into_iter().flatten())
    }
}

#[derive(Default)]
pub(super) struct Plans {
    silent: HashSet<Place>,
    of_rules: HashMap<(Option<RuleId>, Option<RuleId>), usize>,
    pub(super) distinct: Vec<Plan>,
    /// For every tier and resource, in that order.
    pub(super) table: Vec<usize>,
}

impl Plans {
    /// Adds the plan of the next resource of a tier, and returns its index. Most resources share
    /// theirs with the others of their class.
    pub(super) fn add(&mut self, builder: &mut Builder, rules: &Rules<'_>, tier: &str) -> usize {
        let winner = |chain| rules.in_order().find(|rule| speaks_for(&builder.rules[*rule], chain));
        let (of_account, of_key) = (winner(Chain::Account), winner(Chain::Key));
        let place = || rules.resource.place.clone();
        // Once for each resource: what is missing in one tier is mostly missing in all.
        if of_account.is_none() && of_key.is_none() && self.silent.insert(place()) {
            builder.error(place(), Problem::NoRule(tier.to_owned()));
        }
        let known = self.of_rules.get(&(of_account, of_key)).copied();
        let at = known.unwrap_or_else(|| {
            let quotas_of = |rule: Option<RuleId>, chain| {
                let quotas = rule.into_iter().flat_map(|rule| &builder.rules[rule]);
                quotas.filter(move |quota| quota.scope.chain() == chain).cloned()
            };
            let mut quotas: Vec<Quota> = quotas_of(of_account, Chain::Account).collect();
            let key_from = quotas.len();
            quotas.extend(quotas_of(of_key, Chain::Key));
            if quotas.len() > MAX_PLAN {
                builder.error(place(), Problem::TooManyQuotas(quotas.len(), tier.to_owned()));
            }
            let pools = quotas.iter().filter(|quota| quota.pool.is_some()).count();
            if pools > MAX_POOLS {
                builder.error(place(), Problem::TooManyPools(pools, tier.to_owned()));
            }
            self.of_rules.insert((of_account, of_key), self.distinct.len());
            self.distinct.push(Plan { quotas, key_from });
            self.distinct.len() - 1
        });
        self.table.push(at);
        at
    }
}

/// An empty rule speaks for both chains: it says that neither limits.
fn speaks_for(rule: &[Quota], chain: Chain) -> bool {
    rule.is_empty() || rule.iter().any(|quota| quota.scope.chain() == chain)
}
