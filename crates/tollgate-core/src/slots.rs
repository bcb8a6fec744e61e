//! Slots: how reservations use a concurrency quota. Like the algorithm of windows, this is the specification.

use crate::{
    amount::{Amount, Limit},
    claim::{Fit, ReservationId},
    log::ColumnReading,
    time::Timestamp,
};

/// The reservations that hold a slot of one scope, each with its expiry. A reservation holds at most one slot.
///
/// If the clock steps back by more than a slot's time to live, the slot counts for that time from when a call notices the
/// step, and again near its own time. A reading notices nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slots {
    holders: Vec<SlotHolder>,
    /// The latest time when a slot was taken.
    latest: Timestamp,
    /// The `latest` that the clock was behind of when that was noticed, and when.
    noticed: Option<(Timestamp, Timestamp)>,
}

#[derive(Clone, Copy, Debug)]
struct SlotHolder {
    by: ReservationId,
    taken_at: Timestamp,
    ttl_ms: u32,
}

impl SlotHolder {
    fn ends_at(&self) -> Timestamp {
        self.taken_at.plus_ms(u64::from(self.ttl_ms))
    }
}

impl Slots {
    /// Whether no slot is held at `now` or later.
    pub(crate) fn is_free(&self, now: Timestamp) -> bool {
        self.holders.iter().all(|held| held.ends_at() <= now)
    }

    /// Notices that the clock has stepped back.
    pub(crate) fn notice_step_back(&mut self, now: Timestamp) {
        if self.latest > now {
            self.noticed = Some((self.latest, self.noticed_at(now)));
        }
    }

    fn noticed_at(&self, now: Timestamp) -> Timestamp {
        self.noticed.filter(|(latest, _)| *latest == self.latest).map_or(now, |(_, time)| time.min(now))
    }

    fn ends_at(&self, held: &SlotHolder, now: Timestamp) -> Timestamp {
        let ttl_ms = u64::from(held.ttl_ms);
        if held.taken_at.ms_since(now) > ttl_ms { self.noticed_at(now).plus_ms(ttl_ms) } else { held.ends_at() }
    }

    /// Reads how many are held at `now`, for a call that wants `cost`.
    pub(crate) fn read(&self, now: Timestamp, cost: Amount, limit: Limit) -> ColumnReading {
        let ends = self.holders.iter().map(|held| self.ends_at(held, now));
        let mut ends: Vec<Timestamp> = ends.filter(|ends_at| *ends_at > now).collect();
        ends.sort_unstable();
        let (used, cost, ceiling) = (ends.len() as u64, cost.get(), limit.ceiling().get());
        let resets_at = ends.last().copied().unwrap_or(now);
        let fit = if cost == 0 || used + cost <= ceiling {
            Fit::Now
        } else if cost > ceiling {
            Fit::Never
        } else {
            // So many have to end first, and the last of them frees the place.
            let freeing = usize::try_from(used + cost - ceiling - 1).ok().and_then(|at| ends.get(at));
            freeing.map_or(Fit::Never, |at| Fit::At(*at))
        };
        ColumnReading { used, resets_at, fit }
    }

    /// Takes a slot for `ttl_ms`. Those that have ended leave.
    pub(crate) fn take(&mut self, by: ReservationId, ttl_ms: u32, now: Timestamp) {
        self.holders.retain(|held| held.ends_at() > now && held.by != by);
        self.holders.push(SlotHolder { by, taken_at: now, ttl_ms });
        self.latest = self.latest.max(now);
    }

    /// Holds on to a slot for `ttl_ms` more, unless it has ended already. Then it stays lost, as others may have
    /// taken its place.
    pub(crate) fn extend(&mut self, by: ReservationId, ttl_ms: u32, now: Timestamp) {
        if self.holders.iter().any(|held| held.by == by && held.ends_at() > now) {
            self.take(by, ttl_ms, now);
        } else {
            self.release(by);
        }
    }

    /// Gives a slot back.
    pub(crate) fn release(&mut self, by: ReservationId) {
        self.holders.retain(|held| held.by != by);
    }
}
