//! Batches of calls. Each call is decided on its own.

use std::time::Duration;

use futures_util::{StreamExt, stream::FuturesOrdered};
use tokio::time::Instant;
use tollgate_core::claim::Mode;

use crate::service::{Call, CallError, CallResponse, DecisionService};

/// The maximum number of calls of a batch.
pub(super) const MAX_BATCH: usize = 256;
/// The maximum number of calls of a batch that are decided concurrently.
const MAX_CONCURRENT: usize = 64;

/// Checks the number of calls of a batch.
pub fn check_batch(calls: usize) -> Result<(), CallError> {
    if (1..=MAX_BATCH).contains(&calls) {
        Ok(())
    } else {
        Err(CallError::field("calls", format_args!("must have 1 to {MAX_BATCH} entries, and has {calls}")))
    }
}

impl DecisionService {
    /// Consumes for each valid call, several of them concurrently; the results are in the order of the calls. Only the
    /// calls that are not decided within `timeout` from now time out.
    pub async fn consume_each<'a, R>(
        &'a self,
        calls: Vec<Result<Call<'a>, CallError>>,
        timeout: Duration,
        render: impl Fn(usize, &CallResponse<'_>) -> R + Copy + Send + 'a,
    ) -> Vec<Result<R, CallError>> {
        let deadline = Instant::now() + timeout;
        let (mut work, mut results) = (FuturesOrdered::new(), Vec::new());
        let mut calls = calls.into_iter().enumerate();
        loop {
            for (index, call) in calls.by_ref().take(MAX_CONCURRENT - work.len()) {
                let call = call.map(|call| Call { deadline: Some(deadline), ..call });
                let decision = call.map(|call| self.decide(call, Mode::Try, move |response| render(index, response)));
                work.push_back(async { decision?.await });
            }
            match work.next().await {
                Some(result) => results.push(result),
                None => return results,
            }
        }
    }
}
