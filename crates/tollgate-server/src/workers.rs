//! The threads that connections live on.

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

/// Threads, each with a runtime of its own. A connection stays on one of them with all its calls, and so does their way
/// to Redis: nothing of a call is handed from thread to thread, which costs more than to decide it. In return one
/// connection has one thread at most. Clones share the threads, which end with the last of them.
#[derive(Clone)]
pub(crate) struct Workers(Arc<Threads>);

struct Threads {
    first: Worker,
    others: Vec<Worker>,
    _alive: watch::Sender<()>,
}

/// One of the threads.
#[derive(Clone)]
pub(crate) struct Worker {
    handle: Handle,
    /// Each connection holds one.
    seat: Arc<()>,
    /// The memory that its connections hold for calls in progress and answers not yet written, in bytes.
    pending_bytes: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts so many threads, and one at least.
    pub(crate) fn start(threads: usize) -> io::Result<Self> {
        let alive = watch::Sender::new(());
        let first = Worker::start(0, alive.subscribe())?;
        let others = (1..threads).map(|number| Worker::start(number, alive.subscribe())).collect::<io::Result<_>>()?;
        Ok(Self(Arc::new(Threads { first, others, _alive: alive })))
    }

    fn all(&self) -> impl Iterator<Item = &Worker> {
        std::iter::once(&self.0.first).chain(&self.0.others)
    }

    /// The runtimes.
    pub(crate) fn handles(&self) -> Vec<Handle> {
        self.all().map(|worker| worker.handle.clone()).collect()
    }

    /// The thread with the fewest connections, which one more sits on as long as it holds this.
    pub(crate) fn least_busy(&self) -> Worker {
        self.all().min_by_key(|worker| Arc::strong_count(&worker.seat)).unwrap_or(&self.0.first).clone()
    }
}

impl Worker {
    /// Starts a thread that runs until all senders of `ended` are gone.
    fn start(number: usize, mut ended: watch::Receiver<()>) -> io::Result<Self> {
        let (to, ready) = mpsc::channel();
        thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            // Made here, as a runtime must not be dropped where others wait for nothing to block.
            let runtime = match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = to.send(Err(error));
                    return;
                }
            };
            let _ = to.send(Ok(runtime.handle().clone()));
            prefer_connection(number);
            runtime.block_on(async { while ended.changed().await.is_ok() {} });
        })?;
        let handle = ready.recv().map_err(io::Error::other)??;
        Ok(Self { handle, seat: Arc::default(), pending_bytes: Arc::default() })
    }

    /// The number of its connections.
    pub(crate) fn pending_bytes(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.pending_bytes)
    }

    /// Its runtime.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen to fail with threads whose users are counted as connections, with the fullest thread, and with threads that
    /// take turns.
    #[test]
    fn each_connection_goes_to_the_thread_with_the_fewest() {
        let workers = Workers::start(3).unwrap();
        let _clones = [workers.clone(), workers.clone(), workers.clone()];
        let mut connections: Vec<Worker> = (0..6).map(|_| workers.least_busy()).collect();
        let on = |at: &Worker, all: &[Worker]| all.iter().filter(|worker| Arc::ptr_eq(&worker.seat, &at.seat)).count();
        for worker in workers.all() {
            assert_eq!(on(worker, &connections), 2, "spread evenly, whoever else knows the threads");
        }
        // Not on the thread whose turn it would be.
        drop(connections.remove(1));
        let next = workers.least_busy();
        assert_eq!(on(&next, &connections), 1, "where one has ended there is room");
    }
}
