//! The generic cell rate algorithm (<https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm>): a rate with a burst.

use std::time::Duration;

use tokio::time::Instant;

/// A rate with a burst. Its state is the theoretical arrival time (TAT) of the next event.
#[derive(Clone, Copy, Debug)]
pub struct Gcra {
    /// The interval between events at the rate.
    interval: Duration,
    /// How far the TAT may be in the future when an event conforms.
    burst: Duration,
}

impl Gcra {
    /// One event per `interval`, and as many at once as fit into `burst`.
    pub const fn new(interval: Duration, burst: Duration) -> Self {
        Self { interval, burst }
    }

    /// The earliest time from `now` on at which the next event conforms, and the TAT after it. `tat` is `None` before the
    /// first event.
    pub fn next_event(&self, tat: Option<Instant>, now: Instant) -> (Instant, Instant) {
        let next_tat = tat.map_or(now, |tat| tat.max(now)) + self.interval;
        let time = next_tat.checked_sub(self.burst).map_or(now, |time| time.max(now));
        (time, next_tat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_conforms_at_once_and_further_events_at_the_rate() {
        let (gcra, now) = (Gcra::new(Duration::from_millis(100), Duration::from_secs(1)), Instant::now());
        let mut tat = None;
        let mut next = |now| {
            let (time, next_tat) = gcra.next_event(tat, now);
            tat = Some(next_tat);
            time
        };
        assert!((0..10).all(|_| next(now) == now));
        assert_eq!(next(now), now + Duration::from_millis(100));
        assert_eq!(next(now), now + Duration::from_millis(200));
        let later = now + Duration::from_mins(1);
        assert!((0..10).all(|_| next(later) == later));
        assert!(next(later) > later);
    }
}
