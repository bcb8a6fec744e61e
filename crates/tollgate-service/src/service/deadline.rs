//! One bound in time for everything that a call waits for.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, timeout_at};
use tollgate_core::store::StoreError;

use crate::service::CallError;

/// When a call stops to wait.
#[derive(Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    /// Whether it is the call's own deadline, not the node's patience with its stores.
    is_of_the_call: bool,
}

impl Deadline {
    /// When the stores have had `patience` from now on, or at the call's own deadline if that comes first.
    pub(super) fn earliest(patience: Duration, of_the_call: Option<Instant>) -> Self {
        let at = Instant::now() + patience;
        match of_the_call.filter(|deadline| *deadline < at) {
            Some(deadline) => Self { at: deadline, is_of_the_call: true },
            None => Self { at, is_of_the_call: false },
        }
    }

    /// The work, which fails at the deadline.
    pub(super) fn wrap<T>(
        self,
        work: impl Future<Output = Result<T, CallError>>,
    ) -> impl Future<Output = Result<T, CallError>> {
        timeout_at(self.at, work).map(move |done| {
            done.unwrap_or_else(|_| {
                if self.is_of_the_call {
                    Err(CallError::Late)
                } else {
                    Err(StoreError::Indeterminate("no answer within the deadline".into()).into())
                }
            })
        })
    }
}
