//! The doors of REST: which route is behind which, and what whoever may not enter is told.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, MatchedPath, Request, State},
    http::{HeaderValue, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use utoipa::openapi::{
    Content, OpenApi, Ref, RefOr, ResponseBuilder,
    path::Operation,
    security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};

use super::ErrorBody;
use crate::auth::{AdminGrant, Doors, Refusal, ServiceGrant};

/// What a route asks of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
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

/// Lets a request through with its grant, or answers it.
pub(super) async fn guard(State(doors): State<Arc<Doors>>, mut request: Request, next: Next) -> Response {
    // By the route that matched, not by the path, which can be written in many ways. Where none matched there
    // is nothing to enter.
    let Some(route) = request.extensions().get::<MatchedPath>() else { return next.run(request).await };
    let entered = match Door::of(route.as_str()) {
        Door::Open | Door::Key => Ok(()),
        Door::Service => doors.service(request.headers()).map(|grant| {
            request.extensions_mut().insert(grant);
        }),
        Door::Admin => doors.admin(request.headers()).map(|grant| {
            request.extensions_mut().insert(grant);
        }),
    };
    match entered {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        // The gRPC statuses stand in grpc/guard.rs, in the same order.
        let (status, code) = match self {
            Self::Missing(_) | Self::Unknown(_) | Self::NoAdmins => (StatusCode::UNAUTHORIZED, "unauthenticated"),
        };
        let mut response = ErrorBody::new(code, self.to_string()).with(status);
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        response
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

/// Adds to the description of every route what its door asks for and answers.
pub(super) fn describe(description: &mut OpenApi) {
    let components = description.components.get_or_insert_default();
    for (door, said) in [
        (Door::Key, "The API key of an end user"),
        (Door::Service, "A token of a service (`--service-tokens`). A node on loopback may be open without any"),
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
    let statuses: &[(&str, &str)] = match door {
        Door::Open | Door::Key => &[],
        Door::Service | Door::Admin => {
            &[("401", "The token is missing or unknown"), ("403", "The token may not act in this domain")]
        }
    };
    for (status, said) in statuses {
        let body = Content::new(Some(RefOr::Ref(Ref::from_schema_name("ErrorBody"))));
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
