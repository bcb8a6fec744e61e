//! The activity of a connection: its calls in progress, its memory, and its idle time.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    http::{Request, Response},
};
use hyper::body::{Buf, Frame, SizeHint};
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    close_reason::CloseReason,
    thread_memory::{MemoryRelief, ThreadMemory},
};

/// The memory of a call in progress, or of an unwritten response, without headers and body, in bytes: measured on a
/// node (built for tests) with 1,000 unread responses.
const CALL_BYTES: usize = 16 << 10;
/// The memory that a connection keeps for each of its maximum number of concurrent calls, in bytes: HTTP/2 frees the
/// state of streams only when the connection ends. Measured in the same way.
const STREAM_BYTES: usize = 6 << 10;
/// The number of counters of responses by age, in steps of half the response timeout.
const AGES: usize = 8;

/// Marks the response of a streaming call. It has no timeout, and its own bound on unread messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streaming;

/// The activity of a connection. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Activity(Arc<State>);

#[derive(Debug)]
struct State {
    start: Instant,
    /// Half of the response timeout.
    age_step: Duration,
    /// Calls in progress, and unwritten responses.
    calls: AtomicUsize,
    /// The calls that began since the transport last accepted bytes, including those that have ended: HTTP/2 may still
    /// buffer their responses.
    unsent_calls: AtomicUsize,
    /// The maximum of `unsent_calls` so far.
    max_calls: AtomicUsize,
    /// Since when the transport accepts no bytes, in milliseconds since `start`, plus 1; 0 while it accepts bytes.
    blocked_ms: AtomicU64,
    /// When the last call ended, in milliseconds since `start`.
    last_active_ms: AtomicU64,
    /// Whether a request has arrived.
    has_request: AtomicBool,
    /// Whether an authenticated caller uses the connection.
    is_authenticated: AtomicBool,
    /// The memory of the connection.
    bytes: AtomicUsize,
    /// The unwritten responses, by the step in which they became ready.
    unread: [AtomicU32; AGES],
    /// The [`CloseReason`] if the connection is being closed, otherwise 0.
    close_reason: AtomicU8,
    close_requested: Notify,
    thread: ThreadMemory,
    connections: Arc<dyn MemoryRelief>,
}

impl Activity {
    /// A new connection on this thread. `response_timeout` is the maximum time until a response is written.
    pub(super) fn new(connections: Arc<dyn MemoryRelief>, thread: ThreadMemory, response_timeout: Duration) -> Self {
        Self(Arc::new(State {
            start: Instant::now(),
            age_step: (response_timeout / 2).max(Duration::from_millis(1)),
            calls: AtomicUsize::new(0),
            unsent_calls: AtomicUsize::new(0),
            max_calls: AtomicUsize::new(0),
            blocked_ms: AtomicU64::new(0),
            last_active_ms: AtomicU64::new(0),
            has_request: AtomicBool::new(false),
            is_authenticated: AtomicBool::new(false),
            bytes: AtomicUsize::new(0),
            unread: std::array::from_fn(|_| AtomicU32::new(0)),
            close_reason: AtomicU8::new(0),
            close_requested: Notify::new(),
            thread,
            connections,
        }))
    }

    /// Begins a call, which ends when the returned value is dropped.
    pub(super) fn begin_call(&self, request: &Request<impl Sized>) -> PendingCall {
        self.0.has_request.store(true, Ordering::Relaxed);
        let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
        let path = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
        PendingCall::new(self, CALL_BYTES + path + headers.sum::<usize>())
    }

    /// Whether a request has arrived.
    pub(super) fn has_request(&self) -> bool {
        self.0.has_request.load(Ordering::Relaxed)
    }

    /// Records that an authenticated caller uses the connection.
    pub(crate) fn mark_authenticated(&self) {
        self.0.is_authenticated.store(true, Ordering::Relaxed);
    }

    /// Whether no authenticated caller uses the connection.
    pub(super) fn is_unauthenticated(&self) -> bool {
        !self.0.is_authenticated.load(Ordering::Relaxed)
    }

    /// Whether a call is in progress, or a response is unwritten.
    pub(super) fn is_busy(&self) -> bool {
        self.0.calls.load(Ordering::Relaxed) > 0
    }

    /// Records whether the transport has accepted bytes.
    pub(super) fn record_write(&self, accepted: bool) {
        let state = &*self.0;
        if accepted {
            state.unsent_calls.store(state.calls.load(Ordering::Relaxed), Ordering::Relaxed);
            state.blocked_ms.store(0, Ordering::Relaxed);
        } else if state.blocked_ms.load(Ordering::Relaxed) == 0 {
            state.blocked_ms.store(state.elapsed_ms().saturating_add(1), Ordering::Relaxed);
        }
    }

    /// Whether a response is unread, and no call has ended for more than a second.
    pub(super) fn is_blocked_by_client(&self) -> bool {
        let is_unread = self.0.unread.iter().any(|count| count.load(Ordering::Relaxed) > 0);
        is_unread && self.last_active().elapsed() > Duration::from_secs(1)
    }

    /// The memory of the connection, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// The memory of its thread.
    pub(super) fn thread(&self) -> &ThreadMemory {
        &self.0.thread
    }

    /// When the last call ended, or the connection began.
    pub(super) fn last_active(&self) -> Instant {
        self.0.start + Duration::from_millis(self.0.last_active_ms.load(Ordering::Relaxed))
    }

    /// Closes the connection at once, even if calls are in progress.
    pub(super) fn close(&self, reason: CloseReason) {
        // The first reason is reported.
        let _ = self.0.close_reason.compare_exchange(0, reason as u8, Ordering::Relaxed, Ordering::Relaxed);
        self.0.close_requested.notify_one();
    }

    /// Closes the connection because its client does not read.
    pub(crate) fn close_as_unread(&self) {
        self.close(CloseReason::Unread);
    }

    /// Whether the connection is being closed.
    pub(super) fn is_closing(&self) -> bool {
        self.0.close_reason.load(Ordering::Relaxed) != 0
    }

    /// Waits until the connection is being closed; returns the reason.
    pub(super) async fn wait_for_close(&self) -> CloseReason {
        loop {
            if let Some(reason) = CloseReason::from_number(self.0.close_reason.load(Ordering::Relaxed)) {
                return reason;
            }
            self.0.close_requested.notified().await;
        }
    }

    /// Waits until there was no call for `timeout`.
    pub(super) async fn wait_until_idle(&self, timeout: Duration) {
        loop {
            let last = self.last_active();
            let busy = self.is_busy();
            if !busy && last.elapsed() >= timeout {
                return;
            }
            sleep_until(if busy { Instant::now() } else { last } + timeout).await;
        }
    }

    /// Waits until a response was unwritten, or the transport accepted no bytes, for the response timeout. It returns
    /// at most half of the timeout later.
    pub(super) async fn wait_for_unread_response(&self) {
        let mut ticks = interval(self.0.age_step);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // Newer responses have not timed out; older entries of the ring belong to newer steps after a delayed tick.
            let now = self.age_step();
            let timed_out = (3..=AGES / 2).filter_map(|age| now.checked_sub(age));
            let unread = |age_step: usize| self.0.unread[age_step % AGES].load(Ordering::Relaxed) > 0;
            let blocked_ms = self.0.blocked_ms.load(Ordering::Relaxed);
            let blocked_for = Duration::from_millis(self.0.elapsed_ms().saturating_sub(blocked_ms));
            let is_blocked = blocked_ms > 0 && blocked_for >= 2 * self.0.age_step;
            if is_blocked || timed_out.into_iter().any(unread) {
                return;
            }
        }
    }

    /// Adds to the memory of the connection, and closes a connection if the memory exceeds a bound.
    fn add_bytes(&self, bytes: usize) {
        let state = &*self.0;
        let connection_bytes = state.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let thread_bytes = state.thread.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // The memory of closing connections still counts. Above the ceiling, this connection is closed too; the ceiling
        // is lower for unauthenticated ones.
        let ceiling = if self.is_unauthenticated() { 2 } else { 3 } * state.thread.max_bytes;
        if connection_bytes > state.thread.max_per_connection() || thread_bytes > ceiling {
            self.close(CloseReason::Memory);
        } else if thread_bytes > state.thread.max_bytes {
            state.connections.relieve(&state.thread);
        }
    }

    /// The current step.
    fn age_step(&self) -> usize {
        let steps = self.0.start.elapsed().as_nanos() / self.0.age_step.as_nanos();
        usize::try_from(steps).unwrap_or(usize::MAX)
    }
}

impl State {
    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.thread.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.release(self.bytes.load(Ordering::Relaxed));
    }
}

/// A call in progress, or an unwritten response.
#[derive(Debug)]
pub(super) struct PendingCall {
    connection: Activity,
    bytes: usize,
    /// The index of the counter in `unread`.
    age: Option<usize>,
}

impl PendingCall {
    fn new(connection: &Activity, bytes: usize) -> Self {
        connection.0.calls.fetch_add(1, Ordering::Relaxed);
        let calls = connection.0.unsent_calls.fetch_add(1, Ordering::Relaxed) + 1;
        if calls > connection.0.max_calls.fetch_max(calls, Ordering::Relaxed) {
            connection.add_bytes(STREAM_BYTES);
        }
        let mut call = Self { connection: connection.clone(), bytes: 0, age: None };
        call.add_bytes(bytes);
        call
    }

    fn add_bytes(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.connection.add_bytes(bytes);
    }

    /// Releases the memory of the headers.
    fn release_request(&mut self) {
        let released = self.bytes.saturating_sub(CALL_BYTES);
        self.bytes -= released;
        self.connection.0.release(released);
    }

    /// Starts to count the response by its age.
    fn start_age(&mut self) {
        let age = self.connection.age_step() % AGES;
        self.connection.0.unread[age].fetch_add(1, Ordering::Relaxed);
        self.age = Some(age);
    }

    /// Keeps the call in progress until the response was written or dropped.
    pub(super) fn track_response(mut self, response: Response<Body>) -> Response<TrackedBody> {
        self.release_request();
        let streaming = response.extensions().get::<Streaming>().is_some();
        if !streaming {
            self.start_age();
        }
        let connection = self.connection.clone();
        response.map(|body| TrackedBody { body, connection, call: Some(self), streaming })
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        let state = &*self.connection.0;
        state.release(self.bytes);
        if let Some(age) = self.age {
            state.unread[age].fetch_sub(1, Ordering::Relaxed);
        }
        state.last_active_ms.store(state.elapsed_ms(), Ordering::Relaxed);
        state.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of a response.
pub(super) struct TrackedBody {
    body: Body,
    connection: Activity,
    /// Passed on with the first data of a response that does not stream, which is usually all of it.
    call: Option<PendingCall>,
    streaming: bool,
}

impl HttpBody for TrackedBody {
    type Data = Chunk;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, axum::Error>>> {
        let this = &mut *self;
        Pin::new(&mut this.body).poll_frame(context).map_ok(|frame| {
            frame.map_data(|data| {
                let pending_call = if this.streaming { None } else { this.call.take() };
                let mut unwritten = pending_call.unwrap_or_else(|| {
                    let mut next = PendingCall::new(&this.connection, 0);
                    if !this.streaming {
                        next.start_age();
                    }
                    next
                });
                unwritten.add_bytes(data.len());
                Chunk { data, _unwritten: unwritten }
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A part of a response. It counts as unwritten until its last byte was passed to the transport, because HTTP/2 buffers
/// unread bytes internally.
pub(super) struct Chunk {
    data: Bytes,
    _unwritten: PendingCall,
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
    }

    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        self.data.copy_to_bytes(length)
    }
}
