//! REST: the callers' own limits, JSON twins of the RPCs, health, metrics, and the API's description.

pub(crate) mod admin;
mod batch;
mod bounds;
mod decide;
mod entries;
mod guard;
mod health;
mod limits;
mod list;
mod number;
mod plain_error;
mod report;
mod reservation;
mod reserve;

use std::{borrow::Cow, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest, MatchedPath, rejection::JsonRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tollgate_service::{
    admin::Admin,
    service::{CallError, DecisionService},
};
use tower::{ServiceBuilder, timeout::TimeoutLayer};
use utoipa::{IntoResponses, OpenApi, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

pub(crate) use health::Health;

pub(crate) use self::bounds::RequestBounds;
use crate::{auth::Authenticator, failure_code::FailureCode};

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) service: Arc<DecisionService>,
    pub(crate) admin: Arc<Admin>,
    pub(crate) auth: Arc<Authenticator>,
    pub(crate) health: Arc<Health>,
    /// How long a call may take in all.
    pub(crate) timeout: Duration,
}

/// What a listener offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouteSet {
    /// The API alone.
    Api,
    /// What operators read: health and metrics.
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

fn described(offer: RouteSet) -> (Router<Shared>, utoipa::openapi::OpenApi) {
    let api = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(limits::get_rate_limits))
        .routes(routes!(limits::get_rate_limits_v1))
        .routes(routes!(limits::log::get_log))
        .routes(routes!(limits::log::get_log_v1))
        .routes(routes!(decide::check))
        .routes(routes!(decide::consume))
        .routes(routes!(batch::consume_batch))
        .routes(routes!(reserve::reserve))
        .routes(routes!(reserve::settle))
        .routes(routes!(reserve::cancel))
        .routes(routes!(reserve::extend))
        .routes(routes!(report::report_outcome))
        .routes(routes!(list::list_rate_limits))
        .merge(admin::routes());
    let operations = OpenApiRouter::new()
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics));
    let (routes, mut description) = match offer {
        RouteSet::Api => api,
        RouteSet::Operations => operations,
        RouteSet::Everything => api.merge(operations),
    }
    .split_for_parts();
    guard::describe(&mut description);
    (routes, description)
}

/// The description of the API, as `/openapi.json` serves it.
///
/// # Errors
/// None in practice; that of the JSON writer.
pub fn openapi_json() -> Result<String, serde_json::Error> {
    described(RouteSet::Everything).1.to_pretty_json()
}

/// The routes of a listener, within these bounds.
///
/// # Errors
/// None in practice; that of the JSON writer.
pub(crate) fn router(shared: Shared, bounds: Arc<RequestBounds>, offer: RouteSet) -> Result<Router, serde_json::Error> {
    let (routes, _) = described(offer);
    let page = DescriptionPage::new(&described(RouteSet::Everything).1)?;
    let openapi = get(move |headers: HeaderMap| async move { page.answer(&headers) });
    let bounds_layer = ServiceBuilder::new()
        .layer(axum::error_handling::HandleErrorLayer::new(
            |route: Option<MatchedPath>, _: tower::BoxError| async move {
                guard::route_error(route.as_ref(), FailureCode::LATE, "the call took too long")
            },
        ))
        .layer(TimeoutLayer::new(shared.timeout));
    let gate = guard::Gate { auth: Arc::clone(&shared.auth), bounds };
    let routes = if offer == RouteSet::Operations { routes } else { routes.route("/openapi.json", openapi) };
    let routes = routes
        .fallback(|| async { ErrorBody::new("not_found", "there is no such route").with(StatusCode::NOT_FOUND) })
        .method_not_allowed_fallback(|| async {
            ErrorBody::new("method_not_allowed", "the route has no such method").with(StatusCode::METHOD_NOT_ALLOWED)
        })
        .layer(bounds_layer)
        // The guard has read the body, and so bounded it.
        .layer(DefaultBodyLimit::disable())
        // Last, and so first on the way in: whoever may not enter costs nothing more.
        .layer(axum::middleware::from_fn_with_state(gate, guard::guard))
        .with_state(shared);
    Ok(routes)
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

/// An error of `/v1` and `/admin/v1`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct ErrorBody {
    pub(crate) error: ErrorDetail,
}

/// An error.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct ErrorDetail {
    /// A code for programs: `invalid_argument`, `not_found`, `unavailable`, `resource_exhausted` …
    pub(crate) code: Cow<'static, str>,
    /// A sentence for people; if the request is wrong, it starts with the name of the field.
    pub(crate) message: String,
}

impl ErrorBody {
    pub(crate) fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { error: ErrorDetail { code: code.into(), message: message.into() } }
    }

    fn with(self, status: StatusCode) -> Response {
        failure(status, self)
    }
}

fn failure(status: StatusCode, body: impl Serialize) -> Response {
    (status, Json(body)).into_response()
}

/// Says that the node itself has too much to do; a second is the shortest wait that HTTP can say.
fn retry_soon(answer: &mut Response) {
    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
}

/// What a service is answered.
fn answer<T: Serialize>(result: Result<T, CallError>) -> Response {
    result.map_or_else(|error| failed(&error), |body| Json(body).into_response())
}

impl ErrorDetail {
    fn of(error: &CallError) -> Self {
        Self { code: FailureCode::of(error).word.into(), message: error.message() }
    }
}

/// The answer to a failed call.
fn failed(error: &CallError) -> Response {
    let code = FailureCode::of(error);
    let mut answer = ErrorBody { error: ErrorDetail::of(error) }.with(code.http);
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
                Err(ErrorBody::new(code, mistake_of(&rejection)).with(status))
            }
        }
    }
}

/// What is wrong with a JSON body, behind the name of the field where there is one.
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
    let path = error.path().to_string();
    // Of JSON that breaks off, or is no map, there is no field to name.
    let field = if path.starts_with(['.', '?', '[']) { around } else { &path };
    format!("{field}: {}", error.inner())
}
