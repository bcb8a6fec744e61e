//! Overrides: limits of one account or one key.

use crate::{
    format,
    policy::{CompileError, Place, Policy, Problem, Quota, QuotaLevel, builder::Builder, pattern::Pattern},
};

/// Maximum number of overrides of an account or a key.
pub const MAX_OVERRIDES: usize = 256;

/// Maximum number of counters that the overrides of an account, or of a key, can limit. They can add as many quotas to
/// a call.
const MAX_COUNTERS: usize = 8;

/// The limit of one counter, for one account or one key.
#[derive(Clone, Debug)]
pub struct Override {
    pattern: Option<Pattern>,
    scope_given: bool,
    /// The quota that is added if no quota can be changed.
    pub(super) quota: Quota,
}

impl Override {
    /// The level of the quotas that it changes. It never changes quotas of the other level.
    pub fn level(&self) -> QuotaLevel {
        self.quota.scope.level()
    }

    /// Whether it applies to the resource of this canonical name.
    pub(super) fn applies_to(&self, name: &str) -> bool {
        self.pattern.as_ref().is_none_or(|pattern| pattern.matches(name))
    }

    /// Whether it replaces the limit of `quota`. An override without a scope does not replace the limit of a counter
    /// that several accounts share.
    pub(super) fn patches(&self, quota: &Quota) -> bool {
        let in_scope = if self.scope_given { quota.scope == self.quota.scope } else { quota.scope.within_account() };
        in_scope && quota.same_measure(&self.quota)
    }

    fn specificity(&self) -> (Option<usize>, bool) {
        (self.pattern.as_ref().map(Pattern::specificity), self.scope_given)
    }
}

impl Policy {
    /// Checks the overrides of one account or key, which are written at `place`, and orders them for
    /// [`Policy::resolve`]. The level of an account's overrides is [`QuotaLevel::Account`].
    pub fn overrides(
        &self,
        written: &[format::Override],
        level: QuotaLevel,
        place: &Place,
    ) -> Result<Vec<Override>, Vec<CompileError>> {
        let mut builder = Builder::of(self);
        if written.len() > MAX_OVERRIDES {
            builder.error(place.clone(), Problem::TooManyOverrides);
            return Err(builder.errors);
        }
        let mut overrides: Vec<(usize, Override)> = Vec::with_capacity(written.len());
        for (at, over) in written.iter().enumerate() {
            let place = place.at(at);
            let Some(over) = self.compile_override(&mut builder, over, level, &place) else { continue };
            let same = |(_, other): &&(usize, Override)| {
                other.specificity() == over.specificity()
                    && other.pattern == over.pattern
                    && other.quota.same_counter(&over.quota)
            };
            match overrides.iter().find(same) {
                Some((first, _)) => builder.error(place, Problem::SameCounter(*first)),
                None => overrides.push((at, over)),
            }
        }
        let mut counters: Vec<&Quota> = Vec::new();
        for (_, over) in &overrides {
            if !counters.iter().any(|counter| counter.same_counter(&over.quota)) {
                counters.push(&over.quota);
            }
        }
        if counters.len() > MAX_COUNTERS {
            builder.error(place.clone(), Problem::TooManyOverriddenCounters(MAX_COUNTERS));
        }
        if let Some(problem) = self.footprint.too_large_with(&counters) {
            builder.error(place.clone(), problem);
        }
        if !builder.errors.is_empty() {
            return Err(builder.errors);
        }
        overrides.sort_by_key(|(_, over)| over.specificity());
        Ok(overrides.into_iter().map(|(_, over)| over).collect())
    }

    fn compile_override(
        &self,
        builder: &mut Builder,
        over: &format::Override,
        level: QuotaLevel,
        place: &Place,
    ) -> Option<Override> {
        let scope = over.counter.scope.as_ref();
        let quota = builder.counter(&over.counter, scope, level, place);
        let pattern = over.resource.as_ref().map(|name| self.resource_pattern(builder, &name.0, place));
        if let Some(quota) = &quota
            && quota.scope.level() != level
        {
            builder.error(place.at("scope"), Problem::OtherLevel { key: level == QuotaLevel::Key });
            return None;
        }
        let pattern = match pattern {
            Some(None) => return None,
            Some(pattern) => pattern,
            None => None,
        };
        quota.map(|quota| Override { pattern, scope_given: scope.is_some(), quota })
    }

    /// The pattern, if it can match a canonical name.
    fn resource_pattern(&self, builder: &mut Builder, text: &str, place: &Place) -> Option<Pattern> {
        let pattern = builder.pattern(text, place.at("resource"))?;
        let can_match = self.resources.iter().any(|resource| {
            let Ok(known) = Pattern::parse(&resource.name) else { return false };
            pattern.covers(&known) || (resource.counter == format::CounterSharing::PerName && known.covers(&pattern))
        });
        if !can_match {
            builder.error(place.at("resource"), Problem::CoversNothing(text.to_owned()));
            return None;
        }
        Some(pattern)
    }
}
