//! Writes that wait for each other: a connection whose calls end at the same moment sends their answers at once.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::activity::Activity;

/// A transport that puts off each write by one turn of the scheduler. When a pipeline of the store is answered, many
/// calls of one connection go on; without this, the first of them to write wakes the connection, which then runs
/// before the others and writes once for each (1.2 system calls a call were counted under load, 0.2 with it).
pub(super) struct CoalescedWrites<I> {
    io: I,
    /// Whether the turn was given away since the last write.
    waited: bool,
    connection: Activity,
    preface: Preface,
    /// Whether the first bytes may still become the preface.
    expects_preface: bool,
}

/// The first bytes of a client that uses HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How much of the preface of HTTP/2 has come.
#[derive(Clone, Debug, Default)]
pub(super) struct Preface(Arc<AtomicUsize>);

impl Preface {
    /// Whether the client uses HTTP/2, and has sent the preface.
    pub(super) fn is_complete(&self) -> bool {
        self.0.load(Ordering::Relaxed) == PREFACE.len()
    }

    /// Compares the next bytes; returns whether more are expected.
    fn compare(&self, bytes: &[u8]) -> bool {
        let seen = self.0.load(Ordering::Relaxed);
        let expected = &PREFACE[seen..];
        let same = bytes.len().min(expected.len());
        if bytes[..same] != expected[..same] {
            return false;
        }
        self.0.store(seen + same, Ordering::Relaxed);
        same < expected.len()
    }
}

impl<I> CoalescedWrites<I> {
    /// This transport, and the part of the preface that arrived on it.
    pub(super) fn new(io: I, connection: Activity) -> (Self, Preface) {
        let preface = Preface::default();
        (Self { io, waited: false, connection, preface: preface.clone(), expects_preface: true }, preface)
    }

    /// Lets everything else that is ready run first.
    fn wait(&mut self, context: &Context<'_>) -> Poll<()> {
        if self.waited {
            return Poll::Ready(());
        }
        self.waited = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn wrote<T>(&mut self, written: Poll<T>) -> Poll<T> {
        self.waited = written.is_pending();
        self.connection.wrote(written.is_ready());
        written
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for CoalescedWrites<I> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = to.filled().len();
        let read = Pin::new(&mut this.io).poll_read(context, to);
        if this.expects_preface && read.is_ready() {
            this.expects_preface = this.preface.compare(&to.filled()[before..]);
        }
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for CoalescedWrites<I> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.wait(context));
        let written = Pin::new(&mut this.io).poll_write(context, bytes);
        this.wrote(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.wait(context));
        let written = Pin::new(&mut this.io).poll_write_vectored(context, parts);
        this.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }
}
