//! REST: the callers' own limits, JSON twins of the RPCs, health, metrics, and the API's description.

pub(crate) mod admin;
mod batch;
mod decide;
mod guard;
mod health;
mod limits;
mod list;
mod report;
mod reserve;

use std::{borrow::Cow, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, FromRequest, MatchedPath, rejection::JsonRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};
use tower::{ServiceBuilder, limit::GlobalConcurrencyLimitLayer, load_shed::LoadShedLayer, timeout::TimeoutLayer};
use utoipa::{IntoResponses, OpenApi, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

pub(crate) use health::Health;

use crate::{
    admin::Admin,
    auth::Doors,
    service::{CallError, DecisionService},
};

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) service: Arc<DecisionService>,
    pub(crate) admin: Arc<Admin>,
    pub(crate) doors: Arc<Doors>,
    pub(crate) health: Arc<Health>,
    /// How long a call may take in all.
    pub(crate) timeout: Duration,
    /// The largest body.
    pub(crate) body_bytes: usize,
}

/// What a listener offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
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
        description = "Rate limits of an API platform: decide a call, and read where a caller stands.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    // Failures that routes share name these, and bring no description of them along.
    components(schemas(ErrorBody, limits::PlainError))
)]
struct Description;

fn described(offer: Offer) -> (Router<Shared>, utoipa::openapi::OpenApi) {
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
        Offer::Api => api,
        Offer::Operations => operations,
        Offer::Everything => api.merge(operations),
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
    described(Offer::Everything).1.to_pretty_json()
}

/// The routes of a listener, which all together take in so many calls at once.
pub(crate) fn router(shared: Shared, concurrent_calls: usize, offer: Offer) -> Router {
    let (routes, _) = described(offer);
    let (_, description) = described(Offer::Everything);
    let description = Arc::new(description);
    let openapi = get(move || async move { Json(description.as_ref()).into_response() });
    let bounds_layer = ServiceBuilder::new()
        .layer(axum::error_handling::HandleErrorLayer::new(
            |route: Option<MatchedPath>, error: tower::BoxError| async move {
                let (status, code, said) = if error.is::<tower::timeout::error::Elapsed>() {
                    (StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", "the call took too long")
                } else {
                    let said = "the node has more to do than it takes in";
                    (StatusCode::TOO_MANY_REQUESTS, "resource_exhausted", said)
                };
                guard::error(route.as_ref(), status, code, said)
            },
        ))
        .layer(LoadShedLayer::new())
        .layer(GlobalConcurrencyLimitLayer::new(concurrent_calls))
        .layer(TimeoutLayer::new(shared.timeout));
    let routes = if offer == Offer::Operations { routes } else { routes.route("/openapi.json", openapi) };
    routes
        .fallback(|| async { ErrorBody::new("not_found", "there is no such route").with(StatusCode::NOT_FOUND) })
        .method_not_allowed_fallback(|| async {
            ErrorBody::new("method_not_allowed", "the route has no such method").with(StatusCode::METHOD_NOT_ALLOWED)
        })
        .layer(bounds_layer)
        .layer(DefaultBodyLimit::max(shared.body_bytes))
        // Last, and so first on the way in: whoever may not enter costs nothing more.
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&shared.doors), guard::guard))
        .with_state(shared)
}

/// What may go wrong on any route of `/v1`, besides what its door says.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "for the description of the API")]
enum Failures {
    #[response(status = 400, description = "The request is wrong; the message names the field")]
    Invalid(ErrorBody),
    #[response(status = 413, description = "The body is too large")]
    TooLarge(ErrorBody),
    #[response(status = 415, description = "The body is not JSON by its content type")]
    NotJson(ErrorBody),
    #[response(status = 429, description = "The node has more to do than it takes in")]
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

/// What went wrong.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct ErrorDetail {
    /// A word for programs: `invalid_argument`, `not_found`, `unavailable`, `resource_exhausted` …
    pub(crate) code: Cow<'static, str>,
    /// A sentence for people; of a wrong request it begins with the name of the field.
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
    let mut answer = (status, Json(body)).into_response();
    if status == StatusCode::TOO_MANY_REQUESTS {
        // The node itself has too much to do; a second is the shortest wait that HTTP can say.
        answer.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    }
    answer
}

/// What a service is answered.
fn answer<T: Serialize>(result: Result<T, CallError>) -> Response {
    result.map_or_else(IntoResponse::into_response, |body| Json(body).into_response())
}

impl CallError {
    /// The HTTP status, and the word for it.
    fn status(&self) -> (StatusCode, &'static str) {
        use tollgate_core::store::StoreError;
        // The gRPC statuses stand in grpc.rs, in the same order.
        match self {
            Self::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid_argument"),
            Self::UnknownDomain { .. } | Self::NoReservation => (StatusCode::NOT_FOUND, "not_found"),
            Self::Forbidden { .. } => (StatusCode::FORBIDDEN, "permission_denied"),
            Self::Ended { .. } => (StatusCode::CONFLICT, "failed_precondition"),
            Self::Late => (StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded"),
            Self::Store(StoreError::Overloaded(_) | StoreError::Crowded(_)) => {
                (StatusCode::TOO_MANY_REQUESTS, "resource_exhausted")
            }
            Self::Store(StoreError::Unreachable(_) | StoreError::Indeterminate(_) | StoreError::Refused(_)) => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable")
            }
        }
    }
}

impl ErrorDetail {
    fn of(error: &CallError) -> Self {
        Self { code: error.status().1.into(), message: error.message() }
    }
}

impl IntoResponse for CallError {
    fn into_response(self) -> Response {
        ErrorBody { error: ErrorDetail::of(&self) }.with(self.status().0)
    }
}

/// A JSON body, whose mistakes are answered in our own words.
struct Body<T>(T);

impl<T: serde::de::DeserializeOwned> FromRequest<Shared> for Body<T> {
    type Rejection = Response;

    async fn from_request(request: axum::extract::Request, shared: &Shared) -> Result<Self, Response> {
        match Json::<T>::from_request(request, shared).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                let said = format!("body: has more than {} bytes", shared.body_bytes);
                Err(ErrorBody::new("payload_too_large", said).with(StatusCode::PAYLOAD_TOO_LARGE))
            }
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
                Err(ErrorBody::new(code, format!("body: {}", rejection.body_text())).with(status))
            }
        }
    }
}
