//! The `abuse` section: blocks of callers that fail too often.

use std::ops::RangeInclusive;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Length, Message, Scope, StatusText, count::Count, names};

/// The blocks of callers that fail too often.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Abuse {
    /// The rules, by names of your choice. All of them apply. The name identifies the counters: a renamed rule starts
    /// counting at zero.
    #[serde(default)]
    #[schemars(extend("propertyNames" = names("Word"), "maxProperties" = 8))]
    pub rules: IndexMap<String, AbuseRule>,
    /// Calls with a key that is unknown, revoked or expired, by client address.
    #[serde(default)]
    #[schemars(with = "AuthenticationRule")]
    pub authentication: Option<AuthenticationRule>,
}

/// More than `limit` failures within `per` block for `block`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AbuseRule {
    /// Which HTTP statuses are failures; every one from 400 on unless given.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub statuses: Vec<Status>,
    /// The most failures that do not block; one more blocks.
    pub limit: Count,
    /// The trailing window in which failures are counted.
    pub per: Length,
    /// How long a block lasts.
    pub block: Length,
    /// The attributes whose failures are counted together, and which are blocked together; those of the account's
    /// quotas unless given. Calls without a value for one of its attributes are not counted.
    #[serde(default)]
    #[schemars(with = "Scope")]
    pub scope: Option<Scope>,
    /// Whether calls that a quota refuses are failures, if their status (429, or 413 for a cost above the limit)
    /// is one. The node counts them by itself.
    #[serde(default = "yes")]
    pub count_refusals: bool,
    /// The message to a blocked caller. `{limit}`, `{window_seconds}`, `{block_seconds}` and `{wait_seconds}` (how
    /// long the block still lasts) are replaced.
    #[serde(default)]
    #[schemars(with = "Message")]
    pub message: Option<Message>,
}

/// More than `limit` failed authentications of a client address within `per` block it for `block`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuthenticationRule {
    /// The most failures that do not block; one more blocks.
    pub limit: Count,
    /// The trailing window in which failures are counted.
    pub per: Length,
    /// How long a block lasts.
    pub block: Length,
    /// The message to a blocked caller, as in a rule.
    #[serde(default)]
    #[schemars(with = "Message")]
    pub message: Option<Message>,
}

/// A status such as `429`, a hundred such as `4xx`, or a range such as `500-599`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Status {
    One(#[schemars(range(min = 100, max = 599))] u16),
    Text(StatusText),
}

impl Status {
    /// The statuses; 0, which none has, for a text that the schema refuses.
    pub(crate) fn range(&self) -> RangeInclusive<u16> {
        let text = match self {
            Self::One(status) => return *status..=*status,
            Self::Text(text) => &text.0,
        };
        let number = |text: &str| text.parse().unwrap_or(0);
        match (text.strip_suffix("xx"), text.split_once('-')) {
            (Some(hundred), _) => number(hundred) * 100..=number(hundred) * 100 + 99,
            (_, Some((first, last))) => number(first)..=number(last),
            _ => number(text)..=number(text),
        }
    }
}

fn yes() -> bool {
    true
}
