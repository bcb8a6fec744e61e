//! Keeps calls away from a server that does not answer, and spaces out new attempts.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// So many failures in a row, with no success between them, open a breaker.
const FAILURES_TO_OPEN: u32 = 5;
/// How long an open breaker rests before its first probe, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(500));

/// Stops calling a server that fails. While it is open, calls are refused at once. From time to time one
/// call is let through as a probe; its success closes the breaker, its failure doubles the rest.
#[derive(Debug)]
pub struct Breaker {
    failures: AtomicU32,
    open: AtomicBool,
    pause: Mutex<Pause>,
}

#[derive(Debug)]
struct Pause {
    until: Instant,
    probing: bool,
    backoff: Backoff,
}

impl Default for Breaker {
    fn default() -> Self {
        let pause = Pause { until: Instant::now(), probing: false, backoff: Backoff::between(PAUSE.0, PAUSE.1) };
        Self { failures: AtomicU32::new(0), open: AtomicBool::new(false), pause: Mutex::new(pause) }
    }
}

impl Breaker {
    /// Lets a call through, or returns after how long a new attempt makes sense.
    pub fn try_acquire(&self, now: Instant) -> Result<Permit<'_>, Duration> {
        if !self.is_open() {
            return Ok(Permit { breaker: self, probe: false });
        }
        let mut pause = self.pause.lock();
        if pause.probing || now < pause.until {
            return Err(pause.until.saturating_duration_since(now));
        }
        pause.probing = true;
        Ok(Permit { breaker: self, probe: true })
    }

    /// Whether calls are refused.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// Closes the breaker: the server was seen to answer.
    pub fn close(&self) {
        self.failures.store(0, Ordering::Relaxed);
        if self.is_open() {
            let mut pause = self.pause.lock();
            pause.backoff.reset();
            self.open.store(false, Ordering::Relaxed);
        }
    }

    /// Returns whether this failure opened the breaker.
    fn failed(&self, probe: bool, now: Instant) -> bool {
        let enough = self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_TO_OPEN;
        if !probe && (!enough || self.is_open()) {
            // Calls that began before it opened carry no new information.
            return false;
        }
        let mut pause = self.pause.lock();
        if !probe && self.is_open() {
            return false;
        }
        pause.until = now + pause.backoff.pause();
        self.open.store(true, Ordering::Relaxed);
        !probe
    }
}

/// One call that was let through. Dropped without a word, as when its caller went away, it counts as neither
/// success nor failure.
#[derive(Debug)]
pub struct Permit<'a> {
    breaker: &'a Breaker,
    probe: bool,
}

impl Permit<'_> {
    /// The server answered, whether with success or an error.
    pub fn succeeded(self) {
        self.breaker.close();
    }

    /// The server did not answer. Returns whether that opened the breaker.
    pub fn failed(self, now: Instant) -> bool {
        self.breaker.failed(self.probe, now)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.probe {
            self.breaker.pause.lock().probing = false;
        }
    }
}

/// Growing pauses: each is twice the one before, up to a longest, and a random part of half of it is left out, so
/// that nodes that failed together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses from `first` to `longest`.
    pub fn between(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The next pause: between half of its full length and all of it.
    pub fn pause(&mut self) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(self.longest);
        full.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// Starts over.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(breaker: &Breaker, now: Instant) {
        for failure in 1..=FAILURES_TO_OPEN {
            let opened = breaker.try_acquire(now).unwrap().failed(now);
            assert_eq!(opened, failure == FAILURES_TO_OPEN);
        }
        assert!(breaker.is_open());
    }

    #[tokio::test]
    async fn failures_in_a_row_open_it_and_a_success_between_them_does_not_let_them() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..10 {
            for _ in 1..FAILURES_TO_OPEN {
                assert!(!breaker.try_acquire(now).unwrap().failed(now));
            }
            breaker.try_acquire(now).unwrap().succeeded();
        }
        open(&breaker, now);
        assert!(breaker.try_acquire(now).is_err(), "an open breaker refuses");
    }

    #[tokio::test]
    async fn one_probe_at_a_time_and_longer_rests() {
        let (breaker, mut now) = (Breaker::default(), Instant::now());
        open(&breaker, now);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let pause = breaker.try_acquire(now).unwrap_err();
            pauses.push(pause);
            now += pause;
            let probe = breaker.try_acquire(now).expect("the pause is over");
            assert!(breaker.try_acquire(now).is_err(), "one probe at a time");
            assert!(!probe.failed(now));
        }
        assert!(pauses.iter().all(|pause| *pause >= PAUSE.0 / 2 && *pause <= PAUSE.1), "{pauses:?}");
        assert!(pauses.iter().rev().take(8).all(|pause| *pause >= PAUSE.1 / 2), "they grow: {pauses:?}");
        now += PAUSE.1;
        breaker.try_acquire(now).unwrap().succeeded();
        assert!(!breaker.is_open());
        let (_a, _b) = (breaker.try_acquire(now).unwrap(), breaker.try_acquire(now).unwrap());
    }

    #[tokio::test]
    async fn a_probe_whose_caller_went_away_leaves_room_for_the_next() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        open(&breaker, now);
        let later = now + PAUSE.1;
        drop(breaker.try_acquire(later).unwrap());
        assert!(breaker.try_acquire(later).is_ok());
    }

    #[tokio::test]
    async fn late_failures_do_not_lengthen_the_rest() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        let late: Vec<Permit<'_>> = (0..100).map(|_| breaker.try_acquire(now).unwrap()).collect();
        open(&breaker, now);
        for pass in late {
            assert!(!pass.failed(now + PAUSE.1));
        }
        assert!(breaker.try_acquire(now + PAUSE.1).is_ok());
    }
}
