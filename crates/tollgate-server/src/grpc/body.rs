//! The body of a call while it arrives: its time and memory are bounded.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tollgate_service::metrics::Metrics;
use tonic::{Status, body::Body};

use crate::{
    request_body::UNREAD_BASE_BYTES,
    shares::{Holder, Permit, Shares},
};

/// The bytes of a message's flag and length (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).
const PREFIX_BYTES: usize = 5;

/// The bounds of bodies until they have arrived.
#[derive(Clone)]
pub(crate) struct BodyBounds {
    /// How long the body of a call with one message may take to arrive.
    pub(crate) timeout: Duration,
    /// The memory of bodies that have not arrived yet, in bytes.
    pub(crate) unread: Arc<Shares>,
    /// The largest message.
    pub(crate) message_bytes: usize,
    pub(crate) metrics: Arc<Metrics>,
}

/// The body of a call. Bytes that have arrived cost nothing here; a body that keeps the node waiting holds as much
/// memory as its message's length says, because that much is allocated for it.
pub(crate) struct CallBody {
    body: Body,
    bounds: Option<Arc<BodyBounds>>,
    holder: Holder,
    /// The first bytes of the message, which contain its length.
    prefix: [u8; PREFIX_BYTES],
    seen: usize,
    waiting: Option<UnreadBody>,
}

/// A body that kept the node waiting.
struct UnreadBody {
    permit: Permit,
    timeout: Pin<Box<Sleep>>,
}

impl CallBody {
    /// The body of a call with one message.
    pub(super) fn unary(body: Body, bounds: Arc<BodyBounds>, holder: Holder) -> Self {
        Self { body, bounds: Some(bounds), holder, prefix: [0; PREFIX_BYTES], seen: 0, waiting: None }
    }

    /// The body of a stream, which has bounds of its own: how many there are, and how long one is idle.
    pub(super) fn stream(body: Body) -> Self {
        Self { body, bounds: None, holder: Holder::Anyone, prefix: [0; PREFIX_BYTES], seen: 0, waiting: None }
    }

    fn count(&mut self, data: &[u8]) {
        let free = &mut self.prefix[self.seen.min(PREFIX_BYTES)..];
        let known = free.len().min(data.len());
        free[..known].copy_from_slice(&data[..known]);
        self.seen = self.seen.saturating_add(data.len());
    }

    /// The memory that the message takes until it is there.
    fn cost(&self, bounds: &BodyBounds) -> usize {
        let [_, length @ ..] = self.prefix;
        let said = if self.seen < PREFIX_BYTES { 0 } else { u32::from_be_bytes(length) as usize };
        // A message above the largest size is refused as soon as its length is known.
        UNREAD_BASE_BYTES + said.min(bounds.message_bytes).max(self.seen)
    }

    /// Holds the memory of a waiting body, within its time limit.
    fn poll_wait(&mut self, context: &mut Context<'_>, bounds: &BodyBounds) -> Poll<Status> {
        let cost = self.cost(bounds);
        let held = match &mut self.waiting {
            Some(waiting) => waiting.permit.grow_to(cost),
            None => bounds.unread.acquire(self.holder.clone(), cost).map(|permit| {
                self.waiting = Some(UnreadBody { permit, timeout: Box::pin(sleep(bounds.timeout)) });
            }),
        };
        if held.is_err() {
            bounds.metrics.request_refused("grpc", "unread_bodies");
            return Poll::Ready(super::overloaded(
                "the node is already receiving as many messages as it allows".to_owned(),
            ));
        }
        let Some(waiting) = &mut self.waiting else { return Poll::Pending };
        ready!(waiting.timeout.as_mut().poll(context));
        bounds.metrics.request_refused("grpc", "slow_body");
        let said = format!("message: did not arrive within {:?}; nothing was charged", bounds.timeout);
        Poll::Ready(Status::deadline_exceeded(said))
    }
}

impl HttpBody for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let frame = Pin::new(&mut this.body).poll_frame(context);
        let Some(bounds) = &this.bounds else { return frame };
        if let Poll::Ready(frame) = frame {
            if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()).and_then(Frame::data_ref) {
                this.count(data);
            }
            return Poll::Ready(frame);
        }
        let bounds = Arc::clone(bounds);
        this.poll_wait(context, &bounds).map(|status| Some(Err(status)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
