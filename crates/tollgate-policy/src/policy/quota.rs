//! Units and quotas, and the names they get when the policy gives none.

use std::sync::Arc;

use tollgate_core::{
    amount::{Limit, UnitId},
    claim::{Fit, OnFailure},
    time::Timestamp,
    window::{CalendarUnit, Window},
};

use crate::policy::{error::Place, pool::Pool, scope::Scope};

/// The unit of calls, which every domain has. The default cost of a call is one.
pub(super) const REQUESTS: &str = "requests";

/// The unit of slots. A quota of this unit has no window, and every reservation holds one slot.
pub const CONCURRENT_REQUESTS: &str = "concurrent_requests";

/// The answer to refusals by quotas that need no other.
pub(crate) const QUOTA_EXCEEDED: &str = "quota_exceeded";

/// The answer to a refusal because no slot is free.
pub(crate) const CONCURRENCY_EXCEEDED: &str = "concurrency_exceeded";

/// The answer to a refusal by a quota that customers do not see. It has no numbers of the quota.
pub(crate) const OVERLOADED: &str = "overloaded";

/// The advised wait for a slot, if the policy gives none.
pub(super) const SLOT_RETRY_AFTER_MS: u64 = 1_000;

/// A unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The number that identifies it in the store.
    pub id: UnitId,
    /// The name that calls and policies use.
    pub name: Arc<str>,
}

/// One limit on one counter.
#[derive(Clone, Debug)]
pub struct Quota {
    /// The name, by default such as `requests_per_minute`.
    pub name: Arc<str>,
    /// The label, by default such as `RPM`.
    pub label: Arc<str>,
    /// A unit.
    pub unit: Unit,
    /// The window.
    pub window: Window,
    /// The limit of the rule. [`super::ActiveQuota::limit`] is the one in force.
    pub limit: Limit,
    /// The attributes that name the counter.
    pub scope: Arc<Scope>,
    /// Whether it is a shadow: it is charged, reports the calls that it would refuse, and never denies.
    pub shadow: bool,
    /// Whether the platform's customers see it. Otherwise only the platform's own services do.
    pub visible: bool,
    /// The name of the answer to a refusal by this quota, if the policy gives one.
    pub refused_as: Option<Arc<str>>,
    /// Whether a call must name the unit in its usage.
    pub required: bool,
    /// The behaviour during an outage of the store.
    pub on_failure: OnFailure,
    /// Of a quota of slots, the advised wait for one. A slot is free again when a call ends, and that time is not known.
    pub slot_retry_after_ms: Option<u64>,
    /// How callers of several priorities share it.
    pub pool: Option<Pool>,
}

/// A quota's `refused_as`.
#[derive(Clone, Debug)]
pub(crate) struct NamedAnswer {
    /// Where it is written.
    pub(crate) place: Place,
    /// The name of the answer.
    pub(crate) name: Arc<str>,
    /// Whether customers do not see the quota.
    pub(crate) hidden: bool,
    /// Whether the quota counts slots.
    pub(crate) of_slots: bool,
}

/// The origin of a decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DecisionSource {
    /// The store.
    #[default]
    Store,
    /// No decision: the call is allowed without counting ([`OnFailure::Allow`]).
    Allow,
    /// This node, without the store: [`OnFailure::Local`].
    Local,
}

impl DecisionSource {
    /// `allow` or `local`; empty for the store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Store => "",
            Self::Allow => "allow",
            Self::Local => "local",
        }
    }
}

impl Unit {
    /// Whether every call has an amount of it, even if it names none.
    pub(super) fn is_in_every_usage(&self) -> bool {
        [REQUESTS, CONCURRENT_REQUESTS].contains(&&*self.name)
    }

    pub(super) fn named(name: &str) -> Self {
        Self { id: UnitId::of(name), name: name.into() }
    }
}

impl Quota {
    /// The length of a sliding window as policy files write it: `minute`, `30s`. Empty for other windows.
    pub(super) fn length_text(&self) -> String {
        match &self.window {
            Window::Sliding(sliding) => match named_length(sliding.ms()) {
                Some(unit) => unit.name().to_owned(),
                None => short_length(sliding.ms()),
            },
            Window::Calendar(_) | Window::Concurrent => String::new(),
        }
    }

    /// The names of the answers to a refusal by this quota, the first of which has precedence. If a dialect has none of them,
    /// the answer is that of the reason.
    pub(crate) fn answer_names(&self) -> impl Iterator<Item = &str> {
        let default = match self.window {
            _ if !self.visible => Some(OVERLOADED),
            Window::Concurrent => Some(CONCURRENCY_EXCEEDED),
            Window::Sliding(_) | Window::Calendar(_) => None,
        };
        self.refused_as.as_deref().into_iter().chain(default)
    }

    /// Whether it counts slots.
    pub(crate) fn is_of_slots(&self) -> bool {
        matches!(self.window, Window::Concurrent)
    }

    /// Whether a call fits, as callers are told at `now`. The store knows only when the first reservation expires. A slot
    /// is usually free much earlier, so the advised time is that of the policy, or the expiry if that is sooner.
    pub(crate) fn advised(&self, fit: Fit, now: Timestamp) -> Fit {
        match (self.slot_retry_after_ms, fit) {
            (Some(wait_ms), Fit::At(expires_at)) => Fit::At(expires_at.min(now.plus_ms(wait_ms))),
            (_, fit) => fit,
        }
    }

    /// Whether both have the same counter.
    pub(super) fn same_counter(&self, other: &Self) -> bool {
        self.same_measure(other) && self.scope == other.scope
    }

    /// Whether both count the same unit over the same window, in any scope.
    pub(super) fn same_measure(&self, other: &Self) -> bool {
        self.unit.id == other.unit.id && self.window.same_as(&other.window)
    }
}

/// `requests_per_minute`, `tokens_per_30s`, `requests_per_calendar_day`, `concurrent_requests`.
pub(super) fn default_name(unit: &Unit, window: &Window) -> String {
    match window {
        Window::Concurrent => unit.name.to_string(),
        Window::Calendar(calendar) => format!("{}_per_calendar_{}", unit.name, calendar.unit().name()),
        Window::Sliding(sliding) => {
            let ms = sliding.ms();
            match named_length(ms) {
                Some(calendar) => format!("{}_per_{}", unit.name, calendar.name()),
                None => format!("{}_per_{}", unit.name, short_length(ms)),
            }
        }
    }
}

/// `RPM`, `TPD`, `RPMo`; `TP30S` for other lengths; `CR` for concurrent requests.
pub(super) fn default_label(unit: &Unit, window: &Window) -> String {
    let first = unit.name.chars().next().map(|c| c.to_ascii_uppercase()).unwrap_or_default();
    let named = match window {
        Window::Calendar(calendar) => Some(calendar.unit()),
        Window::Sliding(sliding) => named_length(sliding.ms()),
        Window::Concurrent => None,
    };
    match (named, window) {
        (_, Window::Concurrent) => "CR".to_owned(),
        (Some(CalendarUnit::Second), _) => format!("{first}PS"),
        (Some(CalendarUnit::Minute), _) => format!("{first}PM"),
        (Some(CalendarUnit::Hour), _) => format!("{first}PH"),
        (Some(CalendarUnit::Day), _) => format!("{first}PD"),
        (Some(CalendarUnit::Week), _) => format!("{first}PW"),
        (Some(CalendarUnit::Month), _) => format!("{first}PMo"),
        (None, Window::Sliding(sliding)) => format!("{first}P{}", short_length(sliding.ms()).to_ascii_uppercase()),
        (None, Window::Calendar(_)) => format!("{first}P"),
    }
}

fn named_length(ms: u32) -> Option<CalendarUnit> {
    match ms {
        1_000 => Some(CalendarUnit::Second),
        60_000 => Some(CalendarUnit::Minute),
        3_600_000 => Some(CalendarUnit::Hour),
        86_400_000 => Some(CalendarUnit::Day),
        604_800_000 => Some(CalendarUnit::Week),
        _ => None,
    }
}

/// The length in the largest unit in which it is a whole number: `12h`, `30s`, `1500ms`.
fn short_length(ms: u32) -> String {
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    let fitting = units.into_iter().find(|(length, _)| ms.is_multiple_of(*length));
    fitting.map_or_else(|| format!("{ms}ms"), |(length, name)| format!("{}{name}", ms / length))
}
