//! Counters in this process's memory: the embedded default, for one node.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
};

use indexmap::{IndexMap, IndexSet};
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;
use tollgate_core::{
    admission::{self, ReservationRecords},
    amount::Amount,
    claim::{ApplyResult, Claim, LedgerKey, MAX_CLAIMS, Mode, Owner, Partition, ReservationId},
    ledger::{Ledger, LedgerMap, MAX_CALLER_NAMED, decide, outside_period},
    records::Records,
    reservation::{Admission, AdmitOptions, CloseRequest, CloseResult, Extension, Reservation, ReservationState},
    store::{AnswerFuture, HealthFuture, Store, StoreError, StoreFuture, StoreHealth},
    time::Timestamp,
    window::WindowInstance,
};

use crate::clock::Clock;

const SHARDS: usize = 64;
/// The largest number of ledgers and of records of one owner in a shard, as a multiple of the free ones: a single owner
/// can use three quarters of a store, each of two three sevenths, and an owner with few of them always finds space.
const SHARE_OF_FREE: usize = 3;

/// A store in memory. Ledgers are distributed over shards by their partition, each with its own lock. A decision holds
/// the locks of its partitions, taken in a fixed order, and never across an await. Every call also checks a few ledgers
/// and removes expired ones, so no other task has to.
pub struct MemoryStore<C> {
    clock: C,
    /// Random for each store, so that nobody can choose names that fall into one shard.
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
    shard_capacity: usize,
}

struct Shard {
    forgets: bool,
    ledgers: IndexMap<LedgerKey, Ledger>,
    /// How many ledgers each owner has.
    owned: HashMap<Owner, usize>,
    seats: KeyCap,
    records: Records,
    sweep_at: usize,
    full_until: Timestamp,
}

/// The caller-named ledgers of each partition.
struct KeyCap {
    taken: IndexSet<LedgerKey>,
    by_partition: HashMap<Partition, usize>,
    most: u32,
}

impl KeyCap {
    fn take(&mut self, partition: Partition, new: &[LedgerKey]) -> bool {
        let taken = self.by_partition.get(&partition).copied().unwrap_or(0) + new.len();
        if taken > self.most as usize {
            return false;
        }
        self.by_partition.insert(partition, taken);
        self.taken.extend(new);
        true
    }

    fn free(&mut self, key: &LedgerKey) {
        if key.is_caller_named() && self.taken.swap_remove(key) {
            let left = self.by_partition.get_mut(&key.partition).map_or(0, |taken| {
                *taken -= 1;
                *taken
            });
            if left == 0 {
                self.by_partition.remove(&key.partition);
            }
        }
    }
}

impl<C: Clock> MemoryStore<C> {
    /// A store for up to about `max_ledgers` scopes that hold something at the same time, and as many
    /// reservations and request ids. A call that would bring in one more is an error, as dropping a live
    /// counter would lift its limit.
    pub fn new(clock: C, max_ledgers: usize) -> Self {
        Self::with_shards(clock, max_ledgers, MAX_CALLER_NAMED, true)
    }

    /// The same, with room for so many caller-named ledgers in each partition.
    #[must_use]
    pub fn with_max_caller_named(self, most: u32) -> Self {
        self.shards.iter().for_each(|shard| shard.lock().seats.most = most);
        self
    }

    /// A store that forgets nothing, so that after the clock went back it has the same counters as Redis.
    #[cfg(feature = "testing")]
    pub fn that_forgets_nothing(clock: C) -> Self {
        Self::with_shards(clock, usize::MAX, MAX_CALLER_NAMED, false)
    }

    fn with_shards(clock: C, max_ledgers: usize, most: u32, forgets: bool) -> Self {
        let shard = || Shard {
            forgets,
            ledgers: IndexMap::new(),
            owned: HashMap::new(),
            seats: KeyCap { taken: IndexSet::new(), by_partition: HashMap::new(), most },
            records: Records::default(),
            sweep_at: 0,
            full_until: Timestamp::default(),
        };
        let shards = (0..SHARDS).map(|_| Mutex::new(shard())).collect();
        Self { clock, hasher: RandomState::new(), shards, shard_capacity: max_ledgers.div_ceil(SHARDS).max(MAX_CLAIMS) }
    }

    /// How many ledgers are kept now, those included that hold nothing and were not yet dropped.
    pub fn ledgers(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().ledgers.len()).sum()
    }

    /// Drops every ledger that holds nothing, for an idle store.
    pub fn sweep(&self) {
        let now = self.clock.now();
        for shard in &self.shards {
            shard.lock().sweep_all(now);
        }
    }

    /// How many reservations and request ids are kept now, those included that have ended.
    pub fn records(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().records.len()).sum()
    }

    pub(crate) fn apply_now(&self, claims: &[Claim], mode: Mode) -> Result<ApplyResult, StoreError> {
        let (mut locked, now) = self.lock(claims.iter().map(|claim| claim.ledger.partition));
        if outside_period(claims, now) {
            return Ok(ApplyResult::OutsidePeriod(now));
        }
        if mode != Mode::Peek {
            locked.make_room(claims, 0, now, self.shard_capacity)?;
        }
        Ok(ApplyResult::Applied(decide(&mut locked, claims, mode, now)?))
    }

    fn admit_now(&self, claims: &[Claim], terms: &AdmitOptions<'_>) -> Result<Admission, StoreError> {
        let partitions = claims.iter().map(|claim| claim.ledger.partition);
        let (mut locked, now) = self.lock(partitions.chain([terms.home]));
        locked.make_room(claims, 2, now, self.shard_capacity)?;
        Ok(admission::admit(&mut locked, claims, terms, now)?)
    }

    fn close_now(
        &self,
        home: Partition,
        id: ReservationId,
        closing: &CloseRequest<'_>,
    ) -> Result<CloseResult, StoreError> {
        let refunds = closing.refunds.iter().map(|charge| charge.ledger);
        let debts = closing.debts.iter().map(|claim| claim.ledger);
        let touched =
            refunds.chain(debts).chain(closing.reservation.slots.iter().copied()).map(|ledger| ledger.partition);
        let (mut locked, now) = self.lock(touched.chain([home]));
        locked.make_room(closing.debts, 0, now, self.shard_capacity)?;
        Ok(admission::close(&mut locked, home, id, closing, now))
    }

    /// Locks the shards of these partitions, removes expired ledgers, and reads the time: with the locks held, so that
    /// time does not go backwards between two decisions.
    fn lock(&self, partitions: impl Iterator<Item = Partition>) -> (LockedShards<'_>, Timestamp) {
        let mut shards: SmallVec<[usize; 4]> = partitions.map(|partition| shard_of(&self.hasher, partition)).collect();
        shards.sort_unstable();
        shards.dedup();
        let held = shards.iter().map(|shard| (*shard, self.shards[*shard].lock())).collect();
        let mut locked = LockedShards { held, hasher: &self.hasher };
        let now = self.clock.now();
        locked.held.iter_mut().for_each(|(_, shard)| shard.sweep_some(now));
        (locked, now)
    }
}

impl<C: Clock> Store for MemoryStore<C> {
    fn apply_at<'a>(&'a self, _home: Partition, claims: &'a [Claim], mode: Mode) -> AnswerFuture<'a> {
        Box::pin(std::future::ready(self.apply_now(claims, mode)))
    }

    fn admit<'a>(&'a self, claims: &'a [Claim], terms: &'a AdmitOptions<'a>) -> StoreFuture<'a, Admission> {
        Box::pin(std::future::ready(self.admit_now(claims, terms)))
    }

    fn look(&self, home: Partition, id: ReservationId) -> StoreFuture<'_, ReservationState> {
        let (mut locked, now) = self.lock([home].into_iter());
        Box::pin(std::future::ready(Ok(admission::look(&mut locked, home, id, now))))
    }

    fn close<'a>(
        &'a self,
        home: Partition,
        id: ReservationId,
        closing: &'a CloseRequest<'a>,
    ) -> StoreFuture<'a, CloseResult> {
        Box::pin(std::future::ready(self.close_now(home, id, closing)))
    }

    fn extend<'a>(
        &'a self,
        home: Partition,
        id: ReservationId,
        ttl_ms: u32,
        reservation: &'a Reservation,
    ) -> StoreFuture<'a, Extension> {
        let (mut locked, now) = self.lock(reservation.slots.iter().map(|ledger| ledger.partition).chain([home]));
        Box::pin(std::future::ready(Ok(admission::extend(&mut locked, home, id, ttl_ms, reservation, now))))
    }

    fn reset<'a>(&'a self, home: Partition, ledgers: &'a [LedgerKey], caller_named: bool) -> StoreFuture<'a, usize> {
        let (mut locked, _) = self.lock([home].into_iter());
        let shard = locked.shard(home);
        let before = shard.ledgers.len();
        shard.ledgers.retain(|key, _| {
            let goes = key.partition == home && (ledgers.contains(key) || caller_named && key.is_caller_named());
            if goes {
                shard.seats.free(key);
                disown(&mut shard.owned, key.partition.owner());
            }
            !goes
        });
        Box::pin(std::future::ready(Ok(before - shard.ledgers.len())))
    }

    fn health(&self) -> HealthFuture<'_> {
        Box::pin(std::future::ready(StoreHealth::good()))
    }
}

impl Shard {
    /// Looks at the next two ledgers and records. A round takes half as many calls as there are ledgers.
    fn sweep_some(&mut self, now: Timestamp) {
        if self.forgets {
            self.records.sweep_some(now);
        }
        for _ in 0..2 {
            match self.ledgers.get_index(self.sweep_at) {
                Some((key, ledger)) if self.forgets && ledger.is_expired(now) => {
                    self.seats.free(key);
                    disown(&mut self.owned, key.partition.owner());
                    self.ledgers.swap_remove_index(self.sweep_at);
                }
                Some(_) => self.sweep_at += 1,
                None => self.sweep_at = 0,
            }
        }
    }

    fn sweep_all(&mut self, now: Timestamp) {
        self.records.sweep(now);
        self.ledgers.retain(|key, ledger| {
            let stays = !ledger.is_expired(now);
            if !stays {
                self.seats.free(key);
                disown(&mut self.owned, key.partition.owner());
            }
            stays
        });
        self.ledgers.shrink_to(self.ledgers.len() * 2);
    }

    fn fits(&self, RequiredSpace { owner, ledgers, records }: RequiredSpace, capacity: usize) -> bool {
        let fits = |wanted: usize, used: usize, owned: &dyn Fn() -> usize| {
            let free = capacity.saturating_sub(used);
            wanted == 0 || wanted <= free && owned().saturating_add(wanted) <= free.saturating_mul(SHARE_OF_FREE)
        };
        fits(ledgers, self.ledgers.len(), &|| self.owned.get(&owner).copied().unwrap_or(0))
            && fits(records, self.records.len(), &|| self.records.owned(owner))
    }

    /// Makes sure that `wanted` new ledgers and as many records fit. A shard that is full of live ones is swept at most
    /// every 100 ms, so that a flood of new counters does not buy a full sweep with every call.
    fn make_room(&mut self, now: Timestamp, wanted: RequiredSpace, capacity: usize) -> Result<(), StoreError> {
        if self.fits(wanted, capacity) {
            return Ok(());
        }
        if self.full_until <= now || self.full_until > now.plus_ms(100) {
            self.sweep_all(now);
            self.full_until = now.plus_ms(100);
        }
        if self.fits(wanted, capacity) {
            Ok(())
        } else {
            Err(StoreError::Overloaded("no room for another counter in memory".into()))
        }
    }
}

/// The room that a call wants in a shard.
#[derive(Clone, Copy)]
struct RequiredSpace {
    owner: Owner,
    ledgers: usize,
    records: usize,
}

/// Takes a ledger off its owner's count.
fn disown(counts: &mut HashMap<Owner, usize>, owner: Owner) {
    let left = counts.get_mut(&owner).map_or(0, |count| {
        *count -= 1;
        *count
    });
    if left == 0 {
        counts.remove(&owner);
    }
}

struct LockedShards<'a> {
    held: SmallVec<[(usize, MutexGuard<'a, Shard>); 4]>,
    hasher: &'a RandomState,
}

impl LockedShards<'_> {
    /// Makes space in every shard for the counters of `claims`, and for this many records.
    fn make_room(&mut self, claims: &[Claim], records: usize, now: Timestamp, most: usize) -> Result<(), StoreError> {
        let charging =
            || claims.iter().filter(|claim| claim.charge() > Amount::ZERO || claim.span == WindowInstance::Slots);
        let owner = claims.first().map_or_else(Owner::default, |claim| claim.ledger.partition.owner());
        let wanted = RequiredSpace { owner, ledgers: charging().count(), records };
        let hasher = self.hasher;
        self.held.iter_mut().try_for_each(|(number, shard)| {
            if shard.fits(wanted, most) {
                return Ok(());
            }
            // Existing ledgers need no new space.
            let is_new = |claim: &&Claim| {
                shard_of(hasher, claim.ledger.partition) == *number && !shard.ledgers.contains_key(&claim.ledger)
            };
            let ledgers = charging().filter(is_new).count();
            shard.make_room(now, RequiredSpace { ledgers, ..wanted }, most)
        })
    }

    #[expect(clippy::expect_used, reason = "the shard of every claim and record is locked before it is looked for")]
    fn shard(&mut self, partition: Partition) -> &mut Shard {
        let shard = shard_of(self.hasher, partition);
        &mut self.held.iter_mut().find(|(held, _)| *held == shard).expect("a claim's shard is locked").1
    }
}

impl LedgerMap for LockedShards<'_> {
    fn get(&mut self, key: &LedgerKey) -> Option<&mut Ledger> {
        self.shard(key.partition).ledgers.get_mut(key)
    }

    fn get_or_new(&mut self, key: &LedgerKey) -> &mut Ledger {
        let Shard { ledgers, owned, .. } = self.shard(key.partition);
        ledgers.entry(*key).or_insert_with(|| {
            *owned.entry(key.partition.owner()).or_default() += 1;
            Ledger::default()
        })
    }

    fn admit_new_keys(&mut self, new: &[LedgerKey]) -> bool {
        // All caller-named ledgers of a call are its account's.
        new.first().is_none_or(|key| self.shard(key.partition).seats.take(key.partition, new))
    }
}

impl ReservationRecords for LockedShards<'_> {
    fn records(&mut self, home: Partition) -> &mut Records {
        &mut self.shard(home).records
    }
}

fn shard_of(hasher: &RandomState, partition: Partition) -> usize {
    // The remainder of a division by the number of shards is small.
    usize::try_from(hasher.hash_one(partition) % SHARDS as u64).unwrap_or(0)
}
