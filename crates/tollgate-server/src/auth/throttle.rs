//! The bound on failed logins per address, and on the lookups of keys from addresses above the bound.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tollgate_core::{
    amount::{Amount, Limit, UnitId},
    claim::{ApplyResult, Claim, ClaimsDecision, Effect, Fit, LedgerKey, Mode, Partition},
    store::Store,
    window::{SlidingWindow, WindowInstance},
};
use tollgate_store::{clock::Clock, memory::MemoryStore};

use super::{AuthError, ClientAddr};

/// The window of failures, and the duration of a block.
const WINDOW_MS: u64 = 30_000;
/// The maximum number of addresses with counters.
const MAX_ADDRESSES: usize = 16_384;
/// The counters of an address: its failures, its block, and the lookups during the block.
const COUNTERS_PER_ADDRESS: usize = 3;
/// The window of lookups.
const LOOKUP_WINDOW_MS: u64 = 1_000;
/// The maximum number of lookups of one blocked address in the window.
const LOOKUPS_PER_ADDRESS: u32 = 10;
/// The maximum number of lookups of all addresses that are blocked or not counted, in the window.
const LOOKUPS: u32 = 100;

/// Counts the failed logins of one kind of caller by address, in the memory of this node. Its counters are sliding
/// windows, like those of quotas. A block affects only failing logins.
pub(crate) struct Throttle {
    store: MemoryStore<Arc<dyn Clock>>,
    clock: Arc<dyn Clock>,
    /// `None` if failures are not bounded.
    bounds: Option<Bounds>,
    /// When the last block ends. Without a block, the counters need not be read.
    blocked_until_ms: AtomicU64,
    /// Until when the store may be full, so that addresses are not counted.
    full_until_ms: AtomicU64,
    /// Counts the lookups of all addresses, in a store of its own that is never full.
    lookups: MemoryStore<Arc<dyn Clock>>,
}

/// The state of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressState {
    /// Its failures are within the bound.
    Free,
    /// Too many of its logins failed; contains the error for a wrong secret.
    Blocked(AuthError),
    /// Its failures may not be counted, because the store is full.
    Uncounted,
}

#[derive(Clone, Copy)]
struct Bounds {
    window: WindowInstance,
    failures: Amount,
    lookup_window: WindowInstance,
}

impl Throttle {
    /// Blocks addresses with more than `max_failures` failures in 30 seconds; none if it is 0.
    pub(crate) fn new(clock: Arc<dyn Clock>, max_failures: u32) -> Self {
        Self::with_capacity(clock, max_failures, MAX_ADDRESSES)
    }

    fn with_capacity(clock: Arc<dyn Clock>, max_failures: u32, addresses: usize) -> Self {
        let window = |ms| SlidingWindow::from_ms(ms).ok().map(WindowInstance::Sliding);
        let windows = window(WINDOW_MS).zip(window(LOOKUP_WINDOW_MS)).filter(|_| max_failures > 0);
        Self {
            store: MemoryStore::new(Arc::clone(&clock), COUNTERS_PER_ADDRESS * addresses),
            lookups: MemoryStore::new(Arc::clone(&clock), 1),
            clock,
            bounds: windows.map(|(window, lookup_window)| Bounds {
                window,
                failures: Amount::from(max_failures),
                lookup_window,
            }),
            blocked_until_ms: AtomicU64::new(0),
            full_until_ms: AtomicU64::new(0),
        }
    }

    /// The current state of the address.
    pub(crate) async fn address_state(&self, client: ClientAddr) -> AddressState {
        let Some(bounds) = self.bounds else { return AddressState::Free };
        let now_ms = self.clock.now().as_ms();
        if self.blocked_until_ms.load(Ordering::Relaxed) > now_ms {
            let claims = [claim(client, "block", bounds.window, one())];
            let applied = apply_claims(&self.store, &claims, Mode::Peek).await;
            let fit = applied.as_ref().and_then(|applied| Some((applied.statuses.first()?.fit, applied.decided_at)));
            if let Some((Fit::At(end), now)) = fit {
                let wait_ms = end.as_ms().saturating_sub(now.as_ms());
                return AddressState::Blocked(AuthError::TooManyFailures {
                    retry_after_s: wait_ms.div_ceil(1000).max(1),
                });
            }
        }
        if self.full_until_ms.load(Ordering::Relaxed) > now_ms { AddressState::Uncounted } else { AddressState::Free }
    }

    /// Counts a failure; if the address is blocked, returns the error instead. If the store is full, new addresses are
    /// not counted.
    pub(crate) async fn count_failure(&self, client: ClientAddr) -> Result<(), AuthError> {
        let Some(bounds) = self.bounds else { return Ok(()) };
        if let AddressState::Blocked(error) = self.address_state(client).await {
            return Err(error);
        }
        match apply_claims(&self.store, &[claim(client, "failures", bounds.window, bounds.failures)], Mode::Try).await {
            None => self.extend(&self.full_until_ms),
            Some(applied) if !applied.allowed => {
                let blocked =
                    apply_claims(&self.store, &[claim(client, "block", bounds.window, one())], Mode::Try).await;
                self.extend(if blocked.is_some() { &self.blocked_until_ms } else { &self.full_until_ms });
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Moves an end to one window from now.
    fn extend(&self, end_ms: &AtomicU64) {
        end_ms.fetch_max(self.clock.now().plus_ms(WINDOW_MS).as_ms(), Ordering::Relaxed);
    }

    /// Checks that a secret from a blocked or uncounted address may be looked up in the store of accounts.
    pub(crate) async fn permit_lookup(&self, client: ClientAddr) -> Result<(), AuthError> {
        let Some(bounds) = self.bounds else { return Ok(()) };
        let address_claim = claim(client, "look-ups", bounds.lookup_window, Amount::from(LOOKUPS_PER_ADDRESS));
        // If the store is full, only the bound on all addresses applies.
        let permitted =
            apply_claims(&self.store, &[address_claim], Mode::Try).await.is_none_or(|applied| applied.allowed) && {
                let ledger = LedgerKey::of(Partition::of(["all addresses"]), ["look-ups"]);
                let all = Claim { ledger, limit: Limit::Finite(Amount::from(LOOKUPS)), ..address_claim };
                apply_claims(&self.lookups, &[all], Mode::Try).await.is_some_and(|applied| applied.allowed)
            };
        let error = AuthError::TooManyFailures { retry_after_s: LOOKUP_WINDOW_MS.div_ceil(1000) };
        if permitted { Ok(()) } else { Err(error) }
    }

    /// Removes expired counters.
    pub(crate) fn sweep(&self) {
        self.store.sweep();
    }
}

/// The store's decision; `None` if it is full.
async fn apply_claims(store: &MemoryStore<Arc<dyn Clock>>, claims: &[Claim], mode: Mode) -> Option<ClaimsDecision> {
    match store.apply(claims, mode).await {
        Ok(ApplyResult::Applied(applied)) => Some(applied),
        _ => None,
    }
}

fn one() -> Amount {
    Amount::from(1)
}

fn claim(client: ClientAddr, counter: &str, window: WindowInstance, limit: Amount) -> Claim {
    let address = client.to_string();
    Claim {
        ledger: LedgerKey::of(Partition::of([&*address]), [counter]),
        span: window,
        unit: UnitId::of("failures"),
        cost: one(),
        limit: Limit::Finite(limit),
        effect: Effect::Charge,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderMap;
    use tollgate_core::time::Timestamp;

    use super::*;
    use crate::auth::TrustedProxies;

    /// A clock whose time the test sets.
    struct SetClock(AtomicU64);

    impl Clock for SetClock {
        fn now(&self) -> Timestamp {
            Timestamp::from_ms(self.0.load(Ordering::Relaxed))
        }
    }

    fn address(number: u32) -> ClientAddr {
        let ip = std::net::Ipv4Addr::from(0x0a00_0000 + number);
        TrustedProxies::default().client((ip, 1).into(), &HeaderMap::new())
    }

    /// Fails if an address that is not counted is treated like one without failures.
    #[tokio::test]
    async fn addresses_that_are_not_counted_share_a_bound_on_lookups() {
        let clock = Arc::new(SetClock(AtomicU64::new(1_000_000)));
        let throttle = Throttle::with_capacity(Arc::clone(&clock) as _, 1, 1);
        for _ in 0..3 {
            let _ = throttle.count_failure(address(0)).await;
        }
        assert!(matches!(throttle.address_state(address(0)).await, AddressState::Blocked(_)));
        assert_eq!(throttle.address_state(address(1)).await, AddressState::Free);
        let mut number = 1;
        while throttle.address_state(address(number)).await == AddressState::Free {
            let _ = throttle.count_failure(address(number)).await;
            number += 1;
            assert!(number < 100_000, "the store becomes full");
        }
        let mut permitted = 0;
        for number in number..number + 1_000 {
            if throttle.address_state(address(number)).await == AddressState::Free
                || throttle.permit_lookup(address(number)).await.is_ok()
            {
                permitted += 1;
            }
        }
        assert_eq!(permitted, LOOKUPS);
        assert!(matches!(throttle.address_state(address(0)).await, AddressState::Blocked(_)));
        clock.0.fetch_add(WINDOW_MS, Ordering::Relaxed);
        assert_eq!(throttle.address_state(address(number)).await, AddressState::Free);
    }
}
