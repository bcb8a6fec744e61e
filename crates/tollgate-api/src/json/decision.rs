//! Decisions, as `/v1` answers them.

use serde::Serialize;
use utoipa::ToSchema;

use super::reservation::ReservationBody;

/// A decision.
#[derive(Debug, Serialize, ToSchema)]
pub struct DecisionBody {
    pub verdict: VerdictBody,
    /// Why the call is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<ReasonBody>,
    /// The time by the clock of the counters' store, or of the node if no counter was read, RFC 3339.
    pub decided_at: String,
    /// The name of the binding quota.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<String>,
    /// The number of milliseconds after which the same call is admitted if nobody else calls. If no slot of
    /// `concurrent_requests` is free, a short advised wait: a slot is free when a call ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// When the caller's block by an abuse rule ends, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_until: Option<String>,
    /// The policy's message for a blocked caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The tier's priority, from 1 (low) to 4 (critical).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// How the decision was made if the store did not answer: `allow` (allowed without counting) or `local` (by this
    /// node only). Absent if the store decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<&'static str>,
    /// The shadow quotas and abuse rules that would have refused the call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shadow_refusals: Vec<String>,
    /// The reservation that `reserve` created, if the call is allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reservation: Option<ReservationBody>,
    /// Whether a call with this `request_id` was admitted before, so that the first answer is repeated.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub replayed: bool,
    /// Every quota that applies to the call.
    pub quotas: Vec<QuotaBody>,
    /// The answer for the platform's own caller, if the call requested it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rendered: Option<RenderedBody>,
}

/// An answer in a platform's dialect, to be copied unchanged.
#[derive(Debug, Serialize, ToSchema)]
pub struct RenderedBody {
    /// The HTTP status; 200 for an allowed call.
    pub status: u16,
    pub headers: Vec<HeaderBody>,
    /// JSON; absent if there is no body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct HeaderBody {
    pub name: String,
    pub value: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VerdictBody {
    Allowed,
    Denied,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReasonBody {
    /// A quota has no room now.
    QuotaExceeded,
    /// The cost is above a limit itself: waiting does not help.
    CostAboveLimit,
    /// No such API key.
    UnknownKey,
    /// The API key is revoked.
    RevokedKey,
    /// The API key has expired.
    ExpiredKey,
    /// Too many failures: an abuse rule blocks the caller for a while.
    Blocked,
    /// The upload is larger than the resource accepts.
    UploadTooLarge,
    /// The policy does not have the resource.
    UnknownResource,
}

/// A quota: its definition, and its state after the decision.
#[derive(Debug, Serialize, ToSchema)]
pub struct QuotaBody {
    pub name: String,
    pub label: String,
    pub unit: String,
    pub window: WindowBody,
    /// The attributes whose values name the counter.
    pub scope: Vec<String>,
    /// `null` if unlimited.
    pub limit: Option<u64>,
    /// The usage in the window now, including this call if it was charged.
    pub used: u64,
    /// The amount that could be admitted now; `null` if unlimited.
    pub remaining: Option<u64>,
    /// When the current usage no longer counts, RFC 3339.
    pub resets_at: String,
    /// Whether this quota refuses the call.
    pub denies: bool,
    /// When this quota would admit the call, RFC 3339; for `concurrent_requests`, when to try again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<String>,
    /// Whether the quota is a shadow: it counts and reports, but never refuses.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shadow: bool,
    /// Whether the platform's customers must not see the quota: it is left out of `/api_keys/rate_limits` and of rendered
    /// answers.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub hidden: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WindowBody {
    /// No window: the number of slots in use now.
    Concurrent,
    SlidingMs(u64),
    Calendar(CalendarBody),
}

/// Calendar periods.
#[derive(Debug, Serialize, ToSchema)]
pub struct CalendarBody {
    /// `second`, `minute`, `hour`, `day`, `week` (from Monday) or `month`.
    pub unit: String,
    /// The IANA time zone.
    pub zone: String,
}
