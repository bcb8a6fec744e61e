//! Rules: where the quotas of a call can come from, and in which order.

use std::collections::HashMap;

use crate::policy::{Place, Quota, QuotaLevel, Resource, pattern::Pattern};

/// The index of a rule in the builder's list of rules.
pub(super) type RuleId = usize;

/// A resource, and its own rule.
pub(super) struct CompiledResource {
    pub(super) known: Resource,
    /// `None` where the name is no pattern, which is a mistake of its own.
    pub(super) pattern: Option<Pattern>,
    pub(super) rule: Option<RuleId>,
    pub(super) place: Place,
}

/// The rules of one tier.
pub(super) struct TierRules {
    pub(super) default: Option<RuleId>,
    /// The most specific first.
    pub(super) resources: Vec<(Pattern, RuleId)>,
    pub(super) classes: HashMap<String, RuleId>,
    pub(super) provider_classes: HashMap<String, RuleId>,
}

/// Every rule that could apply to one resource in one tier.
pub(super) struct Rules<'a> {
    pub(super) tier: &'a TierRules,
    pub(super) resource: &'a CompiledResource,
    pub(super) classes: &'a HashMap<String, RuleId>,
    pub(super) provider_classes: &'a HashMap<String, RuleId>,
}

impl Rules<'_> {
    /// The rules in the order of resolution.
    pub(super) fn in_order(&self) -> impl Iterator<Item = RuleId> {
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

/// Whether a rule decides the quotas of a chain. An empty rule decides both chains: neither is limited.
pub(super) fn applies_to(rule: &[Quota], chain: QuotaLevel) -> bool {
    rule.is_empty() || rule.iter().any(|quota| quota.scope.chain() == chain)
}
