//! Authentication of gRPC calls: a caller without a valid token is answered before a message is read.

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

/// How much longer than its message and its call a request may take in all, until its answer begins.
const LONGER: Duration = Duration::from_secs(1);

/// The methods whose calls are streams.
const STREAMS: [&str; 2] = ["ConsumeStream", "ServerReflectionInfo"];

/// A gRPC service that only services with a grant may call. The grant comes along as an extension of
/// each request.
#[derive(Clone)]
pub(crate) struct GuardedService<S> {
    inner: S,
    auth: Arc<Authenticator>,
    timeout: Duration,
    bodies: Arc<BodyBounds>,
}

impl<S> GuardedService<S> {
    /// `timeout` is how long a call may take once it was read.
    pub(crate) fn new(inner: S, auth: Arc<Authenticator>, timeout: Duration, bodies: BodyBounds) -> Self {
        let timeout = timeout.saturating_add(bodies.timeout).saturating_add(LONGER);
        Self { inner, auth, timeout, bodies: Arc::new(bodies) }
    }
}

impl<S: NamedService> NamedService for GuardedService<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for GuardedService<S>
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
        let arrived = Instant::now();
        // The one that was polled is the one to call.
        let waiting = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, waiting);
        Box::pin(async move {
            if !is_grpc(request.headers()) {
                return Ok(unsupported_media_type("content-type: must be application/grpc or application/grpc+proto"));
            }
            if !is_plain(request.headers()) {
                return Ok(unsupported_media_type("content-encoding: must be identity, or absent"));
            }
            let grant = match authenticate(&auth, request.headers(), request.extensions()).await {
                Ok(grant) => grant,
                Err(refusal) => return Ok(Status::from(refusal).into_http()),
            };
            let method = request.uri().path().rsplit('/').next().unwrap_or_default();
            let body: fn(Body, Arc<BodyBounds>, Holder) -> CallBody =
                if STREAMS.contains(&method) { |body, _, _| CallBody::stream(body) } else { CallBody::unary };
            let holder = grant.holder();
            let mut request = request.map(|whole| body(whole, bodies, holder));
            request.extensions_mut().insert(Caller { grant, arrived });
            // Whatever else keeps it, a request holds its call no longer than this.
            let answered = tokio::time::timeout(timeout, inner.call(request)).await;
            answered.unwrap_or_else(|_| Ok(Status::deadline_exceeded("the call took too long").into_http()))
        })
    }
}

/// Whether the content type is one that this server reads: gRPC frames with protobuf.
fn is_grpc(headers: &http::HeaderMap) -> bool {
    let content_type = headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| value.split(';').next()).map(str::trim_ascii);
    media_type.is_some_and(|media_type| {
        ["application/grpc", "application/grpc+proto"].iter().any(|spoken| media_type.eq_ignore_ascii_case(spoken))
    })
}

/// The status is that of <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>, which bids servers keep
/// clients that speak something else from taking an answer of gRPC, 200 whatever happened, for a success.
fn unsupported_media_type(said: &str) -> http::Response<Body> {
    let mut answer = Status::invalid_argument(said).into_http();
    *answer.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
    answer
}

async fn authenticate(
    auth: &Authenticator,
    headers: &http::HeaderMap,
    extensions: &http::Extensions,
) -> Result<ServiceGrant, AuthError> {
    let peer = extensions.get::<Arc<Peer>>().ok_or(AuthError::Missing("service"))?;
    let from = auth.client(peer, headers);
    auth.service(headers, peer, from).await
}

/// The caller, and when its request arrived.
#[derive(Clone)]
struct Caller {
    grant: ServiceGrant,
    /// When the headers were there.
    arrived: Instant,
}

/// The grant of an authenticated request.
pub(super) fn grant(extensions: &Extensions) -> Result<&ServiceGrant, Status> {
    Ok(&caller(extensions)?.grant)
}

/// When the headers of an authenticated request were there.
pub(super) fn arrived(extensions: &Extensions) -> Result<Instant, Status> {
    Ok(caller(extensions)?.arrived)
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
