//! `POST /v1/check` and `POST /v1/consume`.

use axum::{extract::State, response::Response};
use smallvec::SmallVec;
use tollgate_api::json::{
    call::{CallBody, CallerBody},
    decision::{CalendarBody, DecisionBody, HeaderBody, QuotaBody, ReasonBody, RenderedBody, VerdictBody, WindowBody},
    entries::Entries,
    error::ErrorBody,
};
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
    service::{Call, CallResponse, CallerRef, Outcome},
};

use super::{Body, ErrorResponses, Shared, reservation::reservation, result_response};
use crate::auth::ServiceGrant;

pub(super) fn caller(body: &CallerBody) -> CallerRef<'_> {
    match body {
        CallerBody::ApiKey(secret) => CallerRef::Secret(secret),
        CallerBody::ApiKeyId(id) => CallerRef::KeyId(id),
        CallerBody::Account(id) => CallerRef::Account(id),
    }
}

pub(super) fn attributes(body: &Entries<String>) -> SmallVec<[(&str, &str); 2]> {
    body.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// Returns the decision that `consume` would make, and charges nothing.
#[utoipa::path(post, path = "/v1/check", request_body = CallBody, responses(
    (status = 200, description = "A decision; a refusal is a decision too", body = DecisionBody),
    (status = 404, description = "No such domain", body = ErrorBody),
    ErrorResponses,
))]
pub(super) async fn check(State(shared): State<Shared>, grant: ServiceGrant, Body(call): Body<CallBody>) -> Response {
    decide(&shared, &grant, &call, Mode::Peek).await
}

/// Charges every quota of the call if all of them have room; otherwise charges none.
#[utoipa::path(post, path = "/v1/consume", request_body = CallBody, responses(
    (status = 200, description = "A decision; a refusal is a decision too", body = DecisionBody),
    (status = 404, description = "No such domain", body = ErrorBody),
    ErrorResponses,
))]
pub(super) async fn consume(State(shared): State<Shared>, grant: ServiceGrant, Body(call): Body<CallBody>) -> Response {
    decide(&shared, &grant, &call, Mode::Try).await
}

async fn decide(shared: &Shared, grant: &ServiceGrant, body: &CallBody, mode: Mode) -> Response {
    let call = call(body, grant.scope());
    result_response(shared.service.decide(call, mode, |response| decision(response, body.render)).await)
}

pub(super) fn call<'a>(body: &'a CallBody, scope: &'a DomainScope) -> Call<'a> {
    Call {
        scope,
        domain: &body.domain,
        caller: caller(&body.caller),
        resource: &body.resource,
        usage: body.usage.iter().collect(),
        attributes: attributes(&body.attributes),
        dialect: &body.dialect,
        request_id: &body.request_id,
        deadline: None,
        render: body.render,
        upload: body.upload.as_ref().map(|upload| Upload {
            media_type: &upload.media_type,
            bytes: upload.bytes,
            duration_seconds: upload.duration_seconds,
        }),
    }
}

pub(super) fn decision(response: &CallResponse<'_>, render: bool) -> DecisionBody {
    let common = DecisionBody {
        verdict: response.reason().map_or(VerdictBody::Allowed, |_| VerdictBody::Denied),
        reason: response.reason().map(reason),
        decided_at: String::new(),
        quota: response.binding_quota().map(|status| status.quota.name.to_string()),
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
        rendered: render.then(|| rendered(&response.render())),
    };
    match &response.outcome {
        Err(rejection) => {
            let (block, now) = (rejection.block(), rejection.time);
            DecisionBody {
                decided_at: now.to_string(),
                retry_after_ms: block.map(|block| block.until.ms_since(now)),
                blocked_until: block.map(|block| block.until.to_string()),
                block_message: block.map(|block| block.message(now)),
                ..common
            }
        }
        Ok(Outcome { identity, resolved_quotas, decision, record, .. }) => DecisionBody {
            reservation: record.reservation.as_ref().map(|(id, ends_at)| reservation(id, *ends_at)),
            replayed: record.replayed,
            decided_at: decision.decided_at.to_string(),
            retry_after_ms: decision.retry_after_ms(),
            blocked_until: decision.block.map(|block| block.until.to_string()),
            block_message: decision.block.map(|block| block.message(decision.decided_at)),
            account: Some(identity.account.id.to_string()),
            api_key_id: identity.key.as_ref().map(|key| key.id.to_string()),
            tier: Some(resolved_quotas.tier().name.to_string()),
            resource: Some(resolved_quotas.resource().to_owned()),
            priority: resolved_quotas.tier().priority,
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
        Reason::UnknownResource => ReasonBody::UnknownResource,
        Reason::InvalidKey(InvalidKey::Unknown) => ReasonBody::UnknownKey,
        Reason::InvalidKey(InvalidKey::Revoked) => ReasonBody::RevokedKey,
        Reason::InvalidKey(InvalidKey::Expired) => ReasonBody::ExpiredKey,
    }
}

pub(super) fn rendered(response: &Rendered) -> RenderedBody {
    let headers = response.headers.iter().map(|(name, value)| HeaderBody { name: name.clone(), value: value.clone() });
    RenderedBody { status: response.status, headers: headers.collect(), body: response.body.clone() }
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
            Fit::At(time) if status.denies() => Some(time.to_string()),
            Fit::At(_) | Fit::Now | Fit::Never => None,
        },
        shadow: quota.shadow,
        hidden: !quota.visible,
    }
}
