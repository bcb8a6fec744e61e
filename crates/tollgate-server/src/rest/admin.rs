//! `/admin/v1`: accounts and keys, for administrators.

mod accounts;
mod bodies;
mod keys;
mod status;
mod tiers;

use axum::{
    Json,
    extract::{FromRequestParts, Path, Query},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tollgate_api::json::error::ErrorBody;
use tollgate_service::{
    admin::{AdminError, AdminSession},
    page_token::List,
    service::CallError,
};
use utoipa::{IntoParams, IntoResponses};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Shared, call_error_response, error_response};
use crate::auth::AdminGrant;

/// The maximum number of entries on a page.
const LARGEST_PAGE: usize = 100;
const DEFAULT_PAGE: usize = 50;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(accounts::create, accounts::list))
        .routes(routes!(accounts::get, accounts::patch, accounts::delete))
        .routes(routes!(accounts::put_override, accounts::clear_override))
        .routes(routes!(accounts::record_event))
        .routes(routes!(accounts::reset_usage))
        .routes(routes!(keys::create, keys::list))
        .routes(routes!(keys::get, keys::patch))
        .routes(routes!(keys::rotate))
        .routes(routes!(keys::revoke))
        .routes(routes!(keys::put_override, keys::clear_override))
        .routes(routes!(tiers::list))
        .routes(routes!(status::status))
}

/// The domain of a request.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DomainQuery {
    /// The domain; the token's only domain if absent.
    #[serde(default)]
    domain: String,
}

/// The domain of a request, and the page of a list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct PageQuery {
    /// The domain; the token's only domain if absent.
    #[serde(default)]
    domain: String,
    /// Maximum number of entries, 1 to 100; 50 if absent.
    limit: Option<usize>,
    /// `next_cursor` of the previous answer.
    #[serde(default)]
    cursor: String,
}

impl PageQuery {
    /// The position where the page starts; empty for the first page.
    fn position(&self, list: List<'_>) -> Result<String, AdminError> {
        if self.cursor.is_empty() {
            return Ok(String::new());
        }
        let invalid = || CallError::field("cursor", "must be the next_cursor of the previous page of this list").into();
        list.position(&self.cursor).ok_or_else(invalid)
    }

    fn take(&self) -> Result<usize, AdminError> {
        match self.limit.unwrap_or(DEFAULT_PAGE) {
            take @ 1..=LARGEST_PAGE => Ok(take),
            _ => Err(CallError::field("limit", format_args!("must be from 1 to {LARGEST_PAGE}")).into()),
        }
    }
}

/// The values in a path.
struct AccountPath<T>(T);

/// A request of an administrator. In a handler, it stands after the path and before the body: errors are reported in
/// the order of the arguments.
struct AdminRequest<Q = DomainQuery> {
    shared: Shared,
    grant: AdminGrant,
    query: Q,
    headers: HeaderMap,
}

impl<Q> AdminRequest<Q> {
    /// The session of the administrator in a domain. An empty name means the only domain of the token.
    fn session_in(&self, domain: &str) -> Result<AdminSession<'_>, AdminError> {
        self.shared.admin.session(self.grant.name(), self.grant.scope(), domain)
    }

    /// The version in `If-Match` (RFC 9110, 13.1.1): the last version that the caller has read.
    fn if_match(&self) -> Result<Option<u64>, AdminError> {
        let invalid =
            || CallError::field("if-match", "must be one ETag as an answer had it, such as \"1740960000000\"");
        let mut values = self.headers.get_all(header::IF_MATCH).iter();
        let Some(value) = values.next() else { return Ok(None) };
        let text = if values.next().is_none() { value.to_str().ok() } else { None };
        let text = text.ok_or_else(invalid)?.trim();
        if text == "*" {
            return Ok(None);
        }
        let version = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        Ok(Some(version.and_then(|version| version.parse().ok()).ok_or_else(invalid)?))
    }
}

impl AdminRequest {
    /// The session of the administrator in the domain of the query.
    fn session(&self) -> Result<AdminSession<'_>, AdminError> {
        self.session_in(&self.query.domain)
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for AccountPath<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let path = Path::<T>::from_request_parts(parts, state).await;
        path.map(|Path(values)| Self(values)).map_err(|error| invalid(format!("path: {}", error.body_text())))
    }
}

impl<Q: DeserializeOwned + Send> FromRequestParts<Shared> for AdminRequest<Q> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Response> {
        let grant = AdminGrant::from_request_parts(parts, shared).await.map_err(IntoResponse::into_response)?;
        let query = Query::<Q>::from_request_parts(parts, shared).await;
        let Query(query) = query.map_err(|error| invalid(format!("query: {}", error.body_text())))?;
        Ok(Self { shared: shared.clone(), grant, query, headers: parts.headers.clone() })
    }
}

fn invalid(message: String) -> Response {
    error_response(StatusCode::BAD_REQUEST, "invalid_argument", message)
}

/// A response with the version of the account as its `ETag`.
fn versioned_response(status: StatusCode, version: u64, body: impl Serialize) -> Response {
    let mut response = (status, Json(body)).into_response();
    if let Ok(etag) = HeaderValue::from_str(&format!("\"{version}\"")) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    // The body may contain a secret.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The errors of every admin route, except those of authentication.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "for the OpenAPI document")]
enum ErrorResponses {
    #[response(status = 400, description = "The request is wrong; the message names the field")]
    Invalid(ErrorBody),
    #[response(status = 404, description = "There is no such domain, account, key or override")]
    NotFound(ErrorBody),
    #[response(status = 408, description = "The body did not arrive in time")]
    SlowBody(ErrorBody),
    #[response(
        status = 409,
        description = "It exists already, is defined in the policy file, or the maximum number exists"
    )]
    Conflict(ErrorBody),
    #[response(status = 412, description = "The account does not have the version in If-Match")]
    Changed(ErrorBody),
    #[response(status = 413, description = "The body is too large")]
    TooLarge(ErrorBody),
    #[response(status = 415, description = "The body is compressed, or its content type is not JSON")]
    NotJson(ErrorBody),
    #[response(status = 429, description = "The node or the store is overloaded or full")]
    Overloaded(ErrorBody),
    #[response(
        status = 503,
        description = "The store cannot be reached within the deadline; a change may have been made"
    )]
    Unavailable(ErrorBody),
    #[response(status = 504, description = "The call took too long; a change may have been made")]
    TimedOut(ErrorBody),
}

/// The error of an admin request, converted to a response.
struct AdminErrorResponse(AdminError);

impl From<AdminError> for AdminErrorResponse {
    fn from(error: AdminError) -> Self {
        Self(error)
    }
}

impl From<CallError> for AdminErrorResponse {
    fn from(error: CallError) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for AdminErrorResponse {
    fn into_response(self) -> Response {
        let (status, code) = match &self.0 {
            AdminError::Call(error) => return call_error_response(error),
            AdminError::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
            AdminError::Exists(_) => (StatusCode::CONFLICT, "already_exists"),
            AdminError::Refused(_) => (StatusCode::CONFLICT, "failed_precondition"),
            AdminError::Changed(_) => (StatusCode::PRECONDITION_FAILED, "precondition_failed"),
            AdminError::Contended => (StatusCode::CONFLICT, "aborted"),
        };
        error_response(status, code, self.0.to_string())
    }
}
