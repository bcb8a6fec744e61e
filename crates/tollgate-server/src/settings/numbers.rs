//! The numbers among the settings: each has a smallest and a largest value, so that none stops a node later.

use std::{fmt::Display, ops::RangeInclusive, time::Duration};

/// The most of something that takes memory for each, such as places and entries.
const MAX_COUNT: usize = 1 << 30;
/// The most threads, and connections to a Redis server.
pub(super) const MAX_THREADS: usize = 1_024;
/// The longest time, in milliseconds: a day.
const MAX_MS: u64 = 86_400_000;

/// Collects mistakes, one per line.
pub(super) struct Numbers<'a>(pub(super) &'a mut Vec<String>);

impl Numbers<'_> {
    /// `value`, or the default; within `range`, or it is wrong.
    pub(super) fn within<T: Copy + PartialOrd + Display>(
        &mut self,
        name: &str,
        value: Option<T>,
        default: T,
        range: RangeInclusive<T>,
    ) -> T {
        let value = value.unwrap_or(default);
        if !range.contains(&value) {
            self.0.push(format!("{name}: must be from {} to {}", range.start(), range.end()));
        }
        value
    }

    /// How many.
    pub(super) fn count(&mut self, name: &str, value: Option<usize>, default: usize) -> usize {
        self.within(name, value, default, 1..=MAX_COUNT)
    }

    /// How long, at least a millisecond.
    pub(super) fn time(&mut self, name: &str, value: Option<u64>, default_ms: u64) -> Duration {
        Duration::from_millis(self.within(name, value, default_ms, 1..=MAX_MS))
    }

    /// How long, or not at all.
    pub(super) fn time_or_none(&mut self, name: &str, value: Option<u64>, default_ms: u64) -> Duration {
        Duration::from_millis(self.within(name, value, default_ms, 0..=MAX_MS))
    }

    /// The largest amount of `total` that one caller may hold: the configured part, or half by default.
    pub(super) fn share(&mut self, name: &str, value: Option<usize>, total: usize) -> usize {
        self.within(name, value, total.div_ceil(2), 1..=total.max(1))
    }
}
