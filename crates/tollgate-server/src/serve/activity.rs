//! Whether a connection has something to do, and since when it has not.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    http::Response,
};
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, sleep_until};

/// The calls in work on one connection.
#[derive(Clone)]
pub(super) struct Activity(Arc<State>);

struct State {
    began: Instant,
    calls: AtomicUsize,
    /// When the last call ended, in milliseconds since `began`.
    last_ms: AtomicU64,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self(Arc::new(State { began: Instant::now(), calls: AtomicUsize::new(0), last_ms: AtomicU64::new(0) }))
    }

    /// A call has begun; it ends when the returned is dropped.
    pub(super) fn begin(&self) -> CallInWork {
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        CallInWork(Arc::clone(&self.0))
    }

    pub(super) fn is_busy(&self) -> bool {
        self.0.calls.load(Ordering::Relaxed) > 0
    }

    /// Ends once there was no call for so long.
    pub(super) async fn idle_for(&self, timeout: Duration) {
        loop {
            let last = self.0.began + Duration::from_millis(self.0.last_ms.load(Ordering::Relaxed));
            let busy = self.is_busy();
            if !busy && last.elapsed() >= timeout {
                return;
            }
            sleep_until(if busy { Instant::now() } else { last } + timeout).await;
        }
    }
}

/// One call in work.
pub(super) struct CallInWork(Arc<State>);

impl CallInWork {
    /// The answer, which keeps the call in work until it was sent, or given up.
    pub(super) fn until_the_end_of(self, answer: Response<Body>) -> Response<Answer> {
        answer.map(|body| Answer { body, _call: self })
    }
}

impl Drop for CallInWork {
    fn drop(&mut self) {
        let since = u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last_ms.store(since, Ordering::Relaxed);
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of an answer.
pub(super) struct Answer {
    body: Body,
    _call: CallInWork,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
