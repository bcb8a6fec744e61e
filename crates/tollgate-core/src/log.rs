//! The algorithm of windows. This is the specification: every store must agree with it on every
//! sequence of calls (the conformance suite in `tollgate-store` compares them field for field).
//!
//! Usage has the time of its charge, and a clock may step back. What a sliding window charged up to one window ahead of the
//! clock stays in place: it leaves by its own time, at most one window late. What is further ahead is set aside
//! (`aside.rs`): it counts for one window from when the step is noticed, and again when the clock comes near its own time.
//! Usage of later calendar periods is set aside as well: it counts in the period in which the step is noticed, and
//! again in its own. A step is noticed by a charge or by a refused call; a reading changes nothing.

mod aside;
mod calendar;
mod sliding;

use smallvec::SmallVec;

use self::{calendar::CalendarCount, sliding::SlidingLog};
use crate::{
    amount::{Amount, Limit},
    claim::Fit,
    time::Timestamp,
    window::{WindowId, WindowInstance},
};

/// A trailing window holds this many entries exactly; beyond, events of one cell
/// ([`crate::window::SlidingWindow::cell_ms`]) share an entry.
pub const EXACT_ENTRIES: usize = 1024;

/// The most entries that a trailing window holds: [`EXACT_ENTRIES`], and one for each cell of the window. Then events share
/// the latest entry.
pub const MOST_ENTRIES: usize = 2 * EXACT_ENTRIES;

/// The largest number of entries that are known to be set aside of a sliding window.
pub const MOST_SET_ASIDE: u64 = u16::MAX as u64;

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
    /// An empty log; `None` for slots.
    pub(crate) fn new(span: WindowInstance, now: Timestamp) -> Option<Self> {
        match span {
            WindowInstance::Sliding(window) => Some(Self::Sliding(SlidingLog::new(window, now))),
            WindowInstance::Calendar { id, period } => Some(Self::Calendar(CalendarCount::new(id, period))),
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
        let noticed;
        let log = if self.is_behind(span, now) {
            let mut copy = self.clone();
            copy.notice_step_back(span, now);
            noticed = copy;
            &noticed
        } else {
            self
        };
        let (cost, ceiling) = (cost.get(), limit.ceiling().get());
        let used = column.map_or(0, |column| log.used(column, span, now));
        let resets_at = match (log, span) {
            (Self::Calendar(count), WindowInstance::Calendar { period, .. }) => count.freed_at(column, period),
            (Self::Sliding(log), _) => column.map_or(now, |column| log.resets_at(column, now)),
            (Self::Calendar(_), WindowInstance::Sliding(_) | WindowInstance::Slots) => now,
        };
        let fit = if cost == 0 || used + cost <= ceiling {
            Fit::Now
        } else if cost > ceiling {
            Fit::Never
        } else {
            let time = match (log, column) {
                (Self::Sliding(log), Some(column)) => log.freed_at(column, used + cost - ceiling, now),
                _ => Some(resets_at),
            };
            time.map_or(Fit::Never, Fit::At)
        };
        ColumnReading { used, resets_at, fit }
    }

    /// Whether the clock has stepped back so far that usage must be set aside.
    pub(crate) fn is_behind(&self, span: WindowInstance, now: Timestamp) -> bool {
        match (self, span) {
            (Self::Sliding(log), _) => log.is_behind(now),
            (Self::Calendar(count), WindowInstance::Calendar { period, .. }) => count.period.start > period.start,
            (Self::Calendar(_), WindowInstance::Sliding(_) | WindowInstance::Slots) => false,
        }
    }

    /// Sets usage aside that the clock is behind of.
    pub(crate) fn notice_step_back(&mut self, span: WindowInstance, now: Timestamp) {
        match (self, span) {
            (Self::Sliding(log), _) => log.notice_step_back(now),
            (Self::Calendar(count), WindowInstance::Calendar { period, .. }) => count.notice_step_back(period),
            (Self::Calendar(_), WindowInstance::Sliding(_) | WindowInstance::Slots) => {}
        }
    }

    /// Brings the log, which is not behind, to the window of `now`: removes what has left it.
    pub(crate) fn roll_window(&mut self, span: WindowInstance, now: Timestamp) {
        match (self, span) {
            (Self::Sliding(log), _) => log.expire(now),
            (Self::Calendar(count), WindowInstance::Calendar { period, .. }) => count.roll_to(period),
            (Self::Calendar(_), WindowInstance::Sliding(_) | WindowInstance::Slots) => {}
        }
    }

    /// Adds an event to a log that was brought to the window of `now`. Returns the number of the entry that holds it.
    pub(crate) fn charge(&mut self, now: Timestamp, costs: &[u64]) -> u64 {
        match self {
            Self::Sliding(log) => log.charge(now, costs),
            Self::Calendar(count) => count.charge(costs),
        }
    }

    /// Subtracts up to `amount` from a column of the entry with this number, if it has not expired. Returns how much was
    /// subtracted. The entry is not removed, so entry numbers stay valid.
    pub(crate) fn refund(&mut self, number: u64, column: usize, amount: u64, now: Timestamp) -> u64 {
        match self {
            Self::Sliding(log) => log.refund(number, column, amount, now),
            Self::Calendar(count) => count.refund(number, column, amount, now),
        }
    }

    /// The amount that can still be added to `column` before its sum exceeds the largest amount.
    pub(crate) fn room(&self, column: usize, span: WindowInstance, now: Timestamp) -> u64 {
        Amount::MAX.get() - self.used(column, span, now)
    }

    fn used(&self, column: usize, span: WindowInstance, now: Timestamp) -> u64 {
        let used = match (self, span) {
            (Self::Sliding(log), _) => log.used(column, now),
            (Self::Calendar(count), WindowInstance::Calendar { period, .. }) => count.used(column, period),
            (Self::Calendar(_), WindowInstance::Sliding(_) | WindowInstance::Slots) => 0,
        };
        used.min(Amount::MAX.get())
    }

    /// Removes what is set aside of times that are over.
    pub(crate) fn forget_passed(&mut self, now: Timestamp) {
        let aside = match self {
            Self::Sliding(log) => &mut log.aside,
            Self::Calendar(count) => &mut count.aside,
        };
        aside.take_if(|aside| aside.until <= now);
    }

    /// The time at which the log becomes empty if nothing is charged; `None` if it is empty now.
    pub(crate) fn expires_at(&self) -> Option<Timestamp> {
        let (own, aside) = match self {
            Self::Sliding(log) => (log.expires_at(), &log.aside),
            Self::Calendar(count) => (Some(count.period.end), &count.aside),
        };
        own.max(aside.as_ref().filter(|aside| !is_zero(&aside.totals)).map(|aside| aside.until))
    }
}

fn add(sums: &mut Costs, costs: &[u64]) {
    if sums.len() < costs.len() {
        sums.resize(costs.len(), 0);
    }
    sums.iter_mut().zip(costs).for_each(|(sum, cost)| *sum = Amount::MAX.get().min(*sum + cost));
}

/// Subtracts up to `amount` from `held`, and returns how much.
fn take(held: &mut u64, amount: u64) -> u64 {
    let taken = amount.min(*held);
    *held -= taken;
    taken
}

fn is_zero(totals: &[u64]) -> bool {
    totals.iter().all(|total| *total == 0)
}

fn subtract(sums: &mut Costs, costs: &[u64]) {
    sums.iter_mut().zip(costs).for_each(|(sum, cost)| *sum -= cost);
}
