//! The memory of a thread's connections, and which connection is closed if that is too much.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicUsize},
};

/// The memory of one thread's connections. Clones belong to the same thread.
#[derive(Clone, Debug)]
pub(crate) struct ThreadMemory {
    pub(super) bytes: Arc<AtomicUsize>,
    /// How much they may hold in all.
    pub(super) most: usize,
}

impl ThreadMemory {
    /// Of a thread whose count this is.
    pub(super) fn new(bytes: Arc<AtomicUsize>, most: usize) -> Self {
        Self { bytes, most }
    }

    /// How much one of them may hold.
    pub(super) fn most_of_connection(&self) -> usize {
        self.most / 4
    }
}

/// Ends connections where those of a thread hold too much memory.
pub(crate) trait MemoryRelief: fmt::Debug + Send + Sync {
    /// Ends the connection that holds the most memory of this thread, if they hold too much without those that end
    /// already; that of a stranger if one holds more than its place is worth.
    fn relieve(&self, thread: &ThreadMemory);
}
