//! The rate of TLS handshakes of a listener: a handshake costs more processor time than hundreds of decisions.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};
use tollgate_service::gcra::Gcra;

/// A second's worth of handshakes may begin at once.
const BURST: Duration = Duration::from_secs(1);
/// The maximum time that a handshake waits for its permit.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// The maximum number of addresses whose state is kept.
const MAX_SOURCES: usize = 16_384;

/// Limits the rate of handshakes, in total and per address. One address may use a quarter of the rate.
#[derive(Debug)]
pub(super) struct HandshakeLimiter {
    global_rate: Gcra,
    source_rate: Gcra,
    state: Mutex<GcraState>,
}

/// The theoretical arrival times (TAT) of the next handshakes.
#[derive(Debug, Default)]
struct GcraState {
    global_tat: Option<Instant>,
    tat_by_source: HashMap<IpAddr, Instant>,
}

impl HandshakeLimiter {
    /// A limiter for `rate` handshakes per second.
    pub(super) fn per_second(rate: u32) -> Self {
        let interval = Duration::from_secs(1) / rate.max(1);
        let (global_rate, source_rate) = (Gcra::new(interval, BURST), Gcra::new(4 * interval, BURST));
        Self { global_rate, source_rate, state: Mutex::default() }
    }

    /// Waits for a permit; `None` if the wait would be too long. Handshakes of trusted proxies have no `source`, and
    /// are limited only in total.
    pub(super) async fn wait(&self, source: Option<IpAddr>) -> Option<()> {
        if let Some(source) = source {
            sleep_until(self.source_permit(source, Instant::now())?).await;
        }
        // The global permit is taken after the wait for the source's: it could not be used in the meantime.
        sleep_until(self.global_permit(Instant::now())?).await;
        Some(())
    }

    /// The time of the next permit of an address.
    fn source_permit(&self, source: IpAddr, now: Instant) -> Option<Instant> {
        let tats = &mut self.state.lock().tat_by_source;
        if tats.len() >= MAX_SOURCES {
            tats.retain(|_, tat| *tat > now);
        }
        let (time, tat) = permit(self.source_rate, tats.get(&source).copied(), now)?;
        if tats.len() < MAX_SOURCES || tats.contains_key(&source) {
            tats.insert(source, tat);
        }
        Some(time)
    }

    /// The time of the next permit in total.
    fn global_permit(&self, now: Instant) -> Option<Instant> {
        let global_tat = &mut self.state.lock().global_tat;
        let (time, tat) = permit(self.global_rate, *global_tat, now)?;
        *global_tat = Some(tat);
        Some(time)
    }
}

/// The time of the next permit, and the TAT after it; `None` if the wait would be too long.
fn permit(rate: Gcra, tat: Option<Instant>, now: Instant) -> Option<(Instant, Instant)> {
    Some(rate.next_event(tat, now)).filter(|(time, _)| *time <= now + MAX_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of permits, of `requests` requests at `now`, whose wait is at most `max_wait`.
    fn permits(
        now: Instant,
        permit: impl Fn(Instant) -> Option<Instant>,
        requests: usize,
        max_wait: Duration,
    ) -> usize {
        (0..requests).filter_map(|_| permit(now)).filter(|time| *time <= now + max_wait).count()
    }

    /// Fails without a burst, with a second burst, and with an unlimited wait.
    #[test]
    fn permits_are_limited_to_a_burst_and_a_rate() {
        for (seconds, expected) in [(0, 100), (1, 200), (60, 600)] {
            let (limiter, now) = (HandshakeLimiter::per_second(100), Instant::now());
            let count = permits(now, |now| limiter.global_permit(now), 10_000, Duration::from_secs(seconds));
            assert_eq!(count, expected, "within {seconds} s");
            assert_eq!(limiter.global_permit(now), None, "the wait would be too long");
            assert!(limiter.global_permit(now + Duration::from_millis(500)).is_some());
        }
    }

    /// Fails if all addresses share a rate.
    #[test]
    fn one_address_gets_a_quarter_of_the_permits() {
        let (limiter, now) = (HandshakeLimiter::per_second(100), Instant::now());
        let [flood, other] = [1, 2].map(|n| IpAddr::from([192, 0, 2, n]));
        assert_eq!(permits(now, |now| limiter.source_permit(flood, now), 1_000, Duration::ZERO), 25);
        assert_eq!(permits(now, |now| limiter.source_permit(other, now), 10, Duration::ZERO), 10);
    }
}
