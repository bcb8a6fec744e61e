//! The access check of gRPC calls. A caller without a valid token gets an error before its message is read.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;
use tonic::{
    Extensions, Status,
    body::Body,
    codegen::{Service, http},
    metadata::MetadataValue,
    server::NamedService,
};

use super::body::{BodyBounds, CallBody};
use crate::{
    auth::{AuthError, Authenticator, ServiceGrant},
    failure_code::FailureCode,
    listener::Peer,
    request_body::is_plain,
    shares::Holder,
};

/// The time that a request may take in addition to reading its message and deciding its call.
const MARGIN: Duration = Duration::from_secs(1);

const STREAMING_METHODS: [&str; 2] = ["ConsumeStream", "ServerReflectionInfo"];

/// A gRPC service that requires the token of a service. Its grant is an extension of each request.
#[derive(Clone)]
pub(crate) struct AuthenticatedService<S> {
    inner: S,
    auth: Arc<Authenticator>,
    timeout: Duration,
    bodies: Arc<BodyBounds>,
}

impl<S> AuthenticatedService<S> {
    /// `timeout` is the maximum time of a call after its message was read.
    pub(crate) fn new(inner: S, auth: Arc<Authenticator>, timeout: Duration, bodies: BodyBounds) -> Self {
        let timeout = timeout.saturating_add(bodies.timeout).saturating_add(MARGIN);
        Self { inner, auth, timeout, bodies: Arc::new(bodies) }
    }
}

impl<S: NamedService> NamedService for AuthenticatedService<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for AuthenticatedService<S>
where
    S: Service<http::Request<CallBody>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let auth = Arc::clone(&self.auth);
        let (timeout, bodies) = (self.timeout, Arc::clone(&self.bodies));
        let arrival = Instant::now();
        // `poll_ready` was called on this instance, so this instance must be called.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            if !is_grpc(request.headers()) {
                return Ok(unsupported_media_type("content-type: must be application/grpc or application/grpc+proto"));
            }
            if !is_plain(request.headers()) {
                return Ok(unsupported_media_type("content-encoding: must be identity, or absent"));
            }
            let grant = match authenticate(&auth, request.headers(), request.extensions()).await {
                Ok(grant) => grant,
                Err(error) => return Ok(Status::from(error).into_http()),
            };
            let method = request.uri().path().rsplit('/').next().unwrap_or_default();
            let body: fn(Body, Arc<BodyBounds>, Holder) -> CallBody =
                if STREAMING_METHODS.contains(&method) { |body, _, _| CallBody::stream(body) } else { CallBody::unary };
            let holder = grant.holder();
            let mut request = request.map(|unbounded| body(unbounded, bodies, holder));
            request.extensions_mut().insert(Caller { grant, arrival });
            let response = tokio::time::timeout(timeout, inner.call(request)).await;
            response.unwrap_or_else(|_| Ok(Status::deadline_exceeded("the call took too long").into_http()))
        })
    }
}

/// Whether the content type is gRPC with protobuf.
fn is_grpc(headers: &http::HeaderMap) -> bool {
    let content_type = headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| value.split(';').next()).map(str::trim_ascii);
    media_type.is_some_and(|media_type| {
        ["application/grpc", "application/grpc+proto"]
            .iter()
            .any(|supported| media_type.eq_ignore_ascii_case(supported))
    })
}

/// A response with HTTP status 415, so that other clients do not take gRPC's status 200 for success
/// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).
fn unsupported_media_type(message: &str) -> http::Response<Body> {
    let mut response = Status::invalid_argument(message).into_http();
    *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

async fn authenticate(
    auth: &Authenticator,
    headers: &http::HeaderMap,
    extensions: &http::Extensions,
) -> Result<ServiceGrant, AuthError> {
    let peer = extensions.get::<Arc<Peer>>().ok_or(AuthError::Missing("service"))?;
    let client = auth.client(peer, headers);
    auth.service(headers, peer, client).await
}

#[derive(Clone)]
struct Caller {
    grant: ServiceGrant,
    /// When the headers of the request had arrived.
    arrival: Instant,
}

/// The grant of an authenticated request.
pub(super) fn grant(extensions: &Extensions) -> Result<&ServiceGrant, Status> {
    Ok(&caller(extensions)?.grant)
}

/// When the headers of an authenticated request had arrived.
pub(super) fn arrival(extensions: &Extensions) -> Result<Instant, Status> {
    Ok(caller(extensions)?.arrival)
}

fn caller(extensions: &Extensions) -> Result<&Caller, Status> {
    extensions.get().ok_or_else(|| Status::internal("the request was not authenticated"))
}

impl From<AuthError> for Status {
    fn from(error: AuthError) -> Self {
        let mut status = Self::new(FailureCode::of_auth(&error).grpc, error.to_string());
        if let AuthError::TooManyFailures { retry_after_s } = error {
            status.metadata_mut().insert("retry-after", MetadataValue::from(retry_after_s));
        }
        status
    }
}
