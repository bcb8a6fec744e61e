//! Rules: the lists of quotas in a policy file, and their order of precedence for a call.

use std::collections::HashMap;

use crate::policy::{Place, Quota, QuotaLevel, Resource, pattern::Pattern};

/// The index of a rule in [`RuleBook::rules`].
pub(super) type RuleId = usize;

/// A list of quotas in the file.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) place: Place,
    pub(super) quotas: Vec<Quota>,
}

/// The lists of a tier, a class or a resource.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RuleSource {
    /// Its `quotas`, of which the first that applies wins.
    pub(super) rule: Option<RuleId>,
    /// Its `also`, which applies in addition to the winner.
    pub(super) also: Option<RuleId>,
}

/// The rules of classes, by name.
pub(super) type ClassRules = HashMap<String, RuleSource>;

/// The rules of a resource.
#[derive(Debug)]
pub(super) struct ResourceRules {
    /// `None` if the name is not a valid pattern, which is reported separately.
    pub(super) pattern: Option<Pattern>,
    pub(super) source: RuleSource,
    pub(super) place: Place,
}

/// The rules of one tier.
#[derive(Debug)]
pub(super) struct TierRules {
    /// The tier's default, and the quotas that apply to all its calls.
    pub(super) source: RuleSource,
    /// The most specific first.
    pub(super) resources: Vec<(Pattern, RuleId)>,
    pub(super) classes: HashMap<String, RuleId>,
    pub(super) provider_classes: HashMap<String, RuleId>,
}

/// Every rule of a policy.
#[derive(Debug, Default)]
pub(super) struct RuleBook {
    pub(super) rules: Vec<Rule>,
    /// In the order of the policy's tiers.
    pub(super) tiers: Vec<TierRules>,
    /// In the order of the policy's resources.
    pub(super) resources: Vec<ResourceRules>,
    pub(super) classes: ClassRules,
    pub(super) provider_classes: ClassRules,
}

impl RuleBook {
    /// The rules that could win for a resource in a tier, in the order of resolution.
    pub(super) fn candidates(&self, tier: usize, resource: usize, known: &Resource) -> Vec<RuleId> {
        let (tier, resource) = (&self.tiers[tier], &self.resources[resource]);
        let pattern = resource.pattern.as_ref();
        let of_tier = tier.resources.iter().filter(|(rule, _)| pattern.is_some_and(|pattern| rule.covers(pattern)));
        let class = known.class.as_deref();
        let provider = known.provider_class.as_deref();
        let of_provider = source(&self.provider_classes, provider);
        let of_class = source(&self.classes, class);
        let others = [
            provider.and_then(|name| tier.provider_classes.get(name).copied()),
            class.and_then(|name| tier.classes.get(name).copied()),
            resource.source.rule,
            of_provider.rule,
            of_class.rule,
            tier.source.rule,
        ];
        of_tier.map(|(_, rule)| *rule).chain(others.into_iter().flatten()).collect()
    }

    /// The rules that apply to a resource in a tier in addition to the winner.
    pub(super) fn additions(&self, tier: usize, resource: usize, known: &Resource) -> Vec<RuleId> {
        let of_provider = source(&self.provider_classes, known.provider_class.as_deref());
        let of_class = source(&self.classes, known.class.as_deref());
        let all = [self.tiers[tier].source.also, self.resources[resource].source.also, of_provider.also, of_class.also];
        all.into_iter().flatten().collect()
    }

    /// The rule that decides the quotas of a level: the first of `candidates` that applies to it.
    pub(super) fn winner(&self, candidates: &[RuleId], level: QuotaLevel) -> Option<RuleId> {
        candidates.iter().copied().find(|rule| self.rules[*rule].decides(level))
    }
}

fn source(rules: &ClassRules, name: Option<&str>) -> RuleSource {
    name.and_then(|name| rules.get(name).copied()).unwrap_or_default()
}

impl Rule {
    /// Whether it decides the quotas of a level. An empty rule decides both levels: neither is limited.
    pub(super) fn decides(&self, level: QuotaLevel) -> bool {
        self.quotas.is_empty() || self.of_level(level).next().is_some()
    }

    /// Its quotas of a level.
    pub(super) fn of_level(&self, level: QuotaLevel) -> impl Iterator<Item = &Quota> {
        self.quotas.iter().filter(move |quota| quota.scope.level() == level)
    }
}
