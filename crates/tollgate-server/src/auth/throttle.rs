//! How often logins from an address may fail, and how many look-ups its guesses may cost after that.

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

/// Failures are counted over so long, and an address with too many is blocked for so long.
const WINDOW_MS: u64 = 30_000;
/// The most addresses that are counted at once.
const MAX_ADDRESSES: usize = 16_384;
/// The state of an address: its failures, its block, and the look-ups of keys that it sends during the block.
const COUNTERS_PER_ADDRESS: usize = 3;
/// Look-ups are counted over so long.
const LOOK_UP_WINDOW_MS: u64 = 1_000;
/// Look-ups of one blocked address in that time.
const LOOK_UPS_PER_ADDRESS: u32 = 10;
/// Look-ups of all addresses that are blocked, or not counted, in that time.
const LOOK_UPS: u32 = 100;

/// Counts the failed logins of one kind of caller by address, in this node's memory. Its counters are sliding windows,
/// like those of quotas. Successful logins are not checked here: a block concerns only failing ones.
pub(crate) struct Throttle {
    store: MemoryStore<Arc<dyn Clock>>,
    clock: Arc<dyn Clock>,
    /// `None` if failures are not bounded.
    bounds: Option<Bounds>,
    /// When the last block ends: while there is no block, no address needs a check.
    blocked_until_ms: AtomicU64,
    /// Until when it is likely that an address is not counted, as there is no room for it.
    full_until_ms: AtomicU64,
    /// Counts look-ups of all addresses. Apart from the store, so that there is always room for it.
    look_ups: MemoryStore<Arc<dyn Clock>>,
}

/// The state of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressState {
    /// Its failures are within the bound.
    Free,
    /// Too many of its attempts failed; so a wrong secret is answered.
    Blocked(AuthError),
    /// It may be that its failures are not counted: so many other addresses fail.
    Uncounted,
}

#[derive(Clone, Copy)]
struct Bounds {
    window: WindowInstance,
    failures: Amount,
    look_up_window: WindowInstance,
}

impl Throttle {
    /// Blocks addresses that fail more than `most` times in 30 seconds; none if `most` is 0.
    pub(crate) fn new(clock: Arc<dyn Clock>, most: u32) -> Self {
        Self::for_addresses(clock, most, MAX_ADDRESSES)
    }

    fn for_addresses(clock: Arc<dyn Clock>, most: u32, addresses: usize) -> Self {
        let window = |ms| SlidingWindow::from_ms(ms).ok().map(WindowInstance::Sliding);
        let windows = window(WINDOW_MS).zip(window(LOOK_UP_WINDOW_MS)).filter(|_| most > 0);
        Self {
            store: MemoryStore::new(Arc::clone(&clock), COUNTERS_PER_ADDRESS * addresses),
            look_ups: MemoryStore::new(Arc::clone(&clock), 1),
            clock,
            bounds: windows.map(|(window, look_up_window)| Bounds {
                window,
                failures: Amount::from(most),
                look_up_window,
            }),
            blocked_until_ms: AtomicU64::new(0),
            full_until_ms: AtomicU64::new(0),
        }
    }

    /// The current state of the address.
    pub(crate) async fn standing(&self, from: ClientAddr) -> AddressState {
        let Some(bounds) = self.bounds else { return AddressState::Free };
        let now_ms = self.clock.now().as_ms();
        if self.blocked_until_ms.load(Ordering::Relaxed) > now_ms {
            let claims = [claim(from, "block", bounds.window, one())];
            let applied = apply(&self.store, &claims, Mode::Peek).await;
            let fit = applied.as_ref().and_then(|applied| Some((applied.statuses.first()?.fit, applied.decided_at)));
            if let Some((Fit::At(until), now)) = fit {
                let wait_ms = until.as_ms().saturating_sub(now.as_ms());
                return AddressState::Blocked(AuthError::TooManyFailures {
                    retry_after_s: wait_ms.div_ceil(1000).max(1),
                });
            }
        }
        if self.full_until_ms.load(Ordering::Relaxed) > now_ms { AddressState::Uncounted } else { AddressState::Free }
    }

    /// Counts a failure, unless the address is blocked: then it returns the block. If the table of failing addresses is
    /// full, a new address is not counted; addresses in the table stay counted.
    pub(crate) async fn count_failure(&self, from: ClientAddr) -> Result<(), AuthError> {
        let Some(bounds) = self.bounds else { return Ok(()) };
        if let AddressState::Blocked(refusal) = self.standing(from).await {
            return Err(refusal);
        }
        match apply(&self.store, &[claim(from, "failures", bounds.window, bounds.failures)], Mode::Try).await {
            None => self.until(&self.full_until_ms),
            Some(applied) if !applied.allowed => {
                let blocked = apply(&self.store, &[claim(from, "block", bounds.window, one())], Mode::Try).await;
                self.until(if blocked.is_some() { &self.blocked_until_ms } else { &self.full_until_ms });
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn until(&self, end_ms: &AtomicU64) {
        end_ms.fetch_max(self.clock.now().plus_ms(WINDOW_MS).as_ms(), Ordering::Relaxed);
    }

    /// Whether a secret that is shown from a blocked or uncounted address may be looked up in the store of accounts.
    pub(crate) async fn permit_look_up(&self, from: ClientAddr) -> Result<(), AuthError> {
        let Some(bounds) = self.bounds else { return Ok(()) };
        let own = claim(from, "look-ups", bounds.look_up_window, Amount::from(LOOK_UPS_PER_ADDRESS));
        // Where the address finds no room, the bound on all of them is there.
        let permitted = apply(&self.store, &[own], Mode::Try).await.is_none_or(|applied| applied.allowed) && {
            let ledger = LedgerKey::of(Partition::of(["all addresses"]), ["look-ups"]);
            let all = Claim { ledger, limit: Limit::Finite(Amount::from(LOOK_UPS)), ..own };
            apply(&self.look_ups, &[all], Mode::Try).await.is_some_and(|applied| applied.allowed)
        };
        let refusal = AuthError::TooManyFailures { retry_after_s: LOOK_UP_WINDOW_MS.div_ceil(1000) };
        if permitted { Ok(()) } else { Err(refusal) }
    }

    /// Drops the counters of addresses that no longer fail.
    pub(crate) fn sweep(&self) {
        self.store.sweep();
    }
}

/// The store's decision; nothing if it has no space.
async fn apply(store: &MemoryStore<Arc<dyn Clock>>, claims: &[Claim], mode: Mode) -> Option<ClaimsDecision> {
    match store.apply(claims, mode).await {
        Ok(ApplyResult::Applied(applied)) => Some(applied),
        _ => None,
    }
}

fn one() -> Amount {
    Amount::from(1)
}

fn claim(from: ClientAddr, what: &str, window: WindowInstance, limit: Amount) -> Claim {
    let address = from.to_string();
    Claim {
        ledger: LedgerKey::of(Partition::of([&*address]), [what]),
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

    /// The time that the test sets.
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

    /// A flood from more addresses than are counted makes no more look-ups than all of them together may, and those that are
    /// counted stay blocked. (Seen to fail where an address that is not counted passes for one that has not failed.)
    #[tokio::test]
    async fn addresses_that_find_no_room_share_a_bound() {
        let clock = Arc::new(SetClock(AtomicU64::new(1_000_000)));
        let throttle = Throttle::for_addresses(Arc::clone(&clock) as _, 1, 1);
        for _ in 0..3 {
            let _ = throttle.count_failure(address(0)).await;
        }
        assert!(matches!(throttle.standing(address(0)).await, AddressState::Blocked(_)));
        assert_eq!(throttle.standing(address(1)).await, AddressState::Free);
        let mut number = 1;
        while throttle.standing(address(number)).await == AddressState::Free {
            let _ = throttle.count_failure(address(number)).await;
            number += 1;
            assert!(number < 100_000, "it is full some time");
        }
        let mut permitted = 0;
        for number in number..number + 1_000 {
            if throttle.standing(address(number)).await == AddressState::Free
                || throttle.permit_look_up(address(number)).await.is_ok()
            {
                permitted += 1;
            }
        }
        assert_eq!(permitted, LOOK_UPS);
        assert!(matches!(throttle.standing(address(0)).await, AddressState::Blocked(_)));
        clock.0.fetch_add(WINDOW_MS, Ordering::Relaxed);
        assert_eq!(throttle.standing(address(number)).await, AddressState::Free);
    }
}
