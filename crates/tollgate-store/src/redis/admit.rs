//! Requests of `lua/admit.lua` and its replies. Their layouts are described there.

use smallvec::SmallVec;
use tollgate_core::{
    amount::Amount,
    claim::{ApplyResult, Charge, Claim, ClaimsDecision, LedgerKey, Mode, ReservationId},
    reservation::{Admission, AdmitOptions, Replay},
    store::StoreError,
    time::Timestamp,
    window::WindowId,
};

use super::{
    records::{OtherPartitions, is_counter, request_key, reservation_key, slots_key, take_array, write_body},
    wire::{Request, Validity, put, take, unreadable},
};

/// A request to the admission script: a decision with claims on slots, or one that writes records.
pub(super) struct AdmitRequest<'a> {
    pub(super) claims: &'a [Claim],
    pub(super) mode: Mode,
    pub(super) validity: Validity,
    pub(super) terms: Option<&'a AdmitOptions<'a>>,
    /// The shape of the whole call, for a request's record.
    pub(super) shape: u64,
    /// Whether to return the charges; with [`Mode::Try`].
    pub(super) tells: bool,
    /// Admissions in other slots, for the records.
    pub(super) elsewhere: &'a OtherPartitions,
}

/// The reply of the admission script.
#[derive(Clone)]
pub(super) struct AdmitReply {
    /// Of these claims only.
    pub(super) admission: Admission,
    /// Every counter of the reservation, and its charges, if they were requested.
    pub(super) charges: Vec<Charge>,
    /// [`OtherPartitions::statuses`] of then, if the request was admitted before.
    pub(super) statuses: Vec<u8>,
}

impl AdmitReply {
    pub(super) fn of(admission: impl Into<Admission>) -> Self {
        Self { admission: admission.into(), charges: Vec::new(), statuses: Vec::new() }
    }

    pub(super) fn is_admitted(&self) -> bool {
        matches!(self.admission, Admission::Decided(ClaimsDecision { allowed: true, .. }))
    }

    /// The decision, if no request with this id was admitted before.
    pub(super) fn into_answer(self) -> Option<ApplyResult> {
        match self.admission {
            Admission::Decided(applied) => Some(ApplyResult::Applied(applied)),
            Admission::OutsidePeriod(at) => Some(ApplyResult::OutsidePeriod(at)),
            Admission::Replayed(_) | Admission::IdempotencyConflict => None,
        }
    }
}

/// One call of the admission script.
pub(super) struct Admit<'a> {
    ask: AdmitRequest<'a>,
    request: Request,
    /// The scopes of slots, the reservation's record, the request's record.
    records: Vec<String>,
    terms: Vec<u8>,
    body: Vec<u8>,
}

impl<'a> Admit<'a> {
    /// `request` is that of the claims.
    pub(super) fn new(prefix: &str, ask: AdmitRequest<'a>, request: Request) -> Self {
        let AdmitRequest { claims, terms, .. } = ask;
        let mut scopes: SmallVec<[LedgerKey; 2]> = SmallVec::new();
        let (hold, mark) = (terms.and_then(|terms| terms.hold), terms.and_then(|terms| terms.request));
        let mut packed = vec![u8::from(hold.is_some())];
        packed.extend(hold.map_or([0; 16], |hold| hold.id.0));
        packed.extend(hold.map_or(0, |hold| hold.ttl_ms).to_le_bytes());
        packed.push(u8::from(mark.is_some()));
        packed.extend(mark.map_or([0; 16], |mark| mark.digest));
        packed.extend(mark.map_or(0, |mark| mark.ttl_ms).to_le_bytes());
        packed.extend(ask.shape.to_le_bytes());
        packed.push(u8::from(ask.tells));
        let mut rows = Vec::new();
        for claim in request.on_slots.iter().map(|at| &claims[*at]) {
            let number = scopes.iter().position(|known| *known == claim.ledger).unwrap_or_else(|| {
                scopes.push(claim.ledger);
                scopes.len() - 1
            });
            rows.push(u8::try_from(number + 1).unwrap_or(u8::MAX));
            put::<7>(&mut rows, claim.cost.get());
            put::<7>(&mut rows, claim.limit.ceiling().get());
        }
        packed.push(u8::try_from(scopes.len()).unwrap_or(u8::MAX));
        packed.extend(rows);
        let mut keys: Vec<String> = scopes.iter().map(|scope| slots_key(prefix, scope)).collect();
        let mut body = Vec::new();
        if let (Some(terms), Some(hold)) = (terms, hold) {
            keys.push(reservation_key(prefix, terms.home, hold.id));
            body = write_body(terms.home, claims, &request, ask.elsewhere, hold.metadata);
        }
        if let (Some(terms), Some(mark)) = (terms, mark) {
            keys.push(request_key(prefix, terms.home, &mark.id));
        }
        Self { ask, request, records: keys, terms: packed, body }
    }

    pub(super) fn keys(&self) -> [&[String]; 2] {
        [&self.request.keys, &self.records]
    }

    pub(super) fn args(&self) -> [&[u8]; 4] {
        [&self.request.packed, &self.terms, &self.body, &self.ask.elsewhere.statuses]
    }

    /// Reads the script's reply.
    pub(super) fn read_reply(&self, bytes: &[u8]) -> Result<AdmitReply, StoreError> {
        let mut rest = bytes;
        let (admission, charges, statuses) = match bytes {
            [3, replay @ ..] => {
                let (replay, statuses) = self.read_replay(replay)?;
                (Admission::Replayed(replay), Vec::new(), statuses)
            }
            [4, ..] => (Admission::IdempotencyConflict, Vec::new(), Vec::new()),
            _ => {
                let admission = self.request.read_reply(&mut rest)?.into();
                let is_told =
                    self.ask.tells && matches!(admission, Admission::Decided(ClaimsDecision { allowed: true, .. }));
                let charges = if is_told { self.read_charges(rest).ok_or_else(unreadable)? } else { Vec::new() };
                (admission, charges, Vec::new())
            }
        };
        Ok(AdmitReply { admission, charges, statuses })
    }

    fn read_charges(&self, mut rest: &[u8]) -> Option<Vec<Charge>> {
        let mut charges = Vec::with_capacity(self.request.rows.len());
        for row in &self.request.rows {
            let (number, amount) = (take(&mut rest, 6)?, Amount::try_from(take(&mut rest, 7)?).ok()?);
            if is_counter(self.ask.claims, row) {
                let Claim { ledger, span, unit, .. } = self.ask.claims[row.claim];
                charges.push(Charge { ledger, window: WindowId::of(span)?, unit, number, amount });
            }
        }
        Some(charges)
    }

    fn read_replay(&self, mut rest: &[u8]) -> Result<(Replay, Vec<u8>), StoreError> {
        let mut front = || {
            let (shape, held) = (take(&mut rest, 8)?, take(&mut rest, 1)?);
            let (id, ends_at) = (take_array(&mut rest)?, take(&mut rest, 6)?);
            Some((shape, (held == 1).then(|| (ReservationId(id), Timestamp::from_ms(ends_at)))))
        };
        let (shape, held) = front().ok_or_else(unreadable)?;
        let mut behind = rest;
        let applied = match self.request.read_reply(&mut behind) {
            Ok(ApplyResult::Applied(applied)) if shape == self.ask.shape => applied,
            // Another policy gave other claims then; their statuses are of no use now.
            _ => read_bare(rest).ok_or_else(unreadable)?,
        };
        Ok((Replay { applied, shape, held }, behind.to_vec()))
    }
}

/// An admission without its statuses.
fn read_bare(mut rest: &[u8]) -> Option<ClaimsDecision> {
    let (status, at) = (take(&mut rest, 1)?, take(&mut rest, 6)?);
    let decided_at = Timestamp::from_ms(at);
    Some(ClaimsDecision { decided_at, allowed: status == 1, statuses: SmallVec::new() })
}
