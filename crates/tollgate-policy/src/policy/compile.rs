//! From a policy file to a policy, with every mistake at once.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{
    format::{Percentage, PolicyFile},
    policy::{
        CompileError, Place, Policy, Resource, Tier, TierId,
        builder::Builder,
        estimate::{ClassEstimates, inputs_of},
        footprint::LedgerFootprint,
        plan::Plans,
        reach,
        rules::{RuleBook, TierRules},
    },
};

/// A file, compiled.
#[derive(Debug)]
pub struct Compiled {
    /// The policy; a policy of the rest if there are errors, which must not decide calls.
    pub policy: Policy,
    /// Every mistake.
    pub errors: Vec<CompileError>,
    /// What is valid, but probably not intended: rules that no call ever reaches, and pools that tiers describe
    /// differently. Empty if there are errors, because they can hide these cases.
    pub warnings: Vec<CompileError>,
}

impl Policy {
    /// Checks and compiles a file. On failure the list holds every mistake that could be seen.
    pub fn compile(file: &PolicyFile) -> Result<Self, Vec<CompileError>> {
        let Compiled { policy, errors, .. } = Self::compile_in_part(file);
        if errors.is_empty() { Ok(policy) } else { Err(errors) }
    }

    /// Every mistake of a file, and a policy of the rest. If there is a mistake, the policy must not decide calls. It serves
    /// to check the other sections, which refer to its names, so that their mistakes are reported at the same time.
    pub fn compile_in_part(file: &PolicyFile) -> Compiled {
        let root = Place::root();
        let mut builder = Builder::new(file);
        let classes = builder.class_rules(&file.classes, &root.at("classes"));
        let provider_classes = builder.class_rules(&file.provider_classes, &root.at("provider_classes"));
        let (mut resources, of_resources) = builder.resources(file);
        let class_estimates = builder.class_estimates(&file.classes, &root.at("classes"));
        let provider_estimates = builder.class_estimates(&file.provider_classes, &root.at("provider_classes"));
        let estimates = builder.estimates(&file.estimates, &root.at("estimates"));
        for Resource { class, provider_class, estimates: own, .. } in &mut resources {
            let of = |estimates: &ClassEstimates, name: &Option<Arc<str>>| {
                name.as_deref().and_then(|name| estimates.get(name)).cloned().unwrap_or_default()
            };
            Builder::inherit(own, &of(&provider_estimates, provider_class));
            Builder::inherit(own, &of(&class_estimates, class));
            Builder::inherit(own, &estimates);
        }
        let tiers: Vec<TierRules> = file
            .tiers
            .iter()
            .map(|(name, tier)| builder.tier(tier, file, &of_resources, &root.at("tiers").at(&**name)))
            .collect();
        let default_tier = file.tiers.get_index_of(&file.default_tier.0);
        if default_tier.is_none() {
            builder.unknown("tier", &file.default_tier.0, file.tiers.keys(), root.at("default_tier"));
        }
        let mut plans = Plans::default();
        let mut footprint = LedgerFootprint::default();
        let mut counted = HashSet::new();
        let rules = std::mem::take(&mut builder.rules);
        let book = RuleBook { rules, tiers, resources: of_resources, classes, provider_classes };
        for (tier, name) in file.tiers.keys().enumerate() {
            for (at, resource) in resources.iter().enumerate() {
                let plan = plans.add(&mut builder, &book, (tier, name), (at, resource));
                if counted.insert((plan, at)) {
                    plans.distinct[plan].quotas.iter().for_each(|quota| footprint.add(quota, at));
                }
            }
        }
        let (abuse, authentication) = builder.abuse(&file.abuse, &root.at("abuse"));
        for rule in abuse.iter().chain(&authentication) {
            let each = if rule.scope.names_resource() { resources.len() } else { 1 };
            (0..each).for_each(|resource| footprint.add_rule(rule, resource));
        }
        for (resource, problem) in footprint.too_large() {
            let place = resource.map_or_else(|| root.at("tiers"), |at| book.resources[at].place.clone());
            builder.error(place, problem);
        }
        let Builder { errors, units, scopes, named_answers, .. } = builder;
        let warnings = if errors.is_empty() { reach::warnings(&book, &plans.reached) } else { Vec::new() };
        let inputs = inputs_of(&resources);
        let policy = Self {
            domain: file.domain.0.as_str().into(),
            units,
            tiers: tiers_of(file),
            default_tier: TierId(default_tier.unwrap_or_default()),
            resources,
            listed: file.resources.len(),
            exact: HashMap::new(),
            wildcards: HashMap::new(),
            prefix_lengths: Vec::new(),
            plans: plans.distinct,
            plan_of: plans.table,
            book,
            scopes,
            footprint,
            inputs,
            abuse,
            authentication,
            named_answers,
            retry_jitter_percent: file.retry_jitter.as_ref().map_or(0, Percentage::percent),
            shadow: file.shadow,
            on_failure: file.on_failure.into(),
        };
        Compiled { policy: policy.with_lookup(), errors, warnings }
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

fn tiers_of(file: &PolicyFile) -> Vec<Tier> {
    let tiers = file.tiers.iter().enumerate();
    tiers
        .map(|(at, (name, tier))| Tier {
            id: TierId(at),
            name: name.as_str().into(),
            is_charged: tier.is_charged,
            priority: tier.priority.map(|priority| priority.0),
        })
        .collect()
}
