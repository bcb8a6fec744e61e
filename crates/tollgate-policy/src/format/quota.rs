//! Quotas and overrides.

use schemars::JsonSchema;
use serde::Deserialize;
use tollgate_core::{claim, window};

use super::{Label, Length, ResourceName, Word, Zone, count::Limit};

/// The attributes whose values name the counter: `account`, `api_key`, `resource`, or any other that
/// calls bring, such as `ip`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct Scope(#[schemars(length(min = 1, max = 8))] pub Vec<Word>);

/// A list of quotas; an empty one means: not limited.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct Quotas(#[schemars(length(max = 16))] pub Vec<Quota>);

/// The counter that a quota or an override limits, and the limit.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct CounterLimit {
    /// The unit: `requests`, one of `units`, or `concurrent_requests`, which are held from the reservation until it is
    /// settled or cancelled or expires.
    pub unit: Word,
    /// The window; `concurrent_requests` have none.
    #[serde(default)]
    #[schemars(with = "Window")]
    pub per: Option<Window>,
    /// How much fits in a window.
    pub limit: Limit,
    /// Whose counter it is. An override with a scope replaces only the limit of the quota of this scope; one without
    /// never replaces the limit of a counter that several accounts share.
    #[serde(default)]
    #[schemars(with = "Scope")]
    pub scope: Option<Scope>,
}

/// A limit on one counter.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Quota {
    /// The counter and its limit.
    #[serde(flatten)]
    pub counter: CounterLimit,
    /// The quota's name, instead of one such as `requests_per_minute`.
    #[serde(default)]
    #[schemars(with = "Word")]
    pub name: Option<Word>,
    /// The quota's label, instead of one such as `RPM`.
    #[serde(default)]
    #[schemars(with = "Label")]
    pub label: Option<Label>,
    /// Whether it only counts, and reports the calls that it would refuse. A shadow may be on the same counter as an
    /// enforced quota, to try another limit.
    #[serde(default)]
    pub shadow: bool,
    /// Whether the platform's customers see the quota in `/api_keys/rate_limits` and in rendered answers. Unless given, they
    /// see it if its counters belong to one account, that is, if its scope names `account` or `api_key`.
    #[serde(default)]
    #[schemars(with = "bool")]
    pub visible: Option<bool>,
    /// Whether a call must name the unit in its usage, with 0 if it uses none. Otherwise a call that leaves the unit out
    /// is not limited by this quota.
    #[serde(default)]
    pub required: bool,
    /// The answer of the dialect to a refusal by this quota: `quota_exceeded`, `insufficient_quota` (a spent budget),
    /// `overloaded`, or an answer of the platform's own in a dialect of `dialects`. Unless given, `overloaded` if customers
    /// do not see the quota, `concurrency_exceeded` for `concurrent_requests`, and otherwise `quota_exceeded`.
    #[serde(default)]
    #[schemars(with = "Word")]
    pub refused_as: Option<Word>,
    /// Its behaviour while the store cannot answer, if it differs from the policy's.
    #[serde(default)]
    #[schemars(with = "OnFailure")]
    pub on_failure: Option<OnFailure>,
    /// The wait that a caller refused by `concurrent_requests` is advised, `1s` unless given. A slot is free again when a
    /// call ends, and that time is not known.
    #[serde(default)]
    #[schemars(with = "Length")]
    pub retry_after: Option<Length>,
    /// How callers of several priorities share it. Its scope must not name `account` or `api_key`.
    #[serde(default)]
    #[schemars(with = "Pool")]
    pub pool: Option<Pool>,
}

/// The behaviour of quotas while the store cannot answer: `deny` leaves the call undecided (UNAVAILABLE, 503), `allow`
/// allows it, `local` lets each node enforce the quota with its share of the limit. Of several quotas, any `deny` wins.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnFailure {
    #[default]
    Deny,
    Allow,
    Local,
}

impl From<OnFailure> for claim::OnFailure {
    fn from(on_failure: OnFailure) -> Self {
        match on_failure {
            OnFailure::Deny => Self::Deny,
            OnFailure::Allow => Self::Allow,
            OnFailure::Local => Self::Local,
        }
    }
}

/// A counter shared by priority.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pool {
    /// The shares of the tiers' priorities 1 (low, or none), 2, 3 and 4 (critical), in percent of the limit: their
    /// parts if all demand theirs. Parts that are not demanded are lent to the others. At most 100 in all.
    pub shares: [Share; 4],
}

/// A whole number of percent from 0 to 100.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct Share(#[schemars(range(max = 100))] pub u8);

/// A trailing window, such as `minute`, `30s` or `12h`, or calendar periods, such as `{calendar: day, zone: UTC}`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Per")]
pub(crate) enum Window {
    Trailing(Length),
    Calendar(Calendar),
}

/// Calendar periods, such as days from midnight to midnight.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Calendar {
    /// The unit.
    pub calendar: CalendarUnit,
    /// The time zone; UTC unless given.
    #[serde(default)]
    #[schemars(with = "Zone")]
    pub zone: Option<Zone>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CalendarUnit {
    Second,
    Minute,
    Hour,
    Day,
    Week,
    Month,
}

impl From<CalendarUnit> for window::CalendarUnit {
    fn from(unit: CalendarUnit) -> Self {
        match unit {
            CalendarUnit::Second => Self::Second,
            CalendarUnit::Minute => Self::Minute,
            CalendarUnit::Hour => Self::Hour,
            CalendarUnit::Day => Self::Day,
            CalendarUnit::Week => Self::Week,
            CalendarUnit::Month => Self::Month,
        }
    }
}

/// A limit of one account or one key. It replaces the limit of the quota with the same unit and
/// window, or adds a quota where there is none.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// Only for this resource, or for those that match a wildcard.
    #[serde(default)]
    #[schemars(with = "ResourceName")]
    pub(crate) resource: Option<ResourceName>,
    /// The counter and its limit.
    #[serde(flatten)]
    pub(crate) counter: CounterLimit,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    /// Overrides in the store are read without the schema. Tried by breaking it: without `deny_unknown_fields`.
    #[test]
    fn unknown_keys_are_refused() {
        let written = |key: &str| json!({ "unit": "tokens", "per": "30s", "limit": 5, "scope": ["ip"], (key): "gpt" });
        let over: Override = from_value(written("resource")).unwrap();
        assert_eq!((over.counter.unit.0.as_str(), over.counter.limit.finite()), ("tokens", Some(5)));
        let quota: Quota = from_value(written("name")).unwrap();
        assert_eq!((quota.name.unwrap().0.as_str(), quota.counter.scope.unwrap().0.len()), ("gpt", 1));
        let refused = |error: serde_json::Error| error.to_string().contains("unknown field `colour`");
        assert!(from_value::<Override>(written("colour")).is_err_and(refused));
        assert!(from_value::<Quota>(written("colour")).is_err_and(refused));
        assert!(from_value::<Override>(Value::Null).is_err());
    }
}
