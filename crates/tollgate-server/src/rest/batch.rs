//! `POST /v1/consume_batch`: many calls at once, in JSON.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde_json::value::RawValue;
use tollgate_api::json::{
    batch::{BatchBody, BatchResultBody, CallResultBody},
    call::CallBody,
    error::ErrorBody,
};
use tollgate_service::{
    scope::DomainScope,
    service::{Answer, Call, CallError, check_batch},
};

use super::{
    Body, Shared,
    decide::{call, decision},
    detail, failed, mistake,
};
use crate::auth::ServiceGrant;

/// How much earlier than the request as a whole its calls are late.
const EARLIER: Duration = Duration::from_millis(50);

/// Consumes for 1 to 256 calls, of any callers. Each call is decided on its own, all or nothing on its own quotas. A
/// wrong call gets its own error. The calls are decided concurrently, in no particular order.
#[utoipa::path(post, path = "/v1/consume_batch", request_body = BatchBody, responses(
    (status = 200, description = "A result for each call", body = BatchResultBody),
    (status = 400, description = "The request as a whole is wrong; the message names the field", body = ErrorBody),
    (status = 408, description = "The body did not arrive in time", body = ErrorBody),
    (status = 413, description = "The body is too large", body = ErrorBody),
    (status = 415, description = "The body is compressed, or its content type is not JSON", body = ErrorBody),
    (status = 429, description = "The node is overloaded", body = ErrorBody),
    (status = 504, description = "The call took too long", body = ErrorBody),
))]
pub(super) async fn consume_batch(
    State(shared): State<Shared>,
    grant: ServiceGrant,
    Body(batch): Body<BatchBody>,
) -> Response {
    if let Err(error) = check_batch(batch.calls.len()) {
        return failed(&error);
    }
    let read: Vec<Result<CallBody, Mistake>> = batch.calls.iter().map(|call| read(call)).collect();
    let within = grant.scope();
    let render = |at: usize, answer: &Answer<'_>| decision(answer, read[at].as_ref().is_ok_and(|call| call.render));
    let calls = read.iter().map(|read| to_call(within, read)).collect();
    let decided = shared.service.consume_each(calls, shared.timeout.saturating_sub(EARLIER), render);
    let results = decided.await.into_iter().map(|decided| match decided {
        Ok(decision) => CallResultBody::Decision(decision),
        Err(error) => CallResultBody::Error(detail(&error)),
    });
    Json(BatchResultBody { results: results.collect() }).into_response()
}

type Mistake = serde_path_to_error::Error<serde_json::Error>;

fn read(call: &RawValue) -> Result<CallBody, Mistake> {
    // Where something is wrong is found out only if something is, as it costs an allocation for each field.
    let read = serde_json::from_str(call.get());
    read.or_else(|_| serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(call.get())))
}

fn to_call<'a>(within: &'a DomainScope, read: &'a Result<CallBody, Mistake>) -> Result<Call<'a>, CallError> {
    let read = read.as_ref().map(|body| call(body, within));
    read.map_err(|error| CallError::field("call", mistake("body", error)))
}
