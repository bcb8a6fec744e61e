//! The threads of connections.

use std::{
    io,
    sync::{Arc, atomic::AtomicUsize, mpsc},
    thread,
};

use tokio::{
    runtime::{Builder, Handle},
    sync::watch,
};
use tollgate_store::redis::prefer_connection;

/// Threads, each with its own runtime. A connection stays on one thread with all its calls, which also use the thread's
/// connection to Redis: passing a call between threads costs more than deciding it. So one connection uses at most one
/// thread. Clones share the threads, which end when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct Workers(Arc<Threads>);

struct Threads {
    first: Worker,
    others: Vec<Worker>,
    _alive: watch::Sender<()>,
}

/// A thread.
#[derive(Clone)]
pub(crate) struct Worker {
    handle: Handle,
    /// Its reference count is the number of connections, plus one.
    connections: Arc<()>,
    /// The memory of its connections for calls in progress and unwritten responses, in bytes.
    pending_bytes: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts `threads` threads, at least one.
    pub(crate) fn start(threads: usize) -> io::Result<Self> {
        let alive = watch::Sender::new(());
        let first = Worker::start(0, alive.subscribe())?;
        let others = (1..threads).map(|number| Worker::start(number, alive.subscribe())).collect::<io::Result<_>>()?;
        Ok(Self(Arc::new(Threads { first, others, _alive: alive })))
    }

    fn iter(&self) -> impl Iterator<Item = &Worker> {
        std::iter::once(&self.0.first).chain(&self.0.others)
    }

    /// The runtimes of the threads.
    pub(crate) fn handles(&self) -> Vec<Handle> {
        self.iter().map(|worker| worker.handle.clone()).collect()
    }

    /// The thread with the fewest connections. The new connection counts until it drops the returned clone.
    pub(crate) fn least_busy(&self) -> Worker {
        self.iter().min_by_key(|worker| Arc::strong_count(&worker.connections)).unwrap_or(&self.0.first).clone()
    }
}

impl Worker {
    /// Starts a thread that runs until all senders of `alive` are dropped.
    fn start(number: usize, mut alive: watch::Receiver<()>) -> io::Result<Self> {
        let (sender, ready) = mpsc::channel();
        thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            // Created here, because a runtime must not be dropped in an asynchronous context.
            let runtime = match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = sender.send(Err(error));
                    return;
                }
            };
            let _ = sender.send(Ok(runtime.handle().clone()));
            prefer_connection(number);
            runtime.block_on(async { while alive.changed().await.is_ok() {} });
        })?;
        let handle = ready.recv().map_err(io::Error::other)??;
        Ok(Self { handle, connections: Arc::default(), pending_bytes: Arc::default() })
    }

    /// The counter of the memory of its connections.
    pub(crate) fn pending_bytes(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.pending_bytes)
    }

    /// The runtime of the thread.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails if clones of `Workers` count as connections, with the thread with the most connections, and with round
    /// robin.
    #[test]
    fn a_connection_is_assigned_to_the_thread_with_the_fewest() {
        let workers = Workers::start(3).unwrap();
        let _clones = [workers.clone(), workers.clone(), workers.clone()];
        let mut connections: Vec<Worker> = (0..6).map(|_| workers.least_busy()).collect();
        let count = |thread: &Worker, all: &[Worker]| {
            all.iter().filter(|worker| Arc::ptr_eq(&worker.connections, &thread.connections)).count()
        };
        for worker in workers.iter() {
            assert_eq!(count(worker, &connections), 2, "connections are distributed evenly");
        }
        // Round robin would choose another thread.
        drop(connections.remove(1));
        let next = workers.least_busy();
        assert_eq!(count(&next, &connections), 1, "the thread with one connection");
    }
}
