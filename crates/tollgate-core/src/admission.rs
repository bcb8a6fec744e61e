//! Admissions and reservations: the atomic steps of a store that keep a record of what they did.

use crate::{
    amount::Amount,
    claim::{Charge, Claim, Effect, LedgerKey, Mode, Partition, ReservationId},
    ledger::{CounterCapReached, LedgerMap, ReservationCapture, decide, decide_for, outside_period},
    records::{AdmittedRequest, RecordLifetime, Records, State},
    reservation::{
        Admission, AdmitOptions, CloseRequest, CloseResult, ClosedReservation, Extension, IdempotencyKey,
        NewReservation, Replay, Reservation, ReservationState,
    },
    time::Timestamp,
    window::{WindowId, WindowInstance},
};

/// Where the records of a store are found, beside its ledgers.
pub trait ReservationRecords: LedgerMap {
    /// The records of a partition.
    fn records(&mut self, home: Partition) -> &mut Records;
}

/// Admits `claims` if every one fits, as [`decide`] in [`Mode::Try`], and makes the records of `terms` in the
/// same step. A request that was admitted before is answered from its record.
///
/// Claims in [`WindowInstance::Slots`] are held by the reservation; without one they are only judged.
pub fn admit(
    books: &mut impl ReservationRecords,
    claims: &[Claim],
    terms: &AdmitOptions<'_>,
    now: Timestamp,
) -> Result<Admission, CounterCapReached> {
    if let Some(mark) = &terms.request
        && let Some(known) = books.records(terms.home).requests.get_mut(&(terms.home, mark.id))
        && known.life.lasts(now)
    {
        let same = known.digest == mark.digest;
        return Ok(if same { Admission::Replayed(known.replay.clone()) } else { Admission::IdempotencyConflict });
    }
    if outside_period(claims, now) {
        return Ok(Admission::OutsidePeriod(now));
    }
    let mut charges = Vec::new();
    let holder = terms.hold.map(|NewReservation { id, ttl_ms, .. }| {
        charges = counters_of(claims);
        ReservationCapture { id, ttl_ms, charges: &mut charges }
    });
    let applied = decide_for(books, claims, Mode::Try, now, holder)?;
    if !applied.allowed {
        return Ok(Admission::Decided(applied));
    }
    let records = books.records(terms.home);
    if let Some(NewReservation { id, ttl_ms, metadata }) = terms.hold {
        let reservation = Reservation { charges, slots: slots_of(claims), metadata: metadata.into() };
        let life = RecordLifetime { from: now, ttl_ms };
        records.insert_reservation(terms.home, id, (life, State::Open(reservation)));
    }
    if let Some(IdempotencyKey { id, digest, ttl_ms }) = terms.request {
        let held = terms.hold.map(|hold| (hold.id, now.plus_ms(u64::from(hold.ttl_ms))));
        let replay = Replay { applied: applied.clone(), shape: claims_fingerprint(claims), held };
        let admitted = AdmittedRequest { life: RecordLifetime { from: now, ttl_ms }, digest, replay };
        records.insert_request(terms.home, id, admitted);
    }
    Ok(Admission::Decided(applied))
}

/// The state of a reservation.
pub fn look(
    books: &mut impl ReservationRecords,
    home: Partition,
    id: ReservationId,
    now: Timestamp,
) -> ReservationState {
    match books.records(home).reservation(home, id, now) {
        None => ReservationState::Unknown,
        Some((life, State::Open(reservation))) => {
            ReservationState::Open { now, expires_at: life.ends_at(), reservation: reservation.clone() }
        }
        Some((_, State::Closed(closed))) => ReservationState::Closed(closed.clone()),
    }
}

/// Ends a reservation: gives back, charges, and releases its slots.
pub fn close(
    books: &mut impl ReservationRecords,
    home: Partition,
    id: ReservationId,
    closing: &CloseRequest<'_>,
    now: Timestamp,
) -> CloseResult {
    match books.records(home).reservation(home, id, now) {
        None => return CloseResult::Unknown,
        Some((_, State::Closed(closed))) => return CloseResult::Before(closed.clone()),
        Some((_, State::Open(_))) => {}
    }
    if outside_period(closing.debts, now) {
        return CloseResult::OutsidePeriod(now);
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
    let closed = ClosedReservation { at: now, digest: closing.digest, refunded, metadata: closing.metadata.into() };
    if let Some((_, state)) = books.records(home).reservation(home, id, now) {
        *state = State::Closed(closed.clone());
    }
    CloseResult::Done(closed)
}

/// Lets a reservation, and its slots, live for `ttl_ms` from now.
pub fn extend(
    books: &mut impl ReservationRecords,
    home: Partition,
    id: ReservationId,
    ttl_ms: u32,
    reservation: &Reservation,
    now: Timestamp,
) -> Extension {
    match books.records(home).reservation(home, id, now) {
        None => return Extension::Unknown,
        Some((_, State::Closed(closed))) => return Extension::Closed(closed.clone()),
        Some((life, State::Open(_))) => *life = RecordLifetime { from: now, ttl_ms },
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
        let Some(window) = WindowId::of(claim.span) else { continue };
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
    for claim in claims.iter().filter(|claim| claim.span == WindowInstance::Slots && claim.cost > Amount::ZERO) {
        if !slots.contains(&claim.ledger) {
            slots.push(claim.ledger);
        }
    }
    slots
}

/// Distinguishes lists of counters: FNV-1a, 64 bits, over scopes, windows and units in their order. If a policy changes
/// between two calls with one request id, the statuses of the first call do not fit the second.
pub fn claims_fingerprint(claims: &[Claim]) -> u64 {
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
            WindowInstance::Sliding(window) => (1, window.ms()),
            WindowInstance::Calendar { id, .. } => (2, id),
            WindowInstance::Slots => (3, 0),
        };
        add(&[kind]);
        add(&id.to_le_bytes());
        add(&claim.unit.get().to_le_bytes());
    }
    hash
}
