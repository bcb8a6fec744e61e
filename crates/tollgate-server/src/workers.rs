//! The threads that connections live on.

use std::{sync::Arc, thread};

use tokio::{
    runtime::{Builder, Handle},
    sync::watch,
};
use tollgate_store::redis::prefer_connection;

/// Threads, each with a runtime of its own. A connection stays on one of them with all its calls, and so does their way
/// to Redis: nothing of a call is handed from thread to thread, which costs more than to decide it. In return one
/// connection has one thread at most. Clones share the threads, which end with the last of them.
#[derive(Clone)]
pub(crate) struct Workers {
    first: Worker,
    others: Arc<[Worker]>,
    _alive: Arc<watch::Sender<()>>,
}

/// One of the threads.
#[derive(Clone)]
pub(crate) struct Worker {
    handle: Handle,
    /// Each connection holds one.
    seat: Arc<()>,
}

impl Workers {
    /// Starts so many threads, and one at least.
    pub(crate) fn start(threads: usize) -> std::io::Result<Self> {
        let alive = Arc::new(watch::Sender::new(()));
        let start = |number| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let mut ended = alive.subscribe();
            thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                prefer_connection(number);
                runtime.block_on(async { while ended.changed().await.is_ok() {} });
            })?;
            Ok(Worker { handle, seat: Arc::default() })
        };
        let others = (1..threads).map(start).collect::<std::io::Result<_>>()?;
        Ok(Self { first: start(0)?, others, _alive: alive })
    }

    fn all(&self) -> impl Iterator<Item = &Worker> {
        std::iter::once(&self.first).chain(self.others.iter())
    }

    /// The runtimes.
    pub(crate) fn handles(&self) -> Vec<Handle> {
        self.all().map(|worker| worker.handle.clone()).collect()
    }

    /// The thread with the fewest connections, which one more sits on as long as it holds this.
    pub(crate) fn least_busy(&self) -> Worker {
        self.all().min_by_key(|worker| Arc::strong_count(&worker.seat)).unwrap_or(&self.first).clone()
    }
}

impl Worker {
    /// Its runtime.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}
