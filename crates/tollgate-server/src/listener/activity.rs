//! The activity of a connection: its calls in progress, the memory that it holds for its client, and how long it has
//! been idle.

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

/// The memory of a call in progress, or of an answer that is not written yet, besides its headers and body, in bytes:
/// measured on a node (built for tests) with 1,000 unread answers.
const CALL_BYTES: usize = 16 << 10;
/// The memory that a connection keeps for each call of its highest number of concurrent ones, in bytes: HTTP/2 frees
/// the state of streams only when the connection ends. Measured in the same way.
const STREAM_BYTES: usize = 6 << 10;
/// The age of answers is tracked in steps of half the time limit.
const AGES: usize = 8;

/// Marks the response of a streaming call: its answers have no time limit, and its own bound limits the memory for a
/// client that does not read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streaming;

/// One connection. Clones are the same connection.
#[derive(Clone, Debug)]
pub(crate) struct Activity(Arc<State>);

#[derive(Debug)]
struct State {
    began: Instant,
    /// Half of the time that an answer may take to be written.
    step: Duration,
    /// Calls in work, and answers that are not written yet.
    calls: AtomicUsize,
    /// Those of them, and of the calls that ended since, that began since the transport last took anything: HTTP/2 may
    /// still have all their answers.
    unsent_calls: AtomicUsize,
    /// The most of these at once so far.
    most_calls: AtomicUsize,
    /// Since when the transport takes nothing, in milliseconds since `began` and one more; 0 while it does.
    blocked_ms: AtomicU64,
    /// When the last of them ended, in milliseconds since `began`.
    last_ms: AtomicU64,
    /// Whether a request has come.
    asked: AtomicBool,
    /// Whether an authenticated caller uses it.
    known: AtomicBool,
    /// The memory that it holds.
    bytes: AtomicUsize,
    /// Answers that are not written yet, by the step in which they were ready.
    unread: [AtomicU32; AGES],
    /// Why the connection is to end, as a [`CloseReason`]; 0 while it is not.
    cut: AtomicU8,
    cutting: Notify,
    thread: ThreadMemory,
    connections: Arc<dyn MemoryRelief>,
}

impl Activity {
    /// A connection that begins now, on this thread. `answer_timeout` is how long an answer may take to be written.
    pub(super) fn new(connections: Arc<dyn MemoryRelief>, thread: ThreadMemory, answer_timeout: Duration) -> Self {
        Self(Arc::new(State {
            began: Instant::now(),
            step: (answer_timeout / 2).max(Duration::from_millis(1)),
            calls: AtomicUsize::new(0),
            unsent_calls: AtomicUsize::new(0),
            most_calls: AtomicUsize::new(0),
            blocked_ms: AtomicU64::new(0),
            last_ms: AtomicU64::new(0),
            asked: AtomicBool::new(false),
            known: AtomicBool::new(false),
            bytes: AtomicUsize::new(0),
            unread: std::array::from_fn(|_| AtomicU32::new(0)),
            cut: AtomicU8::new(0),
            cutting: Notify::new(),
            thread,
            connections,
        }))
    }

    /// A call has begun; it ends when the returned is dropped.
    pub(super) fn begin(&self, request: &Request<impl Sized>) -> CallInWork {
        self.0.asked.store(true, Ordering::Relaxed);
        let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
        let path = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
        CallInWork::new(self, CALL_BYTES + path + headers.sum::<usize>())
    }

    /// Whether a request has come on it.
    pub(super) fn has_asked(&self) -> bool {
        self.0.asked.load(Ordering::Relaxed)
    }

    /// An authenticated caller uses it.
    pub(crate) fn mark_authenticated(&self) {
        self.0.known.store(true, Ordering::Relaxed);
    }

    /// Whether no caller on it is authenticated.
    pub(super) fn is_of_stranger(&self) -> bool {
        !self.0.known.load(Ordering::Relaxed)
    }

    /// Whether a call is in work, or an answer not yet written.
    pub(super) fn is_busy(&self) -> bool {
        self.0.calls.load(Ordering::Relaxed) > 0
    }

    /// The transport accepted some bytes, or, if not `taken`, none.
    pub(super) fn wrote(&self, taken: bool) {
        let state = &*self.0;
        if taken {
            state.unsent_calls.store(state.calls.load(Ordering::Relaxed), Ordering::Relaxed);
            state.blocked_ms.store(0, Ordering::Relaxed);
        } else if state.blocked_ms.load(Ordering::Relaxed) == 0 {
            state.blocked_ms.store(state.elapsed_ms().saturating_add(1), Ordering::Relaxed);
        }
    }

    /// Whether it only waits for its client to take an answer, and has for more than a second.
    pub(super) fn waits_to_be_read(&self) -> bool {
        let is_unread = self.0.unread.iter().any(|count| count.load(Ordering::Relaxed) > 0);
        is_unread && self.last_active().elapsed() > Duration::from_secs(1)
    }

    /// The memory that it holds, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// The thread it lives on.
    pub(super) fn thread(&self) -> &ThreadMemory {
        &self.0.thread
    }

    /// When its last call ended, or it began.
    pub(super) fn last_active(&self) -> Instant {
        self.0.began + Duration::from_millis(self.0.last_ms.load(Ordering::Relaxed))
    }

    /// Ends the connection at once, whatever it does.
    pub(super) fn cut(&self, why: CloseReason) {
        // The first reason is the one that is reported.
        let _ = self.0.cut.compare_exchange(0, why as u8, Ordering::Relaxed, Ordering::Relaxed);
        self.0.cutting.notify_one();
    }

    /// Ends the connection as one whose client does not read.
    pub(crate) fn close_as_unread(&self) {
        self.cut(CloseReason::Unread);
    }

    /// Whether it is to end.
    pub(super) fn is_cut(&self) -> bool {
        self.0.cut.load(Ordering::Relaxed) != 0
    }

    /// Waits until the connection is to end, and why.
    pub(super) async fn cutting(&self) -> CloseReason {
        loop {
            if let Some(cut) = CloseReason::of(self.0.cut.load(Ordering::Relaxed)) {
                return cut;
            }
            self.0.cutting.notified().await;
        }
    }

    /// Ends once there was no call for so long.
    pub(super) async fn idle_for(&self, timeout: Duration) {
        loop {
            let last = self.last_active();
            let busy = self.is_busy();
            if !busy && last.elapsed() >= timeout {
                return;
            }
            sleep_until(if busy { Instant::now() } else { last } + timeout).await;
        }
    }

    /// Ends once an answer was not written, or the transport took nothing, for longer than an answer may take, and at most
    /// half as long again.
    pub(super) async fn has_unread_answer(&self) {
        let mut ticks = interval(self.0.step);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // Of a turn of the ring, the younger half is within its time, or belongs to steps that a late tick missed.
            let now = self.step();
            let old = (3..=AGES / 2).filter_map(|age| now.checked_sub(age));
            let unread = |step: usize| self.0.unread[step % AGES].load(Ordering::Relaxed) > 0;
            let blocked_ms = self.0.blocked_ms.load(Ordering::Relaxed);
            let blocked_for = Duration::from_millis(self.0.elapsed_ms().saturating_sub(blocked_ms));
            let is_blocked = blocked_ms > 0 && blocked_for >= 2 * self.0.step;
            if is_blocked || old.into_iter().any(unread) {
                return;
            }
        }
    }

    /// Counts so many bytes more, and ends a connection if that is too much.
    fn hold(&self, bytes: usize) {
        let state = &*self.0;
        let held = state.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let on_thread = state.thread.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // An ending connection still counts until it is gone; if its memory is too much as well, the connection that
        // adds more ends too, unauthenticated ones first.
        let ceiling = if self.is_of_stranger() { 2 } else { 3 } * state.thread.most;
        if held > state.thread.most_of_connection() || on_thread > ceiling {
            self.cut(CloseReason::Memory);
        } else if on_thread > state.thread.most {
            state.connections.relieve(&state.thread);
        }
    }

    /// The step of this moment.
    fn step(&self) -> usize {
        let steps = self.0.began.elapsed().as_nanos() / self.0.step.as_nanos();
        usize::try_from(steps).unwrap_or(usize::MAX)
    }
}

impl State {
    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
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

/// One call in work, or its answer until it is written.
#[derive(Debug)]
pub(super) struct CallInWork {
    connection: Activity,
    bytes: usize,
    /// Where the answer is counted by its age.
    age: Option<usize>,
}

impl CallInWork {
    fn new(connection: &Activity, bytes: usize) -> Self {
        connection.0.calls.fetch_add(1, Ordering::Relaxed);
        let calls = connection.0.unsent_calls.fetch_add(1, Ordering::Relaxed) + 1;
        if calls > connection.0.most_calls.fetch_max(calls, Ordering::Relaxed) {
            connection.hold(STREAM_BYTES);
        }
        let mut call = Self { connection: connection.clone(), bytes: 0, age: None };
        call.hold(bytes);
        call
    }

    /// Counts so many bytes more.
    fn hold(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.connection.hold(bytes);
    }

    /// The headers and everything else except the call itself have been freed.
    fn release_request(&mut self) {
        let gone = self.bytes.saturating_sub(CALL_BYTES);
        self.bytes -= gone;
        self.connection.0.release(gone);
    }

    /// Counts the answer by its age from now on.
    fn answered(&mut self) {
        let age = self.connection.step() % AGES;
        self.connection.0.unread[age].fetch_add(1, Ordering::Relaxed);
        self.age = Some(age);
    }

    /// The answer, which keeps the call in work until it was written, or given up.
    pub(super) fn until_the_end_of(mut self, answer: Response<Body>) -> Response<Answer> {
        self.release_request();
        let streaming = answer.extensions().get::<Streaming>().is_some();
        if !streaming {
            self.answered();
        }
        let connection = self.connection.clone();
        answer.map(|body| Answer { body, connection, call: Some(self), streaming })
    }
}

impl Drop for CallInWork {
    fn drop(&mut self) {
        let state = &*self.connection.0;
        state.release(self.bytes);
        if let Some(age) = self.age {
            state.unread[age].fetch_sub(1, Ordering::Relaxed);
        }
        state.last_ms.store(state.elapsed_ms(), Ordering::Relaxed);
        state.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of an answer.
pub(super) struct Answer {
    body: Body,
    connection: Activity,
    /// Goes along with the first data of an answer that does not stream, which most often is all of it.
    call: Option<CallInWork>,
    streaming: bool,
}

impl HttpBody for Answer {
    type Data = Chunk;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, axum::Error>>> {
        let this = &mut *self;
        Pin::new(&mut this.body).poll_frame(context).map_ok(|frame| {
            frame.map_data(|data| {
                let of_call = if this.streaming { None } else { this.call.take() };
                let mut unwritten = of_call.unwrap_or_else(|| {
                    let mut piece = CallInWork::new(&this.connection, 0);
                    if !this.streaming {
                        piece.answered();
                    }
                    piece
                });
                unwritten.hold(data.len());
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

/// A part of an answer, which counts until its last byte was handed to the transport: HTTP/2 queues unread bytes
/// internally, where no other code sees them.
pub(super) struct Chunk {
    data: Bytes,
    _unwritten: CallInWork,
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
