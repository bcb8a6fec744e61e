//! REST: the callers' own limits, JSON twins of the RPCs, health, metrics, and the API's description.

pub(crate) mod admin;
mod batch;
mod bounds;
mod decide;
mod guard;
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

pub(crate) use self::bounds::RequestBounds;
use self::guard::RouteAccess;
use crate::{auth::Authenticator, failure_code::FailureCode};

/// Shared by the handlers.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) service: Arc<DecisionService>,
    pub(crate) admin: Arc<Admin>,
    pub(crate) auth: Arc<Authenticator>,
    pub(crate) health: Arc<Health>,
    /// How long a call may take in all.
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
    // Failures that routes share name these, and bring no description of them along.
    components(schemas(ErrorBody, plain_error::PlainError))
)]
struct Description;

/// The routes of a listener, in groups of the same access.
fn groups(offer: RouteSet) -> Vec<(RouteAccess, OpenApiRouter<Shared>)> {
    let of_keys = OpenApiRouter::new()
        .routes(routes!(limits::get_rate_limits))
        .routes(routes!(limits::get_rate_limits_v1))
        .routes(routes!(limits::log::get_log))
        .routes(routes!(limits::log::get_log_v1));
    let of_services = OpenApiRouter::new()
        .routes(routes!(decide::check))
        .routes(routes!(decide::consume))
        .routes(routes!(batch::consume_batch))
        .routes(routes!(reserve::reserve))
        .routes(routes!(reserve::settle))
        .routes(routes!(reserve::cancel))
        .routes(routes!(reserve::extend))
        .routes(routes!(report::report_outcome))
        .routes(routes!(list::list_rate_limits));
    let api = [(RouteAccess::Key, of_keys), (RouteAccess::Service, of_services), (RouteAccess::Admin, admin::routes())];
    let operations = OpenApiRouter::new()
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics));
    let operations = (RouteAccess::Open, operations);
    match offer {
        RouteSet::Api => api.into(),
        RouteSet::Operations => vec![operations],
        RouteSet::Everything => api.into_iter().chain([operations]).collect(),
    }
}

/// The description of all routes.
fn description() -> utoipa::openapi::OpenApi {
    let mut description = Description::openapi();
    guard::describe_credentials(&mut description);
    for (access, routes) in groups(RouteSet::Everything) {
        let mut of_group = routes.into_openapi();
        guard::describe(&mut of_group, access);
        description.merge(of_group);
    }
    description
}

/// The description of the API, as `/openapi.json` serves it.
///
/// # Errors
/// None in practice; that of the JSON writer.
pub fn openapi_json() -> Result<String, serde_json::Error> {
    description().to_pretty_json()
}

/// The routes of a listener, within these bounds.
///
/// # Errors
/// None in practice; that of the JSON writer.
pub(crate) fn router(
    shared: Shared,
    bounds: &Arc<RequestBounds>,
    offer: RouteSet,
) -> Result<Router, serde_json::Error> {
    let guarded = |access: RouteAccess, routes: Router<Shared>| {
        let late =
            move |_: tower::BoxError| async move { guard::error(access, FailureCode::LATE, "the call took too long") };
        let bounded = ServiceBuilder::new()
            .layer(axum::error_handling::HandleErrorLayer::new(late))
            .layer(TimeoutLayer::new(shared.timeout));
        let gate = guard::Gate { access, auth: Arc::clone(&shared.auth), bounds: Arc::clone(bounds) };
        routes
            .method_not_allowed_fallback(|| async {
                let code = "method_not_allowed";
                error_answer(StatusCode::METHOD_NOT_ALLOWED, code, "the route has no such method")
            })
            .layer(bounded)
            // The guard has read the body, and so bounded it.
            .layer(DefaultBodyLimit::disable())
            // Last, and so first on the way in: a caller that may not enter costs nothing more.
            .layer(axum::middleware::from_fn_with_state(gate, guard::guard))
    };
    let mut open =
        Router::new().fallback(|| async { error_answer(StatusCode::NOT_FOUND, "not_found", "there is no such route") });
    if offer != RouteSet::Operations {
        let page = DescriptionPage::new(&description())?;
        open = open.route("/openapi.json", get(move |headers: HeaderMap| async move { page.answer(&headers) }));
    }
    let groups = groups(offer).into_iter().map(|(access, routes)| guarded(access, routes.into()));
    let routes = groups.fold(guarded(RouteAccess::Open, open), Router::merge);
    Ok(routes.with_state(shared))
}

/// The description of the API, written once: every answer has the same bytes.
#[derive(Clone)]
struct DescriptionPage {
    json: Bytes,
    tag: HeaderValue,
}

impl DescriptionPage {
    fn new(description: &utoipa::openapi::OpenApi) -> Result<Self, serde_json::Error> {
        let json = Bytes::from(serde_json::to_vec(description)?);
        let digest = Sha256::digest(&json);
        let tag = digest.iter().take(16).fold(String::from("\""), |tag, byte| format!("{tag}{byte:02x}")) + "\"";
        let tag = HeaderValue::from_str(&tag).unwrap_or(HeaderValue::from_static("\"\""));
        Ok(Self { json, tag })
    }

    /// The description, or that the caller has it already (RFC 9110, 13.1.2).
    fn answer(&self, headers: &HeaderMap) -> Response {
        let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|tags| tags.to_str().ok());
        let mut known = known.flat_map(|tags| tags.split(',')).map(|tag| tag.trim().trim_start_matches("W/"));
        let tag = [(header::ETAG, self.tag.clone())];
        if known.any(|known| known == "*" || known.as_bytes() == self.tag.as_bytes()) {
            return (StatusCode::NOT_MODIFIED, tag).into_response();
        }
        let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        (tag, content_type, self.json.clone()).into_response()
    }
}

/// The errors of every route of `/v1`, except those of authentication.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "for the description of the API")]
enum Failures {
    #[response(status = 400, description = "The request is wrong; the message names the field")]
    Invalid(ErrorBody),
    #[response(status = 408, description = "The body did not arrive in time")]
    SlowBody(ErrorBody),
    #[response(status = 413, description = "The body is too large")]
    TooLarge(ErrorBody),
    #[response(status = 415, description = "The body is compressed, or its content type is not JSON")]
    NotJson(ErrorBody),
    #[response(status = 429, description = "The node is overloaded")]
    Full(ErrorBody),
    #[response(status = 503, description = "The counters cannot be reached within the deadline")]
    Unavailable(ErrorBody),
    #[response(status = 504, description = "The call took too long")]
    Late(ErrorBody),
}

/// An error as an answer.
fn error_answer(status: StatusCode, code: &'static str, message: impl Into<String>) -> Response {
    failure(status, ErrorBody::new(code, message))
}

fn failure(status: StatusCode, body: impl Serialize) -> Response {
    (status, Json(body)).into_response()
}

/// Says that the node itself is overloaded; a second is the shortest wait that HTTP can express.
fn retry_soon(answer: &mut Response) {
    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
}

/// The response to a service.
fn answer<T: Serialize>(result: Result<T, CallError>) -> Response {
    result.map_or_else(|error| failed(&error), |body| Json(body).into_response())
}

/// A failed call, as a batch reports it.
fn detail(error: &CallError) -> ErrorDetail {
    let rendered = error.rendered().map(decide::rendered);
    ErrorDetail { code: FailureCode::of(error).word.into(), message: error.message(), rendered }
}

/// The answer to a failed call.
fn failed(error: &CallError) -> Response {
    let code = FailureCode::of(error);
    let mut answer = failure(code.http, ErrorBody { error: detail(error) });
    if code.retry_soon {
        retry_soon(&mut answer);
    }
    answer
}

/// A JSON body, whose mistakes are answered in our own words.
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
                    // A field of the wrong type is as wrong as one of the wrong value.
                    StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
                    status => status,
                };
                Err(error_answer(status, code, mistake_of(&rejection)))
            }
        }
    }
}

/// The mistake in a JSON body, after the name of the field if there is one.
fn mistake_of(rejection: &JsonRejection) -> String {
    let mut source = std::error::Error::source(rejection);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<serde_path_to_error::Error<serde_json::Error>>() {
            return mistake("body", error);
        }
        source = error.source();
    }
    format!("body: {}", rejection.body_text())
}

/// The same of something in a body, which is called `around` where no field of it is meant.
fn mistake(around: &str, error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let (path, message) = (error.path().to_string(), error.inner().to_string());
    let is_field = !path.starts_with(['.', '?', '[']);
    // A field that is missing is named by the message alone.
    let missing = message.strip_prefix("missing field `").and_then(|rest| rest.split_once('`'));
    match missing {
        Some((name, _)) if is_field => format!("{path}.{name}: is required"),
        Some((name, _)) => format!("{name}: is required"),
        None if is_field => format!("{path}: {message}"),
        // JSON that breaks off or is not a map has no field to name.
        None => format!("{around}: {message}"),
    }
}
