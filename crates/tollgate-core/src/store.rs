//! The port to whatever keeps the counters.

use std::{future::Future, pin::Pin};

use crate::claim::{Answer, Claim, Mode};

/// Why a store did not decide.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The request never reached the store: nothing was charged.
    #[error("the store cannot be reached: {0}")]
    Unreachable(String),
    /// The store did not answer in time, or the connection broke while it worked: whether the
    /// claims were charged is not known.
    #[error("the store did not answer: {0}")]
    Indeterminate(String),
    /// More is under way than the store takes in at once, or it has no room for another counter:
    /// nothing was charged.
    #[error("the store is full: {0}")]
    Overloaded(String),
    /// The store answered that it will not, or something that cannot be read: nothing was charged.
    #[error("the store refused: {0}")]
    Refused(String),
}

/// The future of one answer.
pub type AnswerFuture<'a> = Pin<Box<dyn Future<Output = Result<Answer, StoreError>> + Send + 'a>>;

/// Keeps the counters, and decides claims against them.
///
/// The promise: [`Store::apply`] takes effect as one atomic step, as [`crate::ledger::decide`] does
/// it, at one moment of one clock that all users of the store share. Either every claim is charged
/// or none is, whatever the number of nodes and the concurrency. After an error nothing was
/// charged, unless the error is [`StoreError::Indeterminate`]. An answer, or an error, comes within
/// a bound that the store states.
pub trait Store: Send + Sync + 'static {
    /// Applies up to [`crate::claim::MAX_CLAIMS`] claims.
    fn apply<'a>(&'a self, claims: &'a [Claim], mode: Mode) -> AnswerFuture<'a>;

    /// Whether the store can be reached now. For readiness, not for the way of a call.
    fn ready<'a>(&'a self) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + 'a>>;
}
