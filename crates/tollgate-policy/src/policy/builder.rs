//! The parts of a draft, checked one by one.

use std::{collections::HashMap, sync::Arc};

use indexmap::IndexMap;
use tollgate_core::{
    amount::{Amount, Limit},
    claim::OnFailure,
    reservation::MAX_SLOTS,
    window::{CalendarWindow, SlidingWindow, Window},
};

use crate::policy::{
    Chain, CompileError, Place, Policy, Problem, Quota, Resource, Scope, Scopes, Unit,
    draft::{DefaultScopes, Draft, QuotaDraft, ResourceDraft, RuleDraft, TierDraft, WindowDraft},
    pattern::Pattern,
    plan::{CompiledResource, RuleId, TierRules},
    pool::Pool,
    quota::{CONCURRENT_REQUESTS, REQUESTS, default_label, default_name},
};

/// The name that all unknown resources share, where the policy lets them in.
const UNKNOWN: &str = "*";

/// What is known so far, and what is wrong with it.
#[derive(Debug)]
pub(super) struct Builder {
    pub(super) errors: Vec<CompileError>,
    pub(super) units: Vec<Unit>,
    pub(super) scopes: Scopes,
    pub(super) rules: Vec<Vec<Quota>>,
    /// Whether every quota is a shadow.
    pub(super) shadow: bool,
    /// What quotas that do not say it do while the store cannot answer.
    on_failure: OnFailure,
    /// Each once, as a calendar remembers the current period.
    calendars: Vec<Arc<CalendarWindow>>,
}

impl Builder {
    /// The units and default scopes of a draft.
    pub(super) fn new(draft: &Draft) -> Self {
        let mut errors = Vec::new();
        let units = units(&draft.units, &mut errors);
        let scopes = default_scopes(&draft.scopes, &mut errors);
        Self {
            errors,
            units,
            scopes,
            rules: Vec::new(),
            shadow: draft.shadow,
            on_failure: draft.on_failure,
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
            rules: Vec::new(),
            shadow: policy.shadow,
            on_failure: policy.on_failure,
            calendars: Vec::new(),
        }
    }

    pub(super) fn error(&mut self, place: Place, problem: impl Into<Problem>) {
        self.errors.push(CompileError { place, problem: problem.into() });
    }

    /// The value, or nothing and its error noted.
    pub(super) fn checked<T>(&mut self, result: Result<T, impl Into<Problem>>, place: Place) -> Option<T> {
        result.map_err(|problem| self.error(place, problem)).ok()
    }

    pub(super) fn rules(&mut self, drafts: &IndexMap<String, RuleDraft>, place: &Place) -> HashMap<String, RuleId> {
        let rules = drafts.iter();
        rules
            .filter_map(|(name, draft)| {
                let rule = self.rule(draft, &place.at(&**name))?;
                Some((name.clone(), rule))
            })
            .collect()
    }

    fn rule(&mut self, draft: &RuleDraft, place: &Place) -> Option<RuleId> {
        let drafts = draft.as_ref()?;
        let place = place.at("quotas");
        let mut quotas: Vec<(usize, Quota)> = Vec::with_capacity(drafts.len());
        for (at, draft) in drafts.iter().enumerate() {
            let Some(quota) = self.quota(draft, Chain::Account, &place.at(at)) else { continue };
            let same = |before: &Quota| before.same_counter(&quota) && before.shadow == quota.shadow;
            match quotas.iter().find(|(_, before)| same(before)) {
                Some((first, _)) => self.error(place.at(at), Problem::SameCounter(*first)),
                None => quotas.push((at, quota)),
            }
        }
        self.rules.push(quotas.into_iter().map(|(_, quota)| quota).collect());
        Some(self.rules.len() - 1)
    }

    pub(super) fn quota(&mut self, draft: &QuotaDraft, chain: Chain, place: &Place) -> Option<Quota> {
        let concurrent = draft.unit == CONCURRENT_REQUESTS;
        let known = || self.units.iter().find(|unit| *unit.name == draft.unit).cloned();
        let unit = if concurrent { Some(Unit::named(CONCURRENT_REQUESTS)) } else { known() };
        if unit.is_none() {
            let known: Vec<String> = self.units.iter().map(|unit| unit.name.to_string()).collect();
            self.unknown("unit", &draft.unit, &known, place.at("unit"));
        }
        let window = self.window(&draft.per, &place.at("per"));
        match (&window, concurrent) {
            (Some(Window::Concurrent), false) => self.error(place.at("per"), Problem::NoWindow),
            (Some(Window::Sliding(_) | Window::Calendar(_)), true) => {
                self.error(place.at("per"), Problem::ConcurrentWindow);
            }
            _ => {}
        }
        if concurrent && draft.limit.is_none_or(|limit| limit > u64::from(MAX_SLOTS)) {
            self.error(place.at("limit"), Problem::TooManySlots);
        }
        let limit = match draft.limit {
            Some(limit) => self.checked(Amount::try_from(limit), place.at("limit")).map(Limit::Finite),
            None => Some(Limit::Unlimited),
        };
        let scope = self.scope(draft.scope.as_deref(), chain, place);
        let pool = draft.pool.map(|shares| Pool { shares });
        let (unit, window, limit, scope) = (unit?, window?, limit?, scope?);
        if let Some(problem) = pool.and_then(|pool| pool.problem_in(&scope, &window)) {
            self.error(place.at("pool"), problem);
        }
        let given = |text: &Option<String>| text.as_deref().map(Arc::from);
        let name = given(&draft.name).unwrap_or_else(|| default_name(&unit, &window).into());
        let label = given(&draft.label).unwrap_or_else(|| default_label(&unit, &window).into());
        Some(Quota {
            name,
            label,
            unit,
            window,
            limit,
            scope,
            shadow: draft.shadow || self.shadow,
            on_failure: draft.on_failure.unwrap_or(self.on_failure),
            pool,
        })
    }

    fn window(&mut self, draft: &WindowDraft, place: &Place) -> Option<Window> {
        match draft {
            WindowDraft::Concurrent => Some(Window::Concurrent),
            WindowDraft::Sliding { ms } => {
                self.checked(SlidingWindow::from_ms(*ms), place.clone()).map(Window::Sliding)
            }
            WindowDraft::Calendar { unit, zone } => {
                let window = self.checked(CalendarWindow::new(*unit, zone), place.at("zone"))?;
                let same = |known: &&Arc<CalendarWindow>| known.unit() == *unit && known.zone() == window.zone();
                if let Some(known) = self.calendars.iter().find(same) {
                    return Some(Window::Calendar(known.clone()));
                }
                let window = Arc::new(window);
                self.calendars.push(window.clone());
                Some(Window::Calendar(window))
            }
        }
    }

    pub(super) fn scope(&mut self, names: Option<&[String]>, chain: Chain, place: &Place) -> Option<Arc<Scope>> {
        let Some(names) = names else {
            return Some(match chain {
                Chain::Account => self.scopes.account.clone(),
                Chain::Key => self.scopes.key.clone(),
            });
        };
        let scope = self.checked(Scope::parse(names), place.at("scope"))?;
        if let Some(known) = self.scopes.known.iter().find(|known| ***known == scope) {
            return Some(known.clone());
        }
        let scope = Arc::new(scope);
        self.scopes.known.push(scope.clone());
        Some(scope)
    }

    pub(super) fn pattern(&mut self, text: &str, place: Place) -> Option<Pattern> {
        self.checked(Pattern::parse(text), place)
    }

    /// Every resource, and at the end what unknown names are.
    pub(super) fn resources(&mut self, draft: &Draft) -> Vec<CompiledResource> {
        let place = Place::root().at("resources");
        let listed = draft.resources.iter();
        let mut resources: Vec<CompiledResource> =
            listed.map(|(name, resource)| self.resource(name, resource, draft, place.at(&**name))).collect();
        if let Some(unknown) = &draft.unknown_resources {
            let place = Place::root().at("unknown_resources");
            resources.push(self.resource(UNKNOWN, unknown, draft, place));
        }
        resources
    }

    fn resource(&mut self, name: &str, resource: &ResourceDraft, draft: &Draft, place: Place) -> CompiledResource {
        let ResourceDraft { class, provider_class, quotas, counter, estimates } = resource;
        let before = self.errors.len();
        if let Some(class) = class.as_ref().filter(|class| !draft.classes.contains_key(*class)) {
            self.unknown("class", class, draft.classes.keys(), place.at("class"));
        }
        if let Some(class) = provider_class.as_ref().filter(|class| !draft.provider_classes.contains_key(*class)) {
            self.unknown("provider class", class, draft.provider_classes.keys(), place.at("provider_class"));
        }
        let pattern = self.pattern(name, place.clone());
        let mut rule = self.rule(quotas, &place);
        if rule.is_none() && self.errors.len() > before {
            // A class that does not exist is one mistake; that it gives no quotas is not another.
            self.rules.push(Vec::new());
            rule = Some(self.rules.len() - 1);
        }
        let arc = |text: &Option<String>| text.as_deref().map(Arc::from);
        let estimates = self.estimates(estimates, &place.at("estimates"));
        let known = Resource {
            name: name.into(),
            class: arc(class),
            provider_class: arc(provider_class),
            counter: *counter,
            estimates,
        };
        CompiledResource { known, pattern, rule, place }
    }

    pub(super) fn tier(
        &mut self,
        tier: &TierDraft,
        draft: &Draft,
        resources: &[CompiledResource],
        place: &Place,
    ) -> TierRules {
        if tier.priority.is_some_and(|priority| !(1..=4).contains(&priority)) {
            self.error(place.at("priority"), Problem::Priority);
        }
        let of_resources = place.at("resources");
        let mut rules: Vec<(Pattern, RuleId)> = Vec::new();
        for (text, rule) in &tier.resources {
            let place = of_resources.at(&**text);
            let rule = self.rule(rule, &place);
            let Some(pattern) = self.pattern(text, place.clone()) else { continue };
            if !resources.iter().filter_map(|known| known.pattern.as_ref()).any(|known| pattern.covers(known)) {
                self.error(place, Problem::CoversNothing(text.clone()));
            }
            rules.extend(rule.map(|rule| (pattern, rule)));
        }
        rules.sort_by_key(|(pattern, _)| std::cmp::Reverse(pattern.specificity()));
        for class in tier.classes.keys().filter(|class| !draft.classes.contains_key(*class)) {
            self.unknown("class", class, draft.classes.keys(), place.at("classes").at(&**class));
        }
        for class in tier.provider_classes.keys().filter(|class| !draft.provider_classes.contains_key(*class)) {
            let place = place.at("provider_classes").at(&**class);
            self.unknown("provider class", class, draft.provider_classes.keys(), place);
        }
        TierRules {
            default: self.rule(&tier.quotas, place),
            resources: rules,
            classes: self.rules(&tier.classes, &place.at("classes")),
            provider_classes: self.rules(&tier.provider_classes, &place.at("provider_classes")),
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
        if names.len() > 12 {
            names.truncate(12);
            names.push("…");
        }
        let known = if names.is_empty() { "none yet".to_owned() } else { names.join(", ") };
        self.error(place, Problem::Unknown { what, name: name.to_owned(), known });
    }
}

fn units(names: &[String], errors: &mut Vec<CompileError>) -> Vec<Unit> {
    let mut units = vec![Unit::named(REQUESTS)];
    for (at, name) in names.iter().enumerate() {
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

fn default_scopes(draft: &DefaultScopes, errors: &mut Vec<CompileError>) -> Scopes {
    let place = Place::root().at("scopes");
    let mut default = |names: &[String], name: &str, chain: Chain| {
        let scope = Scope::parse(names).and_then(|scope| {
            let fits = scope.chain() == chain;
            if fits { Ok(scope) } else { Err(Problem::OtherChain { key: chain == Chain::Key }) }
        });
        match scope {
            Ok(scope) => Arc::new(scope),
            Err(problem) => {
                errors.push(CompileError { place: place.at(name), problem });
                Arc::new(Scope::of_chain(chain))
            }
        }
    };
    let account = default(&draft.account, "account", Chain::Account);
    let key = default(&draft.key, "key", Chain::Key);
    Scopes { known: vec![account.clone(), key.clone()], account, key }
}
