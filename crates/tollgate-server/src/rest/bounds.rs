//! The bounds of a request before its call begins: the headers that describe its body, and the time and memory for
//! reading the body.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::{Version, header, uri::Authority},
    response::Response,
};
use hyper::body::{Frame, SizeHint};
use tollgate_service::metrics::Metrics;

use crate::{
    failure_code::FailureCode,
    request_body::{UNREAD_BASE_BYTES, is_plain},
    shares::{Exhausted, Holder, Permit, Shares},
};

/// The maximum number of open pages that are being sent, in total and to one address.
const PAGES: (usize, usize) = (64, 16);

/// The bounds of a listener.
pub(crate) struct RequestBounds {
    /// The largest body.
    pub(crate) body_bytes: usize,
    /// The maximum time until a body has arrived.
    pub(crate) body_timeout: Duration,
    /// The memory for bodies that have not arrived completely, in bytes.
    pub(crate) unread: Arc<Shares>,
    /// Calls of services and administrators in progress.
    pub(crate) calls: Arc<Shares>,
    /// Calls of end users in progress. They have their own capacity, because everybody may send them.
    pub(crate) end_user_calls: Arc<Shares>,
    /// Responses with a page that needs no credentials.
    pub(crate) pages: Arc<Shares>,
    pub(crate) metrics: Arc<Metrics>,
}

impl RequestBounds {
    pub(crate) fn pages() -> Arc<Shares> {
        Shares::new(PAGES.0, PAGES.1)
    }

    /// A permit for a call, or a page, of `holder`.
    pub(super) fn acquire(
        &self,
        shares: &Arc<Shares>,
        holder: Holder,
        reason: &'static str,
    ) -> Result<Permit, RequestError> {
        shares.acquire(holder, 1).map_err(|exhausted| {
            self.metrics.count_refused_request("http", reason);
            RequestError::of(exhausted)
        })
    }

    /// Reads the body of a request of `holder`.
    pub(super) async fn read(&self, body: Body, holder: Holder) -> Result<Bytes, RequestError> {
        let read = BodyReader { body, bytes: Vec::new(), first: Bytes::new(), permit: None }.read(self, holder);
        let error = match tokio::time::timeout(self.body_timeout, read).await {
            Ok(Ok(bytes)) => return Ok(bytes),
            Ok(Err(error)) => error,
            Err(_) => {
                self.metrics.count_refused_request("http", "slow_body");
                let message = format!("body: did not arrive within {:?}; nothing was charged", self.body_timeout);
                RequestError { code: FailureCode::SLOW_BODY, message }
            }
        };
        Err(error)
    }

    fn too_large(&self) -> RequestError {
        RequestError { code: FailureCode::TOO_LARGE, message: format!("body: has more than {} bytes", self.body_bytes) }
    }

    /// Checks the encoding and the length that the headers state.
    pub(super) fn check_body(&self, request: &Request) -> Result<(), RequestError> {
        if !is_plain(request.headers()) {
            let message = "content-encoding: must be identity, or absent".to_owned();
            return Err(RequestError { code: FailureCode::UNSUPPORTED, message });
        }

        if request.body().size_hint().lower() > self.body_bytes as u64 {
            return Err(self.too_large());
        }
        Ok(())
    }
}

/// Checks that the request names one host: of several, a proxy and a node might use different ones.
pub(super) fn check_host(request: &Request) -> Result<(), RequestError> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (first, more) = (hosts.next(), hosts.next());
    let differs = match (request.uri().authority().map(Authority::as_str), first) {
        // In HTTP/1 a whole URL has precedence over the header; in HTTP/2 the two must agree (RFC 9113, 8.3.1).
        (Some(authority), Some(host)) if request.version() >= Version::HTTP_2 => {
            !authority.as_bytes().eq_ignore_ascii_case(host.as_bytes())
        }
        _ => false,
    };
    if more.is_some() || differs {
        let message = "host: must be given once".to_owned();
        return Err(RequestError { code: FailureCode::INVALID, message });
    }
    Ok(())
}

/// Why a request is refused before its call begins.
pub(super) struct RequestError {
    pub(super) code: FailureCode,
    pub(super) message: String,
}

impl RequestError {
    fn of(exhausted: Exhausted) -> Self {
        let message = match exhausted {
            Exhausted::All => "the node is overloaded",
            Exhausted::Share => "the caller has reached its share of this node's capacity",
        };
        Self { code: FailureCode::OVERLOADED, message: message.to_owned() }
    }
}

struct BodyReader {
    body: Body,
    /// The first chunk; if it is the only one, it is not copied.
    first: Bytes,
    /// The received bytes, if there were several chunks.
    bytes: Vec<u8>,
    /// The permit for memory, once the node has to wait for the body.
    permit: Option<Permit>,
}

impl BodyReader {
    async fn read(mut self, bounds: &RequestBounds, holder: Holder) -> Result<Bytes, RequestError> {
        while let Some(frame) = poll_fn(|context| self.poll_frame(context, bounds, &holder)).await {
            // Trailers are ignored here.
            let Ok(data) = frame?.into_data() else { continue };
            if self.len() + data.len() > bounds.body_bytes {
                return Err(bounds.too_large());
            }
            if self.len() == 0 {
                self.first = data;
            } else {
                if self.bytes.is_empty() {
                    self.bytes.extend_from_slice(&std::mem::take(&mut self.first));
                }
                self.bytes.extend_from_slice(&data);
            }
        }
        Ok(if self.bytes.is_empty() { self.first } else { Bytes::from(self.bytes) })
    }

    fn len(&self) -> usize {
        self.first.len() + self.bytes.len()
    }

    /// The next chunk. While the node waits for it, the permit covers the bytes that were received before.
    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
        bounds: &RequestBounds,
        holder: &Holder,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            let broken =
                |error| RequestError { code: FailureCode::INVALID, message: format!("body: cannot be read: {error}") };
            return Poll::Ready(frame.map(|frame| frame.map_err(broken)));
        }
        let cost = UNREAD_BASE_BYTES + self.first.len() + self.bytes.capacity();
        let held = match &mut self.permit {
            Some(permit) => permit.grow_to(cost),
            None => bounds.unread.acquire(holder.clone(), cost).map(|permit| self.permit = Some(permit)),
        };
        match held {
            Ok(()) => Poll::Pending,
            Err(exhausted) => {
                bounds.metrics.count_refused_request("http", "unread_bodies");
                Poll::Ready(Some(Err(RequestError::of(exhausted))))
            }
        }
    }
}

/// The maximum number of bytes of a page that are passed to the connection at once. The connection asks for the next
/// chunk when the client has room for it, so the last chunk is passed when the client has read nearly everything.
const CHUNK_BYTES: usize = 8 << 10;

/// The body of a response that holds a permit until it was sent, or dropped.
pub(super) struct PermittedBody {
    body: Body,
    /// The bytes that were not passed to the connection yet.
    rest: Bytes,
    _permit: Permit,
}

impl PermittedBody {
    pub(super) fn until_sent(response: Response, permit: Permit) -> Response {
        response.map(|body| Body::new(Self { body, rest: Bytes::new(), _permit: permit }))
    }
}

impl HttpBody for PermittedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) if frame.is_data() => self.rest = frame.into_data().unwrap_or_default(),
                other => return Poll::Ready(other),
            }
        }
        let length = self.rest.len().min(CHUNK_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut total = SizeHint::new();
        total.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            total.set_upper(upper + rest);
        }
        total
    }
}
