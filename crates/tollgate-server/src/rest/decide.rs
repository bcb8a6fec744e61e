//! `POST /v1/check` and `POST /v1/consume`: the RPCs in JSON.

use axum::{extract::State, response::Response};
use serde::{Deserialize, Serialize};
use tollgate_core::{
    amount::{Amount, Limit},
    claim::{Fit, Mode},
    window::Window,
};
use tollgate_policy::{
    decision::QuotaStatus,
    dialect::Rendered,
    reason::{InvalidKey, Reason},
    uploads::Upload,
};
use tollgate_service::{
    scope::DomainScope,
    service::{Answer, Call, CallerRef, Outcome},
};
use utoipa::ToSchema;

use super::{
    Body, ErrorBody, Failures, Shared, answer,
    entries::Entries,
    number::{Whole, whole},
    reservation::ReservationBody,
};
use crate::auth::ServiceGrant;

/// A call to be decided.
// It may bring a secret, and so cannot be printed.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CallBody {
    /// The policy's domain. May be left out if the token has only one domain.
    #[serde(default)]
    domain: String,
    caller: CallerBody,
    /// The resource that is called: a model or an endpoint.
    #[schema(min_length = 1, max_length = 128)]
    resource: String,
    /// The usage by unit, each from 1 to 2^53 - 1. `requests` is 1 if absent.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, u64>)]
    usage: Entries<Whole>,
    /// Values of the attributes in the policy's scopes other than account, `api_key` and resource, such as `ip`.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    attributes: Entries<String>,
    /// An idempotency key. All calls with the same id within its lifetime (10 minutes by default) are charged once, on
    /// any node, and get the answer of the first admission. The same id with a different call is an error. For
    /// `consume` and `reserve`.
    #[serde(default)]
    #[schema(max_length = 128)]
    request_id: String,
    /// The dialect of `rendered`; that of the domain if absent.
    #[serde(default)]
    #[schema(max_length = 128)]
    dialect: String,
    /// Whether the answer has `rendered`.
    #[serde(default)]
    pub(super) render: bool,
    /// The upload of the call, checked against the policy's upload limits.
    #[serde(default)]
    #[schema(value_type = UploadBody)]
    upload: Option<UploadBody>,
}

/// An upload.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UploadBody {
    /// `image`, `audio`, `video`, or a media type such as `audio/wav`.
    #[schema(min_length = 1, max_length = 128)]
    media_type: String,
    /// Its size in bytes.
    #[serde(default, deserialize_with = "whole")]
    bytes: u64,
    /// Playing time in seconds, rounded up.
    #[serde(default, deserialize_with = "whole")]
    duration_seconds: u64,
}

/// The caller: one of the three.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum CallerBody {
    /// The secret of an API key.
    ApiKey(String),
    /// The id of an API key.
    ApiKeyId(String),
    /// An account; no quota of a key applies.
    Account(String),
}

impl CallerBody {
    pub(super) fn caller(&self) -> CallerRef<'_> {
        match self {
            Self::ApiKey(secret) => CallerRef::Secret(secret),
            Self::ApiKeyId(id) => CallerRef::KeyId(id),
            Self::Account(id) => CallerRef::Account(id),
        }
    }
}

/// A decision.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DecisionBody {
    verdict: VerdictBody,
    /// Why the call is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<ReasonBody>,
    /// The time by the clock of the counters' store, or of the node if no counter was read, RFC 3339.
    decided_at: String,
    /// The name of the binding quota.
    #[serde(skip_serializing_if = "Option::is_none")]
    quota: Option<String>,
    /// The number of milliseconds after which the same call is admitted if nobody else calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    /// When the caller's block by an abuse rule ends, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_until: Option<String>,
    /// The policy's message for a blocked caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    block_message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tier: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<String>,
    /// The tier's priority, from 1 (low) to 4 (critical).
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u8>,
    /// How the decision was made if the store did not answer: `allow` (allowed without counting) or `local` (by this node alone). Absent if the store decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    decided_by: Option<&'static str>,
    /// The shadow quotas and abuse rules that would have refused the call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    shadow_refusals: Vec<String>,
    /// The reservation that `reserve` created, if the call is allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reservation: Option<ReservationBody>,
    /// Whether a call with this `request_id` was admitted before, so that the first answer is repeated.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    replayed: bool,
    /// Every quota that applies to the call.
    quotas: Vec<QuotaBody>,
    /// The answer for the platform's own caller, if the call requested it.
    #[serde(skip_serializing_if = "Option::is_none")]
    rendered: Option<RenderedBody>,
}

/// An answer in a platform's dialect, to be copied unchanged.
#[derive(Debug, Serialize, ToSchema)]
struct RenderedBody {
    /// The HTTP status; 200 for an allowed call.
    status: u16,
    headers: Vec<HeaderBody>,
    /// JSON; absent if there is no body.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct HeaderBody {
    name: String,
    value: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum VerdictBody {
    Allowed,
    Denied,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ReasonBody {
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
}

/// A quota: its definition, and its state after the decision.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct QuotaBody {
    name: String,
    label: String,
    unit: String,
    window: WindowBody,
    /// The attributes whose values name the counter.
    scope: Vec<String>,
    /// `null` if unlimited.
    limit: Option<u64>,
    /// The usage in the window now, including this call if it was charged.
    used: u64,
    /// The amount that could be admitted now; `null` if unlimited.
    remaining: Option<u64>,
    /// When the current usage no longer counts, RFC 3339.
    resets_at: String,
    /// Whether this quota refuses the call.
    denies: bool,
    /// When this quota would admit the call, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_at: Option<String>,
    /// Whether the quota is a shadow: it counts and reports, but never refuses.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    shadow: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum WindowBody {
    /// No window: the number of slots in use now.
    Concurrent,
    SlidingMs(u64),
    Calendar(CalendarBody),
}

/// Calendar periods.
#[derive(Debug, Serialize, ToSchema)]
struct CalendarBody {
    /// `second`, `minute`, `hour`, `day`, `week` (from Monday) or `month`.
    unit: String,
    /// The IANA time zone.
    zone: String,
}

/// Returns the decision that `consume` would make, and charges nothing.
#[utoipa::path(post, path = "/v1/check", request_body = CallBody, responses(
    (status = 200, description = "A decision; a refusal is a decision too", body = DecisionBody),
    (status = 404, description = "No such domain", body = ErrorBody),
    Failures,
))]
pub(super) async fn check(State(shared): State<Shared>, grant: ServiceGrant, Body(call): Body<CallBody>) -> Response {
    decide(&shared, &grant, &call, Mode::Peek).await
}

/// Charges every quota of the call if all of them have room; otherwise charges none.
#[utoipa::path(post, path = "/v1/consume", request_body = CallBody, responses(
    (status = 200, description = "A decision; a refusal is a decision too", body = DecisionBody),
    (status = 404, description = "No such domain", body = ErrorBody),
    Failures,
))]
pub(super) async fn consume(State(shared): State<Shared>, grant: ServiceGrant, Body(call): Body<CallBody>) -> Response {
    decide(&shared, &grant, &call, Mode::Try).await
}

async fn decide(shared: &Shared, grant: &ServiceGrant, body: &CallBody, mode: Mode) -> Response {
    let decided = shared.service.decide(body.to_call(grant.scope()), mode, |outcome| decision(outcome, body.render));
    answer(decided.await)
}

impl CallBody {
    pub(super) fn to_call<'a>(&'a self, within: &'a DomainScope) -> Call<'a> {
        Call {
            within,
            domain: &self.domain,
            caller: self.caller.caller(),
            resource: &self.resource,
            usage: self.usage.iter().collect(),
            attributes: self.attributes.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
            dialect: &self.dialect,
            request_id: &self.request_id,
            deadline: None,
            upload: self.upload.as_ref().map(|upload| Upload {
                media_type: &upload.media_type,
                bytes: upload.bytes,
                duration_seconds: upload.duration_seconds,
            }),
        }
    }
}

pub(super) fn decision(answer: &Answer<'_>, render: bool) -> DecisionBody {
    let common = DecisionBody {
        verdict: answer.reason().map_or(VerdictBody::Allowed, |_| VerdictBody::Denied),
        reason: answer.reason().map(reason),
        decided_at: String::new(),
        quota: answer.binding_quota().map(|status| status.quota.name.to_string()),
        retry_after_ms: None,
        blocked_until: None,
        block_message: None,
        account: None,
        api_key_id: None,
        tier: None,
        resource: None,
        priority: None,
        decided_by: None,
        shadow_refusals: Vec::new(),
        quotas: Vec::new(),
        reservation: None,
        replayed: false,
        rendered: render.then(|| rendered(answer.render())),
    };
    match &answer.outcome {
        Err(rejection) => {
            let (block, at) = (rejection.block(), rejection.at);
            DecisionBody {
                decided_at: at.to_string(),
                retry_after_ms: block.map(|block| block.until.ms_since(at)),
                blocked_until: block.map(|block| block.until.to_string()),
                block_message: block.map(|block| block.message(at)),
                ..common
            }
        }
        Ok(Outcome { identity, resolved, decision, record, .. }) => DecisionBody {
            reservation: record.reservation.as_ref().map(|(id, ends_at)| ReservationBody::of(id, *ends_at)),
            replayed: record.replayed,
            decided_at: decision.decided_at.to_string(),
            retry_after_ms: decision.retry_after_ms(),
            blocked_until: decision.block.map(|block| block.until.to_string()),
            block_message: decision.block.map(|block| block.message(decision.decided_at)),
            account: Some(identity.account.id.to_string()),
            api_key_id: identity.key.as_ref().map(|key| key.id.to_string()),
            tier: Some(resolved.tier().name.to_string()),
            resource: Some(resolved.resource().to_owned()),
            priority: resolved.tier().priority,
            decided_by: Some(decision.decided_by.name()).filter(|name| !name.is_empty()),
            shadow_refusals: decision.shadow_refusals().map(ToString::to_string).collect(),
            quotas: decision.quotas.iter().map(quota).collect(),
            ..common
        },
    }
}

pub(super) fn reason(reason: Reason) -> ReasonBody {
    match reason {
        Reason::QuotaExceeded => ReasonBody::QuotaExceeded,
        Reason::CostAboveLimit => ReasonBody::CostAboveLimit,
        Reason::Blocked => ReasonBody::Blocked,
        Reason::UploadTooLarge => ReasonBody::UploadTooLarge,
        Reason::InvalidKey(InvalidKey::Unknown) => ReasonBody::UnknownKey,
        Reason::InvalidKey(InvalidKey::Revoked) => ReasonBody::RevokedKey,
        Reason::InvalidKey(InvalidKey::Expired) => ReasonBody::ExpiredKey,
    }
}

fn rendered(answer: Rendered) -> RenderedBody {
    let headers = answer.headers.into_iter().map(|(name, value)| HeaderBody { name, value });
    RenderedBody { status: answer.status, headers: headers.collect(), body: answer.body }
}

pub(super) fn quota(status: &QuotaStatus<'_>) -> QuotaBody {
    let quota = status.quota;
    QuotaBody {
        name: quota.name.to_string(),
        label: quota.label.to_string(),
        unit: quota.unit.name.to_string(),
        window: match &quota.window {
            Window::Concurrent => WindowBody::Concurrent,
            Window::Sliding(sliding) => WindowBody::SlidingMs(u64::from(sliding.ms())),
            Window::Calendar(calendar) => WindowBody::Calendar(CalendarBody {
                unit: calendar.unit().name().to_owned(),
                zone: calendar.zone().to_owned(),
            }),
        },
        scope: quota.scope.attributes().iter().map(|attribute| attribute.name().to_owned()).collect(),
        limit: match status.limit {
            Limit::Finite(limit) => Some(limit.get()),
            Limit::Unlimited => None,
        },
        used: status.used.get(),
        remaining: status.remaining().map(Amount::get),
        resets_at: status.resets_at.to_string(),
        denies: status.denies(),
        retry_at: match status.fit {
            Fit::At(at) if status.denies() => Some(at.to_string()),
            Fit::At(_) | Fit::Now | Fit::Never => None,
        },
        shadow: quota.shadow,
    }
}
