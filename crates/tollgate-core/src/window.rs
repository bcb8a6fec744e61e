//! Windows: the stretch of time a quota looks back over.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use jiff::{
    ToSpan,
    civil::{Date, Weekday},
    tz::TimeZone,
};

use crate::{amount::stable_id, time::Timestamp};

/// A trailing window: events of the last `ms` milliseconds count; an event that is exactly `ms` old has left the
/// window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlidingWindow {
    ms: u32,
}

/// The length cannot be a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sliding window lasts from 1 millisecond to 31 days")]
pub struct BadWindowLength;

impl SlidingWindow {
    /// 31 days, in milliseconds. Entries keep their time modulo 2^32 ms, so this must stay below it.
    pub const MAX_MS: u32 = 31 * 24 * 60 * 60 * 1000;

    /// A window of `ms` milliseconds.
    pub const fn from_ms(ms: u64) -> Result<Self, BadWindowLength> {
        if ms == 0 || ms > Self::MAX_MS as u64 {
            return Err(BadWindowLength);
        }
        #[expect(clippy::cast_possible_truncation, reason = "checked against MAX_MS above")]
        Ok(Self { ms: ms as u32 })
    }

    /// The length in milliseconds, never zero.
    pub const fn ms(self) -> u32 {
        self.ms
    }

    /// In a full window, two events may share an entry if both are in the same cell of this many milliseconds, counted
    /// from the epoch. They are then at most `cell - 1` ms apart, which is at most window/1024.
    pub const fn cell_ms(self) -> u64 {
        self.ms as u64 / 1024 + 1
    }
}

/// A calendar unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CalendarUnit {
    /// From the full second.
    Second,
    /// From the full minute.
    Minute,
    /// From the full hour.
    Hour,
    /// From midnight.
    Day,
    /// From Monday, midnight.
    Week,
    /// From the first of the month, midnight.
    Month,
}

impl CalendarUnit {
    /// The unit with this name.
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::Second, Self::Minute, Self::Hour, Self::Day, Self::Week, Self::Month];
        all.into_iter().find(|unit| unit.name() == name)
    }

    /// The unit's English name, lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        }
    }
}

/// One period of a calendar window: from `start`, up to but not including `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// The first moment of the period.
    pub start: Timestamp,
    /// The first moment of the next period.
    pub end: Timestamp,
}

impl Period {
    /// Whether `now` lies in this period.
    pub fn contains(self, now: Timestamp) -> bool {
        self.start <= now && now < self.end
    }
}

/// Calendar periods of a time zone: days from midnight to midnight there, 23 or 25 hours long on days when daylight
/// saving time begins or ends. Each moment lies in exactly one period, and the next begins where one ends. A change of the
/// clock by a part of an hour ends an hour: the hour before or after it is then shorter.
#[derive(Debug)]
pub struct CalendarWindow {
    unit: CalendarUnit,
    zone: TimeZone,
    id: u32,
    latest: ArcSwapOption<Period>,
}

/// The time zone has no such name in the IANA database.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time zone of the IANA database, such as UTC or Europe/Berlin")]
pub struct UnknownTimeZone(pub String);

impl CalendarWindow {
    /// Periods of `unit` in the IANA time zone `zone`.
    pub fn new(unit: CalendarUnit, zone: &str) -> Result<Self, UnknownTimeZone> {
        let found = TimeZone::get(zone).map_err(|_| UnknownTimeZone(zone.to_owned()))?;
        let name = found.iana_name().unwrap_or("UTC");
        let id = stable_id(format!("{}/{name}", unit.name()).as_bytes());
        Ok(Self { unit, zone: found, id, latest: ArcSwapOption::empty() })
    }

    /// The same for the same unit and time zone, on every node.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The unit of the periods.
    pub fn unit(&self) -> CalendarUnit {
        self.unit
    }

    /// The IANA name of the time zone.
    pub fn zone(&self) -> &str {
        self.zone.iana_name().unwrap_or("UTC")
    }

    /// The period that contains `now`. The last result is cached, because almost every call needs the same one.
    pub fn period_at(&self, now: Timestamp) -> Period {
        if let Some(period) = self.latest.load().as_deref()
            && period.contains(now)
        {
            return *period;
        }
        let period = self.compute(now).unwrap_or(Period { start: now, end: now.plus_ms(1) });
        self.latest.store(Some(Arc::new(period)));
        period
    }

    /// `None` only within a period of the ends of jiff's range (the year 9999).
    fn compute(&self, now: Timestamp) -> Option<Period> {
        let at = jiff::Timestamp::from_millisecond(i64::try_from(now.as_ms()).ok()?).ok()?;
        match self.unit {
            CalendarUnit::Second => self.part_of_day(at, 1),
            CalendarUnit::Minute => self.part_of_day(at, 60),
            CalendarUnit::Hour => self.part_of_day(at, 60 * 60),
            CalendarUnit::Day | CalendarUnit::Week | CalendarUnit::Month => self.days(at),
        }
    }

    /// The period of `unit_s` seconds on the local clock. A change of the clock by whole units moves no boundary. Any other
    /// change ends one period and begins the next, so each of the two lasts at most `unit_s`.
    fn part_of_day(&self, at: jiff::Timestamp, unit_s: i64) -> Option<Period> {
        let (now_s, offset_s) = (at.as_second(), self.offset_s(at));
        let mut start_s = now_s - (now_s + offset_s).rem_euclid(unit_s);
        let mut end_s = start_s + unit_s;
        let mut before_s = self.offset_s(jiff::Timestamp::from_second(start_s).ok()?);
        for change in self.zone.following(jiff::Timestamp::from_second(start_s).ok()?) {
            let (change_s, after_s) = (change.timestamp().as_second(), i64::from(change.offset().seconds()));
            if change_s >= end_s {
                break;
            }
            if (after_s - before_s) % unit_s != 0 {
                if change_s > now_s {
                    end_s = change_s;
                    break;
                }
                start_s = change_s;
            }
            before_s = after_s;
        }
        period_of_seconds(start_s, end_s)
    }

    /// The day, week or month: from the first moment of its first date to that of the next one's. Where midnight comes twice,
    /// the first counts, so what is left of the day before belongs to the new day.
    fn days(&self, at: jiff::Timestamp) -> Option<Period> {
        let mut first = self.first_date(at.to_zoned(self.zone.clone()).date())?;
        let mut start = self.start_of(first)?;
        loop {
            let next = first.checked_add(self.length()).ok()?;
            let end = self.start_of(next)?;
            if at < end {
                return period_of_seconds(start.as_second(), end.as_second());
            }
            (first, start) = (next, end);
        }
    }

    /// The first date of the period that has `date` in it.
    fn first_date(&self, date: Date) -> Option<Date> {
        match self.unit {
            CalendarUnit::Week => date.tomorrow().ok()?.nth_weekday(-1, Weekday::Monday).ok(),
            CalendarUnit::Month => Some(date.first_of_month()),
            _ => Some(date),
        }
    }

    /// The length of a period in dates.
    fn length(&self) -> jiff::Span {
        match self.unit {
            CalendarUnit::Week => 1.week(),
            CalendarUnit::Month => 1.month(),
            _ => 1.day(),
        }
    }

    /// The first moment of a date; of a date that the zone skips, that of the next one.
    fn start_of(&self, date: Date) -> Option<jiff::Timestamp> {
        Some(date.to_zoned(self.zone.clone()).ok()?.start_of_day().ok()?.timestamp())
    }

    fn offset_s(&self, at: jiff::Timestamp) -> i64 {
        i64::from(self.zone.to_offset(at).seconds())
    }
}

/// A period whose bounds are Unix times in seconds. One that began before 1970 begins there.
fn period_of_seconds(start_s: i64, end_s: i64) -> Option<Period> {
    let ms = |at_s: i64| u64::try_from(at_s.max(0) * 1000).ok().map(Timestamp::from_ms);
    Some(Period { start: ms(start_s)?, end: ms(end_s)? })
}

/// The window of a quota.
#[derive(Clone, Debug)]
pub enum Window {
    /// Trailing.
    Sliding(SlidingWindow),
    /// From one calendar boundary to the next.
    Calendar(Arc<CalendarWindow>),
    /// No window: the slots that are held now, by reservations that have neither ended nor expired.
    Concurrent,
}

/// The part of a window that a store needs to count at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowInstance {
    /// A trailing window.
    Sliding(SlidingWindow),
    /// A calendar window, by its stable id, and the period the node believes in.
    Calendar {
        /// The same for the same unit and time zone, on every node.
        id: u32,
        /// Outside it, the store charges nothing and returns its time.
        period: Period,
    },
    /// The slots that reservations hold.
    Slots,
}

impl Window {
    /// The span at `now`.
    pub fn span_at(&self, now: Timestamp) -> WindowInstance {
        match self {
            Self::Sliding(window) => WindowInstance::Sliding(*window),
            Self::Calendar(window) => WindowInstance::Calendar { id: window.id, period: window.period_at(now) },
            Self::Concurrent => WindowInstance::Slots,
        }
    }

    /// Whether both name the same counter: sliding windows of one length, or calendar periods of
    /// one unit and zone.
    pub fn same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Sliding(a), Self::Sliding(b)) => a == b,
            (Self::Calendar(a), Self::Calendar(b)) => a.id == b.id,
            (Self::Concurrent, Self::Concurrent) => true,
            _ => false,
        }
    }
}

/// A window, without the period of the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WindowId {
    /// Trailing.
    Sliding(SlidingWindow),
    /// A calendar window, by its stable id.
    Calendar(u32),
}

impl WindowId {
    /// The window of a span; `None` for slots.
    pub const fn of(span: WindowInstance) -> Option<Self> {
        match span {
            WindowInstance::Sliding(window) => Some(Self::Sliding(window)),
            WindowInstance::Calendar { id, .. } => Some(Self::Calendar(id)),
            WindowInstance::Slots => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::from_ms(u64::try_from(text.parse::<jiff::Timestamp>().unwrap().as_millisecond()).unwrap())
    }

    fn check(unit: CalendarUnit, zone: &str, now: &str, start: &str, end: &str) {
        let window = CalendarWindow::new(unit, zone).unwrap();
        assert_eq!(window.period_at(at(now)), Period { start: at(start), end: at(end) }, "{unit:?} {zone} {now}");
    }

    #[test]
    fn periods() {
        use CalendarUnit::{Day, Hour, Minute, Month, Second, Week};
        check(Second, "UTC", "2025-03-01T10:20:30.4Z", "2025-03-01T10:20:30Z", "2025-03-01T10:20:31Z");
        check(Minute, "UTC", "2025-03-01T10:20:30Z", "2025-03-01T10:20:00Z", "2025-03-01T10:21:00Z");
        check(Hour, "Asia/Kolkata", "2025-03-01T10:20:30Z", "2025-03-01T09:30:00Z", "2025-03-01T10:30:00Z");
        check(Day, "UTC", "2025-03-01T00:00:00Z", "2025-03-01T00:00:00Z", "2025-03-02T00:00:00Z");
        check(Month, "UTC", "2024-02-29T23:59:59.999Z", "2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z");
        // 2025-03-03 is a Monday.
        check(Week, "UTC", "2025-03-03T00:00:00Z", "2025-03-03T00:00:00Z", "2025-03-10T00:00:00Z");
        check(Week, "UTC", "2025-03-02T23:59:59Z", "2025-02-24T00:00:00Z", "2025-03-03T00:00:00Z");
    }

    #[test]
    fn daylight_saving_makes_days_of_23_and_25_hours() {
        use CalendarUnit::{Day, Hour, Week};
        check(Day, "Europe/Berlin", "2025-03-30T12:00:00Z", "2025-03-29T23:00:00Z", "2025-03-30T22:00:00Z");
        check(Day, "Europe/Berlin", "2025-10-26T12:00:00Z", "2025-10-25T22:00:00Z", "2025-10-26T23:00:00Z");
        // The hour from 2 to 3 happens twice, and is two periods.
        check(Hour, "Europe/Berlin", "2025-10-26T00:30:00Z", "2025-10-26T00:00:00Z", "2025-10-26T01:00:00Z");
        check(Hour, "Europe/Berlin", "2025-10-26T01:30:00Z", "2025-10-26T01:00:00Z", "2025-10-26T02:00:00Z");
        check(Week, "Europe/Berlin", "2025-03-30T12:00:00Z", "2025-03-23T23:00:00Z", "2025-03-30T22:00:00Z");
        // Midnight does not exist on this day in Beirut; the day starts at one.
        check(Day, "Asia/Beirut", "2025-03-30T12:00:00Z", "2025-03-29T22:00:00Z", "2025-03-30T21:00:00Z");
    }

    #[test]
    fn a_change_by_half_an_hour_ends_a_period() {
        use CalendarUnit::{Hour, Minute};
        let howe = "Australia/Lord_Howe";
        // At 2:00 the clock goes back to 1:30.
        check(Hour, howe, "2026-04-04T14:59:59Z", "2026-04-04T14:00:00Z", "2026-04-04T15:00:00Z");
        check(Hour, howe, "2026-04-04T15:00:00Z", "2026-04-04T15:00:00Z", "2026-04-04T15:30:00Z");
        check(Hour, howe, "2026-04-04T15:30:00Z", "2026-04-04T15:30:00Z", "2026-04-04T16:30:00Z");
        check(Minute, howe, "2026-04-04T15:00:30Z", "2026-04-04T15:00:00Z", "2026-04-04T15:01:00Z");
        // At 2:00 the clock goes forward to 2:30.
        check(Hour, howe, "2026-10-03T15:40:00Z", "2026-10-03T15:30:00Z", "2026-10-03T16:00:00Z");
        // At 3:45 the clock goes back to 2:45: by a whole hour, so the hours stay as they are.
        check(Hour, "Pacific/Chatham", "2026-04-04T14:10:00Z", "2026-04-04T13:15:00Z", "2026-04-04T14:15:00Z");
    }

    /// All zones of the database, at every change of their clocks from 1970 to 2100. Broken to try it: a change by half an
    /// hour that ends no period, and a second midnight that is taken for the first.
    #[test]
    fn each_moment_lies_in_one_period_in_each_zone() {
        use CalendarUnit::{Day, Hour, Minute, Month, Second, Week};
        let (first, last) = (at("1970-01-01T00:00:00Z").as_ms(), at("2100-01-01T00:00:00Z").as_ms());
        let mut seen = std::collections::HashSet::new();
        for name in jiff::tz::db().available() {
            let Ok(zone) = TimeZone::get(name.as_str()) else { panic!("{name} is listed and unknown") };
            let after = jiff::Timestamp::from_second(0).unwrap();
            let changes: Vec<(u64, i32)> = zone
                .following(after)
                .map(|change| (u64::try_from(change.timestamp().as_millisecond()).unwrap(), change.offset().seconds()))
                .take_while(|(change, _)| *change < last)
                .collect();
            // Many names are those of one zone.
            if !seen.insert((zone.to_offset(after).seconds(), changes.clone())) {
                continue;
            }
            for (unit, unit_ms) in [
                (Second, 1_000),
                (Minute, 60_000),
                (Hour, 3_600_000),
                (Day, 86_400_000),
                (Week, 7 * 86_400_000),
                (Month, 31 * 86_400_000),
            ] {
                let window = CalendarWindow::new(unit, name.as_str()).unwrap();
                let compute = |ms| window.compute(Timestamp::from_ms(ms)).unwrap();
                for change in std::iter::once(first).chain(changes.iter().map(|(change, _)| *change)) {
                    let mut now = compute(change.saturating_sub(unit_ms)).start.as_ms();
                    while now <= change + unit_ms {
                        let Period { start, end } = compute(now);
                        let place = || format!("{unit:?} {name} {now}");
                        assert_eq!(start.as_ms(), now, "the end of one is the start of the next: {}", place());
                        let length = end.as_ms().saturating_sub(now);
                        assert!(length > 0 && length <= unit_ms + 2 * 86_400_000, "{}", place());
                        for inside in [end.as_ms() - 1, change.clamp(now, end.as_ms() - 1)] {
                            assert_eq!(compute(inside), Period { start, end }, "{inside}: {}", place());
                        }
                        now = end.as_ms();
                    }
                }
            }
        }
        assert!(seen.len() > 100, "only {} zones", seen.len());
    }

    #[test]
    fn impossible_windows_cannot_be_built() {
        assert_eq!(SlidingWindow::from_ms(0), Err(BadWindowLength));
        assert_eq!(SlidingWindow::from_ms(u64::from(SlidingWindow::MAX_MS) + 1), Err(BadWindowLength));
        assert!(CalendarWindow::new(CalendarUnit::Day, "Mars/Olympus").is_err());
    }

    #[test]
    fn cells_are_at_most_a_1024th() {
        for ms in [1, 7, 1000, 1024, 60_000, 86_400_000, SlidingWindow::MAX_MS] {
            let window = SlidingWindow::from_ms(u64::from(ms)).unwrap();
            assert!((window.cell_ms() - 1) * 1024 <= u64::from(ms));
        }
    }
}
