//! Scopes: the attributes that name the counter of a quota.

use std::{fmt, sync::Arc};

use smallvec::SmallVec;
use tollgate_core::claim::{LedgerKey, Partition};

use crate::{format::Word, policy::error::Problem};

/// The attributes whose values name a counter, in their canonical order: account, key, resource,
/// then the others by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    attributes: SmallVec<[Attribute; 2]>,
}

/// An attribute of a call that names counters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attribute {
    /// The account.
    Account,
    /// The API key, which belongs to one account.
    ApiKey,
    /// The resource, by its canonical name.
    Resource,
    /// An attribute of the call, such as `ip`.
    Other(Arc<str>),
}

/// The level of a quota. For each level the winning rule is found separately, and the quotas of both apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuotaLevel {
    /// Quotas whose scope does not contain the API key.
    Account,
    /// Quotas whose scope contains the API key.
    Key,
}

impl Attribute {
    /// The attribute's name in a policy.
    pub fn name(&self) -> &str {
        match self {
            Self::Account => "account",
            Self::ApiKey => "api_key",
            Self::Resource => "resource",
            Self::Other(name) => name,
        }
    }

    fn named(name: &str) -> Self {
        match name {
            "account" => Self::Account,
            "api_key" => Self::ApiKey,
            "resource" => Self::Resource,
            other => Self::Other(other.into()),
        }
    }
}

impl Scope {
    /// The scope of these attributes. `account` together with `api_key` adds nothing, and is dropped.
    pub(super) fn parse(names: &[Word]) -> Result<Self, Problem> {
        let mut attributes: SmallVec<[Attribute; 2]> = names.iter().map(|name| Attribute::named(&name.0)).collect();
        attributes.sort_unstable();
        if let Some(pair) = attributes.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Problem::RepeatedAttribute(pair[0].name().to_owned()));
        }
        if attributes.is_empty() {
            return Err(Problem::EmptyScope);
        }
        if attributes.contains(&Attribute::ApiKey) {
            attributes.retain(|attribute| *attribute != Attribute::Account);
        }
        Ok(Self { attributes })
    }

    /// The smallest scope of a level: `[account]` or `[api_key]`.
    pub(super) fn of_level(level: QuotaLevel) -> Self {
        let attribute = match level {
            QuotaLevel::Account => Attribute::Account,
            QuotaLevel::Key => Attribute::ApiKey,
        };
        Self { attributes: SmallVec::from_iter([attribute]) }
    }

    /// The scope of quotas and overrides if the file gives none: `[account, resource]` or `[api_key, resource]`.
    pub(super) fn default_of(level: QuotaLevel) -> Self {
        let mut scope = Self::of_level(level);
        scope.attributes.push(Attribute::Resource);
        scope
    }

    /// The attributes, in their canonical order.
    pub fn attributes(&self) -> &[Attribute] {
        &self.attributes
    }

    /// The level of the quotas with this scope.
    pub fn level(&self) -> QuotaLevel {
        if self.attributes.contains(&Attribute::ApiKey) { QuotaLevel::Key } else { QuotaLevel::Account }
    }

    /// Whether the counters belong to one account, and are in its partition.
    pub fn within_account(&self) -> bool {
        matches!(self.attributes.first(), Some(Attribute::Account | Attribute::ApiKey))
    }

    pub(super) fn names_resource(&self) -> bool {
        self.attributes.contains(&Attribute::Resource)
    }

    /// The ledger of the scope. Only attributes and their values name it, so usage stays when a limit or a tier
    /// changes. `value` is called for every attribute except the account, which the partition contains. `is_open` says
    /// whether the caller chose the resource's name.
    pub(super) fn ledger<'v, E>(
        &self,
        domain: &str,
        account: Partition,
        is_open: bool,
        mut value: impl FnMut(&Attribute) -> Result<&'v str, E>,
    ) -> Result<LedgerKey, E> {
        let mut values: SmallVec<[&str; 4]> = SmallVec::new();
        for attribute in &self.attributes {
            values.push(if *attribute == Attribute::Account { "" } else { value(attribute)? });
        }
        let parts = || self.attributes.iter().zip(&values).flat_map(|(attribute, value)| [attribute.name(), *value]);
        if !self.within_account() {
            return Ok(LedgerKey::of(Partition::of([domain, "scope"].into_iter().chain(parts())), parts()));
        }
        let chosen = |attribute: &Attribute| match attribute {
            Attribute::Account | Attribute::ApiKey => false,
            Attribute::Resource => is_open,
            Attribute::Other(_) => true,
        };
        let is_caller_named = self.attributes.iter().any(chosen);
        Ok(if is_caller_named { LedgerKey::caller_named(account, parts()) } else { LedgerKey::of(account, parts()) })
    }
}

impl fmt::Display for Scope {
    /// `account, resource`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, attribute) in self.attributes.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{}", attribute.name())?;
        }
        Ok(())
    }
}
