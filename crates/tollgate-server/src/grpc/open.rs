//! gRPC services without authentication: the number of their concurrent calls, and their duration, are bounded.

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

/// The largest message, in bytes: names of services and files are shorter.
pub(crate) const MAX_MESSAGE_BYTES: usize = 1_024;
/// How long a call may take until its answer is there; its message is there at once.
const CALL: Duration = Duration::from_secs(5);
/// How long `Watch` lasts; after that, clients watch again.
pub(crate) const WATCH: Duration = Duration::from_mins(10);
/// How long a conversation of reflection lasts.
pub(crate) const REFLECTION: Duration = Duration::from_mins(1);
/// How much longer than that the connection of a client may stay that does not take the end of a stream.
const GRACE: Duration = Duration::from_secs(20);

/// The maximum number of concurrent calls, and of one address; for trusted proxies only the first applies.
const CALLS: (usize, usize) = (4_096, 512);
const STREAMS: (usize, usize) = (256, 32);

/// The calls of the open services of a node.
pub(crate) struct OpenCalls {
    calls: Arc<Shares>,
    streams: Arc<Shares>,
}

impl Default for OpenCalls {
    fn default() -> Self {
        Self { calls: Shares::new(CALLS.0, CALLS.1), streams: Shares::new(STREAMS.0, STREAMS.1) }
    }
}

/// A permit for one call from this address; a trusted proxy has none.
fn permit(shares: &Arc<Shares>, source: Option<IpAddr>) -> Result<Permit, Status> {
    let holder = source.map_or(Holder::Anyone, Holder::address);
    shares.acquire(holder, 1).map_err(|exhausted| {
        Status::resource_exhausted(match exhausted {
            Exhausted::Share => "this address has too many calls of this kind open",
            Exhausted::All => "the node has too many calls of this kind open",
        })
    })
}

/// A gRPC service whose calls are bounded.
#[derive(Clone)]
pub(crate) struct Open<S> {
    inner: S,
    calls: Arc<OpenCalls>,
    /// The path of the method that streams, and how long it may.
    stream: (&'static str, Duration),
}

impl<S> Open<S> {
    pub(crate) fn new(inner: S, calls: Arc<OpenCalls>, stream: (&'static str, Duration)) -> Self {
        Self { inner, calls, stream }
    }

    fn open(&self, request: &http::Request<Body>) -> Result<(Permit, Option<Lifetime>), Status> {
        let peer = request.extensions().get::<Arc<Peer>>();
        let peer = peer.ok_or_else(|| Status::internal("the request has no connection information"))?;
        let (path, lifetime) = self.stream;
        if request.uri().path() != path {
            return Ok((permit(&self.calls.calls, peer.source)?, None));
        }
        let permit = permit(&self.calls.streams, peer.source)?;
        Ok((permit, Some(Lifetime { length: lifetime, connection: peer.connection.clone() })))
    }
}

/// How long a stream may last.
struct Lifetime {
    length: Duration,
    connection: Activity,
}

impl<S: NamedService> NamedService for Open<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Open<S>
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
        let (permit, lifetime) = match self.open(&request) {
            Ok(opened) => opened,
            Err(status) => return Box::pin(async { Ok(status.into_http()) }),
        };
        let request = match &lifetime {
            // The reader of a stream's requests stops together with it.
            Some(Lifetime { length, .. }) => request.map(|body| Body::new(BoundedBody::new(body, *length, ()))),
            None => request,
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let Ok(answer) = timeout(CALL, answer).await else {
                return Ok(Status::deadline_exceeded("the message took too long").into_http());
            };
            let mut answer = answer?;
            let Some(Lifetime { length, connection }) = lifetime else { return Ok(answer) };
            answer.extensions_mut().insert(Streaming);
            let cut = tokio::spawn(async move {
                sleep(length + GRACE).await;
                connection.cut_as_unread();
            });
            let held = (permit, AbortOnDrop(cut.abort_handle()));
            Ok(answer.map(|body| Body::new(BoundedBody::new(body, length, held))))
        })
    }
}

/// Ends the connection of a stream whose end the client does not take, unless this is dropped before.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A body that ends after some time, with the resources that are held until then.
struct BoundedBody<T> {
    body: Body,
    end: Pin<Box<Sleep>>,
    has_ended: bool,
    _held: T,
}

impl<T> BoundedBody<T> {
    fn new(body: Body, length: Duration, held: T) -> Self {
        Self { body, end: Box::pin(sleep(length)), has_ended: false, _held: held }
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
            // Of an answer these are the trailers; where requests are read they end them as well.
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
