//! Settings that are numbers. Each has a valid range.

use std::{fmt::Display, ops::RangeInclusive, time::Duration};

use super::defaults::NumberSetting;

/// The maximum number of threads, and of connections to a Redis server.
pub(super) const MAX_THREADS: usize = 1_024;

/// Reads numbers, and collects errors, one per line.
pub(super) struct Numbers<'a>(pub(super) &'a mut Vec<String>);

impl Numbers<'_> {
    /// `value`, or the default. Adds an error if it is not in `range`.
    pub(super) fn in_range<T: Copy + PartialOrd + Display>(
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
        self.in_range(setting.name, value, setting.default, setting.range)
    }

    /// The value of a setting in milliseconds, or its default.
    pub(super) fn time(&mut self, setting: NumberSetting<u64>, value: Option<u64>) -> Duration {
        Duration::from_millis(self.read(setting, value))
    }

    /// The maximum part of `total` for one caller: `value`, or half by default.
    pub(super) fn share(&mut self, name: &str, value: Option<usize>, total: usize) -> usize {
        self.in_range(name, value, total.div_ceil(2), 1..=total.max(1))
    }
}
