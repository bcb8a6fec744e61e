//! The log of a sliding window.

use std::collections::VecDeque;

use super::{Costs, EXACT_ENTRIES, MOST_ENTRIES, MOST_SET_ASIDE, add, aside::Aside, subtract, take};
use crate::{time::Timestamp, window::SlidingWindow};

/// The events of a trailing window, oldest first.
#[derive(Clone, Debug)]
pub(crate) struct SlidingLog {
    pub(super) window: SlidingWindow,
    /// The number of the oldest entry, or of the next one if there is none. An entry's number never changes.
    number: u64,
    entries: VecDeque<Entry>,
    totals: Costs,
    pub(super) aside: Option<Aside>,
}

#[derive(Clone, Debug)]
struct Entry {
    at: Timestamp,
    costs: Costs,
}

impl SlidingLog {
    /// An empty log. Entry numbers start at the current time in milliseconds, so they differ from those of an earlier log of
    /// the same counter: no log uses more than one number per millisecond.
    pub(super) fn new(window: SlidingWindow, now: Timestamp) -> Self {
        Self { window, number: now.as_ms(), entries: VecDeque::new(), totals: Costs::new(), aside: None }
    }

    pub(super) fn charge(&mut self, now: Timestamp, costs: &[u64]) -> u64 {
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

    pub(super) fn is_behind(&self, now: Timestamp) -> bool {
        let limit = now.plus_ms(self.window_ms());
        self.entries.back().is_some_and(|latest| latest.at > limit)
            || self.aside.as_ref().is_some_and(|aside| aside.noticed_at > limit)
    }

    pub(super) fn notice_step_back(&mut self, now: Timestamp) {
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

    pub(super) fn refund(&mut self, number: u64, column: usize, amount: u64, now: Timestamp) -> u64 {
        let taken = self.held(number, column, now).map_or(0, |held| take(held, amount));
        // What is set aside is not part of the totals.
        if taken > 0 && number >= self.number {
            self.totals[column] -= taken;
        }
        taken
    }

    /// What is used of a column.
    pub(super) fn used(&self, column: usize, now: Timestamp) -> u64 {
        self.live(column, now) + self.set_aside(column, now)
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

    pub(super) fn expire(&mut self, now: Timestamp) {
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

    pub(super) fn resets_at(&self, column: usize, now: Timestamp) -> Timestamp {
        let own = self.expires_at().filter(|_| self.live(column, now) > 0);
        let aside = self.aside.as_ref().filter(|_| self.set_aside(column, now) > 0);
        now.max(own.unwrap_or(now)).max(aside.map_or(now, |aside| self.aside_ends_at(aside, now)))
    }

    /// When `excess` of the unit in `column` will have left the window, oldest first.
    pub(super) fn freed_at(&self, column: usize, excess: u64, now: Timestamp) -> Option<Timestamp> {
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

    pub(super) fn expires_at(&self) -> Option<Timestamp> {
        self.entries.back().map(|latest| self.leaves_at(latest))
    }

    fn leaves_at(&self, entry: &Entry) -> Timestamp {
        entry.at.plus_ms(self.window_ms())
    }
}
