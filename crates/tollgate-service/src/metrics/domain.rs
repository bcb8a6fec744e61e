//! Metrics of the decisions of a domain.

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

/// The metrics of a domain. They are registered when its policy is loaded, so a call only increments counters.
pub struct DomainMetrics {
    pub(super) classes_by_tier: HashMap<TierId, HashMap<Box<str>, ClassMetrics>>,
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
    /// For quotas that only an override defines.
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
    /// The metrics of a domain with this policy.
    pub fn new(metrics: &Metrics, policy: &Policy) -> Self {
        let mut quotas = policy.quota_names();
        let rules = policy.abuse_rules().iter().chain(policy.authentication_rule()).map(|rule| &*rule.name);
        // A quota or an abuse rule can deny a call.
        quotas.extend(rules.clone());
        let shadows = policy.shadow_names();
        let mut classes: Vec<&str> = policy.class_names();
        classes.push("");
        let classes_by_tier = policy.tiers().iter().map(|tier| {
            let labels = |class, verdict, quota| {
                let labels = [("domain", &**policy.domain()), ("tier", &*tier.name), ("class", class)];
                counter(
                    &metrics.recorder,
                    DECISIONS,
                    &[labels[0], labels[1], labels[2], ("verdict", verdict), ("quota", quota)],
                )
            };
            let metrics_by_class = classes.iter().map(|class| {
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
            (tier.id, metrics_by_class.collect())
        });
        let classes_by_tier = classes_by_tier.collect();
        let domain_counter = |name, label| counter(&metrics.recorder, name, &[("domain", &**policy.domain()), label]);
        let reports = ["false", "true"].map(|counted| domain_counter(REPORTS, ("counted", counted)));
        let blocks = rules.map(|rule| (Box::from(rule), domain_counter(BLOCKS, ("rule", rule)))).collect();
        let units_left_out =
            policy.units().iter().map(|unit| (unit.id, domain_counter(UNITS_LEFT_OUT, ("unit", &unit.name))));
        Self {
            classes_by_tier,
            shadow_log: ShadowLog::new(Arc::clone(policy.domain())),
            reports,
            blocks,
            units_left_out: units_left_out.collect(),
            reservations: ReservationMetrics::new(metrics, policy),
        }
    }

    /// Counts a report.
    pub fn count_report(&self, counted: bool) {
        self.reports[usize::from(counted)].increment(1);
    }

    /// Counts a new block.
    pub fn count_block(&self, rule: &str) {
        if let Some(blocks) = self.blocks.get(rule) {
            blocks.increment(1);
        }
    }

    /// Counts a call that names no amount of a unit that one of its quotas counts.
    pub fn count_unit_left_out(&self, unit: UnitId) {
        if let Some(calls) = self.units_left_out.get(&unit) {
            calls.increment(1);
        }
    }

    /// Counts a decision; `denied_by` is the quota that refuses, or the rule that blocks.
    pub fn count_decision(&self, tier: TierId, class: Option<&str>, denied_by: Option<&str>) {
        let Some(class) = self.classes_by_tier.get(&tier).and_then(|classes| classes.get(class.unwrap_or(""))) else {
            return;
        };
        match denied_by {
            None => class.allowed.increment(1),
            Some(quota) => class.denied.get(quota).unwrap_or(&class.denied_by_other).increment(1),
        }
    }
}
