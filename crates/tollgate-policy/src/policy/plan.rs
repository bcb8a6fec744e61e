//! Plans: the quotas that each tier has for each resource.

use std::collections::{HashMap, HashSet};

use crate::policy::{
    MAX_RULE_QUOTAS, Place, Plan, Problem, Quota, QuotaLevel, Resource,
    builder::Builder,
    pool::MAX_POOLS,
    rules::{RuleBook, RuleId},
};

/// The rules that a plan is made of: the winner of the account's quotas, that of the key's, and the additions.
type PlanRules = (Option<RuleId>, Option<RuleId>, Vec<RuleId>);

/// The plans found so far.
#[derive(Default)]
pub(super) struct Plans {
    /// The resources without a rule in some tier. Each is reported once.
    without_rule: HashSet<Place>,
    of_rules: HashMap<PlanRules, usize>,
    pub(super) distinct: Vec<Plan>,
    /// For every tier and resource, in that order.
    pub(super) table: Vec<usize>,
    pub(super) reached: ReachedRules,
}

/// The rules that some call reaches.
#[derive(Default)]
pub(super) struct ReachedRules {
    /// The rules that win for some resource and tier, with the level of the quotas that they decide.
    pub(super) winners: HashSet<(RuleId, QuotaLevel)>,
    /// The rules that lose for some resource and tier, with the rules that win instead.
    pub(super) losers: HashMap<(RuleId, QuotaLevel), Vec<RuleId>>,
    /// The rules that add quotas for some resource and tier.
    pub(super) additions: HashSet<RuleId>,
}

impl Plans {
    /// Adds the plan of the next resource of a tier, and returns its index. Most resources share theirs with the others
    /// of their class.
    pub(super) fn add(
        &mut self,
        builder: &mut Builder,
        book: &RuleBook,
        (tier, tier_name): (usize, &str),
        (resource, known): (usize, &Resource),
    ) -> usize {
        let candidates = book.candidates(tier, resource, known);
        let additions = book.additions(tier, resource, known);
        let of_account = self.reached.record_winner(book, &candidates, QuotaLevel::Account);
        let of_key = self.reached.record_winner(book, &candidates, QuotaLevel::Key);
        self.reached.additions.extend(&additions);
        let place = || book.resources[resource].place.clone();
        // Reported once for each resource, because a rule that is missing in one tier is usually missing in all.
        let nothing = of_account.is_none() && of_key.is_none() && additions.is_empty();
        if nothing && self.without_rule.insert(place()) {
            builder.error(place(), Problem::NoRule(tier_name.to_owned()));
        }
        let rules = (of_account, of_key, additions);
        if let Some(at) = self.of_rules.get(&rules) {
            self.table.push(*at);
            return *at;
        }
        let mut quotas = quotas_of(builder, book, &rules, QuotaLevel::Account);
        let key_from = quotas.len();
        quotas.extend(quotas_of(builder, book, &rules, QuotaLevel::Key));
        if quotas.len() > MAX_RULE_QUOTAS {
            builder.error(place(), Problem::TooManyQuotas(quotas.len(), tier_name.to_owned()));
        }
        let pools = quotas.iter().filter(|quota| quota.pool.is_some()).count();
        if pools > MAX_POOLS {
            builder.error(place(), Problem::TooManyPools(pools, tier_name.to_owned()));
        }
        let at = self.distinct.len();
        self.of_rules.insert(rules, at);
        self.distinct.push(Plan { quotas, key_from });
        self.table.push(at);
        at
    }
}

/// The quotas of a level: those of the rule that wins, and the additions.
fn quotas_of(builder: &mut Builder, book: &RuleBook, rules: &PlanRules, level: QuotaLevel) -> Vec<Quota> {
    let (of_account, of_key, additions) = rules;
    let winner = if level == QuotaLevel::Account { of_account } else { of_key };
    let mut quotas: Vec<(RuleId, Quota)> = Vec::new();
    for rule in winner.iter().chain(additions) {
        for quota in book.rules[*rule].of_level(level) {
            let same = |(_, before): &&(RuleId, Quota)| before.same_counter(quota) && before.shadow == quota.shadow;
            match quotas.iter().find(same) {
                Some((first, _)) => {
                    let problem = Problem::AddedTwice(quota.name.to_string(), book.rules[*first].place.clone());
                    builder.error_once(book.rules[*rule].place.clone(), problem);
                }
                None => quotas.push((*rule, quota.clone())),
            }
        }
    }
    quotas.into_iter().map(|(_, quota)| quota).collect()
}

impl ReachedRules {
    /// Returns the rule that wins the quotas of a level, and records it and the rules that lose to it.
    fn record_winner(&mut self, book: &RuleBook, candidates: &[RuleId], level: QuotaLevel) -> Option<RuleId> {
        let winner = book.winner(candidates, level)?;
        self.winners.insert((winner, level));
        for loser in candidates.iter().filter(|rule| **rule != winner && book.rules[**rule].decides(level)) {
            let winners = self.losers.entry((*loser, level)).or_default();
            if !winners.contains(&winner) {
                winners.push(winner);
            }
        }
        Some(winner)
    }
}
