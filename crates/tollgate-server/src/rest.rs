//! REST: the callers' own limits, the JSON versions of the RPCs, health, metrics, and the OpenAPI document.

mod access;
pub(crate) mod admin;
mod batch;
mod bounds;
mod decide;
mod health;
mod limits;
mod list;
mod plain_error;
mod report;
mod reservation;
mod reserve;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest, rejection::JsonRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tollgate_api::json::error::{ErrorBody, ErrorDetail};
use tollgate_service::{
    admin::Admin,
    service::{CallError, DecisionService},
};
use tower::{ServiceBuilder, timeout::TimeoutLayer};
use utoipa::{IntoResponses, OpenApi};
use utoipa_axum::{router::OpenApiRouter, routes};

pub(crate) use health::Health;

use self::access::RouteAccess;
pub(crate) use self::bounds::RequestBounds;
use crate::{auth::Authenticator, failure_code::FailureCode};

/// Shared by the handlers.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) service: Arc<DecisionService>,
    pub(crate) admin: Arc<Admin>,
    pub(crate) auth: Arc<Authenticator>,
    pub(crate) health: Arc<Health>,
    /// The maximum time of a call.
    pub(crate) timeout: Duration,
}

/// The routes of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouteSet {
    /// Only the API.
    Api,
    /// The routes for operators: health and metrics.
    Operations,
    /// Both.
    Everything,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tollgate",
        description = "Rate limits for an API platform: decide calls, and read the limits of callers.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    // The shared error responses refer to these schemas but do not register them.
    components(schemas(ErrorBody, plain_error::PlainError))
)]
struct OpenApiDocument;

/// The routes of a listener, in groups with the same access.
fn route_groups(route_set: RouteSet) -> Vec<(RouteAccess, OpenApiRouter<Shared>)> {
    let key_routes = OpenApiRouter::new()
        .routes(routes!(limits::get_rate_limits))
        .routes(routes!(limits::get_rate_limits_v1))
        .routes(routes!(limits::log::get_log))
        .routes(routes!(limits::log::get_log_v1));
    let service_routes = OpenApiRouter::new()
        .routes(routes!(decide::check))
        .routes(routes!(decide::consume))
        .routes(routes!(batch::consume_batch))
        .routes(routes!(reserve::reserve))
        .routes(routes!(reserve::settle))
        .routes(routes!(reserve::cancel))
        .routes(routes!(reserve::extend))
        .routes(routes!(report::report_outcome))
        .routes(routes!(list::list_rate_limits));
    let api =
        [(RouteAccess::Key, key_routes), (RouteAccess::Service, service_routes), (RouteAccess::Admin, admin::routes())];
    let operations_routes = OpenApiRouter::new()
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics));
    let operations = (RouteAccess::Open, operations_routes);
    match route_set {
        RouteSet::Api => api.into(),
        RouteSet::Operations => vec![operations],
        RouteSet::Everything => api.into_iter().chain([operations]).collect(),
    }
}

/// The OpenAPI document of all routes.
fn openapi_document() -> utoipa::openapi::OpenApi {
    let mut document = OpenApiDocument::openapi();
    access::add_security_schemes(&mut document);
    for (access, routes) in route_groups(RouteSet::Everything) {
        let mut group_document = routes.into_openapi();
        access::add_requirements(&mut group_document, access);
        document.merge(group_document);
    }
    document
}

/// The OpenAPI document, as `/openapi.json` serves it.
///
/// # Errors
/// The document cannot be serialized; this does not happen in practice.
pub fn openapi_json() -> Result<String, serde_json::Error> {
    openapi_document().to_pretty_json()
}

/// The router of a listener.
///
/// # Errors
/// The OpenAPI document cannot be serialized; this does not happen in practice.
pub(crate) fn router(
    shared: Shared,
    bounds: &Arc<RequestBounds>,
    route_set: RouteSet,
) -> Result<Router, serde_json::Error> {
    let with_layers = |access: RouteAccess, routes: Router<Shared>| {
        let timed_out = move |_: tower::BoxError| async move {
            access::error_response(access, FailureCode::TIMED_OUT, "the call took too long")
        };
        let timeout = ServiceBuilder::new()
            .layer(axum::error_handling::HandleErrorLayer::new(timed_out))
            .layer(TimeoutLayer::new(shared.timeout));
        let check = access::AccessCheck { access, auth: Arc::clone(&shared.auth), bounds: Arc::clone(bounds) };
        routes
            .method_not_allowed_fallback(|| async {
                let code = "method_not_allowed";
                error_response(StatusCode::METHOD_NOT_ALLOWED, code, "the route has no such method")
            })
            .layer(timeout)
            // The access check has read the body and checked its size.
            .layer(DefaultBodyLimit::disable())
            // Added last, so it runs first: an unauthorized caller is rejected before any other work.
            .layer(axum::middleware::from_fn_with_state(check, access::check_access))
    };
    let mut open = Router::new()
        .fallback(|| async { error_response(StatusCode::NOT_FOUND, "not_found", "there is no such route") });
    if route_set != RouteSet::Operations {
        let page = OpenApiPage::new(&openapi_document())?;
        open = open.route("/openapi.json", get(move |headers: HeaderMap| async move { page.response(&headers) }));
    }
    let groups = route_groups(route_set).into_iter().map(|(access, routes)| with_layers(access, routes.into()));
    let routes = groups.fold(with_layers(RouteAccess::Open, open), Router::merge);
    Ok(routes.with_state(shared))
}

/// The OpenAPI document, serialized once.
#[derive(Clone)]
struct OpenApiPage {
    json: Bytes,
    etag: HeaderValue,
}

impl OpenApiPage {
    fn new(document: &utoipa::openapi::OpenApi) -> Result<Self, serde_json::Error> {
        let json = Bytes::from(serde_json::to_vec(document)?);
        let digest = Sha256::digest(&json);
        let etag = digest.iter().take(16).fold(String::from("\""), |etag, byte| format!("{etag}{byte:02x}")) + "\"";
        let etag = HeaderValue::from_str(&etag).unwrap_or(HeaderValue::from_static("\"\""));
        Ok(Self { json, etag })
    }

    /// The document, or 304 if the caller has it already (RFC 9110, 13.1.2).
    fn response(&self, headers: &HeaderMap) -> Response {
        let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let mut etags = values.flat_map(|value| value.split(',')).map(|etag| etag.trim().trim_start_matches("W/"));
        let etag_header = [(header::ETAG, self.etag.clone())];
        if etags.any(|etag| etag == "*" || etag.as_bytes() == self.etag.as_bytes()) {
            return (StatusCode::NOT_MODIFIED, etag_header).into_response();
        }
        let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        (etag_header, content_type, self.json.clone()).into_response()
    }
}

/// The errors of every route of `/v1`, except those of authentication.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "for the OpenAPI document")]
enum ErrorResponses {
    #[response(status = 400, description = "The request is wrong; the message names the field")]
    Invalid(ErrorBody),
    #[response(status = 408, description = "The body did not arrive in time")]
    SlowBody(ErrorBody),
    #[response(status = 413, description = "The body is too large")]
    TooLarge(ErrorBody),
    #[response(status = 415, description = "The body is compressed, or its content type is not JSON")]
    NotJson(ErrorBody),
    #[response(status = 429, description = "The node is overloaded")]
    Overloaded(ErrorBody),
    #[response(status = 503, description = "The counters cannot be reached within the deadline")]
    Unavailable(ErrorBody),
    #[response(status = 504, description = "The call took too long")]
    TimedOut(ErrorBody),
}

fn error_response(status: StatusCode, code: &'static str, message: impl Into<String>) -> Response {
    json_response(status, ErrorBody::new(code, message))
}

fn json_response(status: StatusCode, body: impl Serialize) -> Response {
    (status, Json(body)).into_response()
}

/// Sets `Retry-After` to one second, the shortest wait that the header can express.
fn set_retry_after(response: &mut Response) {
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
}

/// The response to a service.
fn result_response<T: Serialize>(result: Result<T, CallError>) -> Response {
    result.map_or_else(|error| call_error_response(&error), |body| Json(body).into_response())
}

/// The error of a call, as a batch reports it.
fn error_detail(error: &CallError) -> ErrorDetail {
    let rendered = error.rendered().map(decide::rendered);
    ErrorDetail { code: FailureCode::of(error).name.into(), message: error.message(), rendered }
}

/// The response to a call that was not decided.
fn call_error_response(error: &CallError) -> Response {
    let code = FailureCode::of(error);
    let mut response = json_response(code.http, ErrorBody { error: error_detail(error) });
    if code.is_overload {
        set_retry_after(&mut response);
    }
    response
}

/// A JSON body. Errors in it are reported in the format of this API.
struct Body<T>(T);

impl<T: serde::de::DeserializeOwned> FromRequest<Shared> for Body<T> {
    type Rejection = Response;

    async fn from_request(request: axum::extract::Request, shared: &Shared) -> Result<Self, Response> {
        match Json::<T>::from_request(request, shared).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) => {
                let code = match &rejection {
                    JsonRejection::MissingJsonContentType(_) => "unsupported_media_type",
                    _ => "invalid_argument",
                };
                let status = match rejection.status() {
                    // A field of the wrong type is reported like a field with the wrong value.
                    StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
                    status => status,
                };
                Err(error_response(status, code, body_error_message(&rejection)))
            }
        }
    }
}

/// The message for an invalid JSON body; it begins with the name of the field, if there is one.
fn body_error_message(rejection: &JsonRejection) -> String {
    let mut source = std::error::Error::source(rejection);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<serde_path_to_error::Error<serde_json::Error>>() {
            return field_error_message("body", error);
        }
        source = error.source();
    }
    format!("body: {}", rejection.body_text())
}

/// The message for an error in JSON; it begins with the name of the field, or with `default_name`.
fn field_error_message(default_name: &str, error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let (path, message) = (error.path().to_string(), error.inner().to_string());
    let is_field = !path.starts_with(['.', '?', '[']);
    // The name of a missing field is only in the message.
    let missing = message.strip_prefix("missing field `").and_then(|rest| rest.split_once('`'));
    match missing {
        Some((name, _)) if is_field => format!("{path}.{name}: is required"),
        Some((name, _)) => format!("{name}: is required"),
        None if is_field => format!("{path}: {message}"),
        // No field has an error if the JSON is truncated, or not a map.
        None => format!("{default_name}: {message}"),
    }
}
