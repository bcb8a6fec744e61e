//! From a draft to a policy, with every mistake at once.

use std::collections::{HashMap, HashSet};

use crate::policy::{
    CompileError, Place, Policy, Resource, Tier, TierId,
    builder::Builder,
    draft::Draft,
    estimate::{ClassEstimates, inputs_of},
    ledgers::Ledgers,
    plan::{Plans, Rules, TierRules},
};

impl Policy {
    /// Checks and compiles a draft. On failure the list holds every mistake that could be seen.
    pub fn compile(draft: &Draft) -> Result<Self, Vec<CompileError>> {
        let (policy, errors) = Self::compile_in_part(draft);
        if errors.is_empty() { Ok(policy) } else { Err(errors) }
    }

    /// Every mistake of a draft, and a policy of what is left without them. With a mistake it decides nothing as it was
    /// meant, and is only good to check what refers to its names, so that mistakes there are said in the same breath.
    pub fn compile_in_part(draft: &Draft) -> (Self, Vec<CompileError>) {
        let root = Place::root();
        let mut builder = Builder::new(draft);
        let classes = builder.rules(&draft.classes, &root.at("classes"));
        let provider_classes = builder.rules(&draft.provider_classes, &root.at("provider_classes"));
        let mut resources = builder.resources(draft);
        let class_estimates: ClassEstimates = draft
            .class_estimates
            .iter()
            .map(|(name, of)| (name.clone(), builder.estimates(of, &root.at("classes").at(&**name).at("estimates"))))
            .collect();
        let estimates = builder.estimates(&draft.estimates, &root.at("estimates"));
        for Resource { class, estimates: of, .. } in resources.iter_mut().map(|resource| &mut resource.known) {
            let of_class = class.as_deref().and_then(|class| class_estimates.get(class));
            Builder::inherit(of, of_class.map_or(&[], Vec::as_slice));
            Builder::inherit(of, &estimates);
        }
        let tiers: Vec<TierRules> = draft
            .tiers
            .iter()
            .map(|(name, tier)| builder.tier(tier, draft, &resources, &root.at("tiers").at(&**name)))
            .collect();
        let default_tier = draft.tiers.get_index_of(&draft.default_tier);
        if default_tier.is_none() {
            builder.unknown("tier", &draft.default_tier, draft.tiers.keys(), root.at("default_tier"));
        }
        let mut plans = Plans::default();
        let mut ledgers = Ledgers::default();
        let mut counted = HashSet::new();
        for ((name, _), tier) in draft.tiers.iter().zip(&tiers) {
            for (at, resource) in resources.iter().enumerate() {
                let rules = Rules { tier, resource, classes: &classes, provider_classes: &provider_classes };
                let plan = plans.add(&mut builder, &rules, name);
                if counted.insert((plan, at)) {
                    plans.distinct[plan].quotas.iter().for_each(|quota| ledgers.add(quota, at));
                }
            }
        }
        let (abuse, authentication) = builder.abuse(draft, &root.at("abuse"));
        for rule in abuse.iter().chain(&authentication) {
            let each = if rule.scope.names_resource() { resources.len() } else { 1 };
            (0..each).for_each(|resource| ledgers.add_rule(rule, resource));
        }
        for (resource, problem) in ledgers.too_large() {
            let place = resource.map_or_else(|| root.at("tiers"), |at| resources[at].place.clone());
            builder.error(place, problem);
        }
        let Builder { errors, units, scopes, .. } = builder;
        let resources: Vec<Resource> = resources.into_iter().map(|resource| resource.known).collect();
        let inputs = inputs_of(&resources);
        let policy = Self {
            domain: draft.domain.as_str().into(),
            units,
            tiers: tiers_of(draft),
            default_tier: TierId(default_tier.unwrap_or_default()),
            resources,
            listed: draft.resources.len(),
            exact: HashMap::new(),
            wildcards: HashMap::new(),
            prefix_lengths: Vec::new(),
            plans: plans.distinct,
            plan_of: plans.table,
            scopes,
            ledgers,
            inputs,
            abuse,
            authentication,
            shadow: draft.shadow,
            on_failure: draft.on_failure,
        };
        (policy.with_lookup(), errors)
    }

    fn with_lookup(mut self) -> Self {
        for (at, resource) in self.resources[..self.listed].iter().enumerate() {
            match resource.name.strip_suffix('*') {
                Some(prefix) => {
                    self.wildcards.insert(prefix.as_bytes().into(), at);
                    self.prefix_lengths.push(prefix.len());
                }
                None => {
                    self.exact.insert((&*resource.name).into(), at);
                }
            }
        }
        self.prefix_lengths.sort_unstable_by(|a, b| b.cmp(a));
        self.prefix_lengths.dedup();
        self
    }
}

fn tiers_of(draft: &Draft) -> Vec<Tier> {
    let tiers = draft.tiers.iter().enumerate();
    tiers
        .map(|(at, (name, tier))| Tier {
            id: TierId(at),
            name: name.as_str().into(),
            is_charged: tier.is_charged,
            priority: tier.priority,
        })
        .collect()
}
