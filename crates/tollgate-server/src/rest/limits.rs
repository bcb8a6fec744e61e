//! Self-service: a caller reads its limits, its current usage, and its last refusals.

pub(super) mod log;
mod plain;
mod venice;

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use tollgate_core::time::Timestamp;
use tollgate_policy::{Block, format::ListingFormat};
use tollgate_service::{
    incidents,
    scope::DomainScope,
    service::{CallError, CallerRef, LimitsPage, ListError, ListRequest, Rejection},
};
use utoipa::{IntoParams, IntoResponses, ToSchema};

use self::{plain::PlainLimits, venice::VeniceLimits};
use super::{
    Shared,
    access::{self, BadKey, RouteAccess},
    plain_error::PlainError,
    set_retry_after,
};
use crate::{
    auth::{ClientAddr, token},
    failure_code::FailureCode,
};

const DEFAULT_PAGE: usize = 200;
const LARGEST_PAGE: usize = 500;

/// The requested part of the list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Maximum number of resources, 1 to 500; 200 if absent.
    limit: Option<usize>,
    /// `nextCursor`, or `next_cursor`, of the previous answer.
    #[serde(default)]
    cursor: String,
}

/// A caller's limits, in the format that the policy chooses.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum LimitsBody {
    /// `self_service: venice`.
    Venice(VeniceLimits),
    /// `self_service: plain`.
    Plain(PlainLimits),
}

/// The errors of the end users' routes.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "for the OpenAPI document")]
enum ErrorResponses {
    #[response(status = 400, description = "The query is wrong")]
    Invalid(PlainError),
    #[response(status = 401, description = "The Authorization header has no API key that may read this")]
    BadKey(PlainError),
    #[response(status = 429, description = "The client address is blocked, or the node is overloaded")]
    BlockedOrOverloaded(PlainError),
    #[response(status = 503, description = "The store cannot be reached within the deadline")]
    Unavailable(PlainError),
    #[response(status = 504, description = "The call took too long")]
    TimedOut(PlainError),
}

/// The caller's limits and their current usage.
#[utoipa::path(get, path = "/api_keys/rate_limits", params(Page), responses(
    (status = 200, description = "The limits of the key and its account", body = LimitsBody), ErrorResponses))]
pub(super) async fn get_rate_limits(
    State(shared): State<Shared>,
    client: ClientAddr,
    headers: HeaderMap,
    page: Result<Query<Page>, QueryRejection>,
) -> Response {
    let (cursor, page_size) = match page {
        Ok(Query(Page { limit, cursor })) => (cursor, limit.unwrap_or(DEFAULT_PAGE)),
        Err(rejection) => return plain_error(StatusCode::BAD_REQUEST, rejection.body_text()),
    };
    if page_size == 0 || page_size > LARGEST_PAGE {
        return plain_error(StatusCode::BAD_REQUEST, format!("limit: must be from 1 to {LARGEST_PAGE}"));
    }
    let Some(secret) = token(&headers) else { return unauthenticated() };
    if let Err(error) = shared.auth.check_key(client, || shared.service.cached_key(secret)).await {
        return access::auth_error_response(RouteAccess::Key, error);
    }
    let address = client.ip().to_string();
    let request = ListRequest {
        scope: &DomainScope::SelfService,
        domain: "",
        caller: CallerRef::Secret(secret),
        attributes: SmallVec::from_iter([("ip", &*address)]),
        page_token: &cursor,
        page_size,
    };
    shared.service.list(request, limits).await.unwrap_or_else(|error| match error {
        ListError::Call(error) => call_error_response(error),
        error @ ListError::PageToken => plain_error(StatusCode::BAD_REQUEST, error.in_field("cursor").to_string()),
    })
}

/// The same, at the path that clients of the Venice API use.
#[utoipa::path(get, path = "/api/v1/api_keys/rate_limits", params(Page), responses(
    (status = 200, description = "The limits of the key and its account", body = LimitsBody), ErrorResponses))]
pub(super) async fn get_rate_limits_v1(
    state: State<Shared>,
    client: ClientAddr,
    headers: HeaderMap,
    page: Result<Query<Page>, QueryRejection>,
) -> Response {
    get_rate_limits(state, client, headers, page).await
}

fn limits(listed: Result<&LimitsPage<'_>, &Rejection<'_>>) -> Response {
    let LimitsPage { identity, domain, resources, decided_at, next } = match listed {
        Ok(page) => page,
        Err(rejection) => return rejection_response(rejection),
    };
    let body = match domain.listing {
        ListingFormat::Venice => {
            VeniceLimits::of((*identity, *domain), resources, *decided_at, next.clone()).map(LimitsBody::Venice)
        }
        ListingFormat::Plain => {
            PlainLimits::of((*identity, *domain), resources, *decided_at, next.clone()).map(LimitsBody::Plain)
        }
    };
    body.map_or_else(unauthenticated, |body| Json(body).into_response())
}

/// The response to a rejected caller.
fn rejection_response(rejection: &Rejection<'_>) -> Response {
    rejection.block().map_or_else(unauthenticated, |block| block_response(&block, rejection.time))
}

/// The response to callers from a blocked address.
fn block_response(block: &Block<'_>, now: Timestamp) -> Response {
    let wait_s = block.until.ms_since(now).div_ceil(1000);
    let mut response = plain_error(StatusCode::TOO_MANY_REQUESTS, block.message(now));
    response.headers_mut().insert(header::RETRY_AFTER, wait_s.into());
    response
}

fn call_error_response(error: CallError) -> Response {
    match error {
        // Only the key can be invalid in such a call.
        CallError::Invalid(_) | CallError::UnknownDomain { .. } | CallError::Forbidden { .. } => unauthenticated(),
        error => {
            let code = FailureCode::of(&error);
            // End users do not see the reason of the store.
            let message = match &error {
                CallError::Store(error) => {
                    format!("Rate limits cannot be read right now ({})", incidents::incident(error))
                }
                error => error.message(),
            };
            let mut response = plain_error(code.http, message);
            if code.is_overload {
                set_retry_after(&mut response);
            }
            response
        }
    }
}

fn unauthenticated() -> Response {
    let mut response = plain_error(StatusCode::UNAUTHORIZED, "Authentication failed");
    response.extensions_mut().insert(BadKey);
    response
}

fn plain_error(status: StatusCode, error: impl Into<String>) -> Response {
    PlainError::new(error).response(status)
}
