//! Plans: the quotas that each tier has for each resource.

use std::collections::{HashMap, HashSet};

use crate::policy::{
    MAX_RULE_QUOTAS, Place, Plan, Problem, Quota, QuotaLevel,
    builder::Builder,
    pool::MAX_POOLS,
    rules::{RuleId, Rules, applies_to},
};

/// The plans found so far.
#[derive(Default)]
pub(super) struct Plans {
    /// The resources that some tier gives no quotas, each reported once.
    without_rule: HashSet<Place>,
    /// The plan of each pair of winning rules: the account's and the key's.
    of_rules: HashMap<(Option<RuleId>, Option<RuleId>), usize>,
    pub(super) distinct: Vec<Plan>,
    /// For every tier and resource, in that order.
    pub(super) table: Vec<usize>,
}

impl Plans {
    /// Adds the plan of the next resource of a tier, and returns its index. Most resources share
    /// theirs with the others of their class.
    pub(super) fn add(&mut self, builder: &mut Builder, rules: &Rules<'_>, tier: &str) -> usize {
        let winner = |chain| rules.in_order().find(|rule| applies_to(&builder.rules[*rule], chain));
        let (of_account, of_key) = (winner(QuotaLevel::Account), winner(QuotaLevel::Key));
        let place = || rules.resource.place.clone();
        // Once for each resource: what is missing in one tier is mostly missing in all.
        if of_account.is_none() && of_key.is_none() && self.without_rule.insert(place()) {
            builder.error(place(), Problem::NoRule(tier.to_owned()));
        }
        let known = self.of_rules.get(&(of_account, of_key)).copied();
        let at = known.unwrap_or_else(|| {
            let quotas_of = |rule: Option<RuleId>, chain| {
                let quotas = rule.into_iter().flat_map(|rule| &builder.rules[rule]);
                quotas.filter(move |quota| quota.scope.chain() == chain).cloned()
            };
            let mut quotas: Vec<Quota> = quotas_of(of_account, QuotaLevel::Account).collect();
            let key_from = quotas.len();
            quotas.extend(quotas_of(of_key, QuotaLevel::Key));
            if quotas.len() > MAX_RULE_QUOTAS {
                builder.error(place(), Problem::TooManyQuotas(quotas.len(), tier.to_owned()));
            }
            let pools = quotas.iter().filter(|quota| quota.pool.is_some()).count();
            if pools > MAX_POOLS {
                builder.error(place(), Problem::TooManyPools(pools, tier.to_owned()));
            }
            self.of_rules.insert((of_account, of_key), self.distinct.len());
            self.distinct.push(Plan { quotas, key_from });
            self.distinct.len() - 1
        });
        self.table.push(at);
        at
    }
}
