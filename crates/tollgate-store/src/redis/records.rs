//! What crosses the wire to `lua/admit.lua`, `look.lua`, `close.lua` and `extend.lua` and back, and how a
//! reservation is written down. The layouts are stated there; what the scripts only keep is stated here.

use smallvec::SmallVec;
use tollgate_core::{
    amount::{Amount, UnitId},
    claim::{Answer, Claim, Effect, LedgerKey, Mode, Partition},
    reservation::{
        Admission, Charge, Closed, Closing, Closure, Extension, Looked, Replay, Reservation, ReservationId, Terms,
        Window, shape_of,
    },
    store::StoreError,
    time::Timestamp,
    window::SlidingWindow,
};

use super::wire::{Request, Validity, key_in, put, take, unreadable, window_of};

const SLIDING: u64 = 1;
const SLOTS_KEY: &str = "s";
const RESERVATION_KEY: &str = "r";
const REQUEST_KEY: &str = "q";

/// The key of a reservation's record.
pub(super) fn reservation_key(prefix: &str, home: Partition, id: ReservationId) -> String {
    key_in(prefix, home, RESERVATION_KEY, &id.0)
}

/// The key of a scope's slots.
pub(super) fn slots_key(prefix: &str, scope: &LedgerKey) -> String {
    key_in(prefix, scope.partition, SLOTS_KEY, &scope.scope_bytes())
}

/// One call of the admission script.
pub(super) struct Admit {
    pub(super) request: Request,
    /// The scopes of slots, the reservation's record, the request's record.
    records: Vec<String>,
    terms: Vec<u8>,
    body: Vec<u8>,
}

impl Admit {
    /// A decision with claims on slots, or with terms.
    pub(super) fn new(
        prefix: &str,
        claims: &[Claim],
        mode: Mode,
        validity: Validity,
        terms: Option<&Terms<'_>>,
    ) -> Self {
        let request = Request::within(prefix, claims, mode, validity);
        let mut scopes: SmallVec<[LedgerKey; 2]> = SmallVec::new();
        let (hold, mark) = (terms.and_then(|terms| terms.hold), terms.and_then(|terms| terms.request));
        let mut packed = vec![u8::from(hold.is_some())];
        packed.extend(hold.map_or([0; 16], |hold| hold.id.0));
        packed.extend(hold.map_or(0, |hold| hold.ttl_ms).to_le_bytes());
        packed.push(u8::from(mark.is_some()));
        packed.extend(mark.map_or([0; 16], |mark| mark.digest));
        packed.extend(mark.map_or(0, |mark| mark.ttl_ms).to_le_bytes());
        packed.extend(if mark.is_some() { shape_of(claims) } else { 0 }.to_le_bytes());
        let mut rows = Vec::new();
        let mut taken: Vec<LedgerKey> = Vec::new();
        for claim in request.on_slots.iter().map(|at| &claims[*at]) {
            let number = scopes.iter().position(|known| *known == claim.ledger).unwrap_or_else(|| {
                scopes.push(claim.ledger);
                scopes.len() - 1
            });
            rows.push(u8::try_from(number + 1).unwrap_or(u8::MAX));
            put::<7>(&mut rows, claim.cost.get());
            put::<7>(&mut rows, claim.limit.ceiling().get());
            if claim.cost > Amount::ZERO && !taken.contains(&claim.ledger) {
                taken.push(claim.ledger);
            }
        }
        packed.push(u8::try_from(scopes.len()).unwrap_or(u8::MAX));
        packed.extend(rows);
        let mut keys: Vec<String> = scopes.iter().map(|scope| slots_key(prefix, scope)).collect();
        let mut body = Vec::new();
        if let (Some(terms), Some(hold)) = (terms, hold) {
            keys.push(reservation_key(prefix, terms.home, hold.id));
            body = write_body(terms.home, claims, &request, &taken, hold.note);
        }
        if let (Some(terms), Some(mark)) = (terms, mark) {
            keys.push(key_in(prefix, terms.home, REQUEST_KEY, &mark.id));
        }
        Self { request, records: keys, terms: packed, body }
    }

    pub(super) fn keys(&self) -> [&[String]; 2] {
        [&self.request.keys, &self.records]
    }

    pub(super) fn args(&self) -> [&[u8]; 3] {
        [&self.request.packed, &self.terms, &self.body]
    }

    /// Reads the script's reply.
    pub(super) fn read_reply(&self, bytes: &[u8]) -> Result<Admission, StoreError> {
        match bytes {
            [3, rest @ ..] => self.read_replay(rest),
            [4, ..] => Ok(Admission::OtherCall),
            _ => match self.request.read_reply(bytes)? {
                Answer::Applied(applied) => Ok(Admission::Decided(applied)),
                Answer::OutsidePeriod(at) => Ok(Admission::OutsidePeriod(at)),
            },
        }
    }

    fn read_replay(&self, mut rest: &[u8]) -> Result<Admission, StoreError> {
        let mut front = || {
            let (shape, held) = (take(&mut rest, 8)?, take(&mut rest, 1)?);
            let (id, ends_at) = (take_array(&mut rest)?, take(&mut rest, 6)?);
            Some((shape, (held == 1).then(|| (ReservationId(id), Timestamp::from_ms(ends_at)))))
        };
        let (shape, held) = front().ok_or_else(unreadable)?;
        let applied = match self.request.read_reply(rest) {
            Ok(Answer::Applied(applied)) => applied,
            // Another policy gave other claims then; their statuses are of no use now.
            _ => read_bare(rest).ok_or_else(unreadable)?,
        };
        Ok(Admission::Replayed(Replay { applied, shape, held }))
    }
}

/// An admission without its statuses.
fn read_bare(mut rest: &[u8]) -> Option<tollgate_core::claim::Applied> {
    let (status, at) = (take(&mut rest, 1)?, take(&mut rest, 6)?);
    let decided_at = Timestamp::from_ms(at);
    Some(tollgate_core::claim::Applied { decided_at, allowed: status == 1, statuses: SmallVec::new() })
}

/// What a reservation's record begins with: number of ledgers u8, the ledgers; number of rows u8, and for each of
/// the script's rows whether it is a counter of the reservation u8 and, if so, ledger u8, kind u8, id u32, unit
/// u32; number of scopes of slots u8, the scopes; length of the note u16, the note. A ledger or scope is a u8, 1 if
/// its partition of 12 bytes follows, as it is not the record's own, and its 8 bytes. Behind it the script writes,
/// for each row, where and how much was charged.
fn write_body(home: Partition, claims: &[Claim], request: &Request, taken: &[LedgerKey], note: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(64 + 12 * request.rows.len() + note.len());
    let small = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
    let put_ledger = |body: &mut Vec<u8>, ledger: &LedgerKey| {
        body.push(u8::from(ledger.partition != home));
        if ledger.partition != home {
            body.extend(ledger.partition.bytes());
        }
        body.extend(ledger.scope_bytes());
    };
    body.push(small(request.ledgers.len()));
    for ledger in &request.ledgers {
        put_ledger(&mut body, ledger);
    }
    body.push(small(request.rows.len()));
    for row in &request.rows {
        let claim = &claims[row.claim];
        let same = |other: &&Claim| {
            (other.ledger, other.span, other.unit) == (claim.ledger, claim.span, claim.unit)
                && other.effect == Effect::Charge
        };
        let counts = row.same_as.is_none() && claims.iter().any(|other| same(&other));
        body.push(u8::from(counts));
        if counts {
            let (kind, id) = window_of(claim.span);
            body.extend([row.ledger, kind]);
            body.extend(id.to_le_bytes());
            body.extend(claim.unit.get().to_le_bytes());
        }
    }
    body.push(small(taken.len()));
    for scope in taken {
        put_ledger(&mut body, scope);
    }
    put::<2>(&mut body, note.len() as u64);
    body.extend(note);
    body
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
        let ledger = *ledgers.get(usize::try_from(take(rest, 1)?).ok()?.checked_sub(1)?)?;
        let (kind, id) = (take(rest, 1)?, take(rest, 4)?);
        let window = match kind {
            SLIDING => Window::Sliding(SlidingWindow::from_ms(id).ok()?),
            _ => Window::Calendar(u32::try_from(id).ok()?),
        };
        let unit = UnitId::from_number(u32::try_from(take(rest, 4)?).ok()?);
        rows.push(Some(Charge { ledger, window, unit, number: 0, amount: Amount::ZERO }));
    }
    let slots = read_ledgers(home, rest)?;
    let length = usize::try_from(take(rest, 2)?).ok()?;
    let (note, charged) = rest.split_at_checked(length)?;
    *rest = charged;
    for row in &mut rows {
        let (number, amount) = (take(rest, 6)?, take(rest, 7)?);
        if let Some(charge) = row {
            (charge.number, charge.amount) = (number, Amount::try_from(amount).ok()?);
        }
    }
    Some(Reservation { charges: rows.into_iter().flatten().collect(), slots, note: note.into() })
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
pub(super) fn read_looked(home: Partition, mut bytes: &[u8]) -> Result<Looked, StoreError> {
    if bytes.is_empty() {
        return Ok(Looked::Unknown);
    }
    let rest = &mut bytes;
    let head = |rest: &mut &[u8]| Some((take(rest, 1)?, take(rest, 6)?, take(rest, 6)?));
    let (state, now, expires_at) = head(rest).ok_or_else(unreadable)?;
    if state != 0 {
        return read_closed(rest).map(Looked::Closed).ok_or_else(unreadable);
    }
    let reservation = read_reservation(home, rest).ok_or_else(unreadable)?;
    Ok(Looked::Open { now: Timestamp::from_ms(now), expires_at: Timestamp::from_ms(expires_at), reservation })
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
pub(super) fn read_closure(bytes: &[u8]) -> Result<Closure, StoreError> {
    match bytes {
        [0] => Some(Closure::Unknown),
        [1, rest @ ..] => read_closed(rest).map(Closure::Done),
        [2, rest @ ..] => take(&mut { rest }, 6).map(|now| Closure::OutsidePeriod(Timestamp::from_ms(now))),
        [3, rest @ ..] => read_closed(rest).map(Closure::Before),
        _ => None,
    }
    .ok_or_else(unreadable)
}

fn read_closed(mut rest: &[u8]) -> Option<Closed> {
    let rest = &mut rest;
    let (at, refunds) = (take(rest, 6)?, take(rest, 1)?);
    let refunded = (0..refunds).map(|_| Amount::try_from(take(rest, 7)?).ok()).collect::<Option<_>>()?;
    let digest = take_array(rest)?;
    Some(Closed { at: Timestamp::from_ms(at), digest, refunded, note: (*rest).into() })
}

/// One call of the closing script.
pub(super) struct Close {
    pub(super) debts: Request,
    /// The ledgers of refunds alone, the scopes of slots, the record.
    pub(super) keys: Vec<String>,
    pub(super) refunds: Vec<u8>,
    pub(super) body: Vec<u8>,
}

impl Close {
    pub(super) fn new(prefix: &str, home: Partition, id: ReservationId, closing: &Closing<'_>) -> Self {
        let debts = Request::within(prefix, closing.debts, Mode::Force, Validity::of(closing.debts));
        let mut ledgers = debts.ledgers.clone();
        let mut refunds = id.0.to_vec();
        refunds.push(u8::try_from(closing.slots.len()).unwrap_or(u8::MAX));
        for charge in closing.refunds {
            let number = ledgers.iter().position(|known| *known == charge.ledger).unwrap_or_else(|| {
                ledgers.push(charge.ledger);
                ledgers.len() - 1
            });
            let (kind, window) = match charge.window {
                Window::Sliding(window) => (1, window.ms()),
                Window::Calendar(id) => (2, id),
            };
            refunds.extend([u8::try_from(number + 1).unwrap_or(u8::MAX), kind]);
            refunds.extend(window.to_le_bytes());
            refunds.extend(charge.unit.get().to_le_bytes());
            put::<6>(&mut refunds, charge.number);
            put::<7>(&mut refunds, charge.amount.get());
        }
        let more = ledgers[debts.ledgers.len()..].iter();
        let more = more.map(|ledger| key_in(prefix, ledger.partition, "", &ledger.scope_bytes()));
        let slots = closing.slots.iter().map(|scope| slots_key(prefix, scope));
        let keys = more.chain(slots).chain([reservation_key(prefix, home, id)]).collect();
        let body = [&closing.digest, closing.note].concat();
        Self { debts, keys, refunds, body }
    }
}

fn take_array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (array, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*array)
}
