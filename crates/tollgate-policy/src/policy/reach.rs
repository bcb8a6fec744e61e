//! Warnings: rules of a valid policy that no call ever reaches, and pools that tiers describe differently.

use std::collections::HashSet;

use crate::policy::{
    CompileError, Place, Problem, Quota, QuotaLevel,
    plan::ReachedRules,
    rules::{Rule, RuleBook, RuleId},
};

/// Maximum number of rules that a warning names.
const MAX_NAMED: usize = 3;

/// The warnings about the rules of a policy.
pub(super) fn warnings(book: &RuleBook, reached: &ReachedRules) -> Vec<CompileError> {
    let additions: HashSet<RuleId> = book.all_additions().collect();
    let rules = || book.rules.iter().enumerate();
    let unreached = rules().filter_map(|(id, rule)| {
        let problem = if additions.contains(&id) {
            (!reached.additions.contains(&id) && !rule.quotas.is_empty()).then_some(Problem::Unused)
        } else {
            unreached(book, reached, id, rule)
        };
        Some(CompileError { place: rule.place.clone(), problem: problem? })
    });
    unreached.chain(different_pools(book)).collect()
}

/// The problem of a rule that wins nowhere, or that has quotas of a level in which it never wins.
fn unreached(book: &RuleBook, reached: &ReachedRules, id: RuleId, rule: &Rule) -> Option<Problem> {
    let levels = [QuotaLevel::Account, QuotaLevel::Key].into_iter().filter(|level| rule.decides(*level));
    let (won, lost): (Vec<QuotaLevel>, Vec<_>) = levels.partition(|level| reached.winners.contains(&(id, *level)));
    let of_level = match (&*won, &*lost) {
        (_, []) => return None,
        // `quotas: []` that wins for one level is intended, even if another rule wins for the other level.
        (_, _) if rule.quotas.is_empty() && !won.is_empty() => return None,
        ([], _) => None,
        (_, [level, ..]) => Some(*level),
    };
    let mut winners: Vec<Place> = Vec::new();
    for winner in lost.iter().flat_map(|level| reached.losers.get(&(id, *level)).into_iter().flatten()) {
        let place = &book.rules[*winner].place;
        if !winners.contains(place) {
            winners.push(place.clone());
        }
    }
    if winners.is_empty() {
        return Some(Problem::Unused);
    }
    let more = winners.len().saturating_sub(MAX_NAMED);
    winners.truncate(MAX_NAMED);
    Some(Problem::NeverWins { of_level, winners, more })
}

/// Quotas of one pool with different limits or shares in different tiers.
fn different_pools(book: &RuleBook) -> impl Iterator<Item = CompileError> {
    let mut known: Vec<(&Place, &Quota)> = Vec::new();
    let quotas = book.rules.iter().flat_map(|rule| rule.quotas.iter().enumerate().map(move |quota| (rule, quota)));
    let mut warnings = Vec::new();
    for (rule, (at, quota)) in quotas.filter(|(_, (_, quota))| quota.pool.is_some() && !quota.shadow) {
        match known.iter().find(|(_, other)| other.same_counter(quota)) {
            Some((place, other)) if (other.limit, other.pool) != (quota.limit, quota.pool) => {
                let place = (*place).clone();
                warnings.push(CompileError { place: rule.place.at(at), problem: Problem::DifferentPool(place) });
            }
            Some(_) => {}
            None => known.push((&rule.place, quota)),
        }
    }
    warnings.into_iter()
}

impl RuleBook {
    /// The lists that add quotas.
    fn all_additions(&self) -> impl Iterator<Item = RuleId> {
        let of_classes = self.classes.values().chain(self.provider_classes.values());
        let of_tiers = self.tiers.iter().map(|tier| &tier.source);
        let of_resources = self.resources.iter().map(|resource| &resource.source);
        of_classes.chain(of_tiers).chain(of_resources).filter_map(|source| source.also)
    }
}
