//! Estimates: the expected usage of a call, before the actual usage is known.

use std::sync::Arc;

use indexmap::IndexMap;
use tollgate_core::amount::{Amount, Limit, UnitId};

use crate::{
    format,
    policy::{Place, Problem, ResolvedQuotas, Resource, Usage, builder::Builder},
};

/// The most inputs that one estimate adds up.
const MAX_INPUTS: usize = 8;

/// The amount of a unit that a reservation charges if the call does not name the unit: the sum of its inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// The unit.
    pub unit: UnitId,
    inputs: Vec<Input>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Input {
    name: Arc<str>,
    default: u64,
    at_most: u64,
}

impl Estimate {
    fn of(&self, given: &impl Fn(&str) -> Option<u64>) -> u64 {
        let amount = |input: &Input| given(&input.name).unwrap_or(input.default).min(input.at_most);
        self.inputs.iter().map(amount).fold(0, u64::saturating_add)
    }
}

impl ResolvedQuotas<'_> {
    /// The usage of a reservation: the usage that the call names, and for other units the estimate of the policy from
    /// the call's `inputs`. An estimate is at most the smallest limit that applies, so no call is refused permanently
    /// because of an estimate.
    #[must_use]
    pub fn estimated(&self, mut usage: Usage, inputs: impl Fn(&str) -> Option<u64>) -> Usage {
        for estimate in self.estimates() {
            if usage.names(estimate.unit) {
                continue;
            }
            let limits = self.quotas().iter().filter(|active| active.quota.unit.id == estimate.unit);
            let smallest = limits.filter_map(|active| match active.limit {
                Limit::Finite(limit) => Some(limit.get()),
                Limit::Unlimited => None,
            });
            // With a limit of 0 no call is admitted, so that the estimate makes no difference.
            let maximum = smallest.min().unwrap_or(Amount::MAX.get()).max(1);
            let amount = Amount::try_from(estimate.of(&inputs).min(maximum)).unwrap_or(Amount::MAX);
            usage.set(estimate.unit, amount);
        }
        usage
    }
}

/// The names of all inputs, sorted.
pub(super) fn inputs_of<'a>(resources: impl IntoIterator<Item = &'a Resource>) -> Vec<Arc<str>> {
    let estimates = resources.into_iter().flat_map(|resource| &resource.estimates);
    let mut names: Vec<Arc<str>> = estimates.flat_map(|of| of.inputs.iter().map(|input| input.name.clone())).collect();
    names.sort_unstable();
    names.dedup();
    names
}

impl Builder {
    /// The estimates of classes, by name.
    pub(super) fn class_estimates(
        &mut self,
        classes: &IndexMap<String, format::Class>,
        place: &Place,
    ) -> ClassEstimates {
        let classes = classes.iter();
        let estimates = |(name, class): (&String, &format::Class)| {
            (name.clone(), self.estimates(&class.estimates, &place.at(&**name).at("estimates")))
        };
        classes.map(estimates).collect()
    }

    /// The estimates that are written at `place`.
    pub(super) fn estimates(&mut self, written: &format::estimates::Estimates, place: &Place) -> Vec<Estimate> {
        let mut estimates = Vec::with_capacity(written.0.len());
        for (name, inputs) in &written.0 {
            let place = place.at(&**name);
            let Some(unit) = self.units.iter().find(|unit| *unit.name == **name).cloned() else {
                let known: Vec<String> = self.units.iter().map(|unit| unit.name.to_string()).collect();
                self.unknown("unit", name, &known, place);
                continue;
            };
            if inputs.is_empty() || inputs.len() > MAX_INPUTS {
                self.error(place.clone(), Problem::Inputs(MAX_INPUTS));
            }
            for (at, input) in inputs.iter().enumerate() {
                let place = place.at(at);
                if inputs[..at].iter().any(|before| before.input == input.input) {
                    self.error(place.at("input"), Problem::RepeatedInput(input.input.0.clone()));
                }
                self.checked(Amount::try_from(input.default.0), place.at("default"));
                self.checked(Amount::try_from(input.at_most.unwrap_or_default().0), place.at("at_most"));
                if input.at_most.is_some_and(|most| input.default.0 > most.0) {
                    self.error(place.at("default"), Problem::DefaultAboveMost);
                }
            }
            let input = |input: &format::estimates::Input| Input {
                name: input.input.0.as_str().into(),
                default: input.default.0,
                at_most: input.at_most.map_or(u64::MAX, |most| most.0),
            };
            estimates.push(Estimate { unit: unit.id, inputs: inputs.iter().map(input).collect() });
        }
        estimates
    }

    /// Adds those of `from` whose unit has no estimate yet.
    pub(super) fn inherit(estimates: &mut Vec<Estimate>, from: &[Estimate]) {
        for estimate in from {
            if !estimates.iter().any(|known| known.unit == estimate.unit) {
                estimates.push(estimate.clone());
            }
        }
    }
}

/// The estimates of every class, or of every provider class, by name.
pub(super) type ClassEstimates = IndexMap<String, Vec<Estimate>>;
