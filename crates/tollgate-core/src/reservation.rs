//! Reservations: admissions that are corrected once the actual usage is known, that hold slots until then, and that are
//! remembered by a request id. [`crate::admission`] has the algorithm.

use crate::{
    amount::Amount,
    claim::{ApplyResult, Charge, Claim, ClaimsDecision, LedgerKey, Partition, ReservationId},
    time::Timestamp,
};

/// The longest time to live of a reservation, in milliseconds: an hour. A stream that lasts longer extends it.
pub const MAX_RESERVATION_TTL_MS: u32 = 3_600_000;

/// The most slots that a concurrency quota may give.
pub const MAX_SLOTS: u32 = 10_000;

/// The longest metadata beside a reservation, in bytes.
pub const MAX_NOTE_BYTES: usize = 16_384;

/// The records that an admission writes besides its charges.
#[derive(Clone, Copy, Debug)]
pub struct AdmitOptions<'a> {
    /// Where it is remembered: the caller's partition.
    pub home: Partition,
    /// The reservation, if it is one.
    pub hold: Option<NewReservation<'a>>,
    /// The request id, if the call has one.
    pub request: Option<IdempotencyKey>,
}

/// A reservation that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewReservation<'a> {
    /// Its id, drawn by the caller.
    pub id: ReservationId,
    /// How long it lives unless it is extended, from 1 to [`MAX_RESERVATION_TTL_MS`].
    pub ttl_ms: u32,
    /// Data for the settlement, up to [`MAX_NOTE_BYTES`].
    pub metadata: &'a [u8],
}

/// A call that has an id of its own, so that it is charged once however often it comes.
#[derive(Clone, Copy, Debug)]
pub struct IdempotencyKey {
    /// A hash of the id.
    pub id: [u8; 16],
    /// A hash of the whole call: the same id with another call is a mistake.
    pub digest: [u8; 16],
    /// How long an admission is remembered.
    pub ttl_ms: u32,
}

/// A store's answer to [`crate::admission::admit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It decided. If every claim fitted, the charges, slots and records of the terms are made.
    Decided(ClaimsDecision),
    /// As [`crate::claim::ApplyResult::OutsidePeriod`].
    OutsidePeriod(Timestamp),
    /// This request was admitted before; nothing was charged now.
    Replayed(Replay),
    /// The request id belongs to another call; nothing was charged.
    IdempotencyConflict,
}

impl From<ApplyResult> for Admission {
    fn from(answer: ApplyResult) -> Self {
        match answer {
            ApplyResult::Applied(applied) => Self::Decided(applied),
            ApplyResult::OutsidePeriod(at) => Self::OutsidePeriod(at),
        }
    }
}

/// An admission of before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// The answer.
    pub applied: ClaimsDecision,
    /// The [`crate::admission::claims_fingerprint`] its claims.
    pub shape: u64,
    /// The reservation that was made, and when it was to end.
    pub held: Option<(ReservationId, Timestamp)>,
}

/// A reservation that was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reservation {
    /// Every counter it is judged by, each once.
    pub charges: Vec<Charge>,
    /// The scopes in which it holds a slot.
    pub slots: Vec<LedgerKey>,
    /// The value of [`NewReservation::metadata`].
    pub metadata: Box<[u8]>,
}

/// The state of a reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReservationState {
    /// There is none of this id, or it has ended.
    Unknown,
    /// It holds.
    Open {
        /// The store's own time.
        now: Timestamp,
        /// When it ends unless it is extended.
        expires_at: Timestamp,
        /// The charges and slots of the reservation.
        reservation: Reservation,
    },
    /// It was settled or cancelled.
    Closed(ClosedReservation),
}

/// The end of a reservation.
#[derive(Clone, Copy, Debug)]
pub struct CloseRequest<'a> {
    /// Identifies this end. A request with the same digest is a repetition.
    pub digest: [u8; 16],
    /// The refunds: charges of the reservation, with the amounts to give back.
    pub refunds: &'a [Charge],
    /// Charged regardless of the limits, in partitions where the reservation was charged; nothing on slots.
    pub debts: &'a [Claim],
    /// The reservation, as the store returned it. Its slots are released.
    pub reservation: &'a Reservation,
    /// Data that is kept until the reservation would have expired, up to [`MAX_NOTE_BYTES`].
    pub metadata: &'a [u8],
}

/// A reservation that was settled or cancelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedReservation {
    /// When.
    pub at: Timestamp,
    /// The value of [`CloseRequest::digest`].
    pub digest: [u8; 16],
    /// The amount given back for each of [`CloseRequest::refunds`].
    pub refunded: Vec<Amount>,
    /// The value of [`CloseRequest::metadata`].
    pub metadata: Box<[u8]>,
}

/// A store's answer to [`crate::admission::close`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseResult {
    /// It is closed by this call.
    Done(ClosedReservation),
    /// It was closed before; nothing changed now.
    Before(ClosedReservation),
    /// There is no reservation with this id, or it has expired. Its charges stay.
    Unknown,
    /// As [`crate::claim::ApplyResult::OutsidePeriod`].
    OutsidePeriod(Timestamp),
}

/// A store's answer to [`crate::admission::extend`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extension {
    /// It ends then.
    Until(Timestamp),
    /// It was settled or cancelled before.
    Closed(ClosedReservation),
    /// There is none of this id, or it has ended.
    Unknown,
}
