//! gRPC services without authentication, with bounds on the number and the duration of their calls.

use std::{
    convert::Infallible,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::{
    task::AbortHandle,
    time::{Sleep, sleep, timeout},
};
use tonic::{
    Status,
    body::Body,
    codegen::{Service, http},
    server::NamedService,
};

use crate::{
    listener::{Activity, Peer, Streaming},
    shares::{Exhausted, Holder, Permit, Shares},
};

/// The maximum size of a message, in bytes; names of services and files are shorter.
pub(crate) const MAX_MESSAGE_BYTES: usize = 1_024;
/// The maximum time until the response to a call begins.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum duration of `Watch`; then clients call it again.
pub(crate) const WATCH_LIFETIME: Duration = Duration::from_mins(10);
/// The maximum duration of a reflection stream.
pub(crate) const REFLECTION_LIFETIME: Duration = Duration::from_mins(1);
/// The time after the end of a stream until the connection of a client that does not read the end is closed.
const GRACE: Duration = Duration::from_secs(20);

/// The maximum number of concurrent calls in total, and of one address; for trusted proxies only the first applies.
const MAX_CALLS: (usize, usize) = (4_096, 512);
const MAX_STREAMS: (usize, usize) = (256, 32);

/// The bounds of all open services of a node.
pub(crate) struct OpenServiceBounds {
    calls: Arc<Shares>,
    streams: Arc<Shares>,
}

impl Default for OpenServiceBounds {
    fn default() -> Self {
        Self { calls: Shares::new(MAX_CALLS.0, MAX_CALLS.1), streams: Shares::new(MAX_STREAMS.0, MAX_STREAMS.1) }
    }
}

/// A permit for one call from this address; `None` for a trusted proxy.
fn permit(shares: &Arc<Shares>, source: Option<IpAddr>) -> Result<Permit, Status> {
    let holder = source.map_or(Holder::Anyone, Holder::address);
    shares.acquire(holder, 1).map_err(|exhausted| {
        Status::resource_exhausted(match exhausted {
            Exhausted::Share => "this address has too many calls of this kind open",
            Exhausted::All => "the node has too many calls of this kind open",
        })
    })
}

/// A gRPC service without authentication.
#[derive(Clone)]
pub(crate) struct OpenService<S> {
    inner: S,
    bounds: Arc<OpenServiceBounds>,
    /// The path of the streaming method, and the maximum duration of a stream.
    stream: (&'static str, Duration),
}

impl<S> OpenService<S> {
    pub(crate) fn new(inner: S, bounds: Arc<OpenServiceBounds>, stream: (&'static str, Duration)) -> Self {
        Self { inner, bounds, stream }
    }

    fn admit(&self, request: &http::Request<Body>) -> Result<(Permit, Option<StreamLifetime>), Status> {
        let peer = request.extensions().get::<Arc<Peer>>();
        let peer = peer.ok_or_else(|| Status::internal("the request has no connection information"))?;
        let (path, duration) = self.stream;
        if request.uri().path() != path {
            return Ok((permit(&self.bounds.calls, peer.source)?, None));
        }
        let permit = permit(&self.bounds.streams, peer.source)?;
        Ok((permit, Some(StreamLifetime { duration, connection: peer.connection.clone() })))
    }
}

/// The maximum duration of a stream, and its connection.
struct StreamLifetime {
    duration: Duration,
    connection: Activity,
}

impl<S: NamedService> NamedService for OpenService<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for OpenService<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (permit, lifetime) = match self.admit(&request) {
            Ok(admitted) => admitted,
            Err(status) => return Box::pin(async { Ok(status.into_http()) }),
        };
        let request = match &lifetime {
            // The reader of a stream's requests stops together with it.
            Some(StreamLifetime { duration, .. }) => {
                request.map(|body| Body::new(BoundedBody::new(body, *duration, ())))
            }
            None => request,
        };
        let response = self.inner.call(request);
        Box::pin(async move {
            let Ok(response) = timeout(RESPONSE_TIMEOUT, response).await else {
                return Ok(Status::deadline_exceeded("the message took too long").into_http());
            };
            let mut response = response?;
            let Some(StreamLifetime { duration, connection }) = lifetime else { return Ok(response) };
            response.extensions_mut().insert(Streaming);
            let closing = tokio::spawn(async move {
                sleep(duration + GRACE).await;
                connection.close_as_unread();
            });
            let resources = (permit, AbortOnDrop(closing.abort_handle()));
            Ok(response.map(|body| Body::new(BoundedBody::new(body, duration, resources))))
        })
    }
}

/// Aborts a task when it is dropped.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A body with a maximum duration. It holds `resources` until it is dropped.
struct BoundedBody<T> {
    body: Body,
    end: Pin<Box<Sleep>>,
    has_ended: bool,
    _resources: T,
}

impl<T> BoundedBody<T> {
    fn new(body: Body, duration: Duration, resources: T) -> Self {
        Self { body, end: Box::pin(sleep(duration)), has_ended: false, _resources: resources }
    }
}

impl<T: Unpin> HttpBody for BoundedBody<T> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.has_ended {
            return Poll::Ready(None);
        }
        if this.end.as_mut().poll(context).is_ready() {
            this.has_ended = true;
            // In a response these are its trailers; in a request they end the reading.
            let status = Status::unavailable("the stream has reached its maximum duration; open a new one");
            let mut trailers = http::HeaderMap::new();
            return Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))));
        }
        Pin::new(&mut this.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
