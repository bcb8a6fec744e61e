//! The bounds of a request before its call begins: the headers about its body, and the time and memory for reading it.

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

/// How many answers with a page that is open to all may be on their way, in all and to one address.
const PAGES: (usize, usize) = (64, 16);

/// The bounds of a listener.
pub(crate) struct RequestBounds {
    /// The largest body.
    pub(crate) body_bytes: usize,
    /// How long a body may take to arrive.
    pub(crate) body_timeout: Duration,
    /// The memory of bodies that have not arrived yet, in bytes.
    pub(crate) unread: Arc<Shares>,
    /// Calls of services and administrators in work.
    pub(crate) calls: Arc<Shares>,
    /// Calls of end users in progress, counted separately because everybody may make them.
    pub(crate) end_user_calls: Arc<Shares>,
    /// Answers with a page that is open to all.
    pub(crate) pages: Arc<Shares>,
    pub(crate) metrics: Arc<Metrics>,
}

impl RequestBounds {
    pub(crate) fn pages() -> Arc<Shares> {
        Shares::new(PAGES.0, PAGES.1)
    }

    /// A place for a call, or a page, of `holder`.
    pub(super) fn place(
        &self,
        of: &Arc<Shares>,
        holder: Holder,
        reason: &'static str,
    ) -> Result<Permit, RejectedRequest> {
        of.acquire(holder, 1).map_err(|exhausted| {
            self.metrics.request_refused("http", reason);
            RejectedRequest::of(exhausted)
        })
    }

    /// The whole body of a request, which `holder` sends.
    pub(super) async fn read(&self, body: Body, holder: Holder) -> Result<Bytes, RejectedRequest> {
        let read = BodyReader { body, bytes: Vec::new(), first: Bytes::new(), permit: None }.read(self, holder);
        let refused = match tokio::time::timeout(self.body_timeout, read).await {
            Ok(Ok(bytes)) => return Ok(bytes),
            Ok(Err(unfit)) => unfit,
            Err(_) => {
                self.metrics.request_refused("http", "slow_body");
                let said = format!("body: did not arrive within {:?}; nothing was charged", self.body_timeout);
                RejectedRequest { code: FailureCode::SLOW_BODY, said }
            }
        };
        Err(refused)
    }

    fn too_large(&self) -> RejectedRequest {
        RejectedRequest { code: FailureCode::TOO_LARGE, said: format!("body: has more than {} bytes", self.body_bytes) }
    }

    /// Whether the headers describe a body that this node reads.
    pub(super) fn check_body(&self, request: &Request) -> Result<(), RejectedRequest> {
        if !is_plain(request.headers()) {
            let said = "content-encoding: must be identity, or absent".to_owned();
            return Err(RejectedRequest { code: FailureCode::UNSUPPORTED, said });
        }
        // The length in the headers, known before a byte of the body is read.
        if request.body().size_hint().lower() > self.body_bytes as u64 {
            return Err(self.too_large());
        }
        Ok(())
    }
}

/// Whether the request names one host: proxies and nodes may each believe another one of several.
pub(super) fn check_host(request: &Request) -> Result<(), RejectedRequest> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (first, more) = (hosts.next(), hosts.next());
    let unlike = match (request.uri().authority().map(Authority::as_str), first) {
        // In HTTP/1 a whole URL has precedence over the header; in HTTP/2 the two must agree (RFC 9113, 8.3.1).
        (Some(authority), Some(host)) if request.version() >= Version::HTTP_2 => {
            !authority.as_bytes().eq_ignore_ascii_case(host.as_bytes())
        }
        _ => false,
    };
    if more.is_some() || unlike {
        let said = "host: must be given once".to_owned();
        return Err(RejectedRequest { code: FailureCode::INVALID, said });
    }
    Ok(())
}

/// A request that is refused because of its form or its cost.
pub(super) struct RejectedRequest {
    pub(super) code: FailureCode,
    pub(super) said: String,
}

impl RejectedRequest {
    fn of(exhausted: Exhausted) -> Self {
        let said = match exhausted {
            Exhausted::All => "the node is overloaded",
            Exhausted::Share => "the caller has reached its share of this node's capacity",
        };
        Self { code: FailureCode::OVERLOADED, said: said.to_owned() }
    }
}

struct BodyReader {
    body: Body,
    /// The body, if it comes as one piece, and is not copied.
    first: Bytes,
    /// The bytes that arrived, if there were several pieces.
    bytes: Vec<u8>,
    /// The memory that is held, once the body kept the node waiting.
    permit: Option<Permit>,
}

impl BodyReader {
    async fn read(mut self, bounds: &RequestBounds, holder: Holder) -> Result<Bytes, RejectedRequest> {
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

    /// The next piece. Bytes that have arrived cost nothing here; while there are none, memory is held for those that
    /// came before.
    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
        bounds: &RequestBounds,
        holder: &Holder,
    ) -> Poll<Option<Result<Frame<Bytes>, RejectedRequest>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            let broken =
                |error| RejectedRequest { code: FailureCode::INVALID, said: format!("body: cannot be read: {error}") };
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
                bounds.metrics.request_refused("http", "unread_bodies");
                Poll::Ready(Some(Err(RejectedRequest::of(exhausted))))
            }
        }
    }
}

/// The most bytes of a page that are given to the connection at once. It takes the next once there is room for it at the
/// client, so that the last are given when nearly all was read.
const PIECE: usize = 8 << 10;

/// The body of an answer that holds a place until it was sent, or given up.
pub(super) struct CountedBody {
    body: Body,
    /// The part of it that was not given to the connection yet.
    rest: Bytes,
    _place: Permit,
}

impl CountedBody {
    pub(super) fn until_sent(answer: Response, place: Permit) -> Response {
        answer.map(|body| Body::new(Self { body, rest: Bytes::new(), _place: place }))
    }
}

impl HttpBody for CountedBody {
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
        let piece = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut whole = SizeHint::new();
        whole.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            whole.set_upper(upper + rest);
        }
        whole
    }
}
