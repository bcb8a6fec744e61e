//! Calls over several slots of a Redis Cluster, where one script reaches only one of them. A **part** is the claims
//! of one partition.
//!
//! All parts are checked first; if one has no capacity the call is refused and nothing was charged. Then the others are
//! charged, and the home last: it is the commit point. Of calls that compete for the last capacity, some are refused
//! after another part was charged; that charge is given back. Only charges of a node that dies in between, or that
//! cannot reach the part any more, stay for their window, which is the safe side of the limit.
//!
//! For a reservation, each part writes a record in its partition, under the same id, so that each is closed once. The
//! record of the home names all of them and is closed last: a client that repeats an end completes it ([`end`]).

mod end;

use std::time::Duration;

use futures_util::future::{join_all, try_join, try_join_all};
use smallvec::SmallVec;
use tokio::time::{Instant, sleep, timeout_at};
use tollgate_core::{
    admission::{claims_fingerprint, slots_of},
    amount::Amount,
    claim::{ApplyResult, Charge, Claim, ClaimStatus, ClaimsDecision, Effect, Mode, Partition, ReservationId},
    reservation::{Admission, AdmitOptions, CloseRequest, IdempotencyKey, NewReservation, Replay, Reservation},
    store::StoreError,
    time::Timestamp,
    window::WindowInstance,
};

pub(super) use self::end::{close, extend};
use super::{
    Bounds, RedisStore,
    admit::{AdmitReply, AdmitRequest},
    records::{OtherPartitions, RefundedAmounts},
    wire::{put_status, read_status, unreadable},
};

/// The delay before refunds that did not reach the server are tried again.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// The claims of one partition, and their indexes in the call.
struct Part {
    partition: Partition,
    claims: Vec<Claim>,
    places: SmallVec<[usize; 8]>,
}

impl Part {
    fn of(partition: Partition) -> Self {
        Self { partition, claims: Vec::new(), places: SmallVec::new() }
    }

    fn add(&mut self, place: usize, claim: &Claim) {
        self.claims.push(*claim);
        self.places.push(place);
    }

    /// Whether an admission leaves something there. A reservation remembers every counter that it may be settled on.
    fn is_charged(&self, is_held: bool) -> bool {
        let is_charged = |claim: &Claim| match (is_held, claim.span) {
            (true, WindowInstance::Slots) => claim.cost > Amount::ZERO,
            (true, _) => claim.effect == Effect::Charge,
            (false, _) => claim.charge() > Amount::ZERO,
        };
        self.claims.iter().any(is_charged)
    }
}

/// Whether the claims are in more than one partition.
pub(super) fn is_needed(claims: &[Claim]) -> bool {
    claims.windows(2).any(|pair| pair[0].ledger.partition != pair[1].ledger.partition)
}

/// Applies the claims part by part.
pub(super) async fn apply(
    store: &RedisStore,
    home: Partition,
    claims: &[Claim],
    mode: Mode,
    bounds: Bounds,
) -> Result<ApplyResult, StoreError> {
    let call = Call::new(store, claims, &AdmitOptions { home, hold: None, request: None }, bounds);
    if mode == Mode::Try {
        return AdmitReply::of(call.decide().await?).into_answer().ok_or_else(unreadable);
    }
    let answers = join_all(call.parts().map(|part| store.apply_at_once(&part.claims, mode, bounds))).await;
    let is_charged =
        |answer: &Result<ApplyResult, StoreError>| mode == Mode::Force && matches!(answer, Ok(ApplyResult::Applied(_)));
    let in_part = answers.iter().any(is_charged);
    let answers = answers.into_iter().collect::<Result<Vec<ApplyResult>, StoreError>>();
    match answers.map(|answers| call.merged(answers)) {
        Err(error) if in_part => Err(half_done(error)),
        // To ask again would charge the other parts twice.
        Ok(ApplyResult::OutsidePeriod(_)) if in_part => Err(late()),
        result => result,
    }
}

/// Admits the claims part by part.
pub(super) async fn admit(
    store: &RedisStore,
    claims: &[Claim],
    terms: &AdmitOptions<'_>,
    bounds: Bounds,
) -> Result<Admission, StoreError> {
    Call::new(store, claims, terms, bounds).decide().await
}

/// A call over several slots.
struct Call {
    store: RedisStore,
    others: Vec<Part>,
    /// The home, or where that has no part in it, any.
    last: Part,
    home: Partition,
    hold: Option<(ReservationId, u32, Vec<u8>)>,
    request: Option<IdempotencyKey>,
    shape: u64,
    bounds: Bounds,
}

impl Call {
    fn new(store: &RedisStore, claims: &[Claim], terms: &AdmitOptions<'_>, bounds: Bounds) -> Self {
        let AdmitOptions { home, hold, request } = *terms;
        let (mut others, mut last): (Vec<Part>, _) = (Vec::new(), Part::of(home));
        for (place, claim) in claims.iter().enumerate() {
            let partition = claim.ledger.partition;
            if partition == home {
                last.add(place, claim);
            } else if let Some(part) = others.iter_mut().find(|part| part.partition == partition) {
                part.add(place, claim);
            } else {
                let mut part = Part::of(partition);
                part.add(place, claim);
                others.push(part);
            }
        }
        if last.claims.is_empty() && hold.is_none() && request.is_none() {
            last = others.pop().unwrap_or(last);
        }
        let hold = hold.map(|NewReservation { id, ttl_ms, metadata }| (id, ttl_ms, metadata.to_vec()));
        let shape = if request.is_some() { claims_fingerprint(claims) } else { 0 };
        Self { store: store.clone(), others, last, home, hold, request, shape, bounds }
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.others.iter().chain([&self.last])
    }

    async fn decide(self) -> Result<Admission, StoreError> {
        let looks = try_join_all(self.others.iter().map(|part| self.peek(part)));
        if !self.others.iter().any(|part| self.charges(part)) {
            // Nothing has to be taken back, so the last part need not be looked at before.
            let looked = looks.await?;
            let mode = if looked.iter().all(fits) { Mode::Try } else { Mode::Judge };
            let said: Vec<AdmitReply> = looked.iter().cloned().map(AdmitReply::of).collect();
            let last = self.admit_home(mode, &self.elsewhere(&said)).await?;
            return self.combine(looked, last);
        }
        let nothing = OtherPartitions::default();
        let (looked, last) = try_join(looks, self.admit_home(Mode::Judge, &nothing)).await?;
        match self.combine(looked.clone(), last.clone())? {
            Admission::Decided(ClaimsDecision { allowed: true, .. }) => {}
            refused => return self.or_replay(refused).await,
        }
        // A caller that gives up must not leave the call incomplete, so the call continues without it.
        let deadline = self.bounds.deadline;
        match timeout_at(deadline, tokio::spawn(self.charge(looked, last))).await {
            Ok(Ok(decided)) => decided,
            Ok(Err(_)) | Err(_) => Err(StoreError::Indeterminate("no answer within the deadline".into())),
        }
    }

    /// Charges the other parts, then the last; or none of them.
    async fn charge(self, looked: Vec<ApplyResult>, looked_last: AdmitReply) -> Result<Admission, StoreError> {
        let made = join_all(self.others.iter().zip(&looked).map(async |(part, looked)| {
            if self.charges(part) { self.ask(part).await } else { Ok(AdmitReply::of(looked.clone())) }
        }))
        .await;
        let mut last = None;
        if made.iter().all(|said| said.as_ref().is_ok_and(AdmitReply::is_admitted)) {
            let made: Vec<AdmitReply> = made.iter().flatten().cloned().collect();
            match self.admit_home(Mode::Try, &self.elsewhere(&made)).await {
                Ok(said) if said.is_admitted() => {
                    return self.combine(made.into_iter().filter_map(AdmitReply::into_answer).collect(), said);
                }
                // It may be admitted, and then needs all its parts.
                Err(error @ StoreError::Indeterminate(_)) => return Err(error),
                other => last = Some(other),
            }
        }
        let is_back = self.give_back(&made).await;
        self.refusal(made, last, (looked, looked_last), is_back).await
    }

    /// A refusal, unless the request was admitted in the meantime: then the answer of that admission counts.
    async fn or_replay(&self, refused: Admission) -> Result<Admission, StoreError> {
        if self.request.is_some() && matches!(refused, Admission::Decided(_)) {
            let said = self.admit_home(Mode::Peek, &OtherPartitions::default()).await?;
            if matches!(said.admission, Admission::Replayed(_) | Admission::IdempotencyConflict) {
                return self.combine(Vec::new(), said);
            }
        }
        Ok(refused)
    }

    /// The answer in place of an admission; `is_back` says whether nothing is charged any more.
    async fn refusal(
        &self,
        made: Vec<Result<AdmitReply, StoreError>>,
        last: Option<Result<AdmitReply, StoreError>>,
        (looked, looked_last): (Vec<ApplyResult>, AdmitReply),
        is_back: bool,
    ) -> Result<Admission, StoreError> {
        let said = || made.iter().chain(&last);
        let errors = said().filter_map(|said| said.as_ref().err());
        if let Some(error) = errors.max_by_key(|error| matches!(error, StoreError::Indeterminate(_))) {
            return Err(if is_back { error.clone() } else { half_done(error.clone()) });
        }
        let outside = said().flatten().find(|said| matches!(said.admission, Admission::OutsidePeriod(_)));
        if let Some(AdmitReply { admission, .. }) = outside {
            return if is_back { Ok(admission.clone()) } else { Err(late()) };
        }
        if let Some(Ok(said)) = &last
            && matches!(said.admission, Admission::Replayed(_) | Admission::IdempotencyConflict)
        {
            return self.combine(Vec::new(), said.clone());
        }
        // Another call was faster. The refusing part keeps its status; the statuses of the others are read again after
        // their charges were given back.
        let mut answers = looked;
        answers.extend(looked_last.into_answer());
        let now = self.parts().zip(&mut answers).zip(made.iter().map(Some).chain([last.as_ref()]));
        join_all(now.map(async |((part, answer), said)| match said {
            Some(Ok(said)) if !said.is_admitted() => *answer = said.clone().into_answer().unwrap_or(answer.clone()),
            _ => {
                if let Ok(now @ ApplyResult::Applied(_)) = self.peek(part).await {
                    *answer = now;
                }
            }
        }))
        .await;
        self.or_replay(self.merged(answers).into()).await
    }

    /// Whether everything is given back that was charged.
    async fn give_back(&self, made: &[Result<AdmitReply, StoreError>]) -> bool {
        // However little time the call has left.
        let deadline = self.store.link.deadline();
        let charged = self.others.iter().zip(made).filter(|(part, _)| self.charges(part));
        let charged = charged.filter_map(|(part, said)| Some((part, said.as_ref().ok()?)));
        let charged = charged.filter(|(_, said)| said.is_admitted());
        let back = join_all(charged.map(|(part, said)| self.give_part_back(part, &said.charges, deadline))).await;
        back.into_iter().all(|is_back| is_back)
    }

    async fn give_part_back(&self, part: &Part, charges: &[Charge], deadline: Instant) -> bool {
        let refunds: Vec<Charge> = charges.iter().filter(|charge| charge.amount > Amount::ZERO).copied().collect();
        let reservation = Reservation { slots: slots_of(&part.claims), ..Reservation::default() };
        let closing =
            CloseRequest { digest: [0; 16], refunds: &refunds, debts: &[], reservation: &reservation, metadata: b"" };
        loop {
            let done = match self.hold {
                Some((id, ..)) => {
                    let none = RefundedAmounts::new();
                    self.store.close_at_once(part.partition, id, &closing, &none, deadline).await.map(drop)
                }
                None => self.store.refund(&refunds, deadline).await,
            };
            match done {
                Ok(()) => return true,
                // Nothing was done.
                Err(StoreError::Unreachable(_) | StoreError::Overloaded(_)) if Instant::now() < deadline => {
                    sleep(TRY_AGAIN_AFTER).await;
                }
                Err(_) => return false,
            }
        }
    }

    fn charges(&self, part: &Part) -> bool {
        part.is_charged(self.hold.is_some())
    }

    async fn peek(&self, part: &Part) -> Result<ApplyResult, StoreError> {
        self.store.apply_at_once(&part.claims, Mode::Judge, self.bounds).await
    }

    /// Admits another part than the last, as a reservation of its own if it is to be one.
    async fn ask(&self, part: &Part) -> Result<AdmitReply, StoreError> {
        let hold = self.hold.as_ref().map(|(id, ttl_ms, _)| NewReservation { id: *id, ttl_ms: *ttl_ms, metadata: b"" });
        let terms = AdmitOptions { home: part.partition, hold, request: None };
        let ask = AdmitRequest {
            claims: &part.claims,
            mode: Mode::Try,
            validity: self.bounds.validity,
            terms: Some(&terms),
            shape: 0,
            tells: true,
            elsewhere: &OtherPartitions::default(),
        };
        self.store.ask(ask, self.bounds.deadline).await
    }

    async fn admit_home(&self, mode: Mode, elsewhere: &OtherPartitions) -> Result<AdmitReply, StoreError> {
        let hold = self.hold.as_ref().filter(|_| mode == Mode::Try);
        let hold = hold.map(|(id, ttl_ms, metadata)| NewReservation { id: *id, ttl_ms: *ttl_ms, metadata });
        if hold.is_none() && self.request.is_none() {
            if self.last.claims.is_empty() {
                let applied =
                    ClaimsDecision { decided_at: Timestamp::default(), allowed: true, statuses: SmallVec::new() };
                return Ok(AdmitReply::of(ApplyResult::Applied(applied)));
            }
            return self.store.apply_at_once(&self.last.claims, mode, self.bounds).await.map(AdmitReply::of);
        }
        let terms = AdmitOptions { home: self.home, hold, request: self.request };
        let ask = AdmitRequest {
            claims: &self.last.claims,
            mode,
            validity: self.bounds.validity,
            terms: Some(&terms),
            shape: self.shape,
            tells: false,
            elsewhere,
        };
        self.store.ask(ask, self.bounds.deadline).await
    }

    /// The data about other parts in the records of the home.
    fn elsewhere(&self, made: &[AdmitReply]) -> OtherPartitions {
        let mut elsewhere = OtherPartitions::default();
        for (part, said) in self.others.iter().zip(made) {
            elsewhere.charges.extend(&said.charges);
            elsewhere.slots.extend(slots_of(&part.claims));
            if let (Admission::Decided(applied), Some(_)) = (&said.admission, self.request) {
                applied.statuses.iter().for_each(|status| put_status(&mut elsewhere.statuses, status));
            }
        }
        elsewhere
    }

    /// The whole answer, with those of the other parts; a replay brings them along.
    fn combine(&self, mut others: Vec<ApplyResult>, last: AdmitReply) -> Result<Admission, StoreError> {
        match last.admission {
            Admission::Decided(applied) => {
                let by = applied.decided_at;
                others.push(ApplyResult::Applied(applied));
                Ok(match self.merged(others) {
                    // The home has decided, by its clock.
                    ApplyResult::Applied(whole) if whole.allowed => {
                        Admission::Decided(ClaimsDecision { decided_at: by, ..whole })
                    }
                    answer => answer.into(),
                })
            }
            Admission::Replayed(replay) if replay.shape == self.shape => {
                let mut rest = &last.statuses[..];
                let mut answers = Vec::with_capacity(self.others.len() + 1);
                for part in &self.others {
                    let statuses = part.claims.iter().map(|_| read_status(&mut rest)).collect::<Option<_>>();
                    let statuses = statuses.ok_or_else(unreadable)?;
                    answers.push(ApplyResult::Applied(ClaimsDecision { statuses, ..replay.applied }));
                }
                answers.push(ApplyResult::Applied(replay.applied));
                match self.merged(answers) {
                    ApplyResult::Applied(applied) => Ok(Admission::Replayed(Replay { applied, ..replay })),
                    ApplyResult::OutsidePeriod(_) => Err(unreadable()),
                }
            }
            known => Ok(known),
        }
    }

    /// Puts the answers of all parts together.
    fn merged(&self, answers: Vec<ApplyResult>) -> ApplyResult {
        let claims = self.parts().map(|part| part.claims.len()).sum();
        let mut whole = ClaimsDecision { decided_at: Timestamp::default(), allowed: true, statuses: SmallVec::new() };
        let mut statuses: SmallVec<[Option<ClaimStatus>; 4]> = SmallVec::from_elem(None, claims);
        for (part, answer) in self.parts().zip(answers) {
            match answer {
                ApplyResult::OutsidePeriod(at) => return ApplyResult::OutsidePeriod(at),
                ApplyResult::Applied(applied) => {
                    // Each server has its own clock; the latest is the time by which all was decided.
                    whole.decided_at = whole.decided_at.max(applied.decided_at);
                    whole.allowed &= applied.allowed;
                    for (place, status) in part.places.iter().zip(applied.statuses) {
                        statuses[*place] = Some(status);
                    }
                }
            }
        }
        whole.statuses = statuses.into_iter().flatten().collect();
        ApplyResult::Applied(whole)
    }
}

fn fits(answer: &ApplyResult) -> bool {
    matches!(answer, ApplyResult::Applied(ClaimsDecision { allowed: true, .. }))
}

/// Some part may have been charged, whatever happened to this one.
fn half_done(error: StoreError) -> StoreError {
    match error {
        StoreError::Indeterminate(_) => error,
        other => StoreError::Indeterminate(format!("only a part of it was done: {other}")),
    }
}

fn late() -> StoreError {
    StoreError::Indeterminate("a calendar period ended while the call was decided".into())
}
