//! `tollgate.v1.RateLimitService`. Protobuf stops here.

mod body;
mod guard;
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
        Answer, Call, CallError, CallerRef, DecisionService, LimitsPage, Listing, Outcome, Rejection, check_batch,
        page_size,
    },
};
use tonic::{Extensions, Request, Response, Status, Streaming, metadata::MetadataMap};

pub(crate) use self::{
    body::BodyBounds,
    guard::GuardedService,
    open::{MAX_MESSAGE_BYTES, Open, OpenCalls, REFLECTION, WATCH},
    stream::Bounds as StreamBounds,
};
use crate::{failure_code::FailureCode, logs::traced};

/// How much earlier than the caller's own deadline a call is ended.
const EARLIER: Duration = Duration::from_millis(3);

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

    /// Does `work` under the caller's trace and within its deadline; none of it if that is over.
    async fn run<T>(
        &self,
        (metadata, extensions): (&MetadataMap, &Extensions),
        work: BoxFuture<'_, Result<T, CallError>>,
    ) -> Result<T, Status> {
        let deadline = self.deadline(metadata, extensions)?;
        if deadline <= Instant::now() {
            return Err(failed(CallError::Expired));
        }
        let work = traced(text(metadata, "traceparent"), work);
        tokio::time::timeout_at(deadline, work).await.unwrap_or(Err(CallError::Late)).map_err(failed)
    }

    /// The caller's deadline, from when its call came, or the node's own, from now.
    ///
    /// tonic keeps the caller's deadline too, but answers `CANCELLED`; so this one ends a little earlier.
    fn deadline(&self, metadata: &MetadataMap, extensions: &Extensions) -> Result<Instant, Status> {
        let own = Instant::now() + self.timeout;
        let Some(timeout) = text(metadata, "grpc-timeout").and_then(parse_timeout) else { return Ok(own) };
        Ok(own.min(guard::arrived(extensions)? + timeout.saturating_sub(EARLIER)))
    }

    async fn decide<T>(
        &self,
        request: Request<T>,
        call: fn(T) -> Option<v1::Call>,
        mode: Mode,
    ) -> Result<v1::Decision, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let (within, call) = (guard::grant(&extensions)?.scope(), call(message));
        let decided =
            self.decide_one(within, call.as_ref(), self.deadline(&metadata, &extensions)?, mode).map_err(failed)?;
        traced(text(&metadata, "traceparent"), decided).await.map_err(failed)
    }

    fn decide_one<'a>(
        &'a self,
        within: &'a DomainScope,
        call: Option<&'a v1::Call>,
        deadline: Instant,
        mode: Mode,
    ) -> Result<BoxFuture<'a, Result<v1::Decision, CallError>>, CallError> {
        let call = call.ok_or_else(|| CallError::field("call", "is required"))?;
        let read = Call { deadline: Some(deadline), ..from_wire(within, call)? };
        Ok(self.service.decide(read, mode, |outcome| decision(outcome, call)))
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
        let within = guard::grant(&extensions)?.scope();
        check_batch(message.calls.len()).map_err(failed)?;
        let calls = &message.calls;
        let read = calls.iter().map(|call| from_wire(within, call)).collect();
        let render = |at: usize, answer: &Answer<'_>| decision(answer, &calls[at]);
        // tonic ends the whole batch at the caller's deadline, so a late call has to be known some time before.
        let timeout = self.deadline(&metadata, &extensions)?.saturating_duration_since(Instant::now()).mul_f32(0.9);
        let decided = self.service.consume_each(read, timeout, render);
        let results = traced(text(&metadata, "traceparent"), decided).await.into_iter().map(result).collect();
        Ok(Response::new(v1::ConsumeBatchResponse { results }))
    }

    type ConsumeStreamStream = stream::Answers;

    async fn consume_stream(
        &self,
        request: Request<Streaming<v1::ConsumeStreamRequest>>,
    ) -> Result<Response<stream::Answers>, Status> {
        let (metadata, extensions, calls) = request.into_parts();
        let grant = guard::grant(&extensions)?;
        let within = grant.scope().clone();
        let (to, answers) = self.streams.open(grant.holder())?;
        let api = self.clone();
        tokio::spawn(
            async move { traced(text(&metadata, "traceparent"), stream::serve(api, within, calls, to)).await },
        );
        let mut response = Response::new(answers);
        response.extensions_mut().insert(crate::listener::Streaming);
        Ok(response)
    }

    async fn reserve(&self, request: Request<v1::ReserveRequest>) -> Result<Response<v1::ReserveResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let within = guard::grant(&extensions)?.scope();
        let decided = self.reserve_one(within, &message, self.deadline(&metadata, &extensions)?);
        let decision = traced(text(&metadata, "traceparent"), decided).await.map_err(failed)?;
        Ok(Response::new(v1::ReserveResponse { decision: Some(decision) }))
    }

    async fn settle(&self, request: Request<v1::SettleRequest>) -> Result<Response<v1::SettleResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let settle = reserve::settle(guard::grant(&extensions)?.scope(), &message);
        let settlement =
            self.run((&metadata, &extensions), Box::pin(self.service.settle(settle))).await.map(reserve::settlement)?;
        Ok(Response::new(v1::SettleResponse { settlement: Some(settlement) }))
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Result<Response<v1::CancelResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let cancel = reserve::cancel(guard::grant(&extensions)?.scope(), &message);
        let settlement =
            self.run((&metadata, &extensions), Box::pin(self.service.settle(cancel))).await.map(reserve::settlement)?;
        Ok(Response::new(v1::CancelResponse { settlement: Some(settlement) }))
    }

    async fn extend(&self, request: Request<v1::ExtendRequest>) -> Result<Response<v1::ExtendResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let v1::ExtendRequest { reservation_id, ttl_ms } = message;
        let within = guard::grant(&extensions)?.scope();
        let ends_at =
            self.run((&metadata, &extensions), Box::pin(self.service.extend(within, &reservation_id, ttl_ms))).await?;
        Ok(Response::new(v1::ExtendResponse { reservation: Some(reserve::reservation(reservation_id, ends_at)) }))
    }

    async fn get_rate_limits(
        &self,
        request: Request<v1::GetRateLimitsRequest>,
    ) -> Result<Response<v1::GetRateLimitsResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let within = guard::grant(&extensions)?.scope();
        let take = page_size(message.page_size).map_err(failed)?;
        let attributes = message.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let caller = caller(message.caller.as_ref()).map_err(failed)?;
        let listing =
            Listing { within, domain: &message.domain, caller, attributes, page_token: &message.page_token, take };
        let listed = async { self.service.list(listing, limits).await.map_err(|error| error.in_field("page_token")) };
        Ok(Response::new(self.run((&metadata, &extensions), Box::pin(listed)).await?))
    }

    async fn report_outcome(
        &self,
        request: Request<v1::ReportOutcomeRequest>,
    ) -> Result<Response<v1::ReportOutcomeResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let within = guard::grant(&extensions)?.scope();
        let reported = self.service.report(report::from_wire(within, &message)?, report::to_wire);
        Ok(Response::new(self.run((&metadata, &extensions), Box::pin(reported)).await?))
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

/// A refusal of the node itself, with when to come back: from 50 to 150 ms, so that not all come at once
/// (<https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback>).
fn overloaded(text: String) -> Status {
    let mut status = Status::resource_exhausted(text);
    status.metadata_mut().insert("grpc-retry-pushback-ms", rand::random_range(50_u32..=150).into());
    status
}

/// The status that a failed call is answered with.
#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn failed(error: CallError) -> Status {
    let code = FailureCode::of(&error);
    let text = error.message();
    let status = if code.retry_soon { overloaded(text) } else { Status::new(code.grpc, text) };
    let Some(answer) = error.rendered() else { return status };
    let details = status_details(status.code().into(), status.message(), &rendered(answer));
    Status::with_details_and_metadata(status.code(), status.message(), details.into(), status.metadata().clone())
}

fn from_wire<'a>(within: &'a DomainScope, call: &'a v1::Call) -> Result<Call<'a>, CallError> {
    Ok(Call {
        within,
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

/// One call's part of the answer to several.
fn result(decided: Result<v1::Decision, CallError>) -> v1::CallResult {
    use v1::call_result::Result as Of;
    let result = decided.map_or_else(
        |error| {
            let rendered = error.rendered().map(rendered);
            let status = failed(error);
            Of::Error(v1::CallError { code: status.code().into(), message: status.message().to_owned(), rendered })
        },
        Of::Decision,
    );
    v1::CallResult { result: Some(result) }
}

/// `call` returns the part of it.
fn decision(answer: &Answer<'_>, call: &v1::Call) -> v1::Decision {
    let common = v1::Decision {
        verdict: answer.reason().map_or(v1::Verdict::Allowed, |_| v1::Verdict::Denied).into(),
        reason: answer.reason().map_or(v1::Reason::Unspecified, reason).into(),
        quota: answer.binding_quota().map(|status| status.quota.name.as_ref().into()).unwrap_or_default(),
        rendered: call.render.then(|| Box::new(rendered(&answer.render()))),
        ..v1::Decision::default()
    };
    match &answer.outcome {
        Err(rejection) => {
            let (block, at) = (rejection.block(), rejection.at);
            v1::Decision {
                decided_at: Some(timestamp(at)),
                retry_after_ms: block.map(|block| block.until.ms_since(at)),
                blocked_until: block.map(|block| timestamp(block.until)),
                block_message: block.map(|block| block.message(at)).unwrap_or_default(),
                ..common
            }
        }
        Ok(Outcome { identity, resolved, decision, record, .. }) => v1::Decision {
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
            tier: resolved.tier().name.as_ref().into(),
            resource: resolved.resource().to_owned(),
            shadow_refusals: decision.shadow_refusals().map(ToString::to_string).collect(),
            blocked_until: decision.block.map(|block| timestamp(block.until)),
            block_message: decision.block.map(|block| block.message(decision.decided_at)).unwrap_or_default(),
            priority: resolved.tier().priority.map(u32::from).unwrap_or_default(),
            decided_by: decision.decided_by.name().to_owned(),
            ..common
        },
    }
}

fn rendered(answer: &Rendered) -> v1::RenderedResponse {
    let header = |(name, value): &(String, String)| v1::Header { name: name.clone(), value: value.clone() };
    v1::RenderedResponse {
        status: answer.status.into(),
        headers: answer.headers.iter().map(header).collect(),
        body: answer.body.clone().unwrap_or_default(),
    }
}

fn limits(listed: Result<&LimitsPage<'_>, &Rejection<'_>>) -> v1::GetRateLimitsResponse {
    match listed {
        Err(rejection) => v1::GetRateLimitsResponse {
            reason: reason(rejection.reason()).into(),
            decided_at: Some(timestamp(rejection.at)),
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
            Fit::At(at) if status.denies() => Some(timestamp(at)),
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

fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    let ms = at.as_ms();
    prost_types::Timestamp {
        seconds: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(ms % 1000 * 1_000_000).unwrap_or(0),
    }
}
