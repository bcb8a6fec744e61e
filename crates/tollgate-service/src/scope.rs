//! Which domains a caller may act in.

use std::{collections::BTreeSet, sync::Arc};

/// Which domains a caller may act in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DomainScope {
    /// Every domain.
    All,
    /// These.
    Only(Arc<DomainSet>),
    /// That of the end user's own API key, whichever it is.
    SelfService,
}

/// Some domains, by name.
#[derive(Debug, PartialEq, Eq)]
pub struct DomainSet {
    names: BTreeSet<Box<str>>,
    counted_as: Box<str>,
}

impl DomainScope {
    /// Only these domains.
    pub fn only(names: impl IntoIterator<Item = String>) -> Self {
        let names: BTreeSet<Box<str>> = names.into_iter().map(String::into_boxed_str).collect();
        // Each name with its length, so that no two sets are written alike.
        let counted_as = names.iter().fold("within ".to_owned(), |text, name| format!("{text}{}:{name}", name.len()));
        Self::Only(Arc::new(DomainSet { names, counted_as: counted_as.into() }))
    }

    /// The names of its domains, if they are named.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let named = match self {
            Self::Only(domains) => Some(&domains.names),
            Self::All | Self::SelfService => None,
        };
        named.into_iter().flatten().map(AsRef::as_ref)
    }

    /// Whether the caller may act in this domain.
    pub fn permits(&self, domain: &str) -> bool {
        match self {
            Self::All | Self::SelfService => true,
            Self::Only(domains) => domains.names.contains(domain),
        }
    }

    /// The name under which failures are counted if no domain is known, so that they block no caller of other domains.
    /// It contains a space, so no domain has this name.
    pub fn counted_as(&self) -> &str {
        match self {
            Self::All => "all domains",
            Self::Only(domains) => &domains.counted_as,
            Self::SelfService => "self service",
        }
    }
}
