//! The access check of every REST route: authentication and bounds on the request, and the responses to requests that
//! fail the check.

use std::sync::Arc;

use axum::{
    body::{Body, HttpBody},
    extract::{FromRequestParts, MatchedPath, Request, State},
    http::{HeaderValue, StatusCode, Version, header, request::Parts, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};
use utoipa::openapi::{
    Content, OpenApi, Ref, RefOr, ResponseBuilder,
    path::Operation,
    security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};

use super::{
    bounds::{PermittedBody, RequestBounds, RequestError, check_host},
    plain_error::PlainError,
    set_retry_after,
};
use crate::{
    auth::{AdminGrant, AuthError, Authenticator, ClientAddr, ServiceGrant, token},
    failure_code::FailureCode,
    listener::Peer,
    logs::traced,
    shares::{Holder, Permit},
};

/// The credentials that a route needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RouteAccess {
    /// None: health, metrics, and the OpenAPI document.
    Open,
    /// An end user's API key. The route itself looks it up.
    Key,
    /// The token of a service.
    Service,
    /// The token of an administrator.
    Admin,
}

/// Marks the response to an invalid API key. It is counted as a failed login, unlike a valid key without the right to
/// read something.
#[derive(Clone, Copy)]
pub(super) struct BadKey;

/// The access check of a group of routes.
#[derive(Clone)]
pub(super) struct AccessCheck {
    pub(super) access: RouteAccess,
    pub(super) auth: Arc<Authenticator>,
    pub(super) bounds: Arc<RequestBounds>,
}

/// Passes a request to its route with its grant and the caller's address, or responds with an error.
pub(super) async fn check_access(State(check): State<AccessCheck>, request: Request, next: Next) -> Response {
    let traceparent = request.headers().get("traceparent").and_then(|value| value.to_str().ok()).map(str::to_owned);
    traced(traceparent.as_deref(), respond(&check, request, next)).await
}

async fn respond(check: &AccessCheck, request: Request, next: Next) -> Response {
    let access = check.access;
    let body_follows = request.version() < Version::HTTP_2 && !request.body().is_end_stream();
    let (mut response, body_was_read) = match admit(check, request).await {
        Ok(AdmittedRequest { request, body_was_read, client, permit }) => {
            let has_key = access == RouteAccess::Key && token(request.headers()).is_some();
            let mut response = next.run(request).await;
            if let (true, Some(client), Some(BadKey)) = (has_key, client, response.extensions().get::<BadKey>())
                && let Err(error) = check.auth.count_bad_key(client).await
            {
                response = auth_error_response(access, error);
            }
            // The permit of an open page is held until the page was sent, that of a call until the call was decided.
            let response = match permit {
                Some(permit) if access == RouteAccess::Open => PermittedBody::until_sent(response, permit),
                _ => response,
            };
            (response, body_was_read)
        }
        Err(AccessError::Auth(error)) => (auth_error_response(access, error), false),
        Err(AccessError::Request(RequestError { code, message })) => (error_response(access, code, &message), false),
    };
    // The unread rest of the body would follow on the connection, so the connection is closed.
    if body_follows && !body_was_read {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A request that is passed to its route.
struct AdmittedRequest {
    request: Request,
    body_was_read: bool,
    client: Option<ClientAddr>,
    permit: Option<Permit>,
}

enum AccessError {
    Auth(AuthError),
    Request(RequestError),
}

impl From<AuthError> for AccessError {
    fn from(error: AuthError) -> Self {
        Self::Auth(error)
    }
}

impl From<RequestError> for AccessError {
    fn from(error: RequestError) -> Self {
        Self::Request(error)
    }
}

async fn admit(check: &AccessCheck, mut request: Request) -> Result<AdmittedRequest, AccessError> {
    let AccessCheck { access, auth, bounds } = check;
    let access = *access;
    check_host(&request)?;
    if access == RouteAccess::Open {
        let permit = match request.extensions().get::<MatchedPath>().map(MatchedPath::as_str) {
            // Health probes are never refused: otherwise a client could take the node out of service.
            Some("/metrics" | "/openapi.json") => {
                let address = client(auth, &request)?.ip();
                Some(bounds.acquire(&bounds.pages, Holder::address(address), "open_pages")?)
            }
            _ => None,
        };
        return Ok(AdmittedRequest { request, body_was_read: false, client: None, permit });
    }
    let (client, holder) = authenticate(auth, access, &mut request).await?;
    if access == RouteAccess::Key {
        // The body of a `GET` has no meaning and is not read; the caller is not authenticated yet.
        let permit = bounds.acquire(&bounds.end_user_calls, holder, "end_user_calls")?;
        return Ok(AdmittedRequest { request, body_was_read: false, client: Some(client), permit: Some(permit) });
    }
    bounds.check_body(&request)?;
    let (parts, body) = request.into_parts();
    let body = bounds.read(body, holder.clone()).await?;
    // After the body was read, so that slow callers hold no permits.
    let permit = bounds.acquire(&bounds.calls, holder, "calls")?;
    let request = Request::from_parts(parts, Body::from(body));
    Ok(AdmittedRequest { request, body_was_read: true, client: Some(client), permit: Some(permit) })
}

fn client(auth: &Authenticator, request: &Request) -> Result<ClientAddr, AuthError> {
    let peer = request.extensions().get::<Arc<Peer>>().ok_or(AuthError::Missing("service"))?;
    Ok(auth.client(peer, request.headers()))
}

/// The caller's address, and the holder of its share of the capacity.
async fn authenticate(
    auth: &Authenticator,
    access: RouteAccess,
    request: &mut Request,
) -> Result<(ClientAddr, Holder), AuthError> {
    // HTTP/2 has the host in the target.
    let host = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    auth.check_host(request.uri().authority().map(Authority::as_str).or(host))?;
    let peer = Arc::clone(request.extensions().get::<Arc<Peer>>().ok_or(AuthError::Missing("service"))?);
    let client = auth.client(&peer, request.headers());
    let holder = match access {
        RouteAccess::Open | RouteAccess::Key => Holder::address(client.ip()),
        RouteAccess::Service => {
            let grant = auth.service(request.headers(), &peer, client).await?;
            let holder = grant.holder();
            request.extensions_mut().insert(grant);
            holder
        }
        RouteAccess::Admin => {
            let grant = auth.admin(request.headers(), client).await?;
            peer.connection.mark_authenticated();
            let holder = grant.holder();
            request.extensions_mut().insert(grant);
            holder
        }
    };
    request.extensions_mut().insert(client);
    Ok((client, holder))
}

/// The response to an error that occurs before the handler of the route runs, or instead of it.
pub(super) fn error_response(access: RouteAccess, code: FailureCode, message: &str) -> Response {
    let mut response = formatted_error(access, code.http, code.name, message);
    if code.is_overload {
        set_retry_after(&mut response);
    }
    if code == FailureCode::UNSUPPORTED {
        response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    response
}

/// An error in the format of the routes with this access.
fn formatted_error(access: RouteAccess, status: StatusCode, code: &'static str, message: &str) -> Response {
    match access {
        RouteAccess::Key => PlainError::new(message).response(status),
        RouteAccess::Open | RouteAccess::Service | RouteAccess::Admin => super::error_response(status, code, message),
    }
}

pub(super) fn auth_error_response(access: RouteAccess, error: AuthError) -> Response {
    let code = FailureCode::of_auth(&error);
    let mut response = formatted_error(access, code.http, code.name, &error.to_string());
    let headers = response.headers_mut();
    if code == FailureCode::UNAUTHENTICATED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let AuthError::TooManyFailures { retry_after_s } = error {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s));
    }
    response
}

/// Used only if a route is declared with the wrong access.
impl IntoResponse for AuthError {
    fn into_response(self) -> Response {
        auth_error_response(RouteAccess::Admin, self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for ServiceGrant {
    type Rejection = AuthError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, AuthError> {
        parts.extensions.get().cloned().ok_or(AuthError::Missing("service"))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for AdminGrant {
    type Rejection = AuthError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, AuthError> {
        parts.extensions.get().cloned().ok_or(AuthError::Missing("admin"))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for ClientAddr {
    type Rejection = AuthError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, AuthError> {
        parts.extensions.get().copied().ok_or(AuthError::Missing("service"))
    }
}

/// Adds the kinds of credentials to the OpenAPI document.
pub(super) fn add_security_schemes(document: &mut OpenApi) {
    let components = document.components.get_or_insert_default();
    for (access, text) in [
        (RouteAccess::Key, "The API key of an end user"),
        (
            RouteAccess::Service,
            "A token of a service (`--service-tokens`). A node on loopback with the embedded policy, or with `--open-loopback`, needs no token",
        ),
        (RouteAccess::Admin, "A token of an administrator (`--admin-tokens`)"),
    ] {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(text)).build();
        components.add_security_scheme(scheme_name(access), SecurityScheme::Http(scheme));
    }
}

/// Adds the required credentials, and the responses of the access check, to the document of a group of routes.
pub(super) fn add_requirements(document: &mut OpenApi, access: RouteAccess) {
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
        for operation in operations.into_iter().flatten() {
            add_operation_requirements(operation, access);
        }
    }
}

fn add_operation_requirements(operation: &mut Operation, access: RouteAccess) {
    if access == RouteAccess::Open {
        return;
    }
    operation.security = Some(vec![SecurityRequirement::new(scheme_name(access), Vec::<String>::new())]);
    let token_errors: &[(&str, &str)] = match access {
        RouteAccess::Open | RouteAccess::Key => &[],
        RouteAccess::Service | RouteAccess::Admin => {
            &[("401", "The token is missing or unknown"), ("403", "The token is not valid in this domain")]
        }
    };
    let common_errors = [
        ("421", "The host name is not accepted by this node"),
        ("429", "This login failed after too many failed logins from this address, or the node is overloaded"),
    ];
    for (status, description) in token_errors.iter().chain(&common_errors) {
        let schema = if access == RouteAccess::Key { "PlainError" } else { "ErrorBody" };
        let body = Content::new(Some(RefOr::Ref(Ref::from_schema_name(schema))));
        let response = ResponseBuilder::new().description(*description).content("application/json", body).build();
        operation.responses.responses.entry((*status).to_owned()).or_insert(RefOr::T(response));
    }
}

const fn scheme_name(access: RouteAccess) -> &'static str {
    match access {
        RouteAccess::Open => "none",
        RouteAccess::Key => "api_key",
        RouteAccess::Service => "service_token",
        RouteAccess::Admin => "admin_token",
    }
}
