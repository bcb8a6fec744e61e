//! The algorithm of windows. This is the specification: every store must agree with it on every
//! sequence of calls (the conformance suite in `tollgate-store` compares them field for field).
//!
//! Usage has the time of its charge, and a clock may step back. What a sliding window charged up to one window ahead of the
//! clock stays in place: it leaves by its own time, at most one window late. What is further ahead is set aside
//! ([`Aside`]): it counts for one window from when the step is noticed, and again when the clock comes near its own time.
//! Usage of later calendar periods is set aside as well: it counts in the period in which the step is noticed, and
//! again in its own. A step is noticed by a charge or by a refused call; a reading changes nothing.

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

/// The most entries that a trailing window holds: [`EXACT_ENTRIES`], and one for each cell of the window. Then events share
/// the latest entry.
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
        let totals = Costs::new();
        match span {
            WindowInstance::Sliding(window) => {
                let (number, entries) = (now.as_ms(), VecDeque::new());
                Some(Self::Sliding(SlidingLog { window, number, entries, totals, aside: None }))
            }
            WindowInstance::Calendar { id, period } => {
                Some(Self::Calendar(CalendarCount { id, period, totals, previous: None, aside: None }))
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

    /// Brings the log to the window of `now`: removes what has left it, and sets aside what the clock is behind of.
    pub(crate) fn roll_window(&mut self, span: WindowInstance, now: Timestamp) {
        if self.is_behind(span, now) {
            self.notice_step_back(span, now);
        }
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
            Self::Calendar(count) => {
                add(&mut count.totals, costs);
                count.number()
            }
        }
    }

    /// Subtracts up to `amount` from a column of the entry with this number, if it has not expired. Returns how much was
    /// subtracted. The entry is not removed, so entry numbers stay valid.
    pub(crate) fn refund(&mut self, number: u64, column: usize, amount: u64, now: Timestamp) -> u64 {
        let held = match self {
            Self::Sliding(log) => log.held(number, column, now),
            Self::Calendar(count) => count.held(number, column, now),
        };
        let Some(held) = held else { return 0 };
        let taken = amount.min(*held);
        *held -= taken;
        if let Self::Sliding(log) = self
            && number >= log.number
        {
            log.totals[column] -= taken;
        }
        taken
    }

    /// The amount that can still be added to `column` before its sum exceeds the largest amount.
    pub(crate) fn room(&self, column: usize, span: WindowInstance, now: Timestamp) -> u64 {
        Amount::MAX.get() - self.used(column, span, now)
    }

    fn used(&self, column: usize, span: WindowInstance, now: Timestamp) -> u64 {
        let used = match (self, span) {
            (Self::Sliding(log), _) => log.live(column, now) + log.set_aside(column, now),
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

/// Usage at times that the clock has not reached again since it stepped back. Of several steps only the sum is kept.
#[derive(Clone, Debug)]
struct Aside {
    totals: Costs,
    /// When the last step back was noticed; for calendars, the start of the period in which it was.
    noticed_at: Timestamp,
    /// It counts again from here ...
    from: Timestamp,
    /// ... until here.
    until: Timestamp,
    /// The number of the first entry that it holds, and how many there were. Calendar periods have no such entries.
    number: u64,
    count: u64,
}

impl Aside {
    fn total(&self, column: usize) -> u64 {
        self.totals.get(column).copied().unwrap_or(0)
    }

    fn covers(&self, time: Timestamp) -> bool {
        self.from <= time && time < self.until
    }

    /// Adds usage that counts from `from` until `until`, if there is any.
    fn add(aside: &mut Option<Self>, totals: &[u64], from: Timestamp, until: Timestamp, noticed_at: Timestamp) {
        if is_zero(totals) {
            return;
        }
        aside.take_if(|aside| is_zero(&aside.totals));
        let aside =
            aside.get_or_insert_with(|| Self { totals: Costs::new(), noticed_at, from, until, number: 0, count: 0 });
        add(&mut aside.totals, totals);
        aside.noticed_at = noticed_at;
        aside.from = aside.from.min(from);
        aside.until = aside.until.max(until);
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
    aside: Option<Aside>,
}

#[derive(Clone, Debug)]
struct Entry {
    at: Timestamp,
    costs: Costs,
}

/// The largest number of entries that are known to be set aside of a sliding window.
pub const MOST_SET_ASIDE: u64 = u16::MAX as u64;

impl SlidingLog {
    fn charge(&mut self, now: Timestamp, costs: &[u64]) -> u64 {
        add(&mut self.totals, costs);
        let crowded = self.entries.len() >= EXACT_ENTRIES;
        let full = self.entries.len() >= MOST_ENTRIES;
        let cell = |time: Timestamp| time.as_ms() / self.window.cell_ms();
        match self.entries.back_mut() {
            // Events of one millisecond expire together, so one entry holds them exactly. An entry has the time of its
            // latest event, so no event expires early. Behind a clock that stepped back, events join the latest entry.
            Some(latest) if latest.at >= now || full || (crowded && cell(latest.at) == cell(now)) => {
                add(&mut latest.costs, costs);
                latest.at = latest.at.max(now);
            }
            _ => self.entries.push_back(Entry { at: now, costs: costs.into() }),
        }
        self.number + self.entries.len() as u64 - 1
    }

    fn window_ms(&self) -> u64 {
        u64::from(self.window.ms())
    }

    fn is_behind(&self, now: Timestamp) -> bool {
        let limit = now.plus_ms(self.window_ms());
        self.entries.back().is_some_and(|latest| latest.at > limit)
            || self.aside.as_ref().is_some_and(|aside| aside.noticed_at > limit)
    }

    fn notice_step_back(&mut self, now: Timestamp) {
        let (window_ms, count) = (self.window_ms(), self.entries.len() as u64);
        if let Some(latest) = self.entries.back().filter(|latest| latest.at > now.plus_ms(window_ms)) {
            let (from, until) = (latest.at.minus_ms(window_ms), latest.at.plus_ms(window_ms));
            Aside::add(&mut self.aside, &self.totals, from, until, now);
            if let Some(aside) = &mut self.aside {
                let first = if aside.count == 0 { self.number } else { aside.number };
                let next = self.number + count;
                aside.count = (next - first).min(MOST_SET_ASIDE);
                aside.number = next - aside.count;
            }
            self.number += count;
            self.entries.clear();
            self.totals.clear();
        }
        if let Some(aside) = &mut self.aside {
            aside.noticed_at = aside.noticed_at.min(now);
        }
    }

    /// What the entry with this number holds of a column, if it has not expired.
    fn held(&mut self, number: u64, column: usize, now: Timestamp) -> Option<&mut u64> {
        let window_ms = self.window_ms();
        let Some(index) = number.checked_sub(self.number) else {
            let aside = self.aside.as_mut().filter(|aside| aside.until > now)?;
            let is_there = number.checked_sub(aside.number).is_some_and(|index| index < aside.count);
            return aside.totals.get_mut(column).filter(|_| is_there);
        };
        let entry = self.entries.get_mut(usize::try_from(index).ok()?)?;
        if entry.at.plus_ms(window_ms) > now { entry.costs.get_mut(column) } else { None }
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

    /// The total of a column in the window.
    fn live(&self, column: usize, now: Timestamp) -> u64 {
        let expired = self.entries.iter().take_while(|entry| self.leaves_at(entry) <= now);
        let cost = |entry: &Entry| entry.costs.get(column).copied().unwrap_or(0);
        self.totals.get(column).copied().unwrap_or(0) - expired.map(cost).sum::<u64>()
    }

    /// What is set aside of a column and counts now.
    fn set_aside(&self, column: usize, now: Timestamp) -> u64 {
        self.aside.as_ref().filter(|aside| self.counts(aside, now)).map_or(0, |aside| aside.total(column))
    }

    fn counts(&self, aside: &Aside, now: Timestamp) -> bool {
        now < aside.noticed_at.plus_ms(self.window_ms()) || aside.covers(now)
    }

    /// When `aside`, which counts now, does so no more.
    fn aside_ends_at(&self, aside: &Aside, now: Timestamp) -> Timestamp {
        let ends_at = aside.noticed_at.plus_ms(self.window_ms());
        if aside.covers(now) || aside.covers(ends_at) { aside.until } else { ends_at }
    }

    fn resets_at(&self, column: usize, now: Timestamp) -> Timestamp {
        let own = self.expires_at().filter(|_| self.live(column, now) > 0);
        let aside = self.aside.as_ref().filter(|_| self.set_aside(column, now) > 0);
        now.max(own.unwrap_or(now)).max(aside.map_or(now, |aside| self.aside_ends_at(aside, now)))
    }

    /// When `excess` of the unit in `column` will have left the window, oldest first.
    fn freed_at(&self, column: usize, excess: u64, now: Timestamp) -> Option<Timestamp> {
        let aside = self.aside.as_ref().filter(|aside| aside.total(column) > 0);
        let Some(aside) = aside else { return self.entries_leave_at(column, excess, now) };
        let set_aside = self.set_aside(column, now);
        let ends_at = if self.counts(aside, now) { self.aside_ends_at(aside, now) } else { now };
        let of_entries = self.entries_leave_at(column, excess, now);
        let with_aside = match excess.checked_sub(set_aside).filter(|rest| *rest > 0) {
            None => Some(ends_at),
            Some(rest) => self.entries_leave_at(column, rest, now).map(|time| time.max(ends_at)),
        };
        let time = [of_entries, with_aside].into_iter().flatten().min()?;
        // What does not count until then may count again.
        Some(if aside.covers(time) && ends_at != aside.until { aside.until } else { time })
    }

    /// When entries with `excess` of the unit in `column` will have left the window; `None` if they hold less.
    fn entries_leave_at(&self, column: usize, excess: u64, now: Timestamp) -> Option<Timestamp> {
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
        entry.at.plus_ms(self.window_ms())
    }
}

/// The usage in one calendar period, and what other periods need if the clock comes to them again.
#[derive(Clone, Debug)]
pub(crate) struct CalendarCount {
    id: u32,
    period: Period,
    totals: Costs,
    /// The usage of an earlier period, or the sum of several. None is `period` or later.
    previous: Option<Previous>,
    aside: Option<Aside>,
}

#[derive(Clone, Debug)]
struct Previous {
    from: Timestamp,
    until: Timestamp,
    totals: Costs,
}

impl CalendarCount {
    /// Charges of one period have one number: its start.
    fn number(&self) -> u64 {
        self.period.start.as_ms()
    }

    fn used(&self, column: usize, period: Period) -> u64 {
        let own = self.totals.get(column).filter(|_| self.period.start == period.start);
        let aside = self.aside.as_ref();
        let aside = aside.filter(|aside| aside.noticed_at == period.start || aside.covers(period.start));
        own.copied().unwrap_or(0) + aside.map_or(0, |aside| aside.total(column))
    }

    /// The end of `period`; if usage that is set aside counts again then, the end of that.
    fn freed_at(&self, column: Option<usize>, period: Period) -> Timestamp {
        let aside = self.aside.as_ref().filter(|aside| aside.covers(period.end));
        let aside = aside.filter(|aside| column.is_some_and(|column| aside.total(column) > 0));
        aside.map_or(period.end, |aside| aside.until)
    }

    /// Goes back to `period`: sets the usage of later periods aside.
    fn notice_step_back(&mut self, period: Period) {
        let later = std::mem::take(&mut self.totals);
        Aside::add(&mut self.aside, &later, self.period.start, self.period.end, period.start);
        if let Some(Previous { from, until, totals }) = self.previous.take_if(|previous| previous.until > period.start)
        {
            if (from, until) == (period.start, period.end) {
                self.totals = totals;
            } else {
                Aside::add(&mut self.aside, &totals, from, until, period.start);
            }
        }
        if let Some(aside) = &mut self.aside {
            aside.noticed_at = period.start;
        }
        self.period = period;
    }

    /// Goes on to `period`, unless it is the current one.
    fn roll_to(&mut self, period: Period) {
        if self.period.start >= period.start {
            return;
        }
        let (mut from, mut until) = (self.period.start, self.period.end);
        let mut totals = std::mem::take(&mut self.totals);
        if let Some(passed) = self.aside.take_if(|aside| aside.until <= period.start)
            && !is_zero(&passed.totals)
        {
            add(&mut totals, &passed.totals);
            (from, until) = (from.min(passed.from), until.max(passed.until));
        }
        self.previous = Some(Previous { from, until, totals });
        self.period = period;
    }

    /// What the period whose charges have this number holds of a column, if it is not over.
    fn held(&mut self, number: u64, column: usize, now: Timestamp) -> Option<&mut u64> {
        let start = Timestamp::from_ms(number);
        let covers_start = |from, until| from <= start && start < until;
        let (until, totals) = if self.period.start == start {
            (self.period.end, &mut self.totals)
        } else if let Some(previous) = self.previous.as_mut().filter(|it| covers_start(it.from, it.until)) {
            (previous.until, &mut previous.totals)
        } else {
            let aside = self.aside.as_mut().filter(|aside| covers_start(aside.from, aside.until))?;
            (aside.until, &mut aside.totals)
        };
        if until > now { totals.get_mut(column) } else { None }
    }
}

fn add(sums: &mut Costs, costs: &[u64]) {
    if sums.len() < costs.len() {
        sums.resize(costs.len(), 0);
    }
    sums.iter_mut().zip(costs).for_each(|(sum, cost)| *sum = Amount::MAX.get().min(*sum + cost));
}

fn is_zero(totals: &[u64]) -> bool {
    totals.iter().all(|total| *total == 0)
}

fn subtract(sums: &mut Costs, costs: &[u64]) {
    sums.iter_mut().zip(costs).for_each(|(sum, cost)| *sum -= cost);
}
