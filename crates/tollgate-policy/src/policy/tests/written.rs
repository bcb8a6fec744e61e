//! Policy files of the tests, built from the types of the format.

use indexmap::IndexMap;

use crate::format::{self, Length, Name, PolicyFile, Quotas, Word};

pub(super) const MINUTE: &str = "minute";
pub(super) const DAY: &str = "day";

pub(super) fn words(words: &[&str]) -> Vec<Word> {
    words.iter().map(|word| Word((*word).to_owned())).collect()
}

pub(super) fn scope(attributes: &[&str]) -> Option<format::Scope> {
    (!attributes.is_empty()).then(|| format::Scope(words(attributes)))
}

pub(super) fn name(name: &str) -> Name {
    Name(name.to_owned())
}

pub(super) fn trailing(length: &str) -> format::Window {
    format::Window::Trailing(Length(length.to_owned()))
}

pub(super) fn map<T>(entries: impl IntoIterator<Item = (&'static str, T)>) -> IndexMap<String, T> {
    entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

pub(super) fn quota(unit: &str, length: &str, limit: u64, attributes: &[&str]) -> format::Quota {
    format::Quota {
        counter: counter(unit, trailing(length), limit, attributes),
        name: None,
        label: None,
        shadow: false,
        visible: None,
        required: false,
        refused_as: None,
        on_failure: None,
        retry_after: None,
        pool: None,
    }
}

pub(super) fn counter(unit: &str, per: format::Window, limit: u64, attributes: &[&str]) -> format::CounterLimit {
    format::CounterLimit {
        unit: Word(unit.to_owned()),
        per: Some(per),
        limit: format::count::Limit::Finite(format::count::Count(limit)),
        scope: scope(attributes),
    }
}

pub(super) fn per_minute(limit: u64) -> format::Quota {
    quota("requests", MINUTE, limit, &[])
}

pub(super) fn per_key(limit: u64) -> format::Quota {
    quota("requests", MINUTE, limit, &["api_key", "resource"])
}

pub(super) fn over(resource: Option<&str>, length: &str, limit: u64, attributes: &[&str]) -> format::Override {
    format::Override {
        resource: resource.map(|name| format::ResourceName(name.to_owned())),
        counter: counter("requests", trailing(length), limit, attributes),
    }
}

/// The file of a policy of one tier, with these resources and the tier's default.
pub(super) fn file(
    resources: impl IntoIterator<Item = (&'static str, format::Resource)>,
    default: Option<Vec<format::Quota>>,
) -> PolicyFile {
    PolicyFile {
        domain: format::Domain("test".to_owned()),
        units: words(&["tokens"]),
        resources: map(resources),
        tiers: map([("paid", format::Tier { quotas: default.map(Quotas), ..format::Tier::default() })]),
        default_tier: name("paid"),
        ..PolicyFile::default()
    }
}

pub(super) fn with_rule(quotas: Option<Vec<format::Quota>>) -> format::Resource {
    format::Resource { quotas: quotas.map(Quotas), ..format::Resource::default() }
}
