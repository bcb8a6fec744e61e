//! The tables of dialects, as policy files and the built-in tables write them.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{Length, Note, Word};

text! {
    /// The name of a header, such as `X-RateLimit-Limit`.
    HeaderName, r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$", 64
}
text! {
    /// Printable ASCII that neither begins nor ends with a space.
    HeaderText, r"^[!-~]([ -~]*[!-~])?$", 256
}
text! {
    /// A media type such as `application/json`.
    MediaType, r"^[a-z]+/[a-z0-9.+-]+(; ?charset=utf-8)?$", 128
}
text! {
    /// A dialect of `dialects`, or one of: venice, tiered-chat, deapi, openai, anthropic, ietf, none.
    DialectName, r"^[a-z0-9][a-z0-9._-]*$", 64
}

/// How a decision becomes a status, headers and a body.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    /// A note for the reader.
    #[serde(default)]
    #[schemars(with = "Note")]
    #[expect(dead_code, reason = "for the reader of the file")]
    description: Option<Note>,
    /// A built-in dialect to start from. Headers with the same name and answers for the same reason are changed by
    /// those written here, others are added.
    #[serde(default)]
    #[schemars(with = "DialectName")]
    pub extends: Option<DialectName>,
    /// The longest wait that clients honour by themselves; for longer waits `should_retry` is `false`.
    #[serde(default)]
    #[schemars(with = "Length")]
    pub retry_within: Option<Length>,
    /// The format of `/api_keys/rate_limits` in domains with this dialect. Unless given, that of the built-in dialect of
    /// the same name, and `plain` if there is none.
    #[serde(default)]
    #[schemars(with = "ListingFormat")]
    pub listing: Option<ListingFormat>,
    /// The answers with those headers that have no `on`. `always` unless given.
    #[serde(default)]
    #[schemars(with = "KindFilter")]
    pub on: Option<KindFilter>,
    /// The headers, in their order.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub headers: Vec<HeaderRow>,
    /// The status and the body of each kind of refusal: `quota_exceeded`, `concurrency_exceeded` (no slot of
    /// `concurrent_requests` is free; the parts that it does not have are those of `quota_exceeded`), `overloaded` (a quota
    /// refuses that customers do not see), `insufficient_quota`, `cost_above_limit`, `blocked`, `upload_too_large`,
    /// `unknown_resource`, `unavailable` (the store does not answer),
    /// `bad_key` or separately `unknown_key`, `revoked_key` and `expired_key`; and the names of the platform's own that
    /// quotas are `refused_as`.
    #[serde(default)]
    #[schemars(extend("propertyNames" = super::names("Word"), "maxProperties" = 64))]
    pub answers: IndexMap<String, Answer>,
}

/// The format of `/api_keys/rate_limits`: `venice` (the format of the Venice API) or `plain`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ListingFormat {
    /// The format of the Venice API.
    Venice,
    /// Tollgate's own format.
    #[default]
    Plain,
}

/// A header: a `value`, a fixed `text`, or the text of the `first_refusing` quota.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HeaderRow {
    /// Its name.
    pub name: HeaderName,
    /// The quota that the value is of; unless given, the binding quota of the decision. Where no such quota applies, the
    /// header is left out.
    #[serde(default)]
    #[schemars(with = "Selector")]
    pub quota: Option<Selector>,
    /// Its value; of a list, the first one that exists.
    #[serde(default)]
    #[schemars(with = "Values")]
    pub value: Option<Values>,
    /// The format of the value.
    #[serde(default)]
    #[schemars(with = "Format")]
    pub format: Option<Format>,
    /// A fixed text.
    #[serde(default)]
    #[schemars(with = "HeaderText")]
    pub text: Option<HeaderText>,
    /// The text of the first of these quotas that refuses the call.
    #[serde(default)]
    #[schemars(with = "Vec<RefusalText>", length(min = 1, max = 16))]
    pub first_refusing: Option<Vec<RefusalText>>,
    /// The answers with this header.
    #[serde(default)]
    #[schemars(with = "KindFilter")]
    pub on: Option<KindFilter>,
    /// The text instead of the limit, the remaining amount and the reset of an unlimited quota. The header is omitted
    /// unless given.
    #[serde(default)]
    #[schemars(with = "HeaderText")]
    pub unlimited: Option<HeaderText>,
    /// The text if there is no value. The header is omitted unless given.
    #[serde(default)]
    #[schemars(with = "HeaderText")]
    pub missing: Option<HeaderText>,
}

/// A quota, and the text for it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Refusing")]
pub(crate) struct RefusalText {
    /// The quota.
    pub quota: QuotaSelector,
    /// The text.
    pub text: HeaderText,
}

/// `speaking` (of those that refuse, the one that refuses for longest; otherwise the one with the smallest part
/// left), or which quota, such as `{unit: requests, per: minute}`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Selector {
    Binding(BindingQuota),
    Quota(QuotaSelector),
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "Speaking")]
pub(crate) enum BindingQuota {
    #[serde(rename = "speaking")]
    Binding,
}

/// Which quota, by unit, window and name. Of several, the one that refuses for longest; otherwise the one with the
/// least left.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
#[schemars(rename = "Which")]
pub(crate) struct QuotaSelector {
    /// Its unit.
    #[serde(default)]
    #[schemars(with = "Word")]
    pub unit: Option<Word>,
    /// Its window: a trailing one of this length, or calendar periods of it.
    #[serde(default)]
    #[schemars(with = "Length")]
    pub per: Option<Length>,
    /// Its name.
    #[serde(default)]
    #[schemars(with = "Word")]
    pub name: Option<Word>,
}

/// A value such as `limit`, `remaining` or `retry_after`, or a list of values, of which the first one that exists is
/// used.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Values {
    One(ValueWord),
    FirstOf(#[schemars(length(min = 1, max = 4))] Vec<ValueWord>),
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ValueWord {
    // Of the quota: numbers, moments and names.
    Limit,
    Remaining,
    Used,
    Cost,
    Reset,
    ResetsAt,
    Quota,
    Label,
    Unit,
    Window,
    Measure,
    // Of the decision.
    RetryAt,
    RetryAfter,
    ShouldRetry,
    Reason,
    Message,
    Violated,
    IetfPolicies,
    IetfLimits,
    // Of the call.
    Resource,
    Tier,
    Priority,
    Account,
    ApiKeyId,
    Domain,
}

/// How a time is written.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Format {
    Integer,
    EpochSeconds,
    EpochMilliseconds,
    DeltaSeconds,
    DeltaMilliseconds,
    GoDuration,
    Rfc3339,
}

/// `always`, `never`, `allowed`, `refused`, `bad_key`, a reason such as `quota_exceeded`, or a list of these.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "On")]
pub(crate) enum KindFilter {
    One(KindName),
    Any(#[schemars(length(min = 1, max = 16))] Vec<KindName>),
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "OnWord")]
pub(crate) enum KindName {
    Always,
    Never,
    Allowed,
    Refused,
    QuotaExceeded,
    CostAboveLimit,
    Blocked,
    UploadTooLarge,
    UnknownResource,
    Unavailable,
    BadKey,
    UnknownKey,
    RevokedKey,
    ExpiredKey,
}

/// A status and a body.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Answer {
    /// The HTTP status. Unless given: 429 where waiting helps or a block is on, 401 for keys, 413 otherwise.
    #[serde(default)]
    #[schemars(with = "u16", range(min = 400, max = 599))]
    pub status: Option<u16>,
    /// The media type of the body; `application/json` unless given.
    #[serde(default)]
    #[schemars(with = "MediaType")]
    pub content_type: Option<MediaType>,
    /// The quota that the body is about; unless given, the binding quota of the decision.
    #[serde(default)]
    #[schemars(with = "Selector")]
    pub quota: Option<Selector>,
    /// The body, JSON. Strings may hold placeholders such as `{retry_after}`. No body unless given.
    #[serde(default)]
    #[schemars(with = "Value")]
    pub body: Option<Value>,
}
