//! Ledgers: all that is counted for one scope, and the one decision over several of them.

use std::{collections::HashMap, hash::BuildHasher};

use smallvec::SmallVec;

use crate::{
    amount::{Amount, UnitId},
    claim::{Applied, Claim, ClaimStatus, Fit, LedgerKey, Mode},
    log::{Costs, Log, Reading},
    time::Timestamp,
    window::Span,
};

/// Where [`decide`] finds the ledgers of its claims.
pub trait Ledgers {
    /// The ledger of `key`, if anything was ever charged there.
    fn get(&mut self, key: &LedgerKey) -> Option<&mut Ledger>;

    /// The ledger of `key`, empty if there was none.
    fn get_or_new(&mut self, key: &LedgerKey) -> &mut Ledger;
}

impl<S: BuildHasher> Ledgers for HashMap<LedgerKey, Ledger, S> {
    fn get(&mut self, key: &LedgerKey) -> Option<&mut Ledger> {
        self.get_mut(key)
    }

    fn get_or_new(&mut self, key: &LedgerKey) -> &mut Ledger {
        self.entry(*key).or_default()
    }
}

/// Decides `claims` against `ledgers` at `now`: this is what one atomic step of a store means.
///
/// The caller has made sure that `now` lies in every calendar period of the claims. Counters named
/// by several claims are charged once, and judged by every limit.
pub fn decide(ledgers: &mut impl Ledgers, claims: &[Claim], mode: Mode, now: Timestamp) -> Applied {
    let readings = read(ledgers, claims, now);
    let allowed = readings.iter().all(|reading| reading.fit == Fit::Now);
    let charged = match mode {
        Mode::Try => allowed,
        Mode::Force => true,
        Mode::Peek => false,
    };
    for (at, claim) in claims.iter().enumerate() {
        let (before, from_here) = claims.split_at(at);
        if before.iter().any(|other| other.ledger == claim.ledger) {
            continue;
        }
        let mine = || from_here.iter().filter(|other| other.ledger == claim.ledger);
        if charged && mine().any(|claim| claim.charge() > Amount::ZERO) {
            ledgers.get_or_new(&claim.ledger).charge(now, mine);
        } else if let Some(ledger) = ledgers.get(&claim.ledger) {
            ledger.follow_calendar_back(now, mine);
        }
    }
    // What was charged changes how much is used and when it is gone, not whether it fitted.
    let after = if charged { read(ledgers, claims, now) } else { readings.clone() };
    let statuses = readings.iter().zip(&after).map(|(before, after)| ClaimStatus {
        used: Amount::try_from(after.used).unwrap_or(Amount::MAX),
        resets_at: after.resets_at,
        fit: before.fit,
    });
    Applied { decided_at: now, allowed, statuses: statuses.collect() }
}

fn read(ledgers: &mut impl Ledgers, claims: &[Claim], now: Timestamp) -> SmallVec<[Reading; 8]> {
    let nothing = Ledger::default();
    let readings = claims.iter().map(|claim| match ledgers.get(&claim.ledger) {
        Some(ledger) => {
            ledger.redate(now);
            ledger.read(claim, now)
        }
        None => nothing.read(claim, now),
    });
    readings.collect()
}

/// One scope's counters: a log for each window, a column in it for each unit.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    windows: SmallVec<[WindowLog; 2]>,
}

#[derive(Clone, Debug)]
struct WindowLog {
    log: Log,
    units: SmallVec<[UnitId; 4]>,
}

impl Ledger {
    /// Whether nothing in the ledger counts at `now` or later: it may then be forgotten.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.windows.iter().all(|window| window.is_over(now))
    }

    fn read(&self, claim: &Claim, now: Timestamp) -> Reading {
        let Claim { span, cost, limit, .. } = *claim;
        match self.windows.iter().find(|window| window.log.is_of(span)) {
            Some(window) => window.log.read(window.column(claim.unit), span, now, cost, limit),
            None => Log::new(span).read(None, span, now, cost, limit),
        }
    }

    /// When the clock went back, for good: an entry that kept its later date would count for longer
    /// than a window.
    fn redate(&mut self, now: Timestamp) {
        if self.windows.iter().any(|window| window.log.is_ahead_of(now)) {
            self.windows.iter_mut().for_each(|window| window.log.redate(now));
            self.windows.retain(|window| !window.is_over(now));
        }
    }

    /// The same for calendar periods.
    fn follow_calendar_back<'a, I: Iterator<Item = &'a Claim>>(&mut self, now: Timestamp, claims: impl Fn() -> I) {
        let ahead = |window: &WindowLog| {
            claims().any(|claim| window.log.is_of(claim.span) && window.log.is_ahead_of_period(claim.span))
        };
        if self.windows.iter().any(ahead) {
            self.settle(now, claims);
        }
    }

    /// Takes out what has left the windows of the claims, and windows that hold nothing at all.
    fn settle<'a, I: Iterator<Item = &'a Claim>>(&mut self, now: Timestamp, claims: impl Fn() -> I) {
        for window in &mut self.windows {
            if let Some(claim) = claims().find(|claim| window.log.is_of(claim.span)) {
                window.log.settle(claim.span, now);
            }
        }
        self.windows.retain(|window| !window.is_over(now));
    }

    /// Charges the claims, those of one window as one event.
    fn charge<'a, I: Iterator<Item = &'a Claim>>(&mut self, now: Timestamp, claims: impl Fn() -> I) {
        self.settle(now, &claims);
        for (at, claim) in claims().enumerate() {
            if claims().take(at).any(|earlier| earlier.span == claim.span) {
                continue;
            }
            let mut costs = Costs::new();
            for claim in claims().filter(|other| other.span == claim.span && other.charge() > Amount::ZERO) {
                let window = self.find_or_new(claim.span);
                let column = window.column_or_new(claim.unit);
                let cost = claim.charge().get().min(window.log.room(column));
                if costs.len() <= column {
                    costs.resize(column + 1, 0);
                }
                costs[column] = costs[column].max(cost);
            }
            if costs.iter().any(|cost| *cost > 0) {
                self.find_or_new(claim.span).log.charge(now, &costs);
            }
        }
    }

    fn find_or_new(&mut self, span: Span) -> &mut WindowLog {
        let at = self.windows.iter().position(|window| window.log.is_of(span)).unwrap_or_else(|| {
            self.windows.push(WindowLog { log: Log::new(span), units: SmallVec::new() });
            self.windows.len() - 1
        });
        &mut self.windows[at]
    }
}

impl WindowLog {
    fn is_over(&self, now: Timestamp) -> bool {
        self.log.empty_from().is_none_or(|empty_from| empty_from <= now)
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
