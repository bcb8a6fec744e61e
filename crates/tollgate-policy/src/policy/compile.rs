//! From a policy file to a policy, with every mistake at once.

use std::collections::{HashMap, HashSet};

use crate::{
    format::PolicyFile,
    policy::{
        CompileError, Place, Policy, Resource, Tier, TierId,
        builder::Builder,
        estimate::{ClassEstimates, inputs_of},
        footprint::LedgerFootprint,
        plan::Plans,
        rules::{Rules, TierRules},
    },
};

impl Policy {
    /// Checks and compiles a file. On failure the list holds every mistake that could be seen.
    pub fn compile(file: &PolicyFile) -> Result<Self, Vec<CompileError>> {
        let (policy, errors) = Self::compile_in_part(file);
        if errors.is_empty() { Ok(policy) } else { Err(errors) }
    }

    /// Every mistake of a file, and a policy of the rest. If there is a mistake, the policy must not decide calls. It serves
    /// to check the other sections, which refer to its names, so that their mistakes are reported at the same time.
    pub fn compile_in_part(file: &PolicyFile) -> (Self, Vec<CompileError>) {
        let root = Place::root();
        let mut builder = Builder::new(file);
        let classes = builder.class_rules(&file.classes, &root.at("classes"));
        let provider_classes = builder.class_rules(&file.provider_classes, &root.at("provider_classes"));
        let mut resources = builder.resources(file);
        let class_estimates: ClassEstimates = file
            .classes
            .iter()
            .map(|(name, class)| {
                let place = root.at("classes").at(&**name).at("estimates");
                (name.clone(), builder.estimates(&class.estimates, &place))
            })
            .collect();
        let estimates = builder.estimates(&file.estimates, &root.at("estimates"));
        for Resource { class, estimates: of, .. } in resources.iter_mut().map(|resource| &mut resource.known) {
            let of_class = class.as_deref().and_then(|class| class_estimates.get(class));
            Builder::inherit(of, of_class.map_or(&[], Vec::as_slice));
            Builder::inherit(of, &estimates);
        }
        let tiers: Vec<TierRules> = file
            .tiers
            .iter()
            .map(|(name, tier)| builder.tier(tier, file, &resources, &root.at("tiers").at(&**name)))
            .collect();
        let default_tier = file.tiers.get_index_of(&file.default_tier.0);
        if default_tier.is_none() {
            builder.unknown("tier", &file.default_tier.0, file.tiers.keys(), root.at("default_tier"));
        }
        let mut plans = Plans::default();
        let mut footprint = LedgerFootprint::default();
        let mut counted = HashSet::new();
        for ((name, _), tier) in file.tiers.iter().zip(&tiers) {
            for (at, resource) in resources.iter().enumerate() {
                let rules = Rules { tier, resource, classes: &classes, provider_classes: &provider_classes };
                let plan = plans.add(&mut builder, &rules, name);
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
            let place = resource.map_or_else(|| root.at("tiers"), |at| resources[at].place.clone());
            builder.error(place, problem);
        }
        let Builder { errors, units, scopes, .. } = builder;
        let resources: Vec<Resource> = resources.into_iter().map(|resource| resource.known).collect();
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
            scopes,
            footprint,
            inputs,
            abuse,
            authentication,
            shadow: file.shadow,
            on_failure: file.on_failure.into(),
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
