//! Explanations: which rules give a call its quotas, which do not, and which attributes name the counters.

use std::fmt::{self, Write};

use indexmap::IndexSet;
use serde::Serialize;
use tollgate_core::{amount::Limit, window::Window};

use crate::policy::{
    ActiveQuota, Attribute, CONCURRENT_REQUESTS, Caller, Override, Place, Policy, Quota, QuotaLevel, ResolveError,
    TierId,
    quota::REQUESTS,
    rules::{Rule, RuleId},
};

/// The rules and overrides that give a call its quotas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The policy's domain.
    pub domain: String,
    /// The caller's tier.
    pub tier: String,
    /// The canonical name of the resource: the name in the policy, or the called name if the matches of a wildcard have
    /// separate counters.
    pub resource: String,
    /// Its class.
    pub class: Option<String>,
    /// Its provider class.
    pub provider_class: Option<String>,
    /// The rules that could decide the account's quotas, in the order of resolution.
    pub account_rules: Vec<RuleExplanation>,
    /// The rules that could decide the key's quotas, in the order of resolution. Empty if the call has no key.
    pub key_rules: Vec<RuleExplanation>,
    /// The places of the lists that add quotas, whatever rule wins.
    pub also: Vec<String>,
    /// The quotas of the call.
    pub quotas: Vec<QuotaExplanation>,
}

/// A rule, and its outcome for a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleExplanation {
    /// Its place in the policy file.
    pub place: String,
    /// Whether it decides.
    pub outcome: RuleOutcome,
}

/// The outcome of a rule for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleOutcome {
    /// It is the first that applies.
    Wins,
    /// A rule before it applies.
    Loses,
    /// It has no quotas of this kind.
    HasNone,
}

/// A quota of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a mark that is printed")]
pub struct QuotaExplanation {
    /// Its name.
    pub name: String,
    /// The unit.
    pub unit: String,
    /// The window, as `minute` or `calendar day in UTC`; absent for concurrent requests.
    pub window: Option<String>,
    /// The limit in force; absent if unlimited.
    pub limit: Option<u64>,
    /// The limit that an override replaced, if one did: a number, or `unlimited`.
    pub replaced_limit: Option<String>,
    /// The attributes that name the counter, with their values if the policy knows them.
    pub counter: Vec<String>,
    /// Its source: its place in the policy file, or `override`.
    pub source: String,
    /// Whether it only counts.
    pub shadow: bool,
    /// Whether the platform's customers see it.
    pub visible: bool,
    /// Whether a call must name the unit. A call that leaves another unit than `requests` out is not limited by the quota.
    pub required: bool,
    /// Whether callers share it by priority.
    pub pool: bool,
}

impl Policy {
    /// Explains the result of [`Policy::resolve`] for a call of `resource`.
    pub fn explain(&self, caller: &Caller<'_>, resource: &str) -> Result<Explanation, ResolveError> {
        let resolved = self.resolve(caller, resource)?;
        let at = self.find(resource).ok_or(ResolveError::UnknownResource)?;
        let known = &self.resources[at];
        let candidates = self.book.candidates(caller.tier.0, at, known);
        let also = self.book.additions(caller.tier.0, at, known);
        let rules = |level: QuotaLevel| {
            let winner = self.book.winner(&candidates, level);
            let explained = candidates.iter().map(|id| RuleExplanation {
                place: self.book.rules[*id].place.to_string(),
                outcome: match (Some(*id) == winner, self.book.rules[*id].decides(level)) {
                    (true, _) => RuleOutcome::Wins,
                    (false, true) => RuleOutcome::Loses,
                    (false, false) => RuleOutcome::HasNone,
                },
            });
            explained.collect::<Vec<_>>()
        };
        let sources: Vec<RuleId> = [QuotaLevel::Account, QuotaLevel::Key]
            .into_iter()
            .filter_map(|level| self.book.winner(&candidates, level))
            .chain(also.iter().copied())
            .collect();
        let quotas = resolved.quotas().iter().map(|active| {
            let overrides = match active.quota.scope.level() {
                QuotaLevel::Account => caller.account_overrides,
                QuotaLevel::Key => caller.key.map_or(&[][..], |key| key.overrides),
            };
            let source = sources.iter().find_map(|id| place_of(&self.book.rules[*id], active.quota));
            explained(active, source, overrides, resolved.resource())
        });
        Ok(Explanation {
            domain: self.domain.to_string(),
            tier: resolved.tier().name.to_string(),
            resource: resolved.resource().to_owned(),
            class: resolved.class().map(str::to_owned),
            provider_class: resolved.provider_class().map(str::to_owned),
            account_rules: rules(QuotaLevel::Account),
            key_rules: if caller.key.is_some() { rules(QuotaLevel::Key) } else { Vec::new() },
            also: also.iter().map(|id| self.book.rules[*id].place.to_string()).collect(),
            quotas: quotas.collect(),
        })
    }

    /// A table of all tiers and resources: a column for each tier, a line for each resource. Consecutive resources with
    /// the same limits share a line.
    pub fn matrix(&self) -> String {
        let limits = |tier: TierId, resource: usize| {
            let plan = self.plan(tier, resource);
            let quotas = plan.map_or(&[][..], |plan| &plan.quotas);
            let texts = quotas.iter().map(|quota| format!("{} {}", limit_text(quota.limit), quota.label));
            let text = texts.collect::<Vec<_>>().join(", ");
            if text.is_empty() { "not limited".to_owned() } else { text }
        };
        let mut rows = vec![vec!["resource".to_owned()]];
        rows[0].extend(self.tiers.iter().map(|tier| tier.name.to_string()));
        for (at, resource) in self.resources.iter().enumerate() {
            let mut row = vec![resource.name.to_string()];
            row.extend(self.tiers.iter().map(|tier| limits(tier.id, at)));
            match rows.last_mut() {
                Some(last) if last[1..] == row[1..] => last[0] = format!("{}, {}", last[0], row[0]),
                _ => rows.push(row),
            }
        }
        table(&rows)
    }
}

/// The place of a quota in a rule, if the rule contains it.
fn place_of(rule: &Rule, quota: &Quota) -> Option<Place> {
    let same = |own: &Quota| own.same_counter(quota) && own.shadow == quota.shadow && own.name == quota.name;
    rule.quotas.iter().position(same).map(|at| rule.place.at(at))
}

fn explained(
    active: &ActiveQuota<'_>,
    source: Option<Place>,
    overrides: &[Override],
    resource: &str,
) -> QuotaExplanation {
    let quota = active.quota;
    let is_replaced = source.is_some() && overrides.iter().any(|over| over.applies_to(resource) && over.patches(quota));
    let attribute = |attribute: &Attribute| match attribute {
        Attribute::Resource => format!("resource {resource:?}"),
        other => other.name().to_owned(),
    };
    QuotaExplanation {
        name: quota.name.to_string(),
        unit: quota.unit.name.to_string(),
        window: match &quota.window {
            Window::Concurrent => None,
            Window::Sliding(_) => Some(quota.length_text()),
            Window::Calendar(calendar) => Some(format!("calendar {} in {}", calendar.unit().name(), calendar.zone())),
        },
        limit: match active.limit {
            Limit::Finite(limit) => Some(limit.get()),
            Limit::Unlimited => None,
        },
        replaced_limit: is_replaced.then(|| limit_text(quota.limit)),
        counter: quota.scope.attributes().iter().map(attribute).collect(),
        source: source.map_or_else(|| "override".to_owned(), |place| place.to_string()),
        shadow: quota.shadow,
        visible: quota.visible,
        required: quota.required,
        pool: quota.pool.is_some(),
    }
}

fn limit_text(limit: Limit) -> String {
    match limit {
        Limit::Finite(limit) => limit.to_string(),
        Limit::Unlimited => "unlimited".to_owned(),
    }
}

/// Rows in columns, with two spaces between them.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> =
        (0..columns).map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let line = row.iter().zip(&widths).fold(String::new(), |mut line, (cell, width)| {
            let _ = write!(line, "{cell:<width$}  ");
            line
        });
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.pop();
    text
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, tier, resource, class, provider_class, .. } = self;
        write!(f, "domain {domain}, tier {tier}, resource {resource}")?;
        if let Some(class) = class {
            write!(f, ", class {class}")?;
        }
        if let Some(class) = provider_class {
            write!(f, ", provider class {class}")?;
        }
        for (title, rules) in [("account", &self.account_rules), ("API key", &self.key_rules)] {
            if rules.iter().all(|rule| rule.outcome == RuleOutcome::HasNone) {
                continue;
            }
            write!(f, "\n\nrules for the quotas of the {title}, in their order:")?;
            for RuleExplanation { place, outcome } in rules {
                let outcome = match outcome {
                    RuleOutcome::Wins => "wins",
                    RuleOutcome::Loses => "loses",
                    RuleOutcome::HasNone => "has none",
                };
                write!(f, "\n  {outcome:<8}  {place}")?;
            }
        }
        if !self.also.is_empty() {
            write!(f, "\n\nin addition:")?;
            for place in &self.also {
                write!(f, "\n  {place}")?;
            }
        }
        if self.quotas.is_empty() {
            return write!(f, "\n\nno quotas: not limited");
        }
        let mut rows = vec![["quota", "limit", "window", "counter", "source"].map(str::to_owned).to_vec()];
        rows.extend(self.quotas.iter().map(QuotaExplanation::row));
        write!(f, "\n\n{}", table(&rows))?;
        let optional = self.quotas.iter().filter(|quota| quota.is_optional());
        let optional: IndexSet<&str> = optional.map(|quota| &*quota.unit).collect();
        if !optional.is_empty() {
            let units = optional.into_iter().collect::<Vec<_>>().join(", ");
            write!(f, "\n\na call that names no {units} is not limited by these quotas; `required: true` refuses it")?;
        }
        Ok(())
    }
}

impl QuotaExplanation {
    /// Whether a call may leave the unit out.
    fn is_optional(&self) -> bool {
        !self.required && ![REQUESTS, CONCURRENT_REQUESTS].contains(&&*self.unit)
    }

    fn row(&self) -> Vec<String> {
        let limit = self.limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
        let mut notes = String::new();
        if let Some(before) = &self.replaced_limit {
            let _ = write!(notes, " (an override replaced {before})");
        }
        let marks =
            [(self.shadow, "shadow"), (!self.visible, "hidden"), (self.required, "required"), (self.pool, "pool")];
        for (is_so, note) in marks {
            if is_so {
                let _ = write!(notes, " ({note})");
            }
        }
        vec![
            self.name.clone(),
            format!("{limit} {}", self.unit),
            self.window.clone().unwrap_or_else(|| "held now".to_owned()),
            self.counter.join(", "),
            format!("{}{notes}", self.source),
        ]
    }
}
