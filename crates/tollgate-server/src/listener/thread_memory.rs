//! The bound on the memory of a thread's connections.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicUsize},
};

/// The memory of one thread's connections. Clones belong to the same thread.
#[derive(Clone, Debug)]
pub(crate) struct ThreadMemory {
    pub(super) bytes: Arc<AtomicUsize>,
    /// The bound on `bytes`.
    pub(super) max_bytes: usize,
}

impl ThreadMemory {
    /// `bytes` is the counter of the thread.
    pub(super) fn new(bytes: Arc<AtomicUsize>, max_bytes: usize) -> Self {
        Self { bytes, max_bytes }
    }

    /// The bound on the memory of one connection.
    pub(super) fn max_per_connection(&self) -> usize {
        self.max_bytes / 4
    }
}

/// Closes connections of a thread that exceeds its memory bound.
pub(crate) trait MemoryRelief: fmt::Debug + Send + Sync {
    /// Closes the connection with the most memory on this thread, if the connections that are not closing exceed the
    /// bound. Unauthenticated connections that use more than an idle connection come first.
    fn relieve(&self, thread: &ThreadMemory);
}
