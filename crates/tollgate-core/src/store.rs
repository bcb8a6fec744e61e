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
    /// What it is, in words that anybody may read: no address, no name of a key, no text of the system.
    pub reason: String,
    /// The same for operators: with the server, and what it or the system said.
    pub error: String,
}

/// What a store says of itself when it is asked whether it can charge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreHealth {
    /// Of how many servers it is.
    pub servers: usize,
    /// One obstacle for each server that cannot charge now.
    pub obstacles: Vec<Obstacle>,
    /// The rule by which a server gives up counters when it is full, if one does.
    pub eviction: Option<String>,
    /// How far the clock of the store is ahead of this node's, in milliseconds; of several servers the one that is
    /// furthest off. Less than nothing if it is behind.
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
/// A store that cannot reach several partitions in one step takes a step for each of them, the
/// `home` of the call last. No limit is exceeded then either, and what a refused call was charged is
/// given back, except by a node that dies or loses its way in between: that stays for its window.
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

    /// What became of a reservation: [`crate::admission::look`].
    fn look(&self, home: Partition, id: ReservationId) -> StoreFuture<'_, ReservationState>;

    /// Ends a reservation: [`crate::admission::close`]. Refunds and debts together are at most
    /// [`crate::claim::MAX_CLAIMS`] each.
    fn close<'a>(
        &'a self,
        home: Partition,
        id: ReservationId,
        closing: &'a CloseRequest<'a>,
    ) -> StoreFuture<'a, CloseResult>;

    /// Lets a reservation, which [`Store::look`] told, live on: [`crate::admission::extend`].
    fn extend<'a>(
        &'a self,
        home: Partition,
        id: ReservationId,
        ttl_ms: u32,
        reservation: &'a Reservation,
    ) -> StoreFuture<'a, Extension>;

    /// Removes these ledgers of `home` with their slots, and with `caller_named` every caller-named ledger there, whatever they
    /// hold: they begin anew. Reservations stay, and give nothing back to what is gone. Returns how many there were. Not
    /// one step: a call in between may find some of them.
    fn reset<'a>(&'a self, home: Partition, ledgers: &'a [LedgerKey], caller_named: bool) -> StoreFuture<'a, usize>;

    /// Whether a charge is possible now, found out by writing something that counts for nobody, the way calls go. A
    /// server that only reads does not pass. For readiness, not for the way of a call.
    fn health(&self) -> HealthFuture<'_>;
}
