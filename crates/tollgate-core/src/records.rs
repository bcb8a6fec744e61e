//! What a store keeps of reservations and of calls with a request id, until their time is over.

use indexmap::IndexMap;

use crate::{
    claim::Partition,
    reservation::{Closed, Replay, Reservation, ReservationId},
    time::Timestamp,
};

/// What is remembered of reservations and requests.
#[derive(Clone, Debug, Default)]
pub struct Records {
    pub(crate) reservations: IndexMap<(Partition, ReservationId), (Life, State)>,
    pub(crate) requests: IndexMap<(Partition, [u8; 16]), Admitted>,
    sweep_at: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Admitted {
    pub(crate) life: Life,
    pub(crate) digest: [u8; 16],
    pub(crate) replay: Replay,
}

#[derive(Clone, Debug)]
pub(crate) enum State {
    Open(Reservation),
    Closed(Closed),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    pub(crate) from: Timestamp,
    pub(crate) ttl_ms: u32,
}

impl Life {
    pub(crate) fn ends_at(self) -> Timestamp {
        self.from.plus_ms(u64::from(self.ttl_ms))
    }

    /// Whether it lasts at `now`. When the clock went back, it began now.
    pub(crate) fn lasts(&mut self, now: Timestamp) -> bool {
        self.from = self.from.min(now);
        now < self.ends_at()
    }
}

impl Records {
    /// How many are kept, those included that have ended and were not yet dropped.
    pub fn len(&self) -> usize {
        self.reservations.len() + self.requests.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Looks at the next few, and drops those that have ended.
    pub fn sweep_some(&mut self, now: Timestamp) {
        for _ in 0..2 {
            let at = self.sweep_at;
            let kept = self.reservations.len();
            let ended = match self.reservations.get_index_mut(at) {
                Some((_, (life, _))) => Some(!life.lasts(now)),
                None => self.requests.get_index_mut(at - kept).map(|(_, request)| !request.life.lasts(now)),
            };
            match ended {
                Some(true) if at < kept => drop(self.reservations.swap_remove_index(at)),
                Some(true) => drop(self.requests.swap_remove_index(at - kept)),
                Some(false) => self.sweep_at += 1,
                None => self.sweep_at = 0,
            }
        }
    }

    /// Drops all that have ended.
    pub fn sweep(&mut self, now: Timestamp) {
        self.reservations.retain(|_, (life, _)| life.lasts(now));
        self.requests.retain(|_, request| request.life.lasts(now));
        self.reservations.shrink_to(self.reservations.len() * 2);
        self.requests.shrink_to(self.requests.len() * 2);
    }

    pub(crate) fn reservation(
        &mut self,
        home: Partition,
        id: ReservationId,
        now: Timestamp,
    ) -> Option<&mut (Life, State)> {
        let known = self.reservations.get_mut(&(home, id))?;
        known.0.lasts(now).then_some(known)
    }
}
