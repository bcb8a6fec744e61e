//! Decisions without the store: the behaviour that each quota defines for an outage.
//!
//! The bounds, in any trailing window or calendar period, for a limit L on n nodes that are configured for N:
//!
//! - `deny`: L. Nothing is admitted without the store.
//! - `local`: L + n · max(1, ⌊L / N⌋). The store never admits more than L, and no node more than its share by
//!   itself, however often the store goes away and comes back. What a node admitted by itself is charged to the
//!   store when that is back, so that the store's own admissions make room for it.
//! - `allow`: L, and every call made while the store is away whose cost is within L.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tollgate_core::{
    amount::{Amount, Limit},
    claim::{ApplyResult, Claim, ClaimStatus, Claims, ClaimsDecision, Effect, Fit, Mode, OnFailure},
    store::{Store, StoreError},
    time::Timestamp,
    window::WindowInstance,
};

use crate::{clock::Clock, memory::MemoryStore};

/// The most admissions that wait to be charged to the store.
pub const MAX_WAITING: usize = 65_536;
/// So many of them are charged at once.
const AT_ONCE: usize = 32;

/// Decides locally, on one node.
pub struct Fallback {
    local: MemoryStore<Arc<dyn Clock>>,
    clock: Arc<dyn Clock>,
    nodes: u64,
    waiting: Mutex<VecDeque<PendingCharge>>,
    /// How many more are being charged. Written with `waiting` locked, so that none is missing from both.
    at_hand: AtomicUsize,
    /// Held while the store is charged, so that the last replay ends after all others.
    replaying: tokio::sync::Mutex<()>,
    charged: AtomicU64,
    dropped: AtomicU64,
}

/// An admission that the store does not know of.
struct PendingCharge {
    at: Timestamp,
    claims: Box<[Claim]>,
}

/// The results of the admissions made without the store, since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayStatus {
    /// How many wait to be charged to the store.
    pub waiting: usize,
    /// How many were.
    pub charged: u64,
    /// The number of admissions that will never be charged: their windows ended, too many waited, or the store did not
    /// say whether it charged them.
    pub dropped: u64,
}

impl Fallback {
    /// For one of `nodes` nodes that share their limits, with up to about `max_ledgers` scopes.
    pub fn new(clock: Arc<dyn Clock>, nodes: u64, max_ledgers: usize) -> Self {
        Self {
            local: MemoryStore::new(Arc::clone(&clock), max_ledgers),
            clock,
            nodes: nodes.max(1),
            waiting: Mutex::new(VecDeque::new()),
            at_hand: AtomicUsize::new(0),
            replaying: tokio::sync::Mutex::default(),
            charged: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// The same, with room for so many caller-named ledgers in each partition.
    #[must_use]
    pub fn with_max_caller_named(self, most: u32) -> Self {
        Self { local: self.local.with_max_caller_named(most), ..self }
    }

    /// This node's part of a limit: at least one if the limit is not zero.
    pub fn share(&self, limit: Limit) -> Limit {
        match limit {
            Limit::Unlimited | Limit::Finite(Amount::ZERO) => limit,
            Limit::Finite(limit) => Limit::Finite(Amount::try_from((limit.get() / self.nodes).max(1)).unwrap_or(limit)),
        }
    }

    /// Decides `claims`, each with its behaviour in `modes`; the claims after those are guards, whose counters are not
    /// known here. `None` if one of them must not be decided without the store.
    pub fn decide(&self, claims: &[Claim], modes: &[OnFailure], mode: Mode) -> Option<Result<ApplyResult, StoreError>> {
        if modes.contains(&OnFailure::Deny) {
            return None;
        }
        let is_local = |at: usize| modes.get(at) == Some(&OnFailure::Local);
        let blank = |claim: &Claim| {
            let never = claim.cost > claim.limit.ceiling() && claim.effect == Effect::Charge;
            let fit = if never { Fit::Never } else { Fit::Now };
            ClaimStatus { used: Amount::ZERO, resets_at: self.clock.now(), fit }
        };
        let mut statuses: SmallVec<[ClaimStatus; 4]> = claims.iter().map(blank).collect();
        let places: SmallVec<[usize; 8]> = (0..claims.len()).filter(|at| is_local(*at)).collect();
        let shares: Claims =
            places.iter().map(|at| Claim { limit: self.share(claims[*at].limit), ..claims[*at] }).collect();
        let may_pass = (0..claims.len()).all(|at| is_local(at) || statuses[at].fit == Fit::Now);
        let mut applied = ClaimsDecision { decided_at: self.clock.now(), allowed: may_pass, statuses: SmallVec::new() };
        if !shares.is_empty() {
            let local_mode = if may_pass { mode } else { Mode::Peek };
            match self.local.apply_now(&shares, local_mode) {
                Ok(ApplyResult::Applied(local)) => {
                    for (at, status) in places.iter().zip(local.statuses) {
                        statuses[*at] = status;
                    }
                    applied.allowed &= local.allowed;
                    applied.decided_at = local.decided_at;
                }
                other => return Some(other),
            }
            if applied.allowed && mode == Mode::Try {
                self.remember(applied.decided_at, places.iter().map(|at| claims[*at]));
            }
        }
        applied.statuses = statuses;
        Some(Ok(ApplyResult::Applied(applied)))
    }

    /// Charges `store` for admissions made without it, for as long as it answers.
    pub async fn replay(&self, store: &dyn Store) {
        let _replaying = self.replaying.lock().await;
        loop {
            let now = self.clock.now();
            let batch: Vec<PendingCharge> = {
                let mut waiting = self.waiting.lock();
                let count = waiting.len().min(AT_ONCE);
                self.at_hand.store(count, Ordering::Relaxed);
                waiting.drain(..count).collect()
            };
            if batch.is_empty() {
                return;
            }
            let mut back = Vec::new();
            let charges = batch.into_iter().map(|admitted| async move {
                let live = still_counting(&admitted, now);
                let outcome = if live.is_empty() { Some(Err(())) } else { charge(store, &live).await };
                (admitted, outcome)
            });
            for (admitted, outcome) in futures_util::future::join_all(charges).await {
                match outcome {
                    Some(Ok(())) => drop(self.charged.fetch_add(1, Ordering::Relaxed)),
                    Some(Err(())) => drop(self.dropped.fetch_add(1, Ordering::Relaxed)),
                    None => back.push(admitted),
                }
            }
            let mut waiting = self.waiting.lock();
            self.at_hand.store(0, Ordering::Relaxed);
            if !back.is_empty() {
                back.into_iter().rev().for_each(|admitted| waiting.push_front(admitted));
                return;
            }
        }
    }

    /// The results of the admissions made without the store.
    pub fn replayed(&self) -> ReplayStatus {
        let waiting = self.waiting.lock();
        ReplayStatus {
            waiting: waiting.len() + self.at_hand.load(Ordering::Relaxed),
            charged: self.charged.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }

    /// Forgets expired counters.
    pub fn sweep(&self) {
        self.local.sweep();
    }

    fn remember(&self, at: Timestamp, claims: impl Iterator<Item = Claim>) {
        let claims: Box<[Claim]> = claims.filter(|claim| claim.charge() > Amount::ZERO).collect();
        let mut waiting = self.waiting.lock();
        if waiting.len() >= MAX_WAITING {
            waiting.pop_front();
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        waiting.push_back(PendingCharge { at, claims });
    }
}

fn still_counting(admitted: &PendingCharge, now: Timestamp) -> Claims {
    let counts = |claim: &&Claim| match claim.span {
        WindowInstance::Sliding(window) => now.ms_since(admitted.at) < u64::from(window.ms()),
        WindowInstance::Calendar { period, .. } => period.contains(now),
        // Slots are held by reservations, which need the store.
        WindowInstance::Slots => false,
    };
    admitted.claims.iter().filter(counts).copied().collect()
}

/// `None` if nothing was charged and it is worth trying again.
async fn charge(store: &dyn Store, claims: &[Claim]) -> Option<Result<(), ()>> {
    match store.apply(claims, Mode::Force).await {
        Ok(ApplyResult::Applied(_)) => Some(Ok(())),
        // A period ended just now, by the store's clock. The rest counts on.
        Ok(ApplyResult::OutsidePeriod(at)) => {
            let rest: Claims = claims
                .iter()
                .filter(|claim| !matches!(claim.span, WindowInstance::Calendar { period, .. } if !period.contains(at)))
                .copied()
                .collect();
            if rest.is_empty() {
                return Some(Err(()));
            }
            match store.apply(&rest, Mode::Force).await {
                Ok(ApplyResult::Applied(_)) => Some(Ok(())),
                Ok(ApplyResult::OutsidePeriod(_)) | Err(StoreError::Indeterminate(_)) => Some(Err(())),
                Err(_) => None,
            }
        }
        // It may have been charged, and must not be twice.
        Err(StoreError::Indeterminate(_)) => Some(Err(())),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;
    use proptest::prelude::*;
    use tollgate_core::{
        amount::UnitId,
        claim::{LedgerKey, Partition, ReservationId},
        reservation::{Admission, AdmitOptions, CloseRequest, CloseResult, Extension, Reservation, ReservationState},
        store::{AnswerFuture, HealthFuture, StoreFuture},
        window::SlidingWindow,
    };

    use super::*;
    use crate::clock::ManualClock;

    const WINDOW_MS: u64 = 1_000;

    fn claim(cost: u64, limit: u64) -> Claim {
        Claim {
            ledger: LedgerKey::of(Partition::of(["a"]), ["r"]),
            span: WindowInstance::Sliding(SlidingWindow::from_ms(WINDOW_MS).unwrap()),
            unit: UnitId::of("requests"),
            cost: Amount::try_from(cost).unwrap(),
            limit: Limit::Finite(Amount::try_from(limit).unwrap()),
            effect: Effect::Charge,
        }
    }

    fn fallback(nodes: u64) -> (Fallback, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::at(Timestamp::from_ms(1_000_000)));
        (Fallback::new(Arc::clone(&clock) as Arc<dyn Clock>, nodes, 1_000), clock)
    }

    fn allowed(decided: Option<Result<ApplyResult, StoreError>>) -> bool {
        match decided {
            Some(Ok(ApplyResult::Applied(applied))) => applied.allowed,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn any_deny_leaves_it_to_the_store_and_allow_admits_what_could_ever_fit() {
        let (fallback, _) = fallback(1);
        let claims = [claim(1, 1), claim(1, 1)];
        assert!(fallback.decide(&claims, &[OnFailure::Allow, OnFailure::Deny], Mode::Try).is_none());
        for _ in 0..10 {
            assert!(allowed(fallback.decide(&claims, &[OnFailure::Allow, OnFailure::Allow], Mode::Try)));
        }
        let too_much = [claim(2, 1)];
        assert!(!allowed(fallback.decide(&too_much, &[OnFailure::Allow], Mode::Try)));
        assert_eq!(fallback.replayed().waiting, 0, "only what was admitted locally is charged later");
    }

    proptest! {
        /// The promised bound of `local`, with a store that fails and recovers at random.
        #[test]
        fn local_never_admits_more_than_its_bound(
            limit in 0_u64..20,
            nodes in 1_usize..4,
            told in 1_u64..5,
            steps in prop::collection::vec((0_usize..4, 0_u64..400, 1_u64..4, prop::bool::weighted(0.1)), 1..200),
        ) {
            let clock = Arc::new(ManualClock::at(Timestamp::from_ms(1_000_000)));
            let store = MemoryStore::new(Arc::clone(&clock), 1_000);
            let alone: Vec<Fallback> =
                (0..nodes).map(|_| Fallback::new(Arc::clone(&clock) as Arc<dyn Clock>, told, 1_000)).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (mut up, mut admitted) = (true, Vec::new());
            for (node, pause, cost, turn) in steps {
                clock.advance_ms(pause);
                if turn {
                    up = !up;
                    if up {
                        for node in &alone {
                            runtime.block_on(node.replay(&store));
                        }
                    }
                }
                let claims = [claim(cost, limit)];
                let passes = if up {
                    matches!(store.apply_now(&claims, Mode::Try), Ok(ApplyResult::Applied(applied)) if applied.allowed)
                } else {
                    allowed(alone[node % nodes].decide(&claims, &[OnFailure::Local], Mode::Try))
                };
                if passes {
                    admitted.push((clock.now().as_ms(), cost));
                }
                let horizon = clock.now().as_ms() - WINDOW_MS;
                let sum: u64 = admitted.iter().filter(|(at, _)| *at > horizon).map(|(_, cost)| cost).sum();
                let share = if limit == 0 { 0 } else { (limit / told).max(1) };
                prop_assert!(sum <= limit + nodes as u64 * share, "{sum} of {limit} on {nodes} nodes");
            }
        }
    }

    #[tokio::test]
    async fn what_was_admitted_is_charged_once_and_what_is_over_is_dropped() {
        let (fallback, clock) = fallback(2);
        let store = MemoryStore::new(Arc::clone(&clock), 1_000);
        for number in 0..10 {
            assert_eq!(allowed(fallback.decide(&[claim(1, 10)], &[OnFailure::Local], Mode::Try)), number < 5);
        }
        assert!(!allowed(fallback.decide(&[claim(1, 10)], &[OnFailure::Local], Mode::Peek)));
        fallback.replay(&store).await;
        assert_eq!(fallback.replayed(), ReplayStatus { waiting: 0, charged: 5, dropped: 0 });
        let Ok(ApplyResult::Applied(peeked)) = store.apply_now(&[claim(1, 10)], Mode::Peek) else { panic!() };
        assert_eq!(peeked.statuses[0].used.get(), 5);
        clock.advance_ms(WINDOW_MS);
        assert!(allowed(fallback.decide(&[claim(1, 10)], &[OnFailure::Local], Mode::Try)));
        clock.advance_ms(WINDOW_MS);
        fallback.replay(&store).await;
        assert_eq!(fallback.replayed(), ReplayStatus { waiting: 0, charged: 5, dropped: 1 });
    }

    /// A store that answers when it is let.
    struct SlowStore(MemoryStore<Arc<ManualClock>>, tokio::sync::Semaphore);

    impl Store for SlowStore {
        fn apply_at<'a>(&'a self, home: Partition, claims: &'a [Claim], mode: Mode) -> AnswerFuture<'a> {
            Box::pin(async move {
                drop(self.1.acquire().await);
                self.0.apply_at(home, claims, mode).await
            })
        }

        fn admit<'a>(&'a self, claims: &'a [Claim], terms: &'a AdmitOptions<'a>) -> StoreFuture<'a, Admission> {
            self.0.admit(claims, terms)
        }

        fn look(&self, home: Partition, id: ReservationId) -> StoreFuture<'_, ReservationState> {
            self.0.look(home, id)
        }

        fn close<'a>(
            &'a self,
            home: Partition,
            id: ReservationId,
            how: &'a CloseRequest<'a>,
        ) -> StoreFuture<'a, CloseResult> {
            self.0.close(home, id, how)
        }

        fn extend<'a>(
            &'a self,
            home: Partition,
            id: ReservationId,
            ttl_ms: u32,
            reservation: &'a Reservation,
        ) -> StoreFuture<'a, Extension> {
            self.0.extend(home, id, ttl_ms, reservation)
        }

        fn reset<'a>(&'a self, home: Partition, ledgers: &'a [LedgerKey], open: bool) -> StoreFuture<'a, usize> {
            self.0.reset(home, ledgers, open)
        }

        fn health(&self) -> HealthFuture<'_> {
            self.0.health()
        }
    }

    /// A node ends after its last replay, even if another replay was active.
    #[tokio::test]
    async fn a_replay_waits_for_one_that_is_under_way() {
        let (fallback, clock) = fallback(1);
        let slow = SlowStore(MemoryStore::new(clock, 1_000), tokio::sync::Semaphore::new(0));
        assert!(allowed(fallback.decide(&[claim(1, 10)], &[OnFailure::Local], Mode::Try)));
        let (mut first, mut last) = (pin!(fallback.replay(&slow)), pin!(fallback.replay(&slow)));
        assert!(first.as_mut().now_or_never().is_none());
        assert!(last.as_mut().now_or_never().is_none(), "it left the other's charge behind");
        slow.1.add_permits(1);
        tokio::join!(first, last);
        assert_eq!(fallback.replayed(), ReplayStatus { waiting: 0, charged: 1, dropped: 0 });
    }

    #[test]
    fn the_queue_is_bounded() {
        let (fallback, _) = fallback(1);
        for _ in 0..MAX_WAITING + 10 {
            assert!(allowed(fallback.decide(&[claim(1, 1 << 50)], &[OnFailure::Local], Mode::Try)));
        }
        assert_eq!(fallback.replayed(), ReplayStatus { waiting: MAX_WAITING, charged: 0, dropped: 10 });
    }
}
