//! Reservations: admissions that are corrected once the actual usage is known, that hold slots until then,
//! and that are remembered by a request id. What stands here is what one atomic step of a store means.

use crate::{
    amount::{Amount, UnitId},
    claim::{Answer, Applied, Claim, Effect, LedgerKey, Mode, Partition},
    ledger::{Crowded, Holder, Ledgers, decide, decide_for, outside_period},
    records::{Admitted, Life, Records, State},
    time::Timestamp,
    window::{SlidingWindow, Span},
};

/// The longest time to live of a reservation, in milliseconds: an hour. A stream that lasts longer extends it.
pub const MAX_RESERVATION_TTL_MS: u32 = 3_600_000;

/// The most slots that a concurrency quota may give.
pub const MAX_SLOTS: u32 = 10_000;

/// The longest note beside a reservation, in bytes.
pub const MAX_NOTE_BYTES: usize = 16_384;

/// Names a reservation within its partition: 128 random bits, so that nobody guesses one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReservationId(pub [u8; 16]);

/// What an admission leaves behind, besides its charges.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// Where it is remembered: the caller's partition.
    pub home: Partition,
    /// The reservation, if it is one.
    pub hold: Option<Hold<'a>>,
    /// The request id, if the call has one.
    pub request: Option<RequestMark>,
}

/// A reservation that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Hold<'a> {
    /// Its id, drawn by the caller.
    pub id: ReservationId,
    /// How long it lives unless it is extended, from 1 to [`MAX_RESERVATION_TTL_MS`].
    pub ttl_ms: u32,
    /// What whoever settles it wants to know, up to [`MAX_NOTE_BYTES`].
    pub note: &'a [u8],
}

/// A call that has an id of its own, so that it is charged once however often it comes.
#[derive(Clone, Copy, Debug)]
pub struct RequestMark {
    /// A hash of the id.
    pub id: [u8; 16],
    /// A hash of the whole call: the same id with another call is a mistake.
    pub digest: [u8; 16],
    /// How long an admission is remembered.
    pub ttl_ms: u32,
}

/// A store's answer to [`admit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It decided. If every claim fitted, the charges, slots and records of the terms are made.
    Decided(Applied),
    /// As [`crate::claim::Answer::OutsidePeriod`].
    OutsidePeriod(Timestamp),
    /// This request was admitted before; nothing was charged now.
    Replayed(Replay),
    /// The request id belongs to another call; nothing was charged.
    OtherCall,
}

impl From<Answer> for Admission {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Applied(applied) => Self::Decided(applied),
            Answer::OutsidePeriod(at) => Self::OutsidePeriod(at),
        }
    }
}

/// An admission of before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// What was answered.
    pub applied: Applied,
    /// The [`shape_of`] its claims.
    pub shape: u64,
    /// The reservation that was made, and when it was to end.
    pub held: Option<(ReservationId, Timestamp)>,
}

/// A counter that a reservation was charged on, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// Whose counter.
    pub ledger: LedgerKey,
    /// Over which window.
    pub window: Window,
    /// Of which unit.
    pub unit: UnitId,
    /// The number of the entry that holds the amount.
    pub number: u64,
    /// How much was charged; zero where the call did not speak of the unit.
    pub amount: Amount,
}

/// A window, without the period of the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Window {
    /// Trailing.
    Sliding(SlidingWindow),
    /// A calendar window, by its stable id.
    Calendar(u32),
}

impl Window {
    /// The window of a span; `None` for slots.
    pub const fn of(span: Span) -> Option<Self> {
        match span {
            Span::Sliding(window) => Some(Self::Sliding(window)),
            Span::Calendar { id, .. } => Some(Self::Calendar(id)),
            Span::Slots => None,
        }
    }
}

/// A reservation that was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reservation {
    /// Every counter it is judged by, each once.
    pub charges: Vec<Charge>,
    /// The scopes in which it holds a slot.
    pub slots: Vec<LedgerKey>,
    /// What stood in [`Hold::note`].
    pub note: Box<[u8]>,
}

/// What became of a reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Looked {
    /// There is none of this id, or it has ended.
    Unknown,
    /// It holds.
    Open {
        /// The store's own time.
        now: Timestamp,
        /// When it ends unless it is extended.
        expires_at: Timestamp,
        /// What it holds.
        reservation: Reservation,
    },
    /// It was settled or cancelled.
    Closed(Closed),
}

/// The end of a reservation.
#[derive(Clone, Copy, Debug)]
pub struct Closing<'a> {
    /// Tells this end from others; the same end may be asked for again.
    pub digest: [u8; 16],
    /// What is to be given back: charges of the reservation, with the amounts to take out.
    pub refunds: &'a [Charge],
    /// What is charged whatever the limits say, in partitions where the reservation was charged; nothing on slots.
    pub debts: &'a [Claim],
    /// The reservation itself, as it was told. Its slots are released.
    pub reservation: &'a Reservation,
    /// What is remembered of the end until the reservation would have ended, up to [`MAX_NOTE_BYTES`].
    pub note: &'a [u8],
}

/// A reservation that was settled or cancelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// When.
    pub at: Timestamp,
    /// What stood in [`Closing::digest`].
    pub digest: [u8; 16],
    /// What was given back for each of [`Closing::refunds`].
    pub refunded: Vec<Amount>,
    /// What stood in [`Closing::note`].
    pub note: Box<[u8]>,
}

/// A store's answer to [`close`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closure {
    /// It is closed by this call.
    Done(Closed),
    /// It was closed before; nothing changed now.
    Before(Closed),
    /// There is none of this id, or it has ended. What it charged stays.
    Unknown,
    /// As [`crate::claim::Answer::OutsidePeriod`].
    OutsidePeriod(Timestamp),
}

/// A store's answer to [`extend`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extension {
    /// It ends then.
    Until(Timestamp),
    /// It was settled or cancelled before.
    Closed(Closed),
    /// There is none of this id, or it has ended.
    Unknown,
}

/// Where the records of a store are found, beside its ledgers.
pub trait Books: Ledgers {
    /// The records of a partition.
    fn records(&mut self, home: Partition) -> &mut Records;
}

/// Admits `claims` if every one fits, as [`decide`] in [`Mode::Try`], and makes the records of `terms` in the
/// same step. A request that was admitted before is answered from its record.
///
/// Claims in [`Span::Slots`] are held by the reservation; without one they are only judged.
pub fn admit(
    books: &mut impl Books,
    claims: &[Claim],
    terms: &Terms<'_>,
    now: Timestamp,
) -> Result<Admission, Crowded> {
    if let Some(mark) = &terms.request
        && let Some(known) = books.records(terms.home).requests.get_mut(&(terms.home, mark.id))
        && known.life.lasts(now)
    {
        let same = known.digest == mark.digest;
        return Ok(if same { Admission::Replayed(known.replay.clone()) } else { Admission::OtherCall });
    }
    if outside_period(claims, now) {
        return Ok(Admission::OutsidePeriod(now));
    }
    let mut charges = Vec::new();
    let holder = terms.hold.map(|Hold { id, ttl_ms, .. }| {
        charges = counters_of(claims);
        Holder { id, ttl_ms, charges: &mut charges }
    });
    let applied = decide_for(books, claims, Mode::Try, now, holder)?;
    if !applied.allowed {
        return Ok(Admission::Decided(applied));
    }
    let records = books.records(terms.home);
    if let Some(Hold { id, ttl_ms, note }) = terms.hold {
        let reservation = Reservation { charges, slots: slots_of(claims), note: note.into() };
        let life = Life { from: now, ttl_ms };
        records.insert_reservation(terms.home, id, (life, State::Open(reservation)));
    }
    if let Some(RequestMark { id, digest, ttl_ms }) = terms.request {
        let held = terms.hold.map(|hold| (hold.id, now.plus_ms(u64::from(hold.ttl_ms))));
        let replay = Replay { applied: applied.clone(), shape: shape_of(claims), held };
        let admitted = Admitted { life: Life { from: now, ttl_ms }, digest, replay };
        records.insert_request(terms.home, id, admitted);
    }
    Ok(Admission::Decided(applied))
}

/// What became of a reservation.
pub fn look(books: &mut impl Books, home: Partition, id: ReservationId, now: Timestamp) -> Looked {
    match books.records(home).reservation(home, id, now) {
        None => Looked::Unknown,
        Some((life, State::Open(reservation))) => {
            Looked::Open { now, expires_at: life.ends_at(), reservation: reservation.clone() }
        }
        Some((_, State::Closed(closed))) => Looked::Closed(closed.clone()),
    }
}

/// Ends a reservation: gives back, charges, and releases its slots.
pub fn close(
    books: &mut impl Books,
    home: Partition,
    id: ReservationId,
    closing: &Closing<'_>,
    now: Timestamp,
) -> Closure {
    match books.records(home).reservation(home, id, now) {
        None => return Closure::Unknown,
        Some((_, State::Closed(closed))) => return Closure::Before(closed.clone()),
        Some((_, State::Open(_))) => {}
    }
    if outside_period(closing.debts, now) {
        return Closure::OutsidePeriod(now);
    }
    let refund = |charge: &Charge| books.get(&charge.ledger).map_or(Amount::ZERO, |ledger| ledger.refund(charge, now));
    let refunded = closing.refunds.iter().map(refund).collect();
    // Nothing is refused in this mode.
    let _ = decide(books, closing.debts, Mode::Force, now);
    for ledger in &closing.reservation.slots {
        if let Some(ledger) = books.get(ledger) {
            ledger.slots().release(id);
        }
    }
    let closed = Closed { at: now, digest: closing.digest, refunded, note: closing.note.into() };
    if let Some((_, state)) = books.records(home).reservation(home, id, now) {
        *state = State::Closed(closed.clone());
    }
    Closure::Done(closed)
}

/// Lets a reservation, and its slots, live for `ttl_ms` from now.
pub fn extend(
    books: &mut impl Books,
    home: Partition,
    id: ReservationId,
    ttl_ms: u32,
    reservation: &Reservation,
    now: Timestamp,
) -> Extension {
    match books.records(home).reservation(home, id, now) {
        None => return Extension::Unknown,
        Some((_, State::Closed(closed))) => return Extension::Closed(closed.clone()),
        Some((life, State::Open(_))) => *life = Life { from: now, ttl_ms },
    }
    for ledger in &reservation.slots {
        if let Some(ledger) = books.get(ledger) {
            ledger.slots().extend(id, ttl_ms, now);
        }
    }
    Extension::Until(now.plus_ms(u64::from(ttl_ms)))
}

/// The counters that `claims` charge, each once, with nothing charged yet.
pub fn counters_of(claims: &[Claim]) -> Vec<Charge> {
    let mut counters: Vec<Charge> = Vec::with_capacity(claims.len());
    for claim in claims.iter().filter(|claim| claim.effect == Effect::Charge) {
        let Some(window) = Window::of(claim.span) else { continue };
        let counter = Charge { ledger: claim.ledger, window, unit: claim.unit, number: 0, amount: Amount::ZERO };
        if !counters.contains(&counter) {
            counters.push(counter);
        }
    }
    counters
}

/// The scopes in which `claims` take a slot, each once.
pub fn slots_of(claims: &[Claim]) -> Vec<LedgerKey> {
    let mut slots = Vec::new();
    for claim in claims.iter().filter(|claim| claim.span == Span::Slots && claim.cost > Amount::ZERO) {
        if !slots.contains(&claim.ledger) {
            slots.push(claim.ledger);
        }
    }
    slots
}

/// Tells lists of counters apart: FNV-1a, 64 bits, over scopes, windows and units in their order. When a policy
/// changed between two calls of one request id, the statuses of the first are not those of the second.
pub fn shape_of(claims: &[Claim]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for claim in claims {
        add(&claim.ledger.partition.bytes());
        add(&claim.ledger.scope_bytes());
        let (kind, id) = match claim.span {
            Span::Sliding(window) => (1, window.ms()),
            Span::Calendar { id, .. } => (2, id),
            Span::Slots => (3, 0),
        };
        add(&[kind]);
        add(&id.to_le_bytes());
        add(&claim.unit.get().to_le_bytes());
    }
    hash
}
