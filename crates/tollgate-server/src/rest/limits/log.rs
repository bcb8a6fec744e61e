//! `GET /api_keys/rate_limits/log`: the last refusals of an account.

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use tollgate_core::time::Timestamp;
use tollgate_service::service::RefusalsError;
use tollgate_store::refusals::Refusal;
use utoipa::{IntoParams, ToSchema};

use super::{ErrorResponses, call_error_response, plain_error, rejection_response, unauthenticated};
use crate::{
    auth::{ClientAddr, token},
    rest::{
        Shared,
        access::{self, RouteAccess},
    },
};

/// The caller whose refusals are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(in crate::rest) struct LogQuery {
    /// Only those of this key. An INFERENCE key always sees only its own, and may not ask for another key.
    #[param(max_length = 128)]
    api_key_id: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::rest) struct LogBody {
    /// `list`.
    object: &'static str,
    /// At most the last 50 of the account, newest first.
    data: Vec<LogEntry>,
}

/// A call that was refused.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct LogEntry {
    /// `null` if the call had no key.
    api_key_id: Option<String>,
    /// The resource that was called.
    model_id: String,
    rate_limit_tier: String,
    /// The label of the quota that refused, such as `RPM`, or `FAILED_REQUESTS` for a block.
    rate_limit_type: String,
    /// By the clock of the counters' store, RFC 3339.
    timestamp: String,
}

/// The last refused calls.
#[utoipa::path(get, path = "/api_keys/rate_limits/log", params(LogQuery), responses(
    (status = 200, description = "The last refusals: those of the account for an ADMIN key, the key's own for an INFERENCE key", body = LogBody),
    ErrorResponses))]
pub(in crate::rest) async fn get_log(
    State(shared): State<Shared>,
    client: ClientAddr,
    headers: HeaderMap,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(rejection) => return plain_error(StatusCode::BAD_REQUEST, rejection.body_text()),
    };
    let Some(secret) = token(&headers) else { return unauthenticated() };
    if let Err(error) = shared.auth.check_key(client, || shared.service.cached_key(secret)).await {
        return access::auth_error_response(RouteAccess::Key, error);
    }
    let address = client.ip().to_string();
    let attributes = [("ip", &*address)];
    let response =
        shared.service.refusals(secret, &attributes, query.api_key_id.as_deref(), |refusals| match refusals {
            Ok(refusals) => {
                Json(LogBody { object: "list", data: refusals.iter().map(entry).collect() }).into_response()
            }
            Err(RefusalsError::Rejected(rejection)) => rejection_response(rejection),
            Err(RefusalsError::NotAdmin) => plain_error(StatusCode::UNAUTHORIZED, "Admin API key required"),
        });
    response.await.unwrap_or_else(call_error_response)
}

/// The same, at the path that clients of the Venice API use.
#[utoipa::path(get, path = "/api/v1/api_keys/rate_limits/log", params(LogQuery), responses(
    (status = 200, description = "The last refusals: those of the account for an ADMIN key, the key's own for an INFERENCE key", body = LogBody),
    ErrorResponses))]
pub(in crate::rest) async fn get_log_v1(
    state: State<Shared>,
    client: ClientAddr,
    headers: HeaderMap,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Response {
    get_log(state, client, headers, query).await
}

fn entry(error: &Refusal) -> LogEntry {
    LogEntry {
        api_key_id: error.key.clone(),
        model_id: error.resource.clone(),
        rate_limit_tier: error.tier.clone(),
        rate_limit_type: error.label.clone(),
        timestamp: Timestamp::from_ms(error.at_ms).to_string(),
    }
}
