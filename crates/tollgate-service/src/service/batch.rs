//! Many calls at once, each decided for itself.

use std::time::Duration;

use futures_util::{StreamExt, stream::FuturesOrdered};
use tokio::time::Instant;
use tollgate_core::claim::Mode;

use crate::service::{Answer, Call, CallError, DecisionService};

/// The most calls of one batch.
pub(super) const MAX_BATCH: usize = 256;
/// Maximum number of calls of one batch that are decided at the same time.
const AT_ONCE: usize = 64;

/// Whether a batch has a size that can be decided.
pub fn check_batch(calls: usize) -> Result<(), CallError> {
    if (1..=MAX_BATCH).contains(&calls) {
        Ok(())
    } else {
        Err(CallError::field("calls", format_args!("must have 1 to {MAX_BATCH} entries, and has {calls}")))
    }
}

impl DecisionService {
    /// Consumes for each valid call, several at a time and in no particular order; the answers are in the order of the
    /// calls. A call that is not decided within `timeout` from now is late; the others get their answers.
    pub async fn consume_each<'a, R>(
        &'a self,
        calls: Vec<Result<Call<'a>, CallError>>,
        timeout: Duration,
        render: impl Fn(usize, &Answer<'_>) -> R + Copy + Send + 'a,
    ) -> Vec<Result<R, CallError>> {
        let deadline = Instant::now() + timeout;
        let (mut work, mut results) = (FuturesOrdered::new(), Vec::new());
        let mut calls = calls.into_iter().enumerate();
        loop {
            for (at, call) in calls.by_ref().take(AT_ONCE - work.len()) {
                let call = call.map(|call| Call { deadline: Some(deadline), ..call });
                let decided = call.map(|call| self.decide(call, Mode::Try, move |answer| render(at, answer)));
                work.push_back(async { decided?.await });
            }
            match work.next().await {
                Some(result) => results.push(result),
                None => return results,
            }
        }
    }
}
