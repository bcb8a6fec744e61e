//! `tollgate.v1.RateLimitService`: the gRPC front door.

mod access;
mod body;
mod open;
mod report;
mod reserve;
mod stream;

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tollgate_api::{
    status_details,
    v1::{self, rate_limit_service_server::RateLimitService},
};
use tollgate_core::{
    amount::{Amount, Limit},
    claim::{Fit, Mode},
    time::Timestamp,
    window::Window,
};
use tollgate_policy::{
    decision::{Decision, QuotaStatus},
    dialect::Rendered,
    reason::{InvalidKey, Reason},
    uploads::Upload,
};
use tollgate_service::{
    scope::DomainScope,
    service::{
        Call, CallError, CallResponse, CallerRef, DecisionService, LimitsPage, ListRequest, Outcome, Rejection,
        check_batch, page_size,
    },
};
use tonic::{Extensions, Request, Response, Status, Streaming, metadata::MetadataMap};

pub(crate) use self::{
    access::AuthenticatedService,
    body::BodyBounds,
    open::{MAX_MESSAGE_BYTES, OpenService, OpenServiceBounds, REFLECTION_LIFETIME, WATCH_LIFETIME},
    stream::Bounds as StreamBounds,
};
use crate::{failure_code::FailureCode, logs::traced};

/// A call times out this much earlier than the caller's own deadline.
const RESERVE: Duration = Duration::from_millis(3);

#[derive(Clone)]
pub(crate) struct Api {
    service: Arc<DecisionService>,
    timeout: Duration,
    streams: StreamBounds,
}

impl Api {
    pub(crate) fn new(service: Arc<DecisionService>, timeout: Duration, streams: StreamBounds) -> Self {
        Self { service, timeout, streams }
    }

    /// Runs `work` under the caller's trace and within its deadline, unless the deadline has passed.
    async fn run<T>(
        &self,
        (metadata, extensions): (&MetadataMap, &Extensions),
        work: BoxFuture<'_, Result<T, CallError>>,
    ) -> Result<T, Status> {
        let deadline = self.deadline(metadata, extensions)?;
        if deadline <= Instant::now() {
            return Err(status(CallError::Expired));
        }
        let work = traced(text(metadata, "traceparent"), work);
        tokio::time::timeout_at(deadline, work).await.unwrap_or(Err(CallError::TimedOut)).map_err(status)
    }

    /// The earlier one of the caller's deadline, counted from the arrival of the call, and the node's, counted from
    /// now.
    ///
    /// At the caller's deadline tonic responds with `CANCELLED`, so a call times out a little earlier.
    fn deadline(&self, metadata: &MetadataMap, extensions: &Extensions) -> Result<Instant, Status> {
        let deadline = Instant::now() + self.timeout;
        let Some(timeout) = text(metadata, "grpc-timeout").and_then(parse_timeout) else { return Ok(deadline) };
        Ok(deadline.min(access::arrival(extensions)? + timeout.saturating_sub(RESERVE)))
    }

    async fn decide<T>(
        &self,
        request: Request<T>,
        call: fn(T) -> Option<v1::Call>,
        mode: Mode,
    ) -> Result<v1::Decision, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let (scope, call) = (access::grant(&extensions)?.scope(), call(message));
        let decision =
            self.decide_one(scope, call.as_ref(), self.deadline(&metadata, &extensions)?, mode).map_err(status)?;
        traced(text(&metadata, "traceparent"), decision).await.map_err(status)
    }

    fn decide_one<'a>(
        &'a self,
        scope: &'a DomainScope,
        call: Option<&'a v1::Call>,
        deadline: Instant,
        mode: Mode,
    ) -> Result<BoxFuture<'a, Result<v1::Decision, CallError>>, CallError> {
        let call = call.ok_or_else(|| CallError::field("call", "is required"))?;
        let decoded = Call { deadline: Some(deadline), ..from_wire(scope, call)? };
        Ok(self.service.decide(decoded, mode, |response| decision(response, call)))
    }
}

#[tonic::async_trait]
impl RateLimitService for Api {
    async fn check(&self, request: Request<v1::CheckRequest>) -> Result<Response<v1::CheckResponse>, Status> {
        let decision = self.decide(request, |message| message.call, Mode::Peek).await?;
        Ok(Response::new(v1::CheckResponse { decision: Some(decision) }))
    }

    async fn consume(&self, request: Request<v1::ConsumeRequest>) -> Result<Response<v1::ConsumeResponse>, Status> {
        let decision = self.decide(request, |message| message.call, Mode::Try).await?;
        Ok(Response::new(v1::ConsumeResponse { decision: Some(decision) }))
    }

    async fn consume_batch(
        &self,
        request: Request<v1::ConsumeBatchRequest>,
    ) -> Result<Response<v1::ConsumeBatchResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let scope = access::grant(&extensions)?.scope();
        check_batch(message.calls.len()).map_err(status)?;
        let calls = &message.calls;
        let decoded = calls.iter().map(|call| from_wire(scope, call)).collect();
        let render = |index: usize, response: &CallResponse<'_>| decision(response, &calls[index]);
        // tonic ends the whole batch at the caller's deadline, so its calls time out some time before.
        let timeout = self.deadline(&metadata, &extensions)?.saturating_duration_since(Instant::now()).mul_f32(0.9);
        let results = self.service.consume_each(decoded, timeout, render);
        let results = traced(text(&metadata, "traceparent"), results).await.into_iter().map(call_result).collect();
        Ok(Response::new(v1::ConsumeBatchResponse { results }))
    }

    type ConsumeStreamStream = stream::ResponseStream;

    async fn consume_stream(
        &self,
        request: Request<Streaming<v1::ConsumeStreamRequest>>,
    ) -> Result<Response<stream::ResponseStream>, Status> {
        let (metadata, extensions, calls) = request.into_parts();
        let grant = access::grant(&extensions)?;
        let scope = grant.scope().clone();
        let (sender, responses) = self.streams.open(grant.holder())?;
        let api = self.clone();
        tokio::spawn(async move {
            traced(text(&metadata, "traceparent"), stream::serve(api, scope, calls, sender)).await;
        });
        let mut response = Response::new(responses);
        response.extensions_mut().insert(crate::listener::Streaming);
        Ok(response)
    }

    async fn reserve(&self, request: Request<v1::ReserveRequest>) -> Result<Response<v1::ReserveResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let scope = access::grant(&extensions)?.scope();
        let decision = self.reserve_one(scope, &message, self.deadline(&metadata, &extensions)?);
        let decision = traced(text(&metadata, "traceparent"), decision).await.map_err(status)?;
        Ok(Response::new(v1::ReserveResponse { decision: Some(decision) }))
    }

    async fn settle(&self, request: Request<v1::SettleRequest>) -> Result<Response<v1::SettleResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let settle = reserve::settle(access::grant(&extensions)?.scope(), &message);
        let settlement =
            self.run((&metadata, &extensions), Box::pin(self.service.settle(settle))).await.map(reserve::settlement)?;
        Ok(Response::new(v1::SettleResponse { settlement: Some(settlement) }))
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Result<Response<v1::CancelResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let cancel = reserve::cancel(access::grant(&extensions)?.scope(), &message);
        let settlement =
            self.run((&metadata, &extensions), Box::pin(self.service.settle(cancel))).await.map(reserve::settlement)?;
        Ok(Response::new(v1::CancelResponse { settlement: Some(settlement) }))
    }

    async fn extend(&self, request: Request<v1::ExtendRequest>) -> Result<Response<v1::ExtendResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let v1::ExtendRequest { reservation_id, ttl_ms } = message;
        let scope = access::grant(&extensions)?.scope();
        let ends_at =
            self.run((&metadata, &extensions), Box::pin(self.service.extend(scope, &reservation_id, ttl_ms))).await?;
        Ok(Response::new(v1::ExtendResponse { reservation: Some(reserve::reservation(reservation_id, ends_at)) }))
    }

    async fn get_rate_limits(
        &self,
        request: Request<v1::GetRateLimitsRequest>,
    ) -> Result<Response<v1::GetRateLimitsResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let scope = access::grant(&extensions)?.scope();
        let page_size = page_size(message.page_size).map_err(status)?;
        let attributes = message.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let caller = caller(message.caller.as_ref()).map_err(status)?;
        let listing = ListRequest {
            scope,
            domain: &message.domain,
            caller,
            attributes,
            page_token: &message.page_token,
            page_size,
        };
        let listed = async { self.service.list(listing, limits).await.map_err(|error| error.in_field("page_token")) };
        Ok(Response::new(self.run((&metadata, &extensions), Box::pin(listed)).await?))
    }

    async fn report_outcome(
        &self,
        request: Request<v1::ReportOutcomeRequest>,
    ) -> Result<Response<v1::ReportOutcomeResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let scope = access::grant(&extensions)?.scope();
        let outcome = self.service.report(report::from_wire(scope, &message)?, report::to_wire);
        Ok(Response::new(self.run((&metadata, &extensions), Box::pin(outcome)).await?))
    }
}

fn text<'a>(metadata: &'a MetadataMap, name: &str) -> Option<&'a str> {
    metadata.get(name).and_then(|value| value.to_str().ok())
}

/// The header of a client's deadline: up to eight digits and a unit
/// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).
fn parse_timeout(header: &str) -> Option<Duration> {
    let (digits, unit) = header.split_at_checked(header.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// The status of an overloaded node, with a pushback from 50 to 150 ms, so that clients do not retry all at once
/// (<https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback>).
fn overload_status(text: String) -> Status {
    let mut status = Status::resource_exhausted(text);
    status.metadata_mut().insert("grpc-retry-pushback-ms", rand::random_range(50_u32..=150).into());
    status
}

/// The status of a call that was not decided.
#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn status(error: CallError) -> Status {
    let code = FailureCode::of(&error);
    let text = error.message();
    let status = if code.is_overload { overload_status(text) } else { Status::new(code.grpc, text) };
    let Some(response) = error.rendered() else { return status };
    let details = status_details(status.code().into(), status.message(), &rendered(response));
    Status::with_details_and_metadata(status.code(), status.message(), details.into(), status.metadata().clone())
}

fn from_wire<'a>(scope: &'a DomainScope, call: &'a v1::Call) -> Result<Call<'a>, CallError> {
    Ok(Call {
        scope,
        domain: &call.domain,
        caller: caller(call.caller.as_ref())?,
        resource: &call.resource,
        usage: call.usage.iter().map(|(unit, amount)| (unit.as_str(), *amount)).collect(),
        attributes: call.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
        dialect: &call.dialect,
        request_id: &call.request_id,
        deadline: None,
        render: call.render,
        upload: call.upload.as_ref().map(|upload| Upload {
            media_type: &upload.media_type,
            bytes: upload.bytes,
            duration_seconds: upload.duration_seconds,
        }),
    })
}

fn caller(caller: Option<&v1::Caller>) -> Result<CallerRef<'_>, CallError> {
    use v1::caller::By;
    match caller.and_then(|caller| caller.by.as_ref()) {
        Some(By::ApiKey(secret)) => Ok(CallerRef::Secret(secret)),
        Some(By::ApiKeyId(id)) => Ok(CallerRef::KeyId(id)),
        Some(By::Account(id)) => Ok(CallerRef::Account(id)),
        None => Err(CallError::field("caller", "must be one of api_key, api_key_id and account")),
    }
}

/// The result of one call of a batch or stream.
fn call_result(decision: Result<v1::Decision, CallError>) -> v1::CallResult {
    use v1::call_result::Result as CallResult;
    let result = decision.map_or_else(
        |error| {
            let rendered = error.rendered().map(rendered);
            let status = status(error);
            CallResult::Error(v1::CallError {
                code: status.code().into(),
                message: status.message().to_owned(),
                rendered,
            })
        },
        CallResult::Decision,
    );
    v1::CallResult { result: Some(result) }
}

fn decision(response: &CallResponse<'_>, call: &v1::Call) -> v1::Decision {
    let common = v1::Decision {
        verdict: response.reason().map_or(v1::Verdict::Allowed, |_| v1::Verdict::Denied).into(),
        reason: response.reason().map_or(v1::Reason::Unspecified, reason).into(),
        quota: response.binding_quota().map(|status| status.quota.name.as_ref().into()).unwrap_or_default(),
        rendered: call.render.then(|| Box::new(rendered(&response.render()))),
        ..v1::Decision::default()
    };
    match &response.outcome {
        Err(rejection) => {
            let (block, now) = (rejection.block(), rejection.time);
            v1::Decision {
                decided_at: Some(timestamp(now)),
                retry_after_ms: block.map(|block| block.until.ms_since(now)),
                blocked_until: block.map(|block| timestamp(block.until)),
                block_message: block.map(|block| block.message(now)).unwrap_or_default(),
                ..common
            }
        }
        Ok(Outcome { identity, resolved_quotas, decision, record, .. }) => v1::Decision {
            reservation: record
                .reservation
                .as_ref()
                .map(|(id, ends_at)| Box::new(reserve::reservation(id.clone(), *ends_at))),
            replayed: record.replayed,
            decided_at: Some(timestamp(decision.decided_at)),
            quotas: quotas(decision, call.details),
            retry_after_ms: decision.retry_after_ms(),
            account: identity.account.id.as_ref().into(),
            api_key_id: identity.key.as_ref().map(|key| key.id.as_ref().into()).unwrap_or_default(),
            tier: resolved_quotas.tier().name.as_ref().into(),
            resource: resolved_quotas.resource().to_owned(),
            shadow_refusals: decision.shadow_refusals().map(ToString::to_string).collect(),
            blocked_until: decision.block.map(|block| timestamp(block.until)),
            block_message: decision.block.map(|block| block.message(decision.decided_at)).unwrap_or_default(),
            priority: resolved_quotas.tier().priority.map(u32::from).unwrap_or_default(),
            decided_by: decision.decided_by.name().to_owned(),
            ..common
        },
    }
}

fn rendered(response: &Rendered) -> v1::RenderedResponse {
    let header = |(name, value): &(String, String)| v1::Header { name: name.clone(), value: value.clone() };
    v1::RenderedResponse {
        status: response.status.into(),
        headers: response.headers.iter().map(header).collect(),
        body: response.body.clone().unwrap_or_default(),
    }
}

fn limits(listed: Result<&LimitsPage<'_>, &Rejection<'_>>) -> v1::GetRateLimitsResponse {
    match listed {
        Err(rejection) => v1::GetRateLimitsResponse {
            reason: reason(rejection.reason()).into(),
            decided_at: Some(timestamp(rejection.time)),
            blocked_until: rejection.block().map(|block| timestamp(block.until)),
            ..v1::GetRateLimitsResponse::default()
        },
        Ok(LimitsPage { identity, domain, resources, decided_at, next }) => v1::GetRateLimitsResponse {
            reason: v1::Reason::Unspecified.into(),
            resources: resources
                .iter()
                .map(|(resource, decision)| v1::ResourceLimits {
                    resource: (*resource).to_owned(),
                    quotas: quotas(decision, true),
                    blocked_until: decision.block.map(|block| timestamp(block.until)),
                })
                .collect(),
            next_page_token: next.clone().unwrap_or_default(),
            decided_at: Some(timestamp(*decided_at)),
            account: identity.account.id.as_ref().into(),
            api_key_id: identity.key.as_ref().map(|key| key.id.as_ref().into()).unwrap_or_default(),
            tier: domain.policy.tier(identity.account.tier).map(|tier| tier.name.to_string()).unwrap_or_default(),
            blocked_until: None,
        },
    }
}

fn quotas(decision: &Decision<'_>, details: bool) -> Vec<v1::QuotaStatus> {
    decision.quotas.iter().map(|status| quota(status, details)).collect()
}

fn quota(status: &QuotaStatus<'_>, details: bool) -> v1::QuotaStatus {
    let quota = status.quota;
    v1::QuotaStatus {
        name: quota.name.as_ref().into(),
        limit: match status.limit {
            Limit::Finite(limit) => Some(limit.get()),
            Limit::Unlimited => None,
        },
        used: status.used.get(),
        remaining: status.remaining().map(Amount::get),
        resets_at: Some(timestamp(status.resets_at)),
        denies: status.denies(),
        retry_at: match status.fit {
            Fit::At(time) if status.denies() => Some(timestamp(time)),
            Fit::At(_) | Fit::Now | Fit::Never => None,
        },
        shadow: quota.shadow,
        hidden: !quota.visible,
        details: details.then(|| {
            Box::new(v1::QuotaDetails {
                label: quota.label.as_ref().into(),
                unit: quota.unit.name.as_ref().into(),
                window: Some(window(&quota.window)),
                scope: quota.scope.attributes().iter().map(|attribute| attribute.name().to_owned()).collect(),
            })
        }),
    }
}

fn window(window: &Window) -> v1::Window {
    use v1::window::Kind;
    let kind = match window {
        Window::Concurrent => return v1::Window { kind: Some(Kind::Concurrent(v1::Concurrent {})) },
        Window::Sliding(sliding) => Kind::SlidingMs(u64::from(sliding.ms())),
        Window::Calendar(calendar) => Kind::Calendar(v1::CalendarPeriod {
            unit: calendar.unit().name().to_owned(),
            zone: calendar.zone().to_owned(),
        }),
    };
    v1::Window { kind: Some(kind) }
}

fn reason(reason: Reason) -> v1::Reason {
    match reason {
        Reason::QuotaExceeded => v1::Reason::QuotaExceeded,
        Reason::CostAboveLimit => v1::Reason::CostAboveLimit,
        Reason::Blocked => v1::Reason::Blocked,
        Reason::UploadTooLarge => v1::Reason::UploadTooLarge,
        Reason::UnknownResource => v1::Reason::UnknownResource,
        Reason::InvalidKey(InvalidKey::Unknown) => v1::Reason::UnknownKey,
        Reason::InvalidKey(InvalidKey::Revoked) => v1::Reason::RevokedKey,
        Reason::InvalidKey(InvalidKey::Expired) => v1::Reason::ExpiredKey,
    }
}

fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    let ms = time.as_ms();
    prost_types::Timestamp {
        seconds: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(ms % 1000 * 1_000_000).unwrap_or(0),
    }
}
