//! The usage of a call, validated once at the edge.

use smallvec::SmallVec;
use tollgate_core::{
    amount::{Amount, AmountTooLarge, UnitId},
    text::is_hidden,
};

use crate::policy::{CONCURRENT_REQUESTS, Policy, Quota, ResolvedQuotas, quota::REQUESTS};

/// How much of each unit a call uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    amounts: SmallVec<[(UnitId, Amount); 4]>,
}

/// A usage that the policy does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// No such unit.
    #[error("usage.{unit}: there is no such unit; the units are: {known}")]
    UnknownUnit {
        /// The name, cut to 64 printable characters.
        unit: String,
        /// The units of the policy.
        known: String,
    },
    /// A unit named twice.
    #[error("usage.{0}: named twice")]
    Repeated(String),
    /// More than can be counted.
    #[error("usage.{0}: {AmountTooLarge}")]
    TooLarge(String),
}

impl UsageError {
    /// The field that is wrong, such as `usage.tokens`.
    pub fn field(&self) -> String {
        match self {
            Self::UnknownUnit { unit, .. } | Self::Repeated(unit) | Self::TooLarge(unit) => format!("usage.{unit}"),
        }
    }
}

impl Usage {
    /// No usage at all, for looking at counters.
    pub fn none() -> Self {
        Self { amounts: SmallVec::new() }
    }

    /// Adds the slot that a reservation takes.
    #[must_use]
    pub fn with_slot(mut self) -> Self {
        self.set(UnitId::of(CONCURRENT_REQUESTS), Amount::from(1));
        self
    }

    /// The usage, by unit.
    pub fn amounts(&self) -> &[(UnitId, Amount)] {
        &self.amounts
    }

    pub(super) fn set(&mut self, unit: UnitId, amount: Amount) {
        self.amounts.retain(|(have, _)| *have != unit);
        self.amounts.push((unit, amount));
    }

    /// Whether the call names `unit`, if only with an amount of 0.
    pub(super) fn names(&self, unit: UnitId) -> bool {
        self.amounts.iter().any(|(have, _)| *have == unit)
    }

    /// The amount of `unit`; zero if the call does not name it.
    pub fn of(&self, unit: UnitId) -> Amount {
        self.amounts.iter().find(|(have, _)| *have == unit).map_or(Amount::ZERO, |(_, amount)| *amount)
    }
}

impl ResolvedQuotas<'_> {
    /// The quotas whose unit `usage` leaves out. The call is not limited by them.
    pub fn quotas_left_out<'a>(&'a self, usage: &'a Usage) -> impl Iterator<Item = &'a Quota> {
        let quotas = self.quotas().iter().map(|active| active.quota);
        quotas.filter(|quota| !usage.names(quota.unit.id) && !quota.unit.is_in_every_usage())
    }

    /// The units of [`ResolvedQuotas::quotas_left_out`], each once.
    pub fn units_left_out(&self, usage: &Usage) -> SmallVec<[UnitId; 4]> {
        let mut units = SmallVec::new();
        for quota in self.quotas_left_out(usage) {
            if !units.contains(&quota.unit.id) {
                units.push(quota.unit.id);
            }
        }
        units
    }
}

impl Policy {
    /// The usage of these pairs of unit and amount. A call that does not name `requests` is one request. An amount of 0,
    /// which some upstreams report, charges nothing.
    pub fn usage<'a>(&self, pairs: impl IntoIterator<Item = (&'a str, u64)>) -> Result<Usage, UsageError> {
        let mut amounts: SmallVec<[(UnitId, Amount); 4]> = SmallVec::new();
        for (name, amount) in pairs {
            let Some(unit) = self.units.iter().find(|unit| &*unit.name == name) else {
                return Err(self.unknown_unit(name));
            };
            if amounts.iter().any(|(have, _)| *have == unit.id) {
                return Err(UsageError::Repeated(name.to_owned()));
            }
            let amount = Amount::try_from(amount).map_err(|_| UsageError::TooLarge(name.to_owned()))?;
            amounts.push((unit.id, amount));
        }
        let requests = UnitId::of(REQUESTS);
        let mut usage = Usage { amounts };
        if !usage.names(requests) {
            usage.set(requests, Amount::from(1));
        }
        Ok(usage)
    }

    fn unknown_unit(&self, name: &str) -> UsageError {
        let unit = name.chars().filter(|c| !is_hidden(*c)).take(64).collect();
        let known: Vec<&str> = self.units.iter().map(|unit| &*unit.name).collect();
        UsageError::UnknownUnit { unit, known: known.join(", ") }
    }
}
