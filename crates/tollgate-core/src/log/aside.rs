//! Usage that is set aside because the clock stepped back.

use super::{Costs, add, is_zero};
use crate::time::Timestamp;

/// Usage at times that the clock has not reached again since it stepped back. Of several steps only the sum is kept.
#[derive(Clone, Debug)]
pub(super) struct Aside {
    pub(super) totals: Costs,
    /// When the last step back was noticed; for calendars, the start of the period in which it was.
    pub(super) noticed_at: Timestamp,
    /// It counts again from here ...
    pub(super) from: Timestamp,
    /// ... until here.
    pub(super) until: Timestamp,
    /// The number of the first entry that it holds, and how many there were. Calendar periods have no such entries.
    pub(super) number: u64,
    pub(super) count: u64,
}

impl Aside {
    pub(super) fn total(&self, column: usize) -> u64 {
        self.totals.get(column).copied().unwrap_or(0)
    }

    pub(super) fn covers(&self, time: Timestamp) -> bool {
        self.from <= time && time < self.until
    }

    /// Adds usage that counts from `from` until `until`, if there is any.
    pub(super) fn add(
        aside: &mut Option<Self>,
        totals: &[u64],
        from: Timestamp,
        until: Timestamp,
        noticed_at: Timestamp,
    ) {
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
