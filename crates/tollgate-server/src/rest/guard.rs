//! The guard of every route of REST: authentication, bounds on the request, and the responses to requests that fail
//! them.

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
    bounds::{CountedBody, RejectedRequest, RequestBounds, check_host},
    error_answer,
    plain_error::PlainError,
    retry_soon,
};
use crate::{
    auth::{AdminGrant, AuthError, Authenticator, ClientAddr, ServiceGrant, token},
    failure_code::FailureCode,
    listener::Peer,
    logs::traced,
    shares::{Holder, Permit},
};

/// The credentials that a route needs. Each route is declared in the group of its access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RouteAccess {
    /// Nothing: health, metrics, and the description of the API.
    Open,
    /// An end user's API key, which the route itself looks up.
    Key,
    /// A grant of a service.
    Service,
    /// A grant of an administrator.
    Admin,
}

/// Marks a response given because the API key in the request is invalid: this counts as a guess, unlike a valid key
/// without the right to read something.
#[derive(Clone, Copy)]
pub(super) struct BadKey;

/// The state of the guard of a group of routes.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) access: RouteAccess,
    pub(super) auth: Arc<Authenticator>,
    pub(super) bounds: Arc<RequestBounds>,
}

/// Lets a request through with its grant and the caller's address, or answers it; under the caller's trace, if it sent one.
pub(super) async fn guard(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let traceparent = request.headers().get("traceparent").and_then(|value| value.to_str().ok()).map(str::to_owned);
    traced(traceparent.as_deref(), pass(&gate, request, next)).await
}

async fn pass(gate: &Gate, request: Request, next: Next) -> Response {
    let access = gate.access;
    let ends_with_its_body = request.version() < Version::HTTP_2 && !request.body().is_end_stream();
    let (mut answer, was_read) = match admit(gate, request).await {
        Ok(Admitted { request, was_read, from, place }) => {
            let shown = access == RouteAccess::Key && token(request.headers()).is_some();
            let mut answer = next.run(request).await;
            if let (true, Some(from), Some(BadKey)) = (shown, from, answer.extensions().get::<BadKey>())
                && let Err(refusal) = gate.auth.bad_key(from).await
            {
                answer = auth_failure(access, refusal);
            }
            // A page of strangers counts until it was sent, and a call until it was decided.
            let answer = match place {
                Some(place) if access == RouteAccess::Open => CountedBody::until_sent(answer, place),
                _ => answer,
            };
            (answer, was_read)
        }
        Err(NotAdmitted::Refused(refusal)) => (auth_failure(access, refusal), false),
        Err(NotAdmitted::RejectedRequest(RejectedRequest { code, said })) => (error(access, code, &said), false),
    };
    // The rest of the body would follow on the connection, so the connection ends here, and the caller is told.
    if ends_with_its_body && !was_read {
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

/// A request that is passed to its route.
struct Admitted {
    request: Request,
    /// Whether its body is all there.
    was_read: bool,
    from: Option<ClientAddr>,
    place: Option<Permit>,
}

enum NotAdmitted {
    Refused(AuthError),
    RejectedRequest(RejectedRequest),
}

impl From<AuthError> for NotAdmitted {
    fn from(refusal: AuthError) -> Self {
        Self::Refused(refusal)
    }
}

impl From<RejectedRequest> for NotAdmitted {
    fn from(unfit: RejectedRequest) -> Self {
        Self::RejectedRequest(unfit)
    }
}

async fn admit(gate: &Gate, mut request: Request) -> Result<Admitted, NotAdmitted> {
    let Gate { access, auth, bounds } = gate;
    let access = *access;
    check_host(&request)?;
    if access == RouteAccess::Open {
        let place = match request.extensions().get::<MatchedPath>().map(MatchedPath::as_str) {
            // Probes are never refused: otherwise a client could take the node out of service by having them refused.
            Some("/metrics" | "/openapi.json") => {
                let address = client(auth, &request)?.ip();
                Some(bounds.place(&bounds.pages, Holder::address(address), "open_pages")?)
            }
            _ => None,
        };
        return Ok(Admitted { request, was_read: false, from: None, place });
    }
    let (from, holder) = authenticate(auth, access, &mut request).await?;
    if access == RouteAccess::Key {
        // The body of a `GET` has no meaning and is not read, and the caller is not known yet.
        let place = bounds.place(&bounds.end_user_calls, holder, "end_user_calls")?;
        return Ok(Admitted { request, was_read: false, from: Some(from), place: Some(place) });
    }
    bounds.check_body(&request)?;
    let (parts, body) = request.into_parts();
    let body = bounds.read(body, holder.clone()).await?;
    // Only now, so that a caller that sends slowly takes no place of others.
    let place = bounds.place(&bounds.calls, holder, "calls")?;
    let request = Request::from_parts(parts, Body::from(body));
    Ok(Admitted { request, was_read: true, from: Some(from), place: Some(place) })
}

fn client(auth: &Authenticator, request: &Request) -> Result<ClientAddr, AuthError> {
    let peer = request.extensions().get::<Arc<Peer>>().ok_or(AuthError::Missing("service"))?;
    Ok(auth.client(peer, request.headers()))
}

/// The caller's address, and the holder of its part of shared capacity.
async fn authenticate(
    auth: &Authenticator,
    access: RouteAccess,
    request: &mut Request,
) -> Result<(ClientAddr, Holder), AuthError> {
    // HTTP/2 has the host in the target.
    let named = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    auth.host(request.uri().authority().map(Authority::as_str).or(named))?;
    let peer = Arc::clone(request.extensions().get::<Arc<Peer>>().ok_or(AuthError::Missing("service"))?);
    let from = auth.client(&peer, request.headers());
    let holder = match access {
        // The route itself looks for the key, as whether it is good matters more than where it comes from.
        RouteAccess::Open | RouteAccess::Key => Holder::address(from.ip()),
        RouteAccess::Service => {
            let grant = auth.service(request.headers(), &peer, from).await?;
            let holder = grant.holder();
            request.extensions_mut().insert(grant);
            holder
        }
        RouteAccess::Admin => {
            let grant = auth.admin(request.headers(), from).await?;
            peer.connection.mark_known();
            let holder = grant.holder();
            request.extensions_mut().insert(grant);
            holder
        }
    };
    request.extensions_mut().insert(from);
    Ok((from, holder))
}

/// An error of a route of this access that its handler did not make.
pub(super) fn error(access: RouteAccess, code: FailureCode, message: &str) -> Response {
    let mut answer = shaped(access, code.http, code.word, message);
    if code.retry_soon {
        retry_soon(&mut answer);
    }
    if code == FailureCode::UNSUPPORTED {
        answer.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    answer
}

fn shaped(access: RouteAccess, status: StatusCode, code: &'static str, message: &str) -> Response {
    match access {
        RouteAccess::Key => PlainError::new(message).with(status),
        RouteAccess::Open | RouteAccess::Service | RouteAccess::Admin => error_answer(status, code, message),
    }
}

pub(super) fn auth_failure(access: RouteAccess, error: AuthError) -> Response {
    let code = FailureCode::of_auth(&error);
    let mut response = shaped(access, code.http, code.word, &error.to_string());
    let headers = response.headers_mut();
    if code == FailureCode::UNAUTHENTICATED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let AuthError::TooManyFailures { retry_after_s } = error {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s));
    }
    response
}

/// Used if the access of a route does not fit the grant that its handler needs.
impl IntoResponse for AuthError {
    fn into_response(self) -> Response {
        auth_failure(RouteAccess::Admin, self)
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

/// Adds to the description of the API which credentials there are.
pub(super) fn describe_credentials(description: &mut OpenApi) {
    let components = description.components.get_or_insert_default();
    for (access, text) in [
        (RouteAccess::Key, "The API key of an end user"),
        (
            RouteAccess::Service,
            "A token of a service (`--service-tokens`). A node on loopback with the embedded policy, or with `--open-loopback`, needs no token",
        ),
        (RouteAccess::Admin, "A token of an administrator (`--admin-tokens`)"),
    ] {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(text)).build();
        components.add_security_scheme(scheme_of(access), SecurityScheme::Http(scheme));
    }
}

/// Adds to the description of a group of routes which credentials they need, and how their absence is answered.
pub(super) fn describe(description: &mut OpenApi, access: RouteAccess) {
    for item in description.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
        for operation in operations.into_iter().flatten() {
            describe_access(operation, access);
        }
    }
}

fn describe_access(operation: &mut Operation, access: RouteAccess) {
    if access == RouteAccess::Open {
        return;
    }
    operation.security = Some(vec![SecurityRequirement::new(scheme_of(access), Vec::<String>::new())]);
    let of_tokens: &[(&str, &str)] = match access {
        RouteAccess::Open | RouteAccess::Key => &[],
        RouteAccess::Service | RouteAccess::Admin => {
            &[("401", "The token is missing or unknown"), ("403", "The token is not valid in this domain")]
        }
    };
    let of_all = [
        ("421", "The host name is not accepted by this node"),
        ("429", "This login failed after too many failed logins from this address, or the node is overloaded"),
    ];
    for (status, said) in of_tokens.iter().chain(&of_all) {
        let shape = if access == RouteAccess::Key { "PlainError" } else { "ErrorBody" };
        let body = Content::new(Some(RefOr::Ref(Ref::from_schema_name(shape))));
        let response = ResponseBuilder::new().description(*said).content("application/json", body).build();
        operation.responses.responses.entry((*status).to_owned()).or_insert(RefOr::T(response));
    }
}

const fn scheme_of(access: RouteAccess) -> &'static str {
    match access {
        RouteAccess::Open => "none",
        RouteAccess::Key => "api_key",
        RouteAccess::Service => "service_token",
        RouteAccess::Admin => "admin_token",
    }
}
