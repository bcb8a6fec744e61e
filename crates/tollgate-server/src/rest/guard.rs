//! The doors of REST: which route is behind which, and what whoever may not enter is told.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, MatchedPath, Request, State},
    http::{HeaderValue, StatusCode, header, request::Parts, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};
use utoipa::openapi::{
    Content, OpenApi, Ref, RefOr, ResponseBuilder,
    path::Operation,
    security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};

use super::{ErrorBody, limits::PlainError};
use crate::{
    auth::{AdminGrant, ClientAddr, Doors, Peer, Refusal, ServiceGrant, token},
    telemetry::traced,
};

/// What a route asks of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// Nothing: health, metrics, and the description of the API.
    Open,
    /// An end user's API key, which the route itself looks up.
    Key,
    /// A grant of a service.
    Service,
    /// A grant of an administrator.
    Admin,
}

impl Door {
    /// The door of the route with this pattern. What is not named here is for administrators, so that no route
    /// is open by accident.
    fn of(route: &str) -> Self {
        match route {
            "/healthz" | "/readyz" | "/metrics" | "/openapi.json" => Self::Open,
            _ if route.starts_with("/api_keys/") || route.starts_with("/api/v1/api_keys/") => Self::Key,
            _ if route.starts_with("/v1/") => Self::Service,
            _ => Self::Admin,
        }
    }
}

/// Stands in an answer that was given because the API key in the request is no good: a guess, unlike a good key that
/// asks for what it may not see.
#[derive(Clone, Copy)]
pub(super) struct BadKey;

/// Lets a request through with its grant and the caller's address, or answers it; under the caller's trace, if it sent one.
pub(super) async fn guard(State(doors): State<Arc<Doors>>, request: Request, next: Next) -> Response {
    let traceparent = request.headers().get("traceparent").and_then(|value| value.to_str().ok()).map(str::to_owned);
    traced(traceparent.as_deref(), pass(&doors, request, next)).await
}

async fn pass(doors: &Doors, mut request: Request, next: Next) -> Response {
    // By the route that matched, not by the path, which can be written in many ways. Where none matched there
    // is nothing to enter.
    let route = request.extensions().get::<MatchedPath>();
    let door = route.map_or(Door::Open, |route| Door::of(route.as_str()));
    if door == Door::Open {
        return next.run(request).await;
    }
    let shown = token(request.headers()).is_some();
    let from = match enter(doors, door, &mut request).await {
        Ok(from) => from,
        Err(refusal) => return turned_away(door, refusal),
    };
    let answer = next.run(request).await;
    if shown && answer.extensions().get::<BadKey>().is_some() {
        return doors.bad_key(from).await.map_or_else(|refusal| turned_away(door, refusal), |()| answer);
    }
    answer
}

async fn enter(doors: &Doors, door: Door, request: &mut Request) -> Result<ClientAddr, Refusal> {
    // HTTP/2 has the host in the target.
    let named = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    doors.host(request.uri().authority().map(Authority::as_str).or(named))?;
    let peer = Arc::clone(request.extensions().get::<Arc<Peer>>().ok_or(Refusal::Missing("service"))?);
    let from = doors.client(&peer, request.headers());
    match door {
        // The route itself looks for the key, as whether it is good matters more than where it comes from.
        Door::Open | Door::Key => {}
        Door::Service => {
            let grant = doors.service(request.headers(), &peer, from).await?;
            request.extensions_mut().insert(grant);
        }
        Door::Admin => {
            let grant = doors.admin(request.headers(), from).await?;
            request.extensions_mut().insert(grant);
        }
    }
    request.extensions_mut().insert(from);
    Ok(from)
}

/// An error that is not of the route's own making, in the shape that the errors of the route have.
pub(super) fn error(route: Option<&MatchedPath>, status: StatusCode, code: &'static str, message: &str) -> Response {
    shaped(route.map_or(Door::Open, |route| Door::of(route.as_str())), status, code, message)
}

fn shaped(door: Door, status: StatusCode, code: &'static str, message: &str) -> Response {
    match door {
        Door::Key => PlainError::new(message).with(status),
        Door::Open | Door::Service | Door::Admin => ErrorBody::new(code, message).with(status),
    }
}

pub(super) fn turned_away(door: Door, refusal: Refusal) -> Response {
    // The gRPC statuses stand in grpc/guard.rs, in the same order.
    let (status, code) = match refusal {
        Refusal::Missing(_) | Refusal::Unknown(_) | Refusal::UnknownCertificate | Refusal::NoAdmins => {
            (StatusCode::UNAUTHORIZED, "unauthenticated")
        }
        Refusal::TooManyFailures { .. } => (StatusCode::TOO_MANY_REQUESTS, "resource_exhausted"),
        Refusal::WrongHost => (StatusCode::MISDIRECTED_REQUEST, "misdirected_request"),
    };
    let mut response = shaped(door, status, code, &refusal.to_string());
    let headers = response.headers_mut();
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Refusal::TooManyFailures { retry_after_s } = refusal {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s));
    }
    response
}

/// Where the door of a route does not fit what its handler asks for.
impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        turned_away(Door::Admin, self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for ServiceGrant {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        parts.extensions.get().cloned().ok_or(Refusal::Missing("service"))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for AdminGrant {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        parts.extensions.get().cloned().ok_or(Refusal::Missing("admin"))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for ClientAddr {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        parts.extensions.get().copied().ok_or(Refusal::Missing("service"))
    }
}

/// Adds to the description of every route what its door asks for and answers.
pub(super) fn describe(description: &mut OpenApi) {
    let components = description.components.get_or_insert_default();
    for (door, said) in [
        (Door::Key, "The API key of an end user"),
        (
            Door::Service,
            "A token of a service (`--service-tokens`). A node with the embedded policy, or with `--open-loopback`, is open without any on loopback",
        ),
        (Door::Admin, "A token of an administrator (`--admin-tokens`)"),
    ] {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(said)).build();
        components.add_security_scheme(scheme_of(door), SecurityScheme::Http(scheme));
    }
    for (route, item) in &mut description.paths.paths {
        let door = Door::of(route);
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
        for operation in operations.into_iter().flatten() {
            describe_door(operation, door);
        }
    }
}

fn describe_door(operation: &mut Operation, door: Door) {
    if door == Door::Open {
        return;
    }
    operation.security = Some(vec![SecurityRequirement::new(scheme_of(door), Vec::<String>::new())]);
    let of_tokens: &[(&str, &str)] = match door {
        Door::Open | Door::Key => &[],
        Door::Service | Door::Admin => {
            &[("401", "The token is missing or unknown"), ("403", "The token may not act in this domain")]
        }
    };
    let of_all = [
        ("421", "The host is not a name of this node"),
        (
            "429",
            "Too many attempts to log in failed from this address, this one too, or the node has more to do than it takes in",
        ),
    ];
    for (status, said) in of_tokens.iter().chain(&of_all) {
        let shape = if door == Door::Key { "PlainError" } else { "ErrorBody" };
        let body = Content::new(Some(RefOr::Ref(Ref::from_schema_name(shape))));
        let response = ResponseBuilder::new().description(*said).content("application/json", body).build();
        operation.responses.responses.entry((*status).to_owned()).or_insert(RefOr::T(response));
    }
}

const fn scheme_of(door: Door) -> &'static str {
    match door {
        Door::Open => "none",
        Door::Key => "api_key",
        Door::Service => "service_token",
        Door::Admin => "admin_token",
    }
}
