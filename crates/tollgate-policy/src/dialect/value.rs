//! The values in headers and bodies, and their formats.

use std::{borrow::Cow, fmt::Write as _};

use serde_json::Value;
use smallvec::SmallVec;
use tollgate_core::{amount::Limit, claim::Fit, time::Timestamp, window::Window};

use super::{Facts, ResponseKind, ietf, select::length_ms};
use crate::{
    decision::QuotaStatus,
    format::dialect::{Format, ValueWord},
    policy::Quota,
};

/// The values that a dialect renders: the facts, and the quotas that its selectors choose.
pub(super) struct RenderContext<'f> {
    pub(super) facts: &'f Facts<'f>,
    /// The index of the binding quota among those that customers see.
    pub(super) binding: Option<usize>,
    /// For each selector of the dialect, the index of the quota that it chooses.
    pub(super) chosen: SmallVec<[Option<usize>; 8]>,
    pub(super) retry_within_ms: Option<u64>,
}

/// The quota that a value is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QuotaChoice {
    /// The binding quota among those that customers see.
    Binding,
    /// The quota that this selector of the dialect chooses.
    Selected(usize),
}

/// A value with its type, before it is formatted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TypedValue<'f> {
    Number(u64),
    Time(Timestamp),
    Text(Cow<'f, str>),
    Names(Vec<&'f str>),
}

impl<'f> RenderContext<'f> {
    pub(super) fn quota(&self, choice: QuotaChoice) -> Option<&'f QuotaStatus<'f>> {
        let at = match choice {
            QuotaChoice::Binding => self.binding,
            QuotaChoice::Selected(selector) => self.chosen.get(selector).copied().flatten(),
        };
        self.facts.quotas.get(at?)
    }

    /// The value of `word`, if it exists. Values of a quota are taken from `quota`.
    pub(super) fn value(&self, word: ValueWord, quota: Option<&'f QuotaStatus<'f>>) -> Option<TypedValue<'f>> {
        let facts = self.facts;
        let text = |text: &'f str| Some(TypedValue::Text(text.into()));
        match word {
            ValueWord::Limit => match quota?.limit {
                Limit::Finite(limit) => Some(TypedValue::Number(limit.get())),
                Limit::Unlimited => None,
            },
            ValueWord::Remaining => quota?.remaining().map(|remaining| TypedValue::Number(remaining.get())),
            ValueWord::Used => Some(TypedValue::Number(quota?.used.get())),
            ValueWord::Cost => Some(TypedValue::Number(facts.usage?.of(quota?.quota.unit.id).get())),
            ValueWord::Reset | ValueWord::ResetsAt if quota?.limit == Limit::Unlimited => None,
            ValueWord::Reset => match quota?.fit {
                Fit::At(at) => Some(TypedValue::Time(at)),
                Fit::Now | Fit::Never => quota?.window_reset().map(TypedValue::Time),
            },
            ValueWord::ResetsAt => quota?.window_reset().map(TypedValue::Time),
            ValueWord::Quota => text(&quota?.quota.name),
            ValueWord::Label => text(&quota?.quota.label),
            ValueWord::Unit => text(&quota?.quota.unit.name),
            ValueWord::Window => Some(TypedValue::Text(window(&quota?.quota.window))),
            ValueWord::Measure => Some(TypedValue::Text(measure(quota?.quota).into())),
            ValueWord::RetryAt | ValueWord::RetryAfter => facts.retry_at.map(TypedValue::Time),
            ValueWord::ShouldRetry => self.retry_is_useless().then_some(TypedValue::Text("false".into())),
            ValueWord::Reason => text(facts.kind.name()),
            ValueWord::Message => text(facts.message.as_deref()?),
            ValueWord::Violated => Some(TypedValue::Names(violated(facts))),
            ValueWord::IetfPolicies => ietf::policies(facts).map(|field| TypedValue::Text(field.into())),
            ValueWord::IetfLimits => ietf::limits(facts).map(|field| TypedValue::Text(field.into())),
            ValueWord::Resource => text(facts.resource?),
            ValueWord::Tier => text(facts.tier?),
            ValueWord::Priority => facts.priority.map(|priority| TypedValue::Number(priority.into())),
            ValueWord::Account => text(facts.account?),
            ValueWord::ApiKeyId => text(facts.api_key_id?),
            ValueWord::Domain => text(facts.domain?),
        }
    }

    /// Whether a client should not retry by itself: the call can never be admitted, or only after the longest wait that
    /// clients honour. A client that gets a longer wait uses a shorter one of its own.
    fn retry_is_useless(&self) -> bool {
        let wait = self.facts.retry_at.map(|at| at.ms_since(self.facts.now));
        match (self.facts.kind, wait) {
            (ResponseKind::Allowed | ResponseKind::Unavailable, _) => false,
            (ResponseKind::Refused(_), None) => true,
            (ResponseKind::Refused(_), Some(wait)) => self.retry_within_ms.is_some_and(|longest| wait > longest),
        }
    }
}

/// The names of the quotas that refuse the call, each once, without hidden ones.
fn violated<'f>(facts: &'f Facts<'f>) -> Vec<&'f str> {
    let mut names: Vec<&str> = Vec::new();
    for status in facts.quotas.iter().filter(|status| status.denies() && status.is_shown()) {
        if !names.contains(&&*status.quota.name) {
            names.push(&status.quota.name);
        }
    }
    names
}

impl TypedValue<'_> {
    /// As one line of text.
    pub(super) fn text(&self, word: ValueWord, format: Option<Format>, now: Timestamp) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Time(at) => format_time(*at, format.unwrap_or(default_format(word)), now),
            Self::Text(text) => text.to_string(),
            Self::Names(names) => names.join(", "),
        }
    }

    /// As JSON: whole numbers are numbers.
    pub(super) fn json(self, word: ValueWord, format: Option<Format>, now: Timestamp) -> Value {
        match self {
            Self::Number(number) => number.into(),
            Self::Time(at) => {
                let format = format.unwrap_or(default_format(word));
                let text = format_time(at, format, now);
                match format {
                    Format::GoDuration | Format::Rfc3339 => text.into(),
                    _ => text.parse::<u64>().map_or_else(|_| text.into(), Value::from),
                }
            }
            Self::Text(text) => text.into_owned().into(),
            Self::Names(names) => names.into(),
        }
    }
}

/// The format of a time if the table gives none.
fn default_format(word: ValueWord) -> Format {
    if word == ValueWord::RetryAfter { Format::DeltaSeconds } else { Format::EpochSeconds }
}

/// Formats a time. Every format rounds up, so that a client that retries at this time is not too early.
fn format_time(at: Timestamp, format: Format, now: Timestamp) -> String {
    let second = at.as_ms().div_ceil(1000);
    let wait_ms = at.ms_since(now);
    match format {
        Format::Integer | Format::EpochSeconds => second.to_string(),
        Format::EpochMilliseconds => at.as_ms().to_string(),
        Format::DeltaSeconds => wait_ms.div_ceil(1000).to_string(),
        Format::DeltaMilliseconds => wait_ms.to_string(),
        Format::GoDuration => go_duration(wait_ms),
        Format::Rfc3339 => {
            let at = i64::try_from(second).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
            at.unwrap_or(jiff::Timestamp::MAX).to_string()
        }
    }
}

/// A duration as Go prints it: `120ms`, `1.5s`, `6m0s`, `24h0m0s`.
fn go_duration(ms: u64) -> String {
    if ms < 1000 {
        return if ms == 0 { "0s".to_owned() } else { format!("{ms}ms") };
    }
    let (hours, minutes, seconds, rest) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000);
    let mut text = String::new();
    if hours > 0 {
        let _ = write!(text, "{hours}h");
    }
    if ms >= 60_000 {
        let _ = write!(text, "{minutes}m");
    }
    let _ = write!(text, "{seconds}");
    if rest > 0 {
        let _ = write!(text, ".{}", format!("{rest:03}").trim_end_matches('0'));
    }
    text + "s"
}

/// `minute`, `day`; a Go duration for other lengths.
fn window(window: &Window) -> Cow<'static, str> {
    match (length_ms(window), window) {
        (Some(1_000), _) => "second".into(),
        (Some(60_000), _) => "minute".into(),
        (Some(3_600_000), _) => "hour".into(),
        (Some(86_400_000), _) => "day".into(),
        (Some(604_800_000), _) => "week".into(),
        (Some(ms), _) => go_duration(ms).into(),
        (None, Window::Calendar(calendar)) => calendar.unit().name().into(),
        (None, Window::Sliding(_) | Window::Concurrent) => "".into(),
    }
}

/// `requests per minute`, `concurrent requests`.
fn measure(quota: &Quota) -> String {
    let unit = quota.unit.name.replace('_', " ");
    match &quota.window {
        Window::Concurrent => unit,
        windowed => format!("{unit} per {}", window(windowed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_format_of_go() {
        let pairs = [
            (0, "0s"),
            (1, "1ms"),
            (120, "120ms"),
            (1_000, "1s"),
            (1_001, "1.001s"),
            (11_050, "11.05s"),
            (60_000, "1m0s"),
            (360_000, "6m0s"),
            (3_600_000, "1h0m0s"),
            (86_399_900, "23h59m59.9s"),
        ];
        for (ms, text) in pairs {
            assert_eq!(go_duration(ms), text);
        }
    }

    #[test]
    fn formatted_times_are_rounded_up() {
        let (now, at) = (Timestamp::from_ms(1_746_575_999_500), Timestamp::from_ms(1_746_576_000_001));
        let written = |format| format_time(at, format, now);
        assert_eq!(written(Format::EpochSeconds), "1746576001");
        assert_eq!(written(Format::EpochMilliseconds), "1746576000001");
        assert_eq!(written(Format::DeltaSeconds), "1");
        assert_eq!(written(Format::DeltaMilliseconds), "501");
        assert_eq!(written(Format::GoDuration), "501ms");
        assert_eq!(written(Format::Rfc3339), "2025-05-07T00:00:01Z");
    }
}
