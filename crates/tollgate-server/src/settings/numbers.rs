//! The numbers among the settings: each has a smallest and a largest value, so that none stops a node later.

use std::{fmt::Display, ops::RangeInclusive, time::Duration};

use super::defaults::NumberSetting;

/// The maximum number of threads, and of connections to a Redis server.
pub(super) const MAX_THREADS: usize = 1_024;

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

    /// The value of a setting, or its default.
    pub(super) fn read<T: Copy + PartialOrd + Display>(&mut self, setting: NumberSetting<T>, value: Option<T>) -> T {
        self.within(setting.name, value, setting.default, setting.range)
    }

    /// The value of a setting in milliseconds, or its default.
    pub(super) fn time(&mut self, setting: NumberSetting<u64>, value: Option<u64>) -> Duration {
        Duration::from_millis(self.read(setting, value))
    }

    /// The largest amount of `total` that one caller may hold: the configured part, or half by default.
    pub(super) fn share(&mut self, name: &str, value: Option<usize>, total: usize) -> usize {
        self.within(name, value, total.div_ceil(2), 1..=total.max(1))
    }
}
