//! How many TLS handshakes a listener begins: each costs more processor time than hundreds of decisions.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// How long a handshake may wait for its turn.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// How many addresses are remembered; those whose turn is over are forgotten first.
const MAX_SOURCES: usize = 16_384;

/// Gives out turns, evenly at a rate, of which a second's worth may come at once. One address has a quarter of all.
#[derive(Debug)]
pub(super) struct HandshakeTurns {
    /// The time between two turns.
    interval: Duration,
    turns: Mutex<TurnSchedule>,
}

#[derive(Debug, Default)]
struct TurnSchedule {
    /// When the next turn would be if no burst were allowed, of all and of each address (GCRA: the theoretical arrival
    /// time of <https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm>).
    all: Option<Instant>,
    of_source: HashMap<IpAddr, Instant>,
}

impl HandshakeTurns {
    /// So many turns a second.
    pub(super) fn per_second(turns: u32) -> Self {
        Self { interval: Duration::from_secs(1) / turns.max(1), turns: Mutex::default() }
    }

    /// Waits for a turn; `None` if it would come too late. A trusted proxy has no `source`, and waits only for the
    /// turns of all.
    pub(super) async fn wait(&self, source: Option<IpAddr>) -> Option<()> {
        if let Some(source) = source {
            sleep_until(self.turn_of(source, Instant::now())?).await;
        }
        // Taken only now: a turn reserved far ahead could be used by no other connection before.
        sleep_until(self.turn(Instant::now())?).await;
        Some(())
    }

    /// The next turn of one address.
    fn turn_of(&self, source: IpAddr, now: Instant) -> Option<Instant> {
        let of_source = &mut self.turns.lock().of_source;
        if of_source.len() >= MAX_SOURCES {
            of_source.retain(|_, next| *next > now);
        }
        let (begin, next) = take(of_source.get(&source).copied(), 4 * self.interval, now)?;
        if of_source.len() < MAX_SOURCES || of_source.contains_key(&source) {
            of_source.insert(source, next);
        }
        Some(begin)
    }

    /// The next turn of all.
    fn turn(&self, now: Instant) -> Option<Instant> {
        let all = &mut self.turns.lock().all;
        let (begin, next) = take(*all, self.interval, now)?;
        *all = Some(next);
        Some(begin)
    }
}

/// The time of the turn after `next`, and the state after that.
fn take(next: Option<Instant>, interval: Duration, now: Instant) -> Option<(Instant, Instant)> {
    let next = next.map_or(now, |next| next.max(now)) + interval;
    let begin = next.checked_sub(Duration::from_secs(1)).map_or(now, |begin| begin.max(now));
    (begin <= now + MAX_WAIT).then_some((begin, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All at one moment, however busy the machine is.
    fn begun_within(now: Instant, turn: impl Fn(Instant) -> Option<Instant>, asked: usize, bound: Duration) -> usize {
        (0..asked).filter_map(|_| turn(now)).filter(|begin| *begin <= now + bound).count()
    }

    /// Seen to fail without a burst, with a burst that comes again, and with a wait without a bound.
    #[test]
    fn a_second_of_turns_may_come_at_once_and_then_they_come_evenly() {
        for (bound, turns) in [(0, 100), (1, 200), (60, 600)] {
            let (all, now) = (HandshakeTurns::per_second(100), Instant::now());
            let begun = begun_within(now, |now| all.turn(now), 10_000, Duration::from_secs(bound));
            assert_eq!(begun, turns, "within {bound} s");
            assert_eq!(all.turn(now), None, "the others would wait too long");
            assert!(all.turn(now + Duration::from_millis(500)).is_some());
        }
    }

    /// Seen to fail with one count for all addresses.
    #[test]
    fn one_address_takes_a_quarter() {
        let (turns, now) = (HandshakeTurns::per_second(100), Instant::now());
        let [flood, other] = [1, 2].map(|n| IpAddr::from([192, 0, 2, n]));
        assert_eq!(begun_within(now, |now| turns.turn_of(flood, now), 1_000, Duration::ZERO), 25);
        assert_eq!(begun_within(now, |now| turns.turn_of(other, now), 10, Duration::ZERO), 10);
    }
}
