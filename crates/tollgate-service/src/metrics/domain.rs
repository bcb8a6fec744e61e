//! The decisions of one domain, counted.

use std::{collections::HashMap, sync::Arc};

use metrics::Counter;
use tollgate_core::amount::UnitId;
use tollgate_policy::{Policy, TierId};

use super::{
    BLOCKS, DECISIONS, Metrics, REPORTS, ReservationMetrics, SHADOW_REFUSALS, UNITS_LEFT_OUT, counter,
    shadow::ShadowLog,
};

/// The label of refusals because the policy does not have the resource.
pub(crate) const UNKNOWN_RESOURCE: &str = "unknown_resource";

/// The decision counters of one domain, made when its policy is loaded: a call only counts up.
pub struct DomainMetrics {
    pub(super) by_tier: HashMap<TierId, HashMap<Box<str>, ClassMetrics>>,
    pub(super) shadow_log: ShadowLog,
    /// Reports that no rule counted, and those that one did.
    reports: [Counter; 2],
    blocks: HashMap<Box<str>, Counter>,
    units_left_out: HashMap<UnitId, Counter>,
    /// The outcomes of reservations.
    pub reservations: ReservationMetrics,
}

pub(super) struct ClassMetrics {
    allowed: Counter,
    denied: HashMap<Box<str>, Counter>,
    /// For quotas that only an override brought in.
    denied_by_other: Counter,
    pub(super) shadow: HashMap<Box<str>, Counter>,
    pub(super) shadow_other: Counter,
}

impl std::fmt::Debug for DomainMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DomainMetrics")
    }
}

impl DomainMetrics {
    /// The metrics of a domain with this policy, whose names are the labels' values.
    pub fn of(metrics: &Metrics, policy: &Policy) -> Self {
        let mut quotas = policy.quota_names();
        let rules = policy.abuse_rules().iter().chain(policy.authentication_rule()).map(|rule| &*rule.name);
        // A quota or an abuse rule can deny a call.
        quotas.extend(rules.clone());
        let shadows = policy.shadow_names();
        let mut classes: Vec<&str> = policy.class_names();
        classes.push("");
        let by_tier = policy.tiers().iter().map(|tier| {
            let labels = |class, verdict, quota| {
                let labels = [("domain", &**policy.domain()), ("tier", &*tier.name), ("class", class)];
                counter(
                    &metrics.recorder,
                    DECISIONS,
                    &[labels[0], labels[1], labels[2], ("verdict", verdict), ("quota", quota)],
                )
            };
            let by_class = classes.iter().map(|class| {
                let shadow = |quota| {
                    let labels =
                        [("domain", &**policy.domain()), ("tier", &*tier.name), ("class", class), ("quota", quota)];
                    counter(&metrics.recorder, SHADOW_REFUSALS, &labels)
                };
                // A resource that the policy does not have is of no class.
                let unknown = class.is_empty().then_some(&UNKNOWN_RESOURCE);
                let denied = quotas.iter().chain(&["upload"]).chain(unknown);
                let denied = denied.map(|quota| (Box::from(*quota), labels(class, "denied", quota)));
                let metrics = ClassMetrics {
                    allowed: labels(class, "allowed", ""),
                    denied: denied.collect(),
                    denied_by_other: labels(class, "denied", "other"),
                    shadow: shadows.iter().map(|quota| (Box::from(*quota), shadow(quota))).collect(),
                    shadow_other: shadow("other"),
                };
                (Box::from(*class), metrics)
            });
            (tier.id, by_class.collect())
        });
        let by_tier = by_tier.collect();
        let of_domain = |name, label| counter(&metrics.recorder, name, &[("domain", &**policy.domain()), label]);
        let reports = ["false", "true"].map(|counted| of_domain(REPORTS, ("counted", counted)));
        let blocks = rules.map(|rule| (Box::from(rule), of_domain(BLOCKS, ("rule", rule)))).collect();
        let units_left_out =
            policy.units().iter().map(|unit| (unit.id, of_domain(UNITS_LEFT_OUT, ("unit", &unit.name))));
        let units_left_out = units_left_out.collect();
        let reservations = ReservationMetrics::of(metrics, policy);
        Self {
            by_tier,
            shadow_log: ShadowLog::of(Arc::clone(policy.domain())),
            reports,
            blocks,
            units_left_out,
            reservations,
        }
    }

    /// Counts a reported outcome.
    pub fn reported(&self, counted: bool) {
        self.reports[usize::from(counted)].increment(1);
    }

    /// Counts a block that began.
    pub fn blocked(&self, rule: &str) {
        if let Some(blocks) = self.blocks.get(rule) {
            blocks.increment(1);
        }
    }

    /// Counts a call that named no amount of a unit that one of its quotas counts.
    pub fn unit_left_out(&self, unit: UnitId) {
        if let Some(calls) = self.units_left_out.get(&unit) {
            calls.increment(1);
        }
    }

    /// Counts a decision; `denied_by` is the quota that refuses, or the rule that blocks.
    pub fn count(&self, tier: TierId, class: Option<&str>, denied_by: Option<&str>) {
        let Some(class) = self.by_tier.get(&tier).and_then(|classes| classes.get(class.unwrap_or(""))) else { return };
        match denied_by {
            None => class.allowed.increment(1),
            Some(quota) => class.denied.get(quota).unwrap_or(&class.denied_by_other).increment(1),
        }
    }
}
