//! From the file's types to the core's draft. The shapes are the same, so that places are too.

use std::ops::RangeInclusive;

use indexmap::IndexMap;
use tollgate_core::{claim::OnFailure, window::CalendarUnit};

use super::format;
use crate::policy::draft::{
    AbuseDraft, AbuseRuleDraft, Counter, DefaultScopes, Draft, EstimatesDraft, InputDraft, OverrideDraft, QuotaDraft,
    ResourceDraft, RuleDraft, TierDraft, WindowDraft,
};

/// The draft of a file.
pub(crate) fn of(file: format::PolicyFile) -> Draft {
    let default = DefaultScopes::default();
    let of_quotas = file.scopes.quotas.map(|scope| words(scope.0));
    let mut draft = Draft {
        domain: file.domain.0,
        units: words(file.units),
        scopes: DefaultScopes {
            account: file.scopes.account.map_or(default.account, |scope| words(scope.0)),
            key: file.scopes.key.map_or(default.key, |scope| words(scope.0)),
        },
        class_estimates: file.classes.iter().map(|(name, class)| (name.clone(), estimates(&class.estimates))).collect(),
        estimates: estimates(&file.estimates),
        classes: each(file.classes, |class| rule(class.quotas)),
        provider_classes: each(file.provider_classes, |class| rule(class.quotas)),
        resources: each(file.resources, resource),
        unknown_resources: match file.unknown_resources {
            format::UnknownResources::Refuse(_) => None,
            format::UnknownResources::Are(known) => Some(resource(known)),
        },
        tiers: each(file.tiers, tier),
        default_tier: file.default_tier.0,
        shadow: file.shadow,
        on_failure: on_failure(file.on_failure),
        abuse: AbuseDraft {
            rules: each(file.abuse.rules, abuse_rule),
            authentication: file.abuse.authentication.map(authentication_rule),
        },
    };
    if let Some(scope) = of_quotas {
        for quota in quotas_of(&mut draft) {
            quota.scope.get_or_insert_with(|| scope.clone());
        }
    }
    draft
}

/// Every quota of every rule.
fn quotas_of(draft: &mut Draft) -> impl Iterator<Item = &mut QuotaDraft> {
    let resources = draft.resources.values_mut().chain(&mut draft.unknown_resources);
    let of_resources = resources.map(|resource| &mut resource.quotas);
    let of_tiers = draft.tiers.values_mut().flat_map(|tier| {
        let TierDraft { quotas, resources, classes, provider_classes, .. } = tier;
        let rules = resources.values_mut().chain(classes.values_mut()).chain(provider_classes.values_mut());
        rules.chain(std::iter::once(quotas))
    });
    let of_classes = draft.classes.values_mut().chain(draft.provider_classes.values_mut());
    of_classes.chain(of_resources).chain(of_tiers).flatten().flatten()
}

/// The draft of an override.
pub(crate) fn of_override(over: &format::Override) -> OverrideDraft {
    let over = over.clone();
    OverrideDraft {
        resource: over.resource.map(|name| name.0),
        unit: over.unit.0,
        per: window(over.per),
        limit: limit(over.limit),
        scope: over.scope.map(|scope| words(scope.0)),
    }
}

fn tier(tier: format::Tier) -> TierDraft {
    let of = |rules| each(rules, |of: format::Rule| rule(Some(of.quotas)));
    TierDraft {
        is_charged: tier.is_charged,
        priority: tier.priority.map(|priority| priority.0),
        quotas: rule(tier.quotas),
        resources: of(tier.resources),
        classes: of(tier.classes),
        provider_classes: of(tier.provider_classes),
    }
}

fn resource(resource: format::Resource) -> ResourceDraft {
    ResourceDraft {
        class: resource.class.map(|name| name.0),
        provider_class: resource.provider_class.map(|name| name.0),
        quotas: rule(resource.quotas),
        counter: match resource.counter {
            format::Counter::Shared => Counter::Shared,
            format::Counter::Each => Counter::Each,
        },
        estimates: estimates(&resource.estimates),
    }
}

fn estimates(of: &format::estimates::Estimates) -> EstimatesDraft {
    let input = |input: &format::estimates::Input| InputDraft {
        input: input.input.0.clone(),
        default: input.default,
        at_most: input.at_most,
    };
    of.0.iter().map(|(unit, inputs)| (unit.clone(), inputs.iter().map(input).collect())).collect()
}

fn rule(quotas: Option<format::Quotas>) -> RuleDraft {
    quotas.map(|quotas| quotas.0.into_iter().map(quota).collect())
}

fn quota(quota: format::Quota) -> QuotaDraft {
    QuotaDraft {
        unit: quota.unit.0,
        per: window(quota.per),
        limit: limit(quota.limit),
        scope: quota.scope.map(|scope| words(scope.0)),
        name: quota.name.map(|name| name.0),
        label: quota.label.map(|label| label.0),
        shadow: quota.shadow,
        on_failure: quota.on_failure.map(on_failure),
        pool: quota.pool.map(|pool| pool.shares.map(|share| share.0)),
    }
}

fn on_failure(on_failure: format::OnFailure) -> OnFailure {
    match on_failure {
        format::OnFailure::Deny => OnFailure::Deny,
        format::OnFailure::Allow => OnFailure::Allow,
        format::OnFailure::Local => OnFailure::Local,
    }
}

fn abuse_rule(rule: format::abuse::AbuseRule) -> AbuseRuleDraft {
    AbuseRuleDraft {
        statuses: rule.statuses.iter().map(statuses).collect(),
        counts_refusals: rule.count_refusals,
        limit: rule.limit.0,
        per_ms: length_ms(&rule.per.0),
        block_ms: length_ms(&rule.block.0),
        scope: rule.scope.map(|scope| words(scope.0)),
        message: rule.message.map(|message| message.0),
    }
}

fn authentication_rule(rule: format::abuse::AuthenticationRule) -> AbuseRuleDraft {
    AbuseRuleDraft {
        statuses: Vec::new(),
        counts_refusals: false,
        limit: rule.limit.0,
        per_ms: length_ms(&rule.per.0),
        block_ms: length_ms(&rule.block.0),
        scope: None,
        message: rule.message.map(|message| message.0),
    }
}

/// The statuses of a text that the schema let through; none, which is a mistake, for any other.
fn statuses(status: &format::abuse::Status) -> RangeInclusive<u16> {
    let text = match status {
        format::abuse::Status::One(status) => return *status..=*status,
        format::abuse::Status::Text(text) => &text.0,
    };
    let number = |text: &str| text.parse().unwrap_or(0);
    match (text.strip_suffix("xx"), text.split_once('-')) {
        (Some(hundred), _) => number(hundred) * 100..=number(hundred) * 100 + 99,
        (_, Some((first, last))) => number(first)..=number(last),
        _ => number(text)..=number(text),
    }
}

fn limit(limit: format::Limit) -> Option<u64> {
    match limit {
        format::Limit::Finite(limit) => Some(limit),
        format::Limit::Unlimited(_) => None,
    }
}

fn window(per: Option<format::Per>) -> WindowDraft {
    let Some(per) = per else { return WindowDraft::Concurrent };
    match per {
        format::Per::Trailing(length) => WindowDraft::Sliding { ms: length_ms(&length.0) },
        format::Per::Calendar(calendar) => WindowDraft::Calendar {
            unit: match calendar.calendar {
                format::CalendarUnit::Second => CalendarUnit::Second,
                format::CalendarUnit::Minute => CalendarUnit::Minute,
                format::CalendarUnit::Hour => CalendarUnit::Hour,
                format::CalendarUnit::Day => CalendarUnit::Day,
                format::CalendarUnit::Week => CalendarUnit::Week,
                format::CalendarUnit::Month => CalendarUnit::Month,
            },
            zone: calendar.zone.map_or_else(|| "UTC".to_owned(), |zone| zone.0),
        },
    }
}

/// The length of a text that the schema let through; 0, which no window has, for any other.
pub(crate) fn length_ms(text: &str) -> u64 {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (count, unit) = text.split_at(at);
    let unit_ms = match unit {
        "ms" => 1,
        "s" | "second" => 1_000,
        "m" | "minute" => 60_000,
        "h" | "hour" => 3_600_000,
        "d" | "day" => 86_400_000,
        "w" | "week" => 604_800_000,
        _ => 0,
    };
    let count = if count.is_empty() { Ok(1) } else { count.parse::<u64>() };
    count.map_or(0, |count| count.saturating_mul(unit_ms))
}

fn each<T, U>(map: IndexMap<String, T>, change: impl Fn(T) -> U) -> IndexMap<String, U> {
    map.into_iter().map(|(name, value)| (name, change(value))).collect()
}

fn words(words: Vec<format::Word>) -> Vec<String> {
    words.into_iter().map(|word| word.0).collect()
}
