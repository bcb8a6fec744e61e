//! `POST /v1/consume_batch`.

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
    service::{Call, CallError, CallResponse, check_batch},
};

use super::{
    Body, Shared, call_error_response,
    decide::{call, decision},
    error_detail, field_error_message,
};
use crate::auth::ServiceGrant;

/// The calls time out this much earlier than the request.
const RESERVE: Duration = Duration::from_millis(50);

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
        return call_error_response(&error);
    }
    let bodies: Vec<Result<CallBody, JsonError>> = batch.calls.iter().map(|call| parse_call(call)).collect();
    let render = |index: usize, response: &CallResponse<'_>| {
        decision(response, bodies[index].as_ref().is_ok_and(|call| call.render))
    };
    let calls = bodies.iter().map(|body| to_call(grant.scope(), body)).collect();
    let results = shared.service.consume_each(calls, shared.timeout.saturating_sub(RESERVE), render);
    let results = results.await.into_iter().map(|result| match result {
        Ok(decision) => CallResultBody::Decision(decision),
        Err(error) => CallResultBody::Error(error_detail(&error)),
    });
    Json(BatchResultBody { results: results.collect() }).into_response()
}

type JsonError = serde_path_to_error::Error<serde_json::Error>;

fn parse_call(call: &RawValue) -> Result<CallBody, JsonError> {
    // Tracking the path costs an allocation for each field, so an invalid call is parsed again to find its error.
    let parsed = serde_json::from_str(call.get());
    parsed.or_else(|_| serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(call.get())))
}

fn to_call<'a>(scope: &'a DomainScope, body: &'a Result<CallBody, JsonError>) -> Result<Call<'a>, CallError> {
    let call = body.as_ref().map(|body| call(body, scope));
    call.map_err(|error| CallError::field("call", field_error_message("body", error)))
}
