//! The records of reservations and of calls with a request id, until they expire.

use std::collections::HashMap;

use indexmap::IndexMap;

use crate::{
    claim::{Owner, Partition, ReservationId},
    reservation::{ClosedReservation, Replay, Reservation},
    time::Timestamp,
};

/// The records of reservations and requests.
#[derive(Clone, Debug, Default)]
pub struct Records {
    pub(crate) reservations: IndexMap<(Partition, ReservationId), (RecordLifetime, State)>,
    pub(crate) requests: IndexMap<(Partition, [u8; 16]), AdmittedRequest>,
    /// How many each owner has.
    owned: HashMap<Owner, usize>,
    sweep_at: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct AdmittedRequest {
    pub(crate) life: RecordLifetime,
    pub(crate) digest: [u8; 16],
    pub(crate) replay: Replay,
}

#[derive(Clone, Debug)]
pub(crate) enum State {
    Open(Reservation),
    Closed(ClosedReservation),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordLifetime {
    pub(crate) from: Timestamp,
    pub(crate) ttl_ms: u32,
}

impl RecordLifetime {
    pub(crate) fn ends_at(self) -> Timestamp {
        self.from.plus_ms(u64::from(self.ttl_ms))
    }

    /// Whether it lasts at `now`.
    pub(crate) fn lasts(self, now: Timestamp) -> bool {
        now < self.ends_at()
    }
}

impl Records {
    /// How many are kept, those included that have ended and were not yet dropped.
    pub fn len(&self) -> usize {
        self.reservations.len() + self.requests.len()
    }

    /// How many of them are an owner's.
    pub fn owned(&self, owner: Owner) -> usize {
        self.owned.get(&owner).copied().unwrap_or(0)
    }

    pub(crate) fn insert_reservation(&mut self, home: Partition, id: ReservationId, made: (RecordLifetime, State)) {
        if self.reservations.insert((home, id), made).is_none() {
            *self.owned.entry(home.owner()).or_default() += 1;
        }
    }

    pub(crate) fn insert_request(&mut self, home: Partition, id: [u8; 16], admitted: AdmittedRequest) {
        if self.requests.insert((home, id), admitted).is_none() {
            *self.owned.entry(home.owner()).or_default() += 1;
        }
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
                Some(true) => {
                    let home = if at < kept {
                        self.reservations.swap_remove_index(at).map(|((home, _), _)| home)
                    } else {
                        self.requests.swap_remove_index(at - kept).map(|((home, _), _)| home)
                    };
                    if let Some(home) = home {
                        disown(&mut self.owned, home);
                    }
                }
                Some(false) => self.sweep_at += 1,
                None => self.sweep_at = 0,
            }
        }
    }

    /// Drops all that have ended.
    pub fn sweep(&mut self, now: Timestamp) {
        let owned = &mut self.owned;
        let mut stays = |home: Partition, life: &mut RecordLifetime| {
            let lasts = life.lasts(now);
            if !lasts {
                disown(owned, home);
            }
            lasts
        };
        self.reservations.retain(|(home, _), (life, _)| stays(*home, life));
        self.requests.retain(|(home, _), request| stays(*home, &mut request.life));
        self.reservations.shrink_to(self.reservations.len() * 2);
        self.requests.shrink_to(self.requests.len() * 2);
    }

    pub(crate) fn reservation(
        &mut self,
        home: Partition,
        id: ReservationId,
        now: Timestamp,
    ) -> Option<&mut (RecordLifetime, State)> {
        let known = self.reservations.get_mut(&(home, id))?;
        known.0.lasts(now).then_some(known)
    }
}

/// Takes a record off its owner's count.
fn disown(owned: &mut HashMap<Owner, usize>, home: Partition) {
    let left = owned.get_mut(&home.owner()).map_or(0, |count| {
        *count -= 1;
        *count
    });
    if left == 0 {
        owned.remove(&home.owner());
    }
}
