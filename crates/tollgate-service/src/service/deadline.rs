//! The deadline of a call.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, timeout_at};
use tollgate_core::store::StoreError;

use crate::service::CallError;

/// The deadline of a call: that of its caller, or that of the stores.
#[derive(Clone, Copy)]
pub(super) struct Deadline {
    time: Instant,
    is_caller_deadline: bool,
}

impl Deadline {
    /// The earlier one of the caller's deadline and `store_timeout` from now.
    pub(super) fn earliest(store_timeout: Duration, caller_deadline: Option<Instant>) -> Self {
        let store_deadline = Instant::now() + store_timeout;
        match caller_deadline.filter(|deadline| *deadline < store_deadline) {
            Some(deadline) => Self { time: deadline, is_caller_deadline: true },
            None => Self { time: store_deadline, is_caller_deadline: false },
        }
    }

    /// Makes the work fail at the deadline.
    pub(super) fn wrap<T>(
        self,
        work: impl Future<Output = Result<T, CallError>>,
    ) -> impl Future<Output = Result<T, CallError>> {
        timeout_at(self.time, work).map(move |result| {
            result.unwrap_or_else(|_| {
                if self.is_caller_deadline {
                    Err(CallError::TimedOut)
                } else {
                    Err(StoreError::Indeterminate("no answer within the deadline".into()).into())
                }
            })
        })
    }
}
