//! Counters in this process's memory: the embedded default, for one node.

use std::pin::Pin;

use indexmap::IndexMap;
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;
use tollgate_core::{
    amount::Amount,
    claim::{Answer, Claim, LedgerKey, MAX_CLAIMS, Mode},
    ledger::{Ledger, Ledgers, decide},
    store::{AnswerFuture, Store, StoreError},
    time::Timestamp,
    window::Span,
};

use crate::clock::Clock;

const SHARDS: usize = 64;

/// A store in memory. Ledgers are spread over shards by their partition, each behind its own lock;
/// a decision holds the locks of its partitions, in one order for everybody, and never across an
/// await. Every call looks at a few ledgers and drops those that hold nothing any more, so that
/// expired counters leave by themselves.
pub struct MemoryStore<C> {
    clock: C,
    shards: Box<[Mutex<Shard>]>,
    shard_capacity: usize,
}

struct Shard {
    forgets: bool,
    ledgers: IndexMap<LedgerKey, Ledger>,
    sweep_at: usize,
    full_until: Timestamp,
}

impl<C: Clock> MemoryStore<C> {
    /// A store for up to about `max_ledgers` scopes that hold something at the same time. A call
    /// that would bring in one more is an error, as dropping a live counter would lift its limit.
    pub fn new(clock: C, max_ledgers: usize) -> Self {
        Self::with_shards(clock, max_ledgers, true)
    }

    /// A store that forgets nothing, so that a clock that goes back finds what Redis would still hold.
    #[cfg(feature = "testing")]
    pub fn that_forgets_nothing(clock: C) -> Self {
        Self::with_shards(clock, usize::MAX, false)
    }

    fn with_shards(clock: C, max_ledgers: usize, forgets: bool) -> Self {
        let shard = || Shard { forgets, ledgers: IndexMap::new(), sweep_at: 0, full_until: Timestamp::default() };
        let shards = (0..SHARDS).map(|_| Mutex::new(shard())).collect();
        Self { clock, shards, shard_capacity: max_ledgers.div_ceil(SHARDS).max(MAX_CLAIMS) }
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

    fn apply_now(&self, claims: &[Claim], mode: Mode) -> Result<Answer, StoreError> {
        let mut shards: SmallVec<[usize; 4]> = claims.iter().map(|claim| shard_of(&claim.ledger)).collect();
        shards.sort_unstable();
        shards.dedup();
        let guards = shards.iter().map(|shard| (*shard, self.shards[*shard].lock())).collect();
        // Read under the locks, so that time does not run backwards between two decisions.
        let now = self.clock.now();
        let elsewhen = |claim: &Claim| matches!(claim.span, Span::Calendar { period, .. } if !period.contains(now));
        if claims.iter().any(elsewhen) {
            return Ok(Answer::OutsidePeriod(now));
        }
        let mut locked = Locked(guards);
        for (_, shard) in &mut locked.0 {
            shard.sweep_some(now);
            if mode != Mode::Peek {
                let charges = claims.iter().filter(|claim| claim.charge() > Amount::ZERO).count();
                shard.make_room(now, charges, self.shard_capacity)?;
            }
        }
        Ok(Answer::Applied(decide(&mut locked, claims, mode, now)))
    }
}

impl<C: Clock> Store for MemoryStore<C> {
    fn apply<'a>(&'a self, claims: &'a [Claim], mode: Mode) -> AnswerFuture<'a> {
        Box::pin(std::future::ready(self.apply_now(claims, mode)))
    }

    fn ready<'a>(&'a self) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + 'a>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

impl Shard {
    /// Looks at the next two ledgers. A round takes half as many calls as there are ledgers.
    fn sweep_some(&mut self, now: Timestamp) {
        for _ in 0..2 {
            match self.ledgers.get_index(self.sweep_at) {
                Some((_, ledger)) if self.forgets && ledger.is_over(now) => {
                    self.ledgers.swap_remove_index(self.sweep_at);
                }
                Some(_) => self.sweep_at += 1,
                None => self.sweep_at = 0,
            }
        }
    }

    fn sweep_all(&mut self, now: Timestamp) {
        self.ledgers.retain(|_, ledger| !ledger.is_over(now));
        self.ledgers.shrink_to(self.ledgers.len() * 2);
    }

    /// Makes sure that `wanted` new ledgers fit. A shard that is full of live ones is swept at most
    /// every 100 ms, so that a flood of new counters does not buy a full sweep with every call.
    fn make_room(&mut self, now: Timestamp, wanted: usize, capacity: usize) -> Result<(), StoreError> {
        let fits = |shard: &Self| shard.ledgers.len() + wanted <= capacity;
        if fits(self) {
            return Ok(());
        }
        if self.full_until <= now || self.full_until > now.plus_ms(100) {
            self.sweep_all(now);
            self.full_until = now.plus_ms(100);
        }
        if fits(self) { Ok(()) } else { Err(StoreError::Overloaded("no room for another counter in memory".into())) }
    }
}

struct Locked<'a>(SmallVec<[(usize, MutexGuard<'a, Shard>); 4]>);

impl Locked<'_> {
    #[expect(clippy::expect_used, reason = "apply_now locks the shard of every claim before it decides")]
    fn shard(&mut self, key: &LedgerKey) -> &mut Shard {
        let shard = shard_of(key);
        &mut self.0.iter_mut().find(|(held, _)| *held == shard).expect("a claim's shard is locked").1
    }
}

impl Ledgers for Locked<'_> {
    fn get(&mut self, key: &LedgerKey) -> Option<&mut Ledger> {
        self.shard(key).ledgers.get_mut(key)
    }

    fn get_or_new(&mut self, key: &LedgerKey) -> &mut Ledger {
        self.shard(key).ledgers.entry(*key).or_default()
    }
}

/// The partition is a hash already; its first byte spreads evenly.
fn shard_of(key: &LedgerKey) -> usize {
    let [first, ..] = key.partition.bytes();
    usize::from(first) % SHARDS
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tollgate_core::{
        amount::{Limit, UnitId},
        claim::{Effect, Partition},
        window::SlidingWindow,
    };

    use super::*;
    use crate::clock::ManualClock;

    fn claim(account: &str) -> Claim {
        Claim {
            ledger: LedgerKey::of(Partition::of([account]), ["r"]),
            span: Span::Sliding(SlidingWindow::from_ms(1000).unwrap()),
            unit: UnitId::of("requests"),
            cost: Amount::from(1),
            limit: Limit::Finite(Amount::from(1)),
            effect: Effect::Charge,
        }
    }

    #[test]
    fn expired_ledgers_leave_by_themselves_and_live_ones_are_never_dropped() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_ms(1_000_000)));
        let store = MemoryStore::new(Arc::clone(&clock), SHARDS * MAX_CLAIMS);
        let mut refused = 0;
        for n in 0..50_000 {
            refused += usize::from(store.apply_now(&[claim(&n.to_string())], Mode::Try).is_err());
        }
        assert!(store.ledgers() <= SHARDS * MAX_CLAIMS, "bounded: {}", store.ledgers());
        assert_eq!(refused, 50_000 - store.ledgers());
        clock.advance_ms(1000);
        for n in 0..10_000 {
            store.apply_now(&[claim(&format!("later {}", n % 10))], Mode::Try).unwrap();
        }
        assert!(store.ledgers() < SHARDS * MAX_CLAIMS, "calls sweep as they go: {}", store.ledgers());
        clock.advance_ms(1000);
        store.sweep();
        assert_eq!(store.ledgers(), 0);
    }
}
