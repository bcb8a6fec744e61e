//! The lifecycle of a node.

use tokio::sync::watch;

/// A stage of a node's life, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lifecycle {
    /// It accepts calls.
    Running,
    /// It accepts calls, and is not ready for load balancers.
    Draining,
    /// It accepts no new connections, and finishes the calls in progress.
    Stopping,
}

impl Lifecycle {
    /// Waits until the node has reached this stage.
    pub(crate) async fn reached(self, mut stage: watch::Receiver<Self>) {
        let _ = stage.wait_for(|now| *now >= self).await;
    }
}
