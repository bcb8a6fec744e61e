//! Ledgers: all that is counted for one scope, and the one decision over several of them.

use std::{collections::HashMap, hash::BuildHasher};

use smallvec::SmallVec;

use crate::{
    amount::{Amount, UnitId},
    claim::{Charge, Claim, ClaimStatus, ClaimsDecision, Fit, LedgerKey, Mode, ReservationId},
    log::{ColumnReading, Costs, Log},
    slots::Slots,
    time::Timestamp,
    window::{WindowId, WindowInstance},
};

/// Where [`decide`] finds the ledgers of its claims.
pub trait LedgerMap {
    /// The ledger of `key`, if anything was ever charged there.
    fn get(&mut self, key: &LedgerKey) -> Option<&mut Ledger>;

    /// The ledger of `key`, empty if there was none.
    fn get_or_new(&mut self, key: &LedgerKey) -> &mut Ledger;

    /// Takes a place for each of these caller-named ledgers, which are new; false, and none is taken, if their partition
    /// has not so many left. Where nothing is bounded there is always one.
    fn admit_new_keys(&mut self, _keys: &[LedgerKey]) -> bool {
        true
    }
}

/// The default for the maximum number of caller-named ledgers in a partition: counters of one account whose names
/// callers choose.
pub const MAX_CALLER_NAMED: u32 = 10_000;

/// A call would make a caller-named ledger in a partition that has as many as it may. Nothing was charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the account has its maximum number of counters with names that callers choose")]
pub struct CounterCapReached;

impl<S: BuildHasher> LedgerMap for HashMap<LedgerKey, Ledger, S> {
    fn get(&mut self, key: &LedgerKey) -> Option<&mut Ledger> {
        self.get_mut(key)
    }

    fn get_or_new(&mut self, key: &LedgerKey) -> &mut Ledger {
        self.entry(*key).or_default()
    }
}

/// Decides `claims` against `ledgers` at `now`. This function defines the atomic step of every store.
///
/// The caller has made sure that `now` lies in every calendar period of the claims. Counters named
/// by several claims are charged once, and judged by every limit. In [`Mode::Try`] an admission is an error if it
/// would need a caller-named ledger for which there is no place.
pub fn decide(
    ledgers: &mut impl LedgerMap,
    claims: &[Claim],
    mode: Mode,
    now: Timestamp,
) -> Result<ClaimsDecision, CounterCapReached> {
    decide_for(ledgers, claims, mode, now, None)
}

/// The reservation that takes the slots, and the charges that its record needs.
pub(crate) struct ReservationCapture<'a> {
    pub(crate) id: ReservationId,
    pub(crate) ttl_ms: u32,
    pub(crate) charges: &'a mut Vec<Charge>,
}

/// As [`decide`]; if the claims are charged, `holder` takes the slots too.
pub(crate) fn decide_for(
    ledgers: &mut impl LedgerMap,
    claims: &[Claim],
    mode: Mode,
    now: Timestamp,
    mut holder: Option<ReservationCapture<'_>>,
) -> Result<ClaimsDecision, CounterCapReached> {
    if mode != Mode::Peek {
        notice_steps_back(ledgers, claims, now);
    }
    let readings = read(ledgers, claims, now);
    let allowed = readings.iter().all(|reading| reading.fit == Fit::Now);
    let charged = match mode {
        Mode::Try => allowed,
        Mode::Force => true,
        Mode::Peek | Mode::Judge => false,
    };
    if charged && mode == Mode::Try {
        let new = new_caller_named(ledgers, claims, &readings);
        if !new.is_empty() && !ledgers.admit_new_keys(&new) {
            return Err(CounterCapReached);
        }
    }
    for (at, claim) in claims.iter().enumerate() {
        let (before, from_here) = claims.split_at(at);
        if before.iter().any(|other| other.ledger == claim.ledger) {
            continue;
        }
        let mine = || from_here.iter().filter(|other| other.ledger == claim.ledger);
        // At the end of counting a charge is cut to nothing, and changes no more than a look does.
        let adds = |(other, reading): (&Claim, &ColumnReading)| other.ledger == claim.ledger && adds(other, reading);
        if charged && from_here.iter().zip(&readings[at..]).any(adds) {
            ledgers.get_or_new(&claim.ledger).charge(now, mine, |span, unit, number, amount| {
                if let (Some(ReservationCapture { charges, .. }), Some(window)) = (&mut holder, WindowId::of(span)) {
                    record_charge(charges, Charge { ledger: claim.ledger, window, unit, number, amount });
                }
            });
        }
    }
    if let (true, Some(holder)) = (charged, holder) {
        for claim in claims.iter().filter(|claim| claim.span == WindowInstance::Slots && claim.cost > Amount::ZERO) {
            ledgers.get_or_new(&claim.ledger).slots.take(holder.id, holder.ttl_ms, now);
        }
    }
    // A charge changes the usage and the reset time, not whether the call fitted.
    let after = if charged { read(ledgers, claims, now) } else { readings.clone() };
    let statuses = readings.iter().zip(&after).map(|(before, after)| ClaimStatus {
        used: Amount::try_from(after.used).unwrap_or(Amount::MAX),
        resets_at: after.resets_at,
        fit: before.fit,
    });
    Ok(ClaimsDecision { decided_at: now, allowed, statuses: statuses.collect() })
}

/// Whether a charge changes its counter.
fn adds(claim: &Claim, reading: &ColumnReading) -> bool {
    claim.charge() > Amount::ZERO && reading.used < Amount::MAX.get()
}

/// The caller-named ledgers that claims are about to be charged to and that were never charged before, each once.
fn new_caller_named(
    ledgers: &mut impl LedgerMap,
    claims: &[Claim],
    readings: &[ColumnReading],
) -> SmallVec<[LedgerKey; 2]> {
    let mut new: SmallVec<[LedgerKey; 2]> = SmallVec::new();
    for (claim, reading) in claims.iter().zip(readings).filter(|(claim, _)| claim.ledger.is_caller_named()) {
        let is_known = |ledger: &mut Ledger| ledger.was_charged;
        if adds(claim, reading) && !new.contains(&claim.ledger) && !ledgers.get(&claim.ledger).is_some_and(is_known) {
            new.push(claim.ledger);
        }
    }
    new
}

/// Whether a calendar period of the claims is not the one of `now`.
pub fn outside_period(claims: &[Claim], now: Timestamp) -> bool {
    claims.iter().any(|claim| matches!(claim.span, WindowInstance::Calendar { period, .. } if !period.contains(now)))
}

/// Puts a charge beside the counter that it was made on.
fn record_charge(charges: &mut [Charge], made: Charge) {
    let same =
        |known: &&mut Charge| known.ledger == made.ledger && known.window == made.window && known.unit == made.unit;
    if let Some(known) = charges.iter_mut().find(same) {
        *known = made;
    }
}

/// Sets usage aside that the clock is behind of, on the counters of the claims.
fn notice_steps_back(ledgers: &mut impl LedgerMap, claims: &[Claim], now: Timestamp) {
    for claim in claims {
        if let Some(ledger) = ledgers.get(&claim.ledger) {
            ledger.notice_step_back(claim.span, now);
        }
    }
}

fn read(ledgers: &mut impl LedgerMap, claims: &[Claim], now: Timestamp) -> SmallVec<[ColumnReading; 4]> {
    let nothing = Ledger::default();
    let reading = |claim: &Claim| ledgers.get(&claim.ledger).map_or(&nothing, |ledger| &*ledger).read(claim, now);
    claims.iter().map(reading).collect()
}

/// One scope's counters: a log for each window, a column in it for each unit.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    windows: SmallVec<[WindowLog; 2]>,
    slots: Slots,
    was_charged: bool,
}

#[derive(Clone, Debug)]
struct WindowLog {
    log: Log,
    units: SmallVec<[UnitId; 4]>,
}

impl Ledger {
    /// Whether nothing in the ledger counts at `now` or later: it may then be forgotten.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.windows.iter().all(|window| window.is_expired(now)) && self.slots.is_free(now)
    }

    /// Takes up to the amount of a charge out of where it was made, as far as that still counts. Returns how
    /// much was taken.
    pub(crate) fn refund(&mut self, charge: &Charge, now: Timestamp) -> Amount {
        let window = self.windows.iter_mut().find(|window| window.log.is_window(charge.window));
        let taken = window.and_then(|window| {
            let column = window.column(charge.unit)?;
            Some(window.log.refund(charge.number, column, charge.amount.get(), now))
        });
        Amount::try_from(taken.unwrap_or(0)).unwrap_or(Amount::MAX)
    }

    /// The holders of slots.
    pub(crate) fn slots(&mut self) -> &mut Slots {
        &mut self.slots
    }

    fn read(&self, claim: &Claim, now: Timestamp) -> ColumnReading {
        let Claim { span, cost, limit, .. } = *claim;
        match self.windows.iter().find(|window| window.log.is_of(span)) {
            Some(window) => window.log.read(window.column(claim.unit), span, now, cost, limit),
            None => match Log::new(span, now) {
                Some(empty) => empty.read(None, span, now, cost, limit),
                None => self.slots.read(now, cost, limit),
            },
        }
    }

    fn notice_step_back(&mut self, span: WindowInstance, now: Timestamp) {
        if span == WindowInstance::Slots {
            self.slots.notice_step_back(now);
        }
        let behind = self.windows.iter_mut().find(|window| window.log.is_of(span) && window.log.is_behind(span, now));
        if let Some(window) = behind {
            window.log.notice_step_back(span, now);
        }
    }

    /// Removes the entries that have left the windows of the claims.
    fn settle<'a, I: Iterator<Item = &'a Claim>>(&mut self, now: Timestamp, claims: impl Fn() -> I) {
        for window in &mut self.windows {
            if let Some(claim) = claims().find(|claim| window.log.is_of(claim.span)) {
                window.log.roll_window(claim.span, now);
            }
        }
    }

    /// Charges the claims, those of one window as one event, and removes windows without entries. Calls `noted` for
    /// every charged counter, with the number of its entry and the amount.
    fn charge<'a, I: Iterator<Item = &'a Claim>>(
        &mut self,
        now: Timestamp,
        claims: impl Fn() -> I,
        mut noted: impl FnMut(WindowInstance, UnitId, u64, Amount),
    ) {
        self.was_charged = true;
        self.settle(now, &claims);
        for (at, claim) in claims().enumerate() {
            if claims().take(at).any(|earlier| earlier.span == claim.span) {
                continue;
            }
            let mut costs = Costs::new();
            for claim in claims().filter(|other| other.span == claim.span && other.charge() > Amount::ZERO) {
                let Some(window) = self.find_or_new(claim.span, now) else { continue };
                let column = window.column_or_new(claim.unit);
                let cost = claim.charge().get().min(window.log.room(column, claim.span, now));
                if costs.len() <= column {
                    costs.resize(column + 1, 0);
                }
                costs[column] = costs[column].max(cost);
            }
            if costs.iter().any(|cost| *cost > 0)
                && let Some(window) = self.find_or_new(claim.span, now)
            {
                let number = window.log.charge(now, &costs);
                for (unit, cost) in window.units.iter().zip(&costs).filter(|(_, cost)| **cost > 0) {
                    noted(claim.span, *unit, number, Amount::try_from(*cost).unwrap_or(Amount::MAX));
                }
            }
        }
        self.windows.iter_mut().for_each(|window| window.log.forget_passed(now));
        self.windows.retain(|window| !window.is_expired(now));
    }

    fn find_or_new(&mut self, span: WindowInstance, now: Timestamp) -> Option<&mut WindowLog> {
        let known = self.windows.iter().position(|window| window.log.is_of(span));
        let at = if let Some(at) = known {
            at
        } else {
            self.windows.push(WindowLog { log: Log::new(span, now)?, units: SmallVec::new() });
            self.windows.len() - 1
        };
        self.windows.get_mut(at)
    }
}

impl WindowLog {
    fn is_expired(&self, now: Timestamp) -> bool {
        self.log.expires_at().is_none_or(|expires_at| expires_at <= now)
    }

    fn column(&self, unit: UnitId) -> Option<usize> {
        self.units.iter().position(|have| *have == unit)
    }

    fn column_or_new(&mut self, unit: UnitId) -> usize {
        self.column(unit).unwrap_or_else(|| {
            self.units.push(unit);
            self.units.len() - 1
        })
    }
}
