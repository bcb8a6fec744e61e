//! How far a node is on its way to its end.

use tokio::sync::watch;

/// A stage of a node's life, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lifecycle {
    /// It takes calls in.
    Running,
    /// It accepts calls, and tells load balancers to send no more.
    Draining,
    /// It accepts nothing any more, and finishes the calls in progress.
    Stopping,
}

impl Lifecycle {
    /// Waits until a node is so far.
    pub(crate) async fn reached(self, mut stage: watch::Receiver<Self>) {
        let _ = stage.wait_for(|now| *now >= self).await;
    }
}
