//! The windows' algorithm. This is the specification: every other store must agree with it on every
//! sequence of calls (the conformance suite in `tollgate-store` compares them field for field).

use std::collections::VecDeque;

use smallvec::SmallVec;

use crate::{
    amount::{Amount, Limit},
    claim::Fit,
    time::Timestamp,
    window::{Period, SlidingWindow, WindowId, WindowInstance},
};

/// A trailing window holds this many entries exactly; beyond, events of one cell
/// ([`SlidingWindow::cell_ms`]) share an entry.
pub const EXACT_ENTRIES: usize = 1024;

/// The most entries a trailing window ever holds: as many again, one for each cell of the window.
/// Only a clock that went back can bring a log that far; then events share the latest entry.
pub const MOST_ENTRIES: usize = 2 * EXACT_ENTRIES;

/// One value for each unit a window counts, in the order in which the units first came.
pub(crate) type Costs = SmallVec<[u64; 2]>;

/// The events of one window, for every unit counted there. Reading a log never changes it: expired entries are removed
/// only when something is charged.
#[derive(Clone, Debug)]
pub(crate) enum Log {
    Sliding(SlidingLog),
    Calendar(CalendarCount),
}

/// A unit's column in a log, at one time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ColumnReading {
    pub(crate) used: u64,
    pub(crate) resets_at: Timestamp,
    pub(crate) fit: Fit,
}

impl Log {
    /// An empty log; `None` for slots. Entry numbers start at the current time in milliseconds, so they differ from
    /// those of an earlier log of the same counter: no log uses more than one number per millisecond.
    pub(crate) fn new(span: WindowInstance, now: Timestamp) -> Option<Self> {
        let number = now.as_ms();
        match span {
            WindowInstance::Sliding(window) => {
                Some(Self::Sliding(SlidingLog { window, number, entries: VecDeque::new(), totals: Costs::new() }))
            }
            WindowInstance::Calendar { id, period } => {
                Some(Self::Calendar(CalendarCount { id, number, period, totals: Costs::new() }))
            }
            WindowInstance::Slots => None,
        }
    }

    pub(crate) fn is_of(&self, span: WindowInstance) -> bool {
        match (self, span) {
            (Self::Sliding(log), WindowInstance::Sliding(window)) => log.window == window,
            (Self::Calendar(count), WindowInstance::Calendar { id, .. }) => count.id == id,
            _ => false,
        }
    }

    /// The same, for a window of which no period is known.
    pub(crate) fn is_window(&self, window: WindowId) -> bool {
        match (self, window) {
            (Self::Sliding(log), WindowId::Sliding(window)) => log.window == window,
            (Self::Calendar(count), WindowId::Calendar(id)) => count.id == id,
            _ => false,
        }
    }

    /// Reads the unit of `column` at `now`, within `span`, for a call that costs `cost`.
    pub(crate) fn read(
        &self,
        column: Option<usize>,
        span: WindowInstance,
        now: Timestamp,
        cost: Amount,
        limit: Limit,
    ) -> ColumnReading {
        let live = match (self, span) {
            (Self::Sliding(log), _) => log.totals_at(now),
            (Self::Calendar(count), WindowInstance::Calendar { period, .. }) => count.totals_in(period),
            (Self::Calendar(_), WindowInstance::Sliding(_) | WindowInstance::Slots) => Costs::new(),
        };
        let used = column.and_then(|column| live.get(column)).copied().unwrap_or(0);
        let resets_at = match (self, span) {
            (_, WindowInstance::Calendar { period, .. }) => period.end,
            (Self::Sliding(log), _) if used > 0 => log.expires_at().unwrap_or(now),
            _ => now,
        };
        let (cost, ceiling) = (cost.get(), limit.ceiling().get());
        let wanted = used + cost;
        let fit = if cost == 0 || wanted <= ceiling {
            Fit::Now
        } else if cost > ceiling {
            Fit::Never
        } else {
            let at = match (self, column) {
                (Self::Sliding(log), Some(column)) => log.freed_at(column, wanted - ceiling, now),
                _ => Some(resets_at),
            };
            at.map_or(Fit::Never, Fit::At)
        };
        ColumnReading { used, resets_at, fit }
    }

    /// Whether the log has entries later than `now`, because the clock went back.
    pub(crate) fn is_ahead_of(&self, now: Timestamp) -> bool {
        matches!(self, Self::Sliding(log) if log.entries.back().is_some_and(|latest| latest.at > now))
    }

    /// Makes later-dated entries count as of now.
    pub(crate) fn clamp_future_entries(&mut self, now: Timestamp) {
        if let Self::Sliding(log) = self {
            log.entries.iter_mut().rev().take_while(|entry| entry.at > now).for_each(|entry| entry.at = now);
        }
    }

    /// Whether the log counts usage in a later calendar period, because the clock went back.
    pub(crate) fn is_ahead_of_period(&self, span: WindowInstance) -> bool {
        match (self, span) {
            (Self::Calendar(count), WindowInstance::Calendar { period, .. }) => {
                count.period.start > period.start && count.totals.iter().any(|total| *total > 0)
            }
            _ => false,
        }
    }

    /// Removes the entries that are no longer in the window.
    pub(crate) fn roll_window(&mut self, span: WindowInstance, now: Timestamp) {
        match (self, span) {
            (Self::Sliding(log), _) => log.expire(now),
            (Self::Calendar(count), WindowInstance::Calendar { period, .. }) => {
                if count.period.start < period.start {
                    count.number += 1;
                }
                count.totals = count.totals_in(period);
                count.period = period;
            }
            (Self::Calendar(_), WindowInstance::Sliding(_) | WindowInstance::Slots) => {}
        }
    }

    /// Adds an event to a settled log. Returns the number of the entry that holds it.
    pub(crate) fn charge(&mut self, now: Timestamp, costs: &[u64]) -> u64 {
        match self {
            Self::Sliding(log) => log.charge(now, costs),
            Self::Calendar(count) => {
                add(&mut count.totals, costs);
                count.number
            }
        }
    }

    /// Takes up to `amount` of a column out of the entry with this number, where that still counts at `now`.
    /// Returns how much was taken. The entry keeps its place, so that numbers stay addresses.
    pub(crate) fn refund(&mut self, number: u64, column: usize, amount: u64, now: Timestamp) -> u64 {
        match self {
            Self::Sliding(log) => log.refund(number, column, amount, now),
            Self::Calendar(count) if count.number == number && count.period.end > now => {
                let Some(total) = count.totals.get_mut(column) else { return 0 };
                let taken = amount.min(*total);
                *total -= taken;
                taken
            }
            Self::Calendar(_) => 0,
        }
    }

    /// The amount that can still be added to `column` before its sum exceeds the largest amount. The log must be rolled
    /// to the current window.
    pub(crate) fn room(&self, column: usize) -> u64 {
        let totals = match self {
            Self::Sliding(log) => &log.totals,
            Self::Calendar(count) => &count.totals,
        };
        Amount::MAX.get() - totals.get(column).copied().unwrap_or(0)
    }

    /// From when on the log holds nothing, if nothing is charged; `None` if it holds nothing now.
    pub(crate) fn expires_at(&self) -> Option<Timestamp> {
        match self {
            Self::Sliding(log) => log.expires_at(),
            Self::Calendar(count) => Some(count.period.end),
        }
    }
}

/// The events of a trailing window, oldest first.
#[derive(Clone, Debug)]
pub(crate) struct SlidingLog {
    window: SlidingWindow,
    /// The number of the oldest entry, or of the next one if there is none. An entry's number never changes.
    number: u64,
    entries: VecDeque<Entry>,
    totals: Costs,
}

#[derive(Clone, Debug)]
struct Entry {
    at: Timestamp,
    costs: Costs,
}

impl SlidingLog {
    fn charge(&mut self, now: Timestamp, costs: &[u64]) -> u64 {
        add(&mut self.totals, costs);
        let crowded = self.entries.len() >= EXACT_ENTRIES;
        let full = self.entries.len() >= MOST_ENTRIES;
        let cell = |at: Timestamp| at.as_ms() / self.window.cell_ms();
        match self.entries.back_mut() {
            // Events of the same millisecond leave together, so one entry holds them exactly. A
            // shared entry carries the time of its latest event: nothing leaves early.
            Some(latest) if latest.at == now || full || (crowded && cell(latest.at) == cell(now)) => {
                add(&mut latest.costs, costs);
                latest.at = now;
            }
            _ => self.entries.push_back(Entry { at: now, costs: costs.into() }),
        }
        self.number + self.entries.len() as u64 - 1
    }

    fn refund(&mut self, number: u64, column: usize, amount: u64, now: Timestamp) -> u64 {
        let at = number.checked_sub(self.number).and_then(|at| usize::try_from(at).ok());
        let window_ms = u64::from(self.window.ms());
        let entry = at.and_then(|at| self.entries.get_mut(at)).filter(|entry| entry.at.plus_ms(window_ms) > now);
        let Some(held) = entry.and_then(|entry| entry.costs.get_mut(column)) else { return 0 };
        let taken = amount.min(*held);
        *held -= taken;
        self.totals[column] -= taken;
        taken
    }

    fn expire(&mut self, now: Timestamp) {
        while let Some(oldest) = self.entries.front()
            && self.leaves_at(oldest) <= now
        {
            subtract(&mut self.totals, &oldest.costs);
            self.entries.pop_front();
            self.number += 1;
        }
    }

    fn totals_at(&self, now: Timestamp) -> Costs {
        let mut totals = self.totals.clone();
        let left = self.entries.iter().take_while(|entry| self.leaves_at(entry) <= now);
        left.for_each(|entry| subtract(&mut totals, &entry.costs));
        totals
    }

    /// When `excess` of the unit in `column` will have left the window, oldest first.
    fn freed_at(&self, column: usize, excess: u64, now: Timestamp) -> Option<Timestamp> {
        let mut freed = 0;
        let live = self.entries.iter().skip_while(|entry| self.leaves_at(entry) <= now);
        let last_needed = live.into_iter().find(|entry| {
            freed += entry.costs.get(column).copied().unwrap_or(0);
            freed >= excess
        });
        last_needed.map(|entry| self.leaves_at(entry))
    }

    fn expires_at(&self) -> Option<Timestamp> {
        self.entries.back().map(|latest| self.leaves_at(latest))
    }

    fn leaves_at(&self, entry: &Entry) -> Timestamp {
        entry.at.plus_ms(u64::from(self.window.ms()))
    }
}

/// The usage in one calendar period.
#[derive(Clone, Debug)]
pub(crate) struct CalendarCount {
    id: u32,
    /// Changes whenever the count starts again at zero.
    number: u64,
    period: Period,
    totals: Costs,
}

impl CalendarCount {
    /// Usage of an earlier period is over. Usage of a later one (the clock went back) counts in this period.
    fn totals_in(&self, period: Period) -> Costs {
        if self.period.start < period.start { Costs::new() } else { self.totals.clone() }
    }
}

fn add(sums: &mut Costs, costs: &[u64]) {
    if sums.len() < costs.len() {
        sums.resize(costs.len(), 0);
    }
    sums.iter_mut().zip(costs).for_each(|(sum, cost)| *sum += cost);
}

fn subtract(sums: &mut Costs, costs: &[u64]) {
    sums.iter_mut().zip(costs).for_each(|(sum, cost)| *sum -= cost);
}
