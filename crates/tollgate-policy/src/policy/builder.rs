//! The parts of a policy file, checked one by one.

mod quota;

use std::{collections::HashMap, sync::Arc};

use indexmap::IndexMap;
use tollgate_core::{claim::OnFailure, window::CalendarWindow};

use crate::{
    format::{self, PolicyFile, Word},
    policy::{
        CompileError, Place, Policy, Problem, Quota, QuotaLevel, Resource, Scope, Scopes, Unit,
        error::closest,
        pattern::Pattern,
        quota::{CONCURRENT_REQUESTS, NamedAnswer, REQUESTS},
        rules::{ClassRules, ResourceRules, Rule, RuleId, RuleSource, TierRules},
    },
};

/// The name that all unknown resources share, where the policy admits them.
const UNKNOWN: &str = "*";

/// The parts compiled so far, and the mistakes found.
#[derive(Debug)]
pub(super) struct Builder {
    pub(super) errors: Vec<CompileError>,
    pub(super) units: Vec<Unit>,
    pub(super) scopes: Scopes,
    /// The scope of the rules' quotas that name none, if the file gives one.
    quota_scope: Option<format::Scope>,
    pub(super) rules: Vec<Rule>,
    /// The answers that quotas name.
    pub(super) named_answers: Vec<NamedAnswer>,
    /// Whether every quota is a shadow.
    pub(super) shadow: bool,
    /// The behaviour during an outage of the store, for quotas without their own.
    on_failure: OnFailure,
    /// Each calendar window once, because it caches its current period.
    calendars: Vec<Arc<CalendarWindow>>,
}

impl Builder {
    /// The units and default scopes of a file.
    pub(super) fn new(file: &PolicyFile) -> Self {
        let mut errors = Vec::new();
        let units = units(&file.units, &mut errors);
        let scopes = default_scopes(&file.scopes, &mut errors);
        Self {
            errors,
            units,
            scopes,
            quota_scope: file.scopes.quotas.clone(),
            rules: Vec::new(),
            named_answers: Vec::new(),
            shadow: file.shadow,
            on_failure: file.on_failure.into(),
            calendars: Vec::new(),
        }
    }

    /// The units and scopes of a policy, to check its overrides.
    pub(super) fn of(policy: &Policy) -> Self {
        let (units, scopes) = (policy.units.clone(), policy.scopes.clone());
        Self {
            errors: Vec::new(),
            units,
            scopes,
            quota_scope: None,
            rules: Vec::new(),
            named_answers: Vec::new(),
            shadow: policy.shadow,
            on_failure: policy.on_failure,
            calendars: Vec::new(),
        }
    }

    pub(super) fn error(&mut self, place: Place, problem: impl Into<Problem>) {
        self.errors.push(CompileError { place, problem: problem.into() });
    }

    /// Returns the value, or records the error and returns `None`.
    pub(super) fn checked<T>(&mut self, result: Result<T, impl Into<Problem>>, place: Place) -> Option<T> {
        result.map_err(|problem| self.error(place, problem)).ok()
    }

    /// Records an error once, even if several plans have it.
    pub(super) fn error_once(&mut self, place: Place, problem: Problem) {
        let error = CompileError { place, problem };
        if !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }

    /// The lists of a tier, a class or a resource at `place`.
    fn source(&mut self, quotas: Option<&format::Quotas>, also: Option<&format::Quotas>, place: &Place) -> RuleSource {
        let rule = quotas.map(|quotas| self.rule(quotas, place.at("quotas")));
        RuleSource { rule, also: also.map(|quotas| self.rule(quotas, place.at("also"))) }
    }

    /// The rules of classes, by name.
    pub(super) fn class_rules(&mut self, classes: &IndexMap<String, format::Class>, place: &Place) -> ClassRules {
        let classes = classes.iter();
        let source = |(name, class): (&String, &format::Class)| {
            (name.clone(), self.source(class.quotas.as_ref(), class.also.as_ref(), &place.at(&**name)))
        };
        classes.map(source).collect()
    }

    /// The rules that a tier has for classes, by name.
    fn tier_rules(&mut self, rules: &IndexMap<String, format::Rule>, place: &Place) -> HashMap<String, RuleId> {
        let rules = rules.iter();
        rules.map(|(name, rule)| (name.clone(), self.rule(&rule.quotas, place.at(&**name).at("quotas")))).collect()
    }

    fn rule(&mut self, written: &format::Quotas, place: Place) -> RuleId {
        let default_scope = self.quota_scope.clone();
        let mut quotas: Vec<(usize, Quota)> = Vec::with_capacity(written.0.len());
        for (at, quota) in written.0.iter().enumerate() {
            let scope = quota.counter.scope.as_ref().or(default_scope.as_ref());
            let Some(quota) = self.quota(quota, scope, &place.at(at)) else { continue };
            let same = |before: &Quota| before.same_counter(&quota) && before.shadow == quota.shadow;
            match quotas.iter().find(|(_, before)| same(before)) {
                Some((first, _)) => self.error(place.at(at), Problem::SameCounter(*first)),
                None => quotas.push((at, quota)),
            }
        }
        self.rules.push(Rule { place, quotas: quotas.into_iter().map(|(_, quota)| quota).collect() });
        self.rules.len() - 1
    }

    pub(super) fn pattern(&mut self, text: &str, place: Place) -> Option<Pattern> {
        self.checked(Pattern::parse(text), place)
    }

    /// Every resource, followed by the one for unknown names.
    pub(super) fn resources(&mut self, file: &PolicyFile) -> (Vec<Resource>, Vec<ResourceRules>) {
        let place = Place::root().at("resources");
        let listed = file.resources.iter();
        let mut resources: Vec<(Resource, ResourceRules)> =
            listed.map(|(name, resource)| self.resource(name, resource, file, place.at(&**name))).collect();
        if let Some(unknown) = file.unknown_resources.resource() {
            let place = Place::root().at("unknown_resources");
            resources.push(self.resource(UNKNOWN, unknown, file, place));
        }
        resources.into_iter().unzip()
    }

    fn resource(
        &mut self,
        name: &str,
        resource: &format::Resource,
        file: &PolicyFile,
        place: Place,
    ) -> (Resource, ResourceRules) {
        let format::Resource { class, provider_class, quotas, also, counter, estimates } = resource;
        let before = self.errors.len();
        if let Some(class) = class.as_ref().filter(|class| !file.classes.contains_key(&class.0)) {
            self.unknown("class", &class.0, file.classes.keys(), place.at("class"));
        }
        if let Some(class) = provider_class.as_ref().filter(|class| !file.provider_classes.contains_key(&class.0)) {
            self.unknown("provider class", &class.0, file.provider_classes.keys(), place.at("provider_class"));
        }
        let pattern = self.pattern(name, place.clone());
        let mut source = self.source(quotas.as_ref(), also.as_ref(), &place);
        if source.rule.is_none() && self.errors.len() > before {
            // A class that does not exist is one mistake. Its missing quotas are not reported as another.
            source.rule = Some(self.rule(&format::Quotas(Vec::new()), place.at("quotas")));
        }
        let arc = |name: &Option<format::Name>| name.as_ref().map(|name| name.0.as_str().into());
        let estimates = self.estimates(estimates, &place.at("estimates"));
        let known = Resource {
            name: name.into(),
            class: arc(class),
            provider_class: arc(provider_class),
            counter: *counter,
            estimates,
        };
        (known, ResourceRules { pattern, source, place })
    }

    pub(super) fn tier(
        &mut self,
        tier: &format::Tier,
        file: &PolicyFile,
        resources: &[ResourceRules],
        place: &Place,
    ) -> TierRules {
        if tier.priority.is_some_and(|priority| !(1..=4).contains(&priority.0)) {
            self.error(place.at("priority"), Problem::Priority);
        }
        let of_resources = place.at("resources");
        let mut rules: Vec<(Pattern, RuleId)> = Vec::new();
        for (text, rule) in &tier.resources {
            let place = of_resources.at(&**text);
            let rule = self.rule(&rule.quotas, place.at("quotas"));
            let Some(pattern) = self.pattern(text, place.clone()) else { continue };
            if !resources.iter().filter_map(|known| known.pattern.as_ref()).any(|known| pattern.covers(known)) {
                self.error(place, Problem::CoversNothing(text.clone()));
            }
            rules.push((pattern, rule));
        }
        rules.sort_by_key(|(pattern, _)| std::cmp::Reverse(pattern.specificity()));
        for class in tier.classes.keys().filter(|class| !file.classes.contains_key(*class)) {
            self.unknown("class", class, file.classes.keys(), place.at("classes").at(&**class));
        }
        for class in tier.provider_classes.keys().filter(|class| !file.provider_classes.contains_key(*class)) {
            let place = place.at("provider_classes").at(&**class);
            self.unknown("provider class", class, file.provider_classes.keys(), place);
        }
        TierRules {
            source: self.source(tier.quotas.as_ref(), tier.also.as_ref(), place),
            resources: rules,
            classes: self.tier_rules(&tier.classes, &place.at("classes")),
            provider_classes: self.tier_rules(&tier.provider_classes, &place.at("provider_classes")),
        }
    }

    pub(super) fn unknown<'a>(
        &mut self,
        what: &'static str,
        name: &str,
        known: impl IntoIterator<Item = &'a String>,
        place: Place,
    ) {
        let mut names: Vec<&str> = known.into_iter().map(String::as_str).collect();
        let closest = closest(name, &names).map(str::to_owned);
        if names.len() > 12 {
            names.truncate(12);
            names.push("…");
        }
        let known = if names.is_empty() { "none yet".to_owned() } else { names.join(", ") };
        self.error(place, Problem::Unknown { what, name: name.to_owned(), closest, known });
    }
}

fn units(names: &[Word], errors: &mut Vec<CompileError>) -> Vec<Unit> {
    let mut units = vec![Unit::named(REQUESTS)];
    for (at, Word(name)) in names.iter().enumerate() {
        let unit = Unit::named(name);
        match units.iter().find(|known| known.id == unit.id) {
            _ if name == CONCURRENT_REQUESTS => {
                let problem = Problem::BuiltInUnit(name.clone());
                errors.push(CompileError { place: Place::root().at("units").at(at), problem });
            }
            Some(known) if known.name == unit.name => {}
            Some(known) => {
                let problem = Problem::UnitClash(name.clone(), known.name.to_string());
                errors.push(CompileError { place: Place::root().at("units").at(at), problem });
            }
            None => units.push(unit),
        }
    }
    units
}

fn default_scopes(written: &format::DefaultScopes, errors: &mut Vec<CompileError>) -> Scopes {
    let place = Place::root().at("scopes");
    let mut scope = |written: Option<&format::Scope>, level: QuotaLevel, name: &str| {
        let Some(names) = written else { return Arc::new(Scope::default_of(level)) };
        let scope = Scope::parse(&names.0).and_then(|scope| {
            let fits = scope.level() == level;
            if fits { Ok(scope) } else { Err(Problem::OtherLevel { key: level == QuotaLevel::Key }) }
        });
        Arc::new(scope.unwrap_or_else(|problem| {
            errors.push(CompileError { place: place.at(name), problem });
            Scope::of_level(level)
        }))
    };
    let account = scope(written.account.as_ref(), QuotaLevel::Account, "account");
    let key = scope(written.key.as_ref(), QuotaLevel::Key, "key");
    Scopes { known: vec![account.clone(), key.clone()], account, key }
}
