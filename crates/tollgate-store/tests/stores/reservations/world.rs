//! The steps of the nodes, and the expected results from an exact log that the test keeps.

use tollgate_core::{
    amount::{Amount, Limit, UnitId},
    claim::{ApplyResult, Charge, Claim, ClaimsDecision, Effect, Fit, LedgerKey, Mode, Partition, ReservationId},
    reservation::{
        Admission, AdmitOptions, CloseRequest, CloseResult, Extension, IdempotencyKey, NewReservation, Reservation,
        ReservationState,
    },
    store::Store,
    time::Timestamp,
    window::{Period, SlidingWindow, WindowId, WindowInstance},
};
use tollgate_store::clock::{Clock, ManualClock};

use super::place::{Node, Place};

pub(crate) const WINDOWS: [u64; 2] = [1_000, 60_000];
pub(crate) const PERIOD_MS: u64 = 60_000;
pub(crate) const REQUESTS: u64 = 8;
pub(crate) const TOKENS: u64 = 1_000;
pub(crate) const LONG: u64 = 20_000;
pub(crate) const PERIOD: u64 = 15_000;
pub(crate) const SLOTS: u64 = 3;
pub(crate) const REMEMBERED_MS: u64 = 5_000;

/// The next step. Reservations are identified by the number of later ones.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Pause(u64),
    /// The clock goes back, at most to when something that has expired would count again.
    Back(u64),
    Reserve {
        tokens: u64,
        limit: u64,
        ttl_ms: u32,
        request: Option<u8>,
        lost: bool,
    },
    Settle {
        which: usize,
        tokens: u64,
        twice: bool,
    },
    Cancel {
        which: usize,
    },
    Extend {
        which: usize,
        ttl_ms: u32,
    },
    /// The node dies with a call under way, after so many turns, or as the answer comes.
    Crash {
        after: Option<usize>,
        during: Operation,
    },
}

/// The operation in progress when a node died.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Reserve { tokens: u64, ttl_ms: u32 },
    Settle { which: usize, tokens: u64 },
    Cancel { which: usize },
    Extend { which: usize, ttl_ms: u32 },
}

/// One reservation by the exact log.
#[derive(Clone, Debug)]
pub(crate) struct LoggedReservation {
    id: ReservationId,
    from: Timestamp,
    ends_at: Timestamp,
    tokens: u64,
    /// Its place in the log of charges, and the request.
    entry: usize,
    closed: Option<u64>,
}

/// A charge.
#[derive(Clone, Debug)]
pub(crate) struct LoggedCharge {
    now: Timestamp,
    /// Its time in each of the sliding windows.
    times: [Timestamp; 2],
    requests: u64,
    tokens: u64,
}

impl LoggedCharge {
    fn leaves_at(&self, window: usize) -> Timestamp {
        self.times[window].plus_ms(WINDOWS[window])
    }
}

pub(crate) type Log = Vec<LoggedCharge>;

pub(crate) struct World<'a> {
    place: &'a Place<'a>,
    nodes: Vec<Node>,
    clock: &'a ManualClock,
    runtime: &'a tokio::runtime::Runtime,
    turn: usize,
    log: Log,
    /// The time of the latest charge in each of the sliding windows.
    latest: [Timestamp; 2],
    known: Vec<LoggedReservation>,
    /// By request: since when it is remembered, its reservation, its tokens.
    requests: Vec<(u8, Timestamp, usize, u64)>,
    /// Of the calls that were under way when a node died: how many were not done, and how many were.
    pub(crate) under_way: [u32; 2],
}

pub(crate) fn amount(number: u64) -> Amount {
    Amount::try_from(number).unwrap()
}

pub(crate) fn home() -> Partition {
    Partition::of(["reservations"])
}

/// Requests and tokens in a short window, tokens in a long one and in a calendar period, and a slot. `limit` is that of
/// tokens in the short window.
pub(crate) fn claims(tokens: u64, limit: u64, now: Timestamp) -> Vec<Claim> {
    let ledger = LedgerKey::of(home(), ["resource"]);
    let [short, long] = WINDOWS.map(|ms| WindowInstance::Sliding(SlidingWindow::from_ms(ms).unwrap()));
    let claim = |span, unit, cost, limit| Claim {
        ledger,
        span,
        unit: UnitId::of(unit),
        cost: amount(cost),
        limit: Limit::Finite(amount(limit)),
        effect: Effect::Charge,
    };
    vec![
        claim(short, "requests", 1, REQUESTS),
        claim(short, "tokens", tokens, limit),
        claim(long, "tokens", tokens, LONG),
        claim(WindowInstance::Calendar { id: 1, period: period_of(now) }, "tokens", tokens, PERIOD),
        claim(WindowInstance::Slots, "concurrent_requests", 1, SLOTS),
    ]
}

pub(crate) fn period_of(now: Timestamp) -> Period {
    let start = Timestamp::from_ms(now.as_ms() / PERIOD_MS * PERIOD_MS);
    Period { start, end: start.plus_ms(PERIOD_MS) }
}

impl World<'_> {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The next node: each call goes to another one.
    fn node(&mut self) -> &dyn Store {
        self.turn += 1;
        &*self.nodes[self.turn % self.nodes.len()].store
    }

    /// Does `work` on the next node, which dies after so many turns or as the answer comes; another takes its place.
    fn crash(&mut self, after: Option<usize>, work: impl AsyncFnOnce(&dyn Store)) {
        self.turn += 1;
        let at = self.turn % self.nodes.len();
        self.place.crash(self.nodes.remove(at), after, work);
        self.nodes.push(self.place.node());
    }

    /// A node's answer about a reservation.
    fn look(&mut self, id: ReservationId) -> ReservationState {
        let runtime = self.runtime;
        runtime.block_on(self.node().look(home(), id)).unwrap()
    }

    /// The id of the next reservation.
    fn next_id(&self) -> ReservationId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(self.known.len() as u64 + 1).to_le_bytes());
        ReservationId(id)
    }

    /// Whether each claim of a call fits by the exact log, or when it will.
    fn fits(&self, tokens: u64, limit: u64) -> [Fit; 5] {
        let used = self.expected();
        // Nothing of a unit is never refused, also where a debt went above the limit.
        let judge = |row: usize, cost: u64, limit: u64, wait: &dyn Fn(u64) -> Timestamp| match used[row] + cost {
            _ if cost == 0 => Fit::Now,
            wanted if wanted <= limit => Fit::Now,
            _ if cost > limit => Fit::Never,
            wanted => Fit::At(wait(wanted - limit)),
        };
        // The first entry with which so much has left.
        let leaves = |window: usize, of: fn(&LoggedCharge) -> u64, mut excess: u64| {
            let mut inside = self.log.iter().filter(|charge| charge.leaves_at(window) > self.now());
            let last = inside.find(|charge| {
                excess = excess.saturating_sub(of(charge));
                excess == 0
            });
            last.unwrap().leaves_at(window)
        };
        let slot = |excess: u64| {
            let mut ends: Vec<Timestamp> = self.holders().map(|known| known.ends_at).collect();
            ends.sort_unstable();
            ends[usize::try_from(excess - 1).unwrap()]
        };
        [
            judge(0, 1, REQUESTS, &|excess| leaves(0, |charge| charge.requests, excess)),
            judge(1, tokens, limit, &|excess| leaves(0, |charge| charge.tokens, excess)),
            judge(2, tokens, LONG, &|excess| leaves(1, |charge| charge.tokens, excess)),
            judge(3, tokens, PERIOD, &|_| period_of(self.now()).end),
            judge(4, 1, SLOTS, &slot),
        ]
    }

    fn has_room(&self, tokens: u64, limit: u64) -> bool {
        self.fits(tokens, limit).iter().all(|fit| *fit == Fit::Now)
    }

    /// Writes an admission down; returns its number.
    fn admitted(&mut self, id: ReservationId, tokens: u64, ttl_ms: u32) -> usize {
        let now = self.now();
        self.log_charge(1, tokens);
        let (ends_at, entry) = (now.plus_ms(u64::from(ttl_ms)), self.log.len() - 1);
        self.known.push(LoggedReservation { id, from: now, ends_at, tokens, entry, closed: None });
        self.known.len() - 1
    }

    /// Behind a clock that stepped back, a charge has the time of the latest one of its window.
    fn log_charge(&mut self, requests: u64, tokens: u64) {
        let now = self.now();
        let charges = [requests + tokens > 0, tokens > 0];
        let times = [0, 1].map(|window| now.max(self.latest[window]));
        for window in (0..2).filter(|window| charges[*window]) {
            self.latest[window] = times[window];
        }
        self.log.push(LoggedCharge { now, times, requests, tokens });
    }

    /// Writes the end of a reservation down.
    fn closed(&mut self, at: usize, actual: Option<u64>) {
        let wanted = actual.unwrap_or(0);
        let LoggedReservation { tokens, entry, .. } = self.known[at];
        self.log[entry].tokens -= tokens.saturating_sub(wanted);
        if actual.is_none() {
            self.log[entry].requests = 0;
        }
        self.log_charge(0, wanted.saturating_sub(tokens));
        self.known[at].closed = Some(wanted);
    }

    /// The usage in a window by the exact log: requests, tokens.
    fn inside(&self, window: usize) -> (u64, u64) {
        let inside = self.log.iter().filter(|charge| charge.leaves_at(window) > self.now());
        inside.fold((0, 0), |sum, charge| (sum.0 + charge.requests, sum.1 + charge.tokens))
    }

    /// The holders of slots.
    fn holders(&self) -> impl Iterator<Item = &LoggedReservation> {
        self.known.iter().filter(|known| known.closed.is_none() && known.ends_at > self.now())
    }

    fn expected(&self) -> [u64; 5] {
        let (requests, tokens) = self.inside(0);
        let this_period = self.log.iter().filter(|charge| period_of(self.now()).contains(charge.now));
        let in_period = this_period.map(|charge| charge.tokens).sum();
        [requests, tokens, self.inside(1).1, in_period, self.holders().count() as u64]
    }

    /// The store's status of each counter, and whether a call fits, match the log exactly.
    fn check(&mut self) {
        for tokens in [1, TOKENS, TOKENS + 1] {
            let claims = claims(tokens, TOKENS, self.now());
            let answer = self.runtime.block_on(self.nodes[0].store.apply(&claims, Mode::Peek)).unwrap();
            let ApplyResult::Applied(applied) = answer else { panic!("the period is that of the clock") };
            self.agrees(&applied, self.expected(), self.fits(tokens, TOKENS));
        }
    }

    fn agrees(&self, applied: &ClaimsDecision, used: [u64; 5], fits: [Fit; 5]) {
        let said: Vec<u64> = applied.statuses.iter().map(|status| status.used.get()).collect();
        assert_eq!(said, used, "at {}", self.now());
        let said: Vec<Fit> = applied.statuses.iter().map(|status| status.fit).collect();
        assert_eq!(said, fits, "at {}, with {used:?} used", self.now());
    }

    fn reserve(&mut self, (tokens, limit): (u64, u64), ttl_ms: u32, request: Option<u8>, lost: bool) {
        let hold = NewReservation { id: self.next_id(), ttl_ms, metadata: b"n" };
        let terms =
            AdmitOptions { home: home(), hold: Some(hold), request: request.map(|number| mark(number, tokens)) };
        let (before, now) = (self.expected(), self.now());
        let claims = claims(tokens, limit, now);
        let runtime = self.runtime;
        let mut answer = runtime.block_on(self.node().admit(&claims, &terms)).unwrap();
        if lost && request.is_some() {
            // Nobody saw the first answer: the call comes again, with another id drawn for the reservation.
            let terms = AdmitOptions { hold: Some(NewReservation { id: ReservationId([9; 16]), ..hold }), ..terms };
            let again = runtime.block_on(self.node().admit(&claims, &terms)).unwrap();
            if let (Admission::Decided(first), Admission::Replayed(replay)) = (&answer, &again) {
                assert_eq!((&replay.applied, replay.held.map(|held| held.0)), (first, Some(hold.id)));
            } else {
                let refused = |answer: &Admission| matches!(answer, Admission::Decided(applied) if !applied.allowed);
                assert!(again == answer || refused(&answer) && refused(&again), "{answer:?} {again:?}");
            }
            if let (Admission::Decided(first), false) = (&answer, matches!(again, Admission::Replayed(_))) {
                assert!(!first.allowed);
                answer = again;
            }
        }
        let remembered = request.and_then(|number| {
            let remembered = |from: Timestamp| from.plus_ms(REMEMBERED_MS) > now;
            self.requests.iter().rev().find(|(known, from, ..)| *known == number && remembered(*from)).copied()
        });
        match (answer, remembered) {
            (Admission::Replayed(replay), Some((.., known, first))) => {
                assert_eq!(first % 251, tokens % 251, "the same call");
                assert_eq!(replay.held.unwrap().0, self.known[known].id);
                assert_eq!(self.expected(), before);
            }
            (Admission::IdempotencyConflict, Some((.., first))) => assert_ne!(first % 251, tokens % 251),
            (Admission::Decided(applied), None) => {
                let fits = self.fits(tokens, limit);
                let has_room = self.has_room(tokens, limit);
                assert_eq!(applied.allowed, has_room, "the exact log decides the same: {before:?} + {tokens}");
                if has_room {
                    let made = self.admitted(hold.id, tokens, ttl_ms);
                    if let Some(number) = request {
                        self.requests.push((number, now, made, tokens));
                    }
                }
                // All of it, or nothing; and of a refusal each wait.
                self.agrees(&applied, self.expected(), fits);
            }
            (answer, remembered) => panic!("{answer:?}, and the log says {remembered:?}"),
        }
    }

    /// Settles to `actual` tokens; `None` cancels.
    fn close(&mut self, which: usize, actual: Option<u64>) {
        let Some(at) = self.known.len().checked_sub(which % 16 + 1) else { return };
        let (known, now) = (self.known[at].clone(), self.now());
        let runtime = self.runtime;
        let looked = self.look(known.id);
        let (ReservationState::Open { reservation, .. }, None, true) = (&looked, known.closed, known.ends_at > now)
        else {
            assert_eq!(matches!(looked, ReservationState::Unknown), known.ends_at <= now, "{looked:?}");
            let reservation = &Reservation::default();
            let closing =
                CloseRequest { digest: digest_of(actual), refunds: &[], debts: &[], reservation, metadata: b"" };
            let closure = runtime.block_on(self.node().close(home(), known.id, &closing)).unwrap();
            assert!(matches!(closure, CloseResult::Unknown | CloseResult::Before(_)), "{closure:?}");
            return;
        };
        let (refunds, debts) = corrections(reservation, known.tokens, actual, now);
        let closing =
            CloseRequest { digest: digest_of(actual), refunds: &refunds, debts: &debts, reservation, metadata: b"end" };
        let closure = runtime.block_on(self.node().close(home(), known.id, &closing)).unwrap();
        let CloseResult::Done(closed) = closure else { panic!("{closure:?}") };
        let charged = self.log[known.entry].clone();
        for (charge, refunded) in refunds.iter().zip(&closed.refunded) {
            let live = match charge.window {
                WindowId::Sliding(window) => charged.leaves_at(usize::from(u64::from(window.ms()) != WINDOWS[0])) > now,
                WindowId::Calendar(_) => period_of(now).contains(charged.now),
            };
            assert_eq!(*refunded, if live { charge.amount } else { Amount::ZERO }, "what still counts comes back");
        }
        self.closed(at, actual);
        // A second time, on the other node, it is done already.
        let again = runtime.block_on(self.node().close(home(), known.id, &closing)).unwrap();
        assert_eq!(again, CloseResult::Before(closed));
    }

    fn extend(&mut self, which: usize, ttl_ms: u32) {
        let Some(at) = self.known.len().checked_sub(which % 16 + 1) else { return };
        let (known, now) = (self.known[at].clone(), self.now());
        let slots = vec![LedgerKey::of(home(), ["resource"])];
        let reservation = Reservation { slots, ..Reservation::default() };
        let runtime = self.runtime;
        match runtime.block_on(self.node().extend(home(), known.id, ttl_ms, &reservation)).unwrap() {
            Extension::Until(until) => {
                assert!(known.closed.is_none() && known.ends_at > now);
                (self.known[at].from, self.known[at].ends_at) = (now, until);
            }
            Extension::Closed(_) => assert!(known.closed.is_some() && known.ends_at > now),
            Extension::Unknown => assert!(known.ends_at <= now),
        }
    }

    /// A node dies while it ends a reservation: that is done as a whole, or not at all.
    fn crash_closing(&mut self, after: Option<usize>, which: usize, actual: Option<u64>) {
        let Some(at) = self.known.len().checked_sub(which % 16 + 1) else { return };
        let LoggedReservation { id, tokens, .. } = self.known[at];
        let ReservationState::Open { reservation, .. } = self.look(id) else { return };
        let (refunds, debts) = corrections(&reservation, tokens, actual, self.now());
        let digest = digest_of(actual);
        self.crash(after, async |node| {
            let closing =
                CloseRequest { digest, refunds: &refunds, debts: &debts, reservation: &reservation, metadata: b"end" };
            let _ = node.close(home(), id, &closing).await;
        });
        match self.look(id) {
            ReservationState::Closed(_) => {
                self.closed(at, actual);
                self.under_way[1] += 1;
            }
            ReservationState::Open { .. } => self.under_way[0] += 1,
            ReservationState::Unknown => panic!("a reservation is gone"),
        }
    }

    /// A node dies with a call in progress, which is then completed as a whole or not at all: the record tells which,
    /// and the counters must agree with it.
    fn crash_during(&mut self, after: Option<usize>, under: &Operation) {
        match *under {
            Operation::Reserve { tokens, ttl_ms } => {
                let id = self.next_id();
                let terms = AdmitOptions {
                    home: home(),
                    hold: Some(NewReservation { id, ttl_ms, metadata: b"n" }),
                    request: None,
                };
                let claims = claims(tokens, TOKENS, self.now());
                self.crash(after, async |node| drop(node.admit(&claims, &terms).await));
                let had_room = self.has_room(tokens, TOKENS);
                match self.look(id) {
                    ReservationState::Open { .. } => {
                        assert!(had_room, "admitted without room");
                        self.admitted(id, tokens, ttl_ms);
                        self.under_way[1] += 1;
                    }
                    ReservationState::Unknown => self.under_way[0] += u32::from(had_room),
                    ReservationState::Closed(_) => panic!("nobody closed it"),
                }
            }
            Operation::Settle { which, tokens } => self.crash_closing(after, which, Some(tokens)),
            Operation::Cancel { which } => self.crash_closing(after, which, None),
            Operation::Extend { which, ttl_ms } => {
                let Some(at) = self.known.len().checked_sub(which % 16 + 1) else { return };
                let LoggedReservation { id, ends_at, closed, .. } = self.known[at];
                let slots = vec![LedgerKey::of(home(), ["resource"])];
                let reservation = Reservation { slots, ..Reservation::default() };
                self.crash(after, async |node| drop(node.extend(home(), id, ttl_ms, &reservation).await));
                if let ReservationState::Open { expires_at, .. } = self.look(id) {
                    let extended = self.now().plus_ms(u64::from(ttl_ms));
                    assert!(expires_at == ends_at || closed.is_none() && expires_at == extended, "{expires_at}");
                    if expires_at != ends_at {
                        self.known[at].from = self.now();
                    }
                    self.known[at].ends_at = expires_at;
                }
            }
        }
    }

    /// Promise 6: after a step of at most a window, and of at most the time to live of what is held, everything keeps its time.
    fn go_back(&mut self, ms: u64) {
        let now = self.now();
        let left = self.log.iter().flat_map(|charge| [0, 1].map(|window| charge.leaves_at(window)));
        let ended = self.known.iter().map(|known| known.ends_at);
        let forgotten = self.requests.iter().map(|(_, from, ..)| from.plus_ms(REMEMBERED_MS));
        let over = left.chain(ended).chain(forgotten).filter(|over| *over <= now);
        let shortest = WINDOWS.into_iter().min().unwrap_or(0);
        let times = self.log.iter().flat_map(|charge| charge.times);
        let window_before = times.map(|time| time.as_ms().saturating_sub(shortest));
        let life_before = self.known.iter().map(|known| (2 * known.from.as_ms()).saturating_sub(known.ends_at.as_ms()));
        let near = window_before.chain(life_before).map(Timestamp::from_ms);
        let earliest = over.chain(near).fold(period_of(now).start, Timestamp::max);
        self.clock.set(Timestamp::from_ms(now.as_ms() - ms).max(earliest).min(now));
    }

    pub(crate) fn play(&mut self, events: &[Event]) {
        for event in events {
            match *event {
                Event::Pause(ms) => self.clock.advance_ms(ms),
                Event::Back(ms) => self.go_back(ms),
                Event::Reserve { tokens, limit, ttl_ms, request, lost } => {
                    self.reserve((tokens, limit), ttl_ms, request, lost);
                }
                Event::Settle { which, tokens, twice } => {
                    self.close(which, Some(tokens));
                    if twice {
                        self.close(which, Some(tokens));
                    }
                }
                Event::Cancel { which } => self.close(which, None),
                Event::Extend { which, ttl_ms } => self.extend(which, ttl_ms),
                Event::Crash { after, ref during } => self.crash_during(after, during),
            }
            self.check();
        }
        // Nothing is left of it in the end: no usage leaves a window too late, no slot stays.
        self.clock.advance_ms(3_600_000);
        self.check();
        assert_eq!(self.expected(), [0; 5]);
        self.place.every_key_is_bounded();
    }
}

/// A request, identified by its content.
pub(crate) fn mark(number: u8, tokens: u64) -> IdempotencyKey {
    let digest = [u8::try_from(tokens % 251).unwrap(); 16];
    IdempotencyKey { id: [number; 16], digest, ttl_ms: u32::try_from(REMEMBERED_MS).unwrap() }
}

pub(crate) fn digest_of(actual: Option<u64>) -> [u8; 16] {
    [actual.map_or(255, |tokens| u8::try_from(tokens % 251).unwrap()); 16]
}

/// The refunds and charges of a settlement to `actual` tokens; `None` cancels.
pub(crate) fn corrections(
    reservation: &Reservation,
    reserved: u64,
    actual: Option<u64>,
    now: Timestamp,
) -> (Vec<Charge>, Vec<Claim>) {
    let tokens = UnitId::of("tokens");
    let wanted = actual.unwrap_or(0);
    let over = reserved.saturating_sub(wanted);
    let refund = |charge: &Charge| match (charge.unit == tokens, actual) {
        (true, _) => (over > 0).then(|| Charge { amount: amount(over), ..*charge }),
        (false, None) => Some(*charge),
        (false, Some(_)) => None,
    };
    let debt = wanted.saturating_sub(reserved);
    let debts = claims(debt, TOKENS, now).into_iter().filter(|claim| claim.unit == tokens && debt > 0);
    let debts = debts.map(|claim| Claim { limit: Limit::Unlimited, ..claim }).collect();
    (reservation.charges.iter().filter_map(refund).collect(), debts)
}

pub(crate) fn world<'a>(
    place: &'a Place<'a>,
    nodes: usize,
    clock: &'a ManualClock,
    runtime: &'a tokio::runtime::Runtime,
) -> World<'a> {
    let nodes = (0..nodes).map(|_| place.node()).collect();
    let (log, known, requests) = (Vec::new(), Vec::new(), Vec::new());
    World {
        place,
        nodes,
        clock,
        runtime,
        turn: 0,
        log,
        latest: [Timestamp::default(); 2],
        known,
        requests,
        under_way: [0; 2],
    }
}
