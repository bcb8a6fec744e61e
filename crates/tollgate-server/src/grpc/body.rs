//! The bounds on the time and memory of a call's body while it arrives.

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
    /// The maximum time until the body of a unary call has arrived.
    pub(crate) timeout: Duration,
    /// The memory for bodies that have not arrived completely, in bytes.
    pub(crate) unread: Arc<Shares>,
    /// The maximum size of a message.
    pub(crate) message_bytes: usize,
    pub(crate) metrics: Arc<Metrics>,
}

/// The body of a call. While the node waits for it, it holds a permit for the length that the message states, because
/// that much memory is allocated for it.
pub(crate) struct CallBody {
    body: Body,
    bounds: Option<Arc<BodyBounds>>,
    holder: Holder,
    /// The first bytes of the message, which contain its length.
    prefix: [u8; PREFIX_BYTES],
    received_bytes: usize,
    unread: Option<UnreadBody>,
}

/// The state of a body that the node waits for.
struct UnreadBody {
    permit: Permit,
    timeout: Pin<Box<Sleep>>,
}

impl CallBody {
    /// The body of a unary call.
    pub(super) fn unary(body: Body, bounds: Arc<BodyBounds>, holder: Holder) -> Self {
        Self { body, bounds: Some(bounds), holder, prefix: [0; PREFIX_BYTES], received_bytes: 0, unread: None }
    }

    /// The body of a stream. Streams have other bounds: their number, and their idle time.
    pub(super) fn stream(body: Body) -> Self {
        Self { body, bounds: None, holder: Holder::Anyone, prefix: [0; PREFIX_BYTES], received_bytes: 0, unread: None }
    }

    fn count(&mut self, data: &[u8]) {
        let missing = &mut self.prefix[self.received_bytes.min(PREFIX_BYTES)..];
        let length = missing.len().min(data.len());
        missing[..length].copy_from_slice(&data[..length]);
        self.received_bytes = self.received_bytes.saturating_add(data.len());
    }

    /// The memory of the message until it has arrived.
    fn cost(&self, bounds: &BodyBounds) -> usize {
        let [_, length @ ..] = self.prefix;
        let stated_bytes = if self.received_bytes < PREFIX_BYTES { 0 } else { u32::from_be_bytes(length) as usize };
        // A message above the maximum size is refused as soon as its length is known.
        UNREAD_BASE_BYTES + stated_bytes.min(bounds.message_bytes).max(self.received_bytes)
    }

    /// Acquires memory for a body that the node waits for. Ready with an error if there is none, or after the timeout.
    fn poll_wait(&mut self, context: &mut Context<'_>, bounds: &BodyBounds) -> Poll<Status> {
        let cost = self.cost(bounds);
        let acquired = match &mut self.unread {
            Some(unread) => unread.permit.grow_to(cost),
            None => bounds.unread.acquire(self.holder.clone(), cost).map(|permit| {
                self.unread = Some(UnreadBody { permit, timeout: Box::pin(sleep(bounds.timeout)) });
            }),
        };
        if acquired.is_err() {
            bounds.metrics.count_refused_request("grpc", "unread_bodies");
            return Poll::Ready(super::overload_status(
                "the node is already receiving as many messages as it allows".to_owned(),
            ));
        }
        let Some(unread) = &mut self.unread else { return Poll::Pending };
        ready!(unread.timeout.as_mut().poll(context));
        bounds.metrics.count_refused_request("grpc", "slow_body");
        let message = format!("message: did not arrive within {:?}; nothing was charged", bounds.timeout);
        Poll::Ready(Status::deadline_exceeded(message))
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
