//! Selection of the quota whose values a header or a body has.

use std::cmp::Reverse;

use tollgate_core::{
    amount::{Amount, UnitId},
    claim::Fit,
    window::{CalendarUnit, Window},
};

use crate::decision::QuotaStatus;

/// Chooses quotas by unit, window and name. `None` matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selector {
    pub(super) unit: Option<UnitId>,
    /// The length of the sliding window, or of the calendar periods.
    pub(super) length_ms: Option<u64>,
    pub(super) name: Option<Box<str>>,
}

impl Selector {
    /// The index of the chosen quota, never a shadow or a hidden one. Of several, such as the account's and the key's, it is the one that
    /// refuses for longest, and otherwise the one with the least left. Of equal ones it is the first of the policy.
    pub(super) fn choose(&self, quotas: &[QuotaStatus<'_>]) -> Option<usize> {
        let matching = quotas.iter().enumerate().filter(|(_, status)| self.matches(status));
        matching.min_by_key(|(_, status)| strictness(status)).map(|(at, _)| at)
    }

    fn matches(&self, status: &QuotaStatus<'_>) -> bool {
        let quota = status.quota;
        status.is_shown()
            && self.unit.is_none_or(|unit| quota.unit.id == unit)
            && self.length_ms.is_none_or(|length| length_ms(&quota.window) == Some(length))
            && self.name.as_ref().is_none_or(|name| *quota.name == **name)
    }
}

/// Orders quotas, the strictest first.
pub(super) fn strictness(status: &QuotaStatus<'_>) -> (Reverse<u64>, Amount, bool) {
    let refuses_until = match status.fit {
        Fit::Now => 0,
        Fit::At(at) => at.as_ms(),
        Fit::Never => u64::MAX,
    };
    let remaining = status.remaining();
    (Reverse(refuses_until), remaining.unwrap_or(Amount::MAX), remaining.is_none())
}

/// The nominal length of a window. Months and concurrent requests have none.
pub(super) fn length_ms(window: &Window) -> Option<u64> {
    match window {
        Window::Sliding(sliding) => Some(u64::from(sliding.ms())),
        Window::Calendar(calendar) => match calendar.unit() {
            CalendarUnit::Second => Some(1_000),
            CalendarUnit::Minute => Some(60_000),
            CalendarUnit::Hour => Some(3_600_000),
            CalendarUnit::Day => Some(86_400_000),
            CalendarUnit::Week => Some(604_800_000),
            CalendarUnit::Month => None,
        },
        Window::Concurrent => None,
    }
}
