//! Requests of `lua/look.lua`, `close.lua`, `refund.lua` and `extend.lua`, their replies, and the layout of
//! reservations. Layouts that scripts read are described there; those that scripts only store are described here.

use smallvec::SmallVec;
use tollgate_core::{
    admission::slots_of,
    amount::{Amount, UnitId},
    claim::{Charge, Claim, Effect, LedgerKey, Mode, Partition, ReservationId},
    reservation::{CloseRequest, CloseResult, ClosedReservation, Extension, Reservation, ReservationState},
    store::StoreError,
    time::Timestamp,
    window::{SlidingWindow, WindowId},
};

use super::{
    layout::{CALENDAR, REFUND, SLIDING, size_of},
    wire::{Request, Row, Validity, key_in, ledger_key, put, take, unreadable, window_of},
};

const SLOTS_KEY: &str = "s";
const RESERVATION_KEY: &str = "r";
const REQUEST_KEY: &str = "q";

/// The results of the other parts of a call, each in a slot of its own.
#[derive(Default)]
pub(super) struct OtherPartitions {
    /// Where they were charged.
    pub(super) charges: Vec<Charge>,
    /// Where they hold a slot.
    pub(super) slots: Vec<LedgerKey>,
    /// Their statuses, for a request's record.
    pub(super) statuses: Vec<u8>,
}

/// The key of a reservation's record.
pub(super) fn reservation_key(prefix: &str, home: Partition, id: ReservationId) -> String {
    key_in(prefix, home, RESERVATION_KEY, &id.0)
}

/// The key of a request's record.
pub(super) fn request_key(prefix: &str, home: Partition, id: &[u8; 16]) -> String {
    key_in(prefix, home, REQUEST_KEY, id)
}

/// The key of a scope's slots.
pub(super) fn slots_key(prefix: &str, scope: &LedgerKey) -> String {
    key_in(prefix, scope.partition, SLOTS_KEY, &scope.scope_bytes())
}

/// The first part of a reservation's record: number of ledgers u8, the ledgers; number of rows u8, and for each of the
/// script's rows whether it is a counter of the reservation u8 and, if so, ledger u8, kind u8, id u32, unit u32; number
/// of charges in other slots u8, the charges in the layout of refund.lua; number of scopes of slots u8, the scopes;
/// length of the metadata u16, the metadata. A ledger or scope is a u8, 1 if its partition of 12 bytes follows because
/// it is not the record's own, and its 8 bytes. After it the script appends the place and amount of each row's charge.
pub(super) fn write_body(
    home: Partition,
    claims: &[Claim],
    request: &Request,
    elsewhere: &OtherPartitions,
    metadata: &[u8],
) -> Vec<u8> {
    let mut body =
        Vec::with_capacity(64 + 12 * request.rows.len() + size_of(REFUND) * elsewhere.charges.len() + metadata.len());
    let put_ledgers = |body: &mut Vec<u8>, ledgers: &[LedgerKey]| {
        body.push(small(ledgers.len()));
        for ledger in ledgers {
            body.push(u8::from(ledger.partition != home));
            if ledger.partition != home {
                body.extend(ledger.partition.bytes());
            }
            body.extend(ledger.scope_bytes());
        }
    };
    let mut ledgers = request.ledgers.clone();
    let mut charges = Vec::new();
    for charge in &elsewhere.charges {
        put_charge(&mut charges, &mut ledgers, charge);
    }
    put_ledgers(&mut body, &ledgers);
    body.push(small(request.rows.len()));
    for row in &request.rows {
        let counts = is_counter(claims, row);
        body.push(u8::from(counts));
        if counts {
            let claim = &claims[row.claim];
            let (kind, id) = window_of(claim.span);
            body.extend([row.ledger, kind]);
            body.extend(id.to_le_bytes());
            body.extend(claim.unit.get().to_le_bytes());
        }
    }
    body.push(small(elsewhere.charges.len()));
    body.extend(charges);
    put_ledgers(&mut body, &[&slots_of(claims)[..], &elsewhere.slots].concat());
    put::<2>(&mut body, metadata.len() as u64);
    body.extend(metadata);
    body
}

pub(super) fn small(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

/// Whether a row is the one of a counter that the claims charge.
pub(super) fn is_counter(claims: &[Claim], row: &Row) -> bool {
    let claim = &claims[row.claim];
    let same = |other: &Claim| {
        (other.ledger, other.span, other.unit) == (claim.ledger, claim.span, claim.unit)
            && other.effect == Effect::Charge
    };
    row.same_as.is_none() && claims.iter().any(same)
}

/// Appends a charge: number of its ledger among `ledgers` u8, from 1, kind u8, id u32, unit u32, number u48, amount u56.
fn put_charge(to: &mut Vec<u8>, ledgers: &mut SmallVec<[LedgerKey; 4]>, charge: &Charge) {
    let number = ledgers.iter().position(|known| *known == charge.ledger).unwrap_or_else(|| {
        ledgers.push(charge.ledger);
        ledgers.len() - 1
    });
    let (kind, window) = match charge.window {
        WindowId::Sliding(window) => (SLIDING, window.ms()),
        WindowId::Calendar(id) => (CALENDAR, id),
    };
    to.extend([small(number + 1), kind]);
    to.extend(window.to_le_bytes());
    to.extend(charge.unit.get().to_le_bytes());
    put::<6>(to, charge.number);
    put::<7>(to, charge.amount.get());
}

fn read_reservation(home: Partition, mut rest: &[u8]) -> Option<Reservation> {
    let rest = &mut rest;
    let ledgers = read_ledgers(home, rest)?;
    let mut rows: Vec<Option<Charge>> = Vec::new();
    for _ in 0..take(rest, 1)? {
        if take(rest, 1)? == 0 {
            rows.push(None);
            continue;
        }
        rows.push(Some(read_counter(&ledgers, rest)?));
    }
    let mut elsewhere = Vec::new();
    for _ in 0..take(rest, 1)? {
        let mut charge = read_counter(&ledgers, rest)?;
        (charge.number, charge.amount) = (take(rest, 6)?, Amount::try_from(take(rest, 7)?).ok()?);
        elsewhere.push(charge);
    }
    let slots = read_ledgers(home, rest)?;
    let length = usize::try_from(take(rest, 2)?).ok()?;
    let (metadata, charged) = rest.split_at_checked(length)?;
    *rest = charged;
    for row in &mut rows {
        let (number, amount) = (take(rest, 6)?, take(rest, 7)?);
        if let Some(charge) = row {
            (charge.number, charge.amount) = (number, Amount::try_from(amount).ok()?);
        }
    }
    Some(Reservation {
        charges: rows.into_iter().flatten().chain(elsewhere).collect(),
        slots,
        metadata: metadata.into(),
    })
}

/// A counter that nothing was charged on yet.
fn read_counter(ledgers: &[LedgerKey], rest: &mut &[u8]) -> Option<Charge> {
    let ledger = *ledgers.get(usize::try_from(take(rest, 1)?).ok()?.checked_sub(1)?)?;
    let (kind, id) = (take(rest, 1)?, take(rest, 4)?);
    let window = match u8::try_from(kind).ok()? {
        SLIDING => WindowId::Sliding(SlidingWindow::from_ms(id).ok()?),
        _ => WindowId::Calendar(u32::try_from(id).ok()?),
    };
    let unit = UnitId::from_number(u32::try_from(take(rest, 4)?).ok()?);
    Some(Charge { ledger, window, unit, number: 0, amount: Amount::ZERO })
}

fn read_ledgers(home: Partition, rest: &mut &[u8]) -> Option<Vec<LedgerKey>> {
    let number = take(rest, 1)?;
    let read = |_| {
        let partition = if take(rest, 1)? == 1 { Partition::from_bytes(take_array(rest)?) } else { home };
        Some(LedgerKey::from_bytes(partition, take_array(rest)?))
    };
    (0..number).map(read).collect()
}

/// Reads the reply to a look.
pub(super) fn read_looked(home: Partition, mut bytes: &[u8]) -> Result<ReservationState, StoreError> {
    if bytes.is_empty() {
        return Ok(ReservationState::Unknown);
    }
    let rest = &mut bytes;
    let head = |rest: &mut &[u8]| Some((take(rest, 1)?, take(rest, 6)?, take(rest, 6)?));
    let (state, now, expires_at) = head(rest).ok_or_else(unreadable)?;
    if state != 0 {
        return read_closed(rest).map(ReservationState::Closed).ok_or_else(unreadable);
    }
    let reservation = read_reservation(home, rest).ok_or_else(unreadable)?;
    Ok(ReservationState::Open { now: Timestamp::from_ms(now), expires_at: Timestamp::from_ms(expires_at), reservation })
}

/// Reads the reply to an extension.
pub(super) fn read_extension(bytes: &[u8]) -> Result<Extension, StoreError> {
    match bytes {
        [] => Ok(Extension::Unknown),
        [0, rest @ ..] => {
            let until = take(&mut { rest }, 6).ok_or_else(unreadable)?;
            Ok(Extension::Until(Timestamp::from_ms(until)))
        }
        [_, rest @ ..] => read_closed(rest).map(Extension::Closed).ok_or_else(unreadable),
    }
}

/// Reads the reply to a close.
pub(super) fn read_closure(bytes: &[u8]) -> Result<CloseResult, StoreError> {
    match bytes {
        [0] => Some(CloseResult::Unknown),
        [1, rest @ ..] => read_closed(rest).map(CloseResult::Done),
        [2, rest @ ..] => take(&mut { rest }, 6).map(|now| CloseResult::OutsidePeriod(Timestamp::from_ms(now))),
        [3, rest @ ..] => read_closed(rest).map(CloseResult::Before),
        _ => None,
    }
    .ok_or_else(unreadable)
}

/// Reads how a reservation was closed: the part written by closed.lua, followed by the part given by [`Close`].
fn read_closed(mut rest: &[u8]) -> Option<ClosedReservation> {
    let rest = &mut rest;
    let (at, refunds) = (take(rest, 6)?, take(rest, 1)?);
    let mut refunded = (0..refunds).map(|_| Amount::try_from(take(rest, 7)?).ok()).collect::<Option<Vec<_>>>()?;
    let digest = take_array(rest)?;
    for _ in 0..take(rest, 1)? {
        let (place, amount) = (usize::try_from(take(rest, 1)?).ok()?, Amount::try_from(take(rest, 7)?).ok()?);
        if place > refunded.len() {
            return None;
        }
        refunded.insert(place, amount);
    }
    Some(ClosedReservation { at: Timestamp::from_ms(at), digest, refunded, metadata: (*rest).into() })
}

/// The refunds in other slots: for each its index among all refunds, and the amount.
pub(super) type RefundedAmounts = Vec<(usize, Amount)>;

/// One call of the closing script.
pub(super) struct Close {
    debts: Request,
    /// The ledgers of refunds only, the scopes of slots, the record.
    more_keys: Vec<String>,
    refunds: Vec<u8>,
    body: Vec<u8>,
}

impl Close {
    /// `elsewhere` is in the order of the indexes, and not among the closing's own refunds. The script stores, after
    /// the digest: their number u8, for each its index u8 and amount u56; the metadata.
    pub(super) fn new(
        prefix: &str,
        home: Partition,
        id: ReservationId,
        closing: &CloseRequest<'_>,
        elsewhere: &RefundedAmounts,
    ) -> Self {
        let debts = Request::within(prefix, closing.debts, Mode::Force, Validity::of(closing.debts));
        let slots = &closing.reservation.slots;
        let mut ledgers = debts.ledgers.clone();
        let refunds = pack_refunds(id, slots.len(), closing.refunds, &mut ledgers);
        let more = ledgers[debts.ledgers.len()..].iter().map(|ledger| ledger_key(prefix, ledger));
        let slots = slots.iter().map(|scope| slots_key(prefix, scope));
        let more_keys = more.chain(slots).chain([reservation_key(prefix, home, id)]).collect();
        let mut body = closing.digest.to_vec();
        body.push(small(elsewhere.len()));
        for (place, amount) in elsewhere {
            body.push(small(*place));
            put::<7>(&mut body, amount.get());
        }
        body.extend(closing.metadata);
        Self { debts, more_keys, refunds, body }
    }

    pub(super) fn keys(&self) -> [&[String]; 2] {
        [&self.debts.keys, &self.more_keys]
    }

    pub(super) fn args(&self) -> [&[u8]; 3] {
        [&self.debts.packed, &self.refunds, &self.body]
    }
}

/// The keys and the packed argument of a refund outside any reservation.
pub(super) fn refund(prefix: &str, charges: &[Charge]) -> (Vec<String>, Vec<u8>) {
    let mut ledgers = SmallVec::new();
    let packed = pack_refunds(ReservationId([0; 16]), 0, charges, &mut ledgers);
    (ledgers.iter().map(|ledger| ledger_key(prefix, ledger)).collect(), packed)
}

fn pack_refunds(
    id: ReservationId,
    slots: usize,
    refunds: &[Charge],
    ledgers: &mut SmallVec<[LedgerKey; 4]>,
) -> Vec<u8> {
    let mut packed = id.0.to_vec();
    packed.push(small(slots));
    for charge in refunds {
        put_charge(&mut packed, ledgers, charge);
    }
    packed
}

pub(super) fn take_array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (array, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*array)
}
