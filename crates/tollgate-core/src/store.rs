//! The port to whatever keeps the counters.

use std::{future::Future, pin::Pin};

use crate::{
    claim::{ApplyResult, Claim, LedgerKey, Mode, Partition, ReservationId},
    ledger::CounterCapReached,
    reservation::{Admission, AdmitOptions, CloseRequest, CloseResult, Extension, Reservation, ReservationState},
};

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
    /// [`CounterCapReached`]: nothing was charged. Calls that need no new counter are decided as ever.
    #[error(transparent)]
    CounterCapReached(#[from] CounterCapReached),
    /// The store answered that it will not, or something that cannot be read: nothing was charged.
    #[error("the store refused: {0}")]
    Refused(String),
}

/// Something that keeps a store from charging.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// The cause, in words that are safe for everybody: no address, no name of a key, no text of the operating system.
    pub reason: String,
    /// The cause for operators: with the server, and its message or that of the operating system.
    pub error: String,
}

/// The result of a store's health check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreHealth {
    /// Of how many servers it is.
    pub servers: usize,
    /// One obstacle for each server that cannot charge now.
    pub obstacles: Vec<Obstacle>,
    /// The rule by which a server gives up counters when it is full, if one does.
    pub eviction: Option<String>,
    /// How far the clock of the store is ahead of this node's, in milliseconds; negative if it is behind. Of several
    /// servers, the largest difference.
    pub clock_skew_ms: Option<i64>,
}

impl StoreHealth {
    /// That of a store of one server that can charge.
    pub fn good() -> Self {
        Self { servers: 1, ..Self::default() }
    }

    /// That of a store of one server that cannot.
    pub fn bad(obstacle: Obstacle) -> Self {
        Self { servers: 1, obstacles: vec![obstacle], ..Self::default() }
    }

    /// Whether every charge is possible.
    pub fn is_whole(&self) -> bool {
        self.obstacles.is_empty()
    }

    /// Whether some charge is possible.
    pub fn can_charge(&self) -> bool {
        self.obstacles.len() < self.servers.max(1)
    }
}

/// The future of a store's health. It comes within a bound that the store states.
pub type HealthFuture<'a> = Pin<Box<dyn Future<Output = StoreHealth> + Send + 'a>>;

/// The future of a store's answer.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// The future of one answer to [`Store::apply`].
pub type AnswerFuture<'a> = StoreFuture<'a, ApplyResult>;

/// Keeps the counters, and decides claims against them.
///
/// The promise: each method takes effect as one atomic step, as the function of
/// [`crate::ledger`] or [`crate::reservation`] that it names does it, at one moment of one clock
/// that all users of the store share. Either every claim is charged or none is, whatever the number
/// of nodes and the concurrency. After an error nothing changed, unless the error is
/// [`StoreError::Indeterminate`]; then a call with a request id may be made again, and so may every
/// [`Store::close`] and [`Store::extend`]. An answer, or an error, comes within a bound that the
/// store states.
///
/// A store that cannot reach several partitions in one step uses a step for each of them, with the `home` of the call
/// last. No limit is exceeded in this case either. What a refused call was charged is given back, unless the node dies
/// or loses its connection in between: then it stays for its window.
pub trait Store: Send + Sync + 'static {
    /// Applies up to [`crate::claim::MAX_CLAIMS`] claims: [`crate::ledger::decide`]. Those in
    /// [`crate::window::WindowInstance::Slots`] are judged, and nothing is held. `home` is the caller's
    /// partition.
    fn apply_at<'a>(&'a self, home: Partition, claims: &'a [Claim], mode: Mode) -> AnswerFuture<'a>;

    /// The same, where the first claim is in the caller's partition.
    fn apply<'a>(&'a self, claims: &'a [Claim], mode: Mode) -> AnswerFuture<'a> {
        let home = claims.first().map_or(Partition::from_bytes([0; 12]), |claim| claim.ledger.partition);
        self.apply_at(home, claims, mode)
    }

    /// Admits up to [`crate::claim::MAX_CLAIMS`] claims and remembers it: [`crate::admission::admit`].
    fn admit<'a>(&'a self, claims: &'a [Claim], terms: &'a AdmitOptions<'a>) -> StoreFuture<'a, Admission>;

    /// The state of a reservation: [`crate::admission::look`].
    fn look(&self, home: Partition, id: ReservationId) -> StoreFuture<'_, ReservationState>;

    /// Ends a reservation: [`crate::admission::close`]. Refunds and debts together are at most
    /// [`crate::claim::MAX_CLAIMS`] each.
    fn close<'a>(
        &'a self,
        home: Partition,
        id: ReservationId,
        closing: &'a CloseRequest<'a>,
    ) -> StoreFuture<'a, CloseResult>;

    /// Extends the lifetime of a reservation that [`Store::look`] returned: [`crate::admission::extend`].
    fn extend<'a>(
        &'a self,
        home: Partition,
        id: ReservationId,
        ttl_ms: u32,
        reservation: &'a Reservation,
    ) -> StoreFuture<'a, Extension>;

    /// Removes these ledgers of `home` with their slots, and with `caller_named` every caller-named ledger there,
    /// whatever they contain: their counters start at zero. Reservations stay, and give nothing back to removed
    /// counters. Returns the number of removed ledgers. This is not one atomic step: a concurrent call may still find
    /// some of them.
    fn reset<'a>(&'a self, home: Partition, ledgers: &'a [LedgerKey], caller_named: bool) -> StoreFuture<'a, usize>;

    /// Whether the store can charge now. The check writes a value that no counter reads, in the same way as a call, so
    /// a read-only server fails it. For readiness, not for calls.
    fn health(&self) -> HealthFuture<'_>;
}
