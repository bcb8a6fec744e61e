//! The domains in which a caller may act.

use std::{collections::BTreeSet, sync::Arc};

/// The domains in which a caller may act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DomainScope {
    /// All domains.
    All,
    /// Some domains.
    Only(Arc<DomainSet>),
    /// The domain of the end user's own API key.
    SelfService,
}

/// The names of some domains.
#[derive(Debug, PartialEq, Eq)]
pub struct DomainSet {
    names: BTreeSet<Box<str>>,
    counter_name: Box<str>,
}

impl DomainScope {
    /// Only these domains.
    pub fn only(names: impl IntoIterator<Item = String>) -> Self {
        let names: BTreeSet<Box<str>> = names.into_iter().map(String::into_boxed_str).collect();
        // With the length of each name, so that no two sets have the same name.
        let counter_name = names.iter().fold("within ".to_owned(), |text, name| format!("{text}{}:{name}", name.len()));
        Self::Only(Arc::new(DomainSet { names, counter_name: counter_name.into() }))
    }

    /// The names of its domains; none for [`Self::All`] and [`Self::SelfService`].
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let names = match self {
            Self::Only(domains) => Some(&domains.names),
            Self::All | Self::SelfService => None,
        };
        names.into_iter().flatten().map(AsRef::as_ref)
    }

    /// Whether the caller may act in this domain.
    pub fn permits(&self, domain: &str) -> bool {
        match self {
            Self::All | Self::SelfService => true,
            Self::Only(domains) => domains.names.contains(domain),
        }
    }

    /// The name under which failures are counted if the domain is not known, so that they block no callers with other
    /// scopes. It contains a space, so no domain has this name.
    pub fn counter_name(&self) -> &str {
        match self {
            Self::All => "all domains",
            Self::Only(domains) => &domains.counter_name,
            Self::SelfService => "self service",
        }
    }
}
