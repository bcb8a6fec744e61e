//! The count of a calendar period.

use super::{Costs, add, aside::Aside, is_zero, take};
use crate::{time::Timestamp, window::Period};

/// The usage in one calendar period, and what other periods need if the clock comes to them again.
#[derive(Clone, Debug)]
pub(crate) struct CalendarCount {
    pub(super) id: u32,
    pub(super) period: Period,
    totals: Costs,
    /// The usage of an earlier period, or the sum of several. None is `period` or later.
    previous: Option<Previous>,
    pub(super) aside: Option<Aside>,
}

#[derive(Clone, Debug)]
struct Previous {
    from: Timestamp,
    until: Timestamp,
    totals: Costs,
}

impl CalendarCount {
    pub(super) fn new(id: u32, period: Period) -> Self {
        Self { id, period, totals: Costs::new(), previous: None, aside: None }
    }

    /// Adds a charge. All charges of a period have one number: its start.
    pub(super) fn charge(&mut self, costs: &[u64]) -> u64 {
        add(&mut self.totals, costs);
        self.period.start.as_ms()
    }

    pub(super) fn refund(&mut self, number: u64, column: usize, amount: u64, now: Timestamp) -> u64 {
        self.held(number, column, now).map_or(0, |held| take(held, amount))
    }

    pub(super) fn used(&self, column: usize, period: Period) -> u64 {
        let own = self.totals.get(column).filter(|_| self.period.start == period.start);
        let aside = self.aside.as_ref();
        let aside = aside.filter(|aside| aside.noticed_at == period.start || aside.covers(period.start));
        own.copied().unwrap_or(0) + aside.map_or(0, |aside| aside.total(column))
    }

    /// The end of `period`; if usage that is set aside counts again then, the end of that.
    pub(super) fn freed_at(&self, column: Option<usize>, period: Period) -> Timestamp {
        let aside = self.aside.as_ref().filter(|aside| aside.covers(period.end));
        let aside = aside.filter(|aside| column.is_some_and(|column| aside.total(column) > 0));
        aside.map_or(period.end, |aside| aside.until)
    }

    /// Goes back to `period`: sets the usage of later periods aside.
    pub(super) fn notice_step_back(&mut self, period: Period) {
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
    pub(super) fn roll_to(&mut self, period: Period) {
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
