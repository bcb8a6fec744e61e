//! Slots: how reservations use a concurrency quota. Like the algorithm of windows, this is the specification.

use crate::{
    amount::{Amount, Limit},
    claim::{Fit, ReservationId},
    log::ColumnReading,
    time::Timestamp,
};

/// The reservations that hold a slot of one scope, each with its expiry. A reservation holds at most one slot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slots(Vec<SlotHolder>);

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
        self.0.iter().all(|held| held.ends_at() <= now)
    }

    /// When the clock went back: slots taken at a later time count as taken now, so nothing is held longer than its
    /// time to live.
    pub(crate) fn clamp_future_entries(&mut self, now: Timestamp) {
        self.0.iter_mut().for_each(|held| held.taken_at = held.taken_at.min(now));
    }

    /// Reads how many are held at `now`, for a call that wants `cost`.
    pub(crate) fn read(&self, now: Timestamp, cost: Amount, limit: Limit) -> ColumnReading {
        let mut ends: Vec<Timestamp> =
            self.0.iter().map(SlotHolder::ends_at).filter(|ends_at| *ends_at > now).collect();
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
        self.0.retain(|held| held.ends_at() > now && held.by != by);
        self.0.push(SlotHolder { by, taken_at: now, ttl_ms });
    }

    /// Holds on to a slot for `ttl_ms` more, unless it has ended already. Then it stays lost, as others may have
    /// taken its place.
    pub(crate) fn extend(&mut self, by: ReservationId, ttl_ms: u32, now: Timestamp) {
        self.clamp_future_entries(now);
        if self.0.iter().any(|held| held.by == by && held.ends_at() > now) {
            self.take(by, ttl_ms, now);
        } else {
            self.release(by);
        }
    }

    /// Gives a slot back.
    pub(crate) fn release(&mut self, by: ReservationId) {
        self.0.retain(|held| held.by != by);
    }
}
