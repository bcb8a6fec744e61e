//! How often an address may fail to log in, and what its guesses may cost once it has.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tollgate_core::{
    amount::{Amount, Limit, UnitId},
    claim::{Answer, Applied, Claim, Effect, Fit, LedgerKey, Mode, Partition},
    store::Store,
    window::{SlidingWindow, Span},
};
use tollgate_store::{clock::Clock, memory::MemoryStore};

use super::{ClientAddr, Refusal};

/// Failures are counted over so long, and an address with too many is blocked for so long.
const WINDOW_MS: u64 = 30_000;
/// The most addresses that are counted at once.
const MAX_ADDRESSES: usize = 32_768;
/// What an address has: its failures, its block, and the look-ups of the keys that it shows meanwhile.
const COUNTERS_PER_ADDRESS: usize = 3;
/// Look-ups are counted over so long.
const LOOK_UP_WINDOW_MS: u64 = 1_000;
/// Look-ups of one blocked address in that time.
const LOOK_UPS_PER_ADDRESS: u32 = 10;
/// Look-ups of all blocked addresses in that time.
const LOOK_UPS: u32 = 100;

/// Counts the failed logins of one kind of caller by address, in this node's memory. Its counters are sliding windows
/// as those of any quota. What is right is never asked for here: a block concerns only what fails.
pub(crate) struct Throttle {
    store: MemoryStore<Arc<dyn Clock>>,
    clock: Arc<dyn Clock>,
    /// `None` if failures are not bounded.
    bounds: Option<Bounds>,
    /// When the last block ends: while there is none, nobody is looked up.
    blocked_until_ms: AtomicU64,
}

#[derive(Clone, Copy)]
struct Bounds {
    window: Span,
    failures: Amount,
    look_up_window: Span,
}

impl Throttle {
    /// Blocks addresses that fail more than `most` times in 30 seconds; none if `most` is 0.
    pub(crate) fn new(clock: Arc<dyn Clock>, most: u32) -> Self {
        let window = |ms| SlidingWindow::from_ms(ms).ok().map(Span::Sliding);
        let windows = window(WINDOW_MS).zip(window(LOOK_UP_WINDOW_MS)).filter(|_| most > 0);
        Self {
            store: MemoryStore::new(Arc::clone(&clock), COUNTERS_PER_ADDRESS * MAX_ADDRESSES),
            clock,
            bounds: windows.map(|(window, look_up_window)| Bounds {
                window,
                failures: Amount::from(most),
                look_up_window,
            }),
            blocked_until_ms: AtomicU64::new(0),
        }
    }

    /// What a caller from this address is told about a wrong secret while the address is blocked; `None` while it is
    /// not.
    pub(crate) async fn block(&self, from: ClientAddr) -> Option<Refusal> {
        let bounds = self.bounds?;
        if self.blocked_until_ms.load(Ordering::Relaxed) <= self.clock.now().as_ms() {
            return None;
        }
        let applied = self.apply(&[claim(from, "block", bounds.window, one())], Mode::Peek).await?;
        match applied.statuses.first().map(|status| status.fit) {
            Some(Fit::At(until)) => {
                let wait_ms = until.as_ms().saturating_sub(applied.decided_at.as_ms());
                Some(Refusal::TooManyFailures { retry_after_s: wait_ms.div_ceil(1000).max(1) })
            }
            _ => None,
        }
    }

    /// Counts a failure, unless the address is blocked: then it says so. Where so many addresses fail that another one
    /// finds no room, it is not counted; those that are counted stay so.
    pub(crate) async fn count_failure(&self, from: ClientAddr) -> Result<(), Refusal> {
        let Some(bounds) = self.bounds else { return Ok(()) };
        if let Some(refusal) = self.block(from).await {
            return Err(refusal);
        }
        let failure = claim(from, "failures", bounds.window, bounds.failures);
        if self.apply(&[failure], Mode::Try).await.is_none_or(|applied| applied.allowed) {
            return Ok(());
        }
        if let Some(applied) = self.apply(&[claim(from, "block", bounds.window, one())], Mode::Try).await {
            let until = applied.decided_at.plus_ms(WINDOW_MS).as_ms();
            self.blocked_until_ms.fetch_max(until, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether a secret that a blocked address shows may be looked up in the store of accounts. What finds no room in
    /// the counters may not.
    pub(crate) async fn permit_look_up(&self, from: ClientAddr) -> Result<(), Refusal> {
        let Some(bounds) = self.bounds else { return Ok(()) };
        let own = claim(from, "look-ups", bounds.look_up_window, Amount::from(LOOK_UPS_PER_ADDRESS));
        let all = LedgerKey::of(Partition::of(["all addresses"]), ["look-ups"]);
        let all = Claim { ledger: all, limit: Limit::Finite(Amount::from(LOOK_UPS)), ..own };
        match self.apply(&[own, all], Mode::Try).await {
            Some(applied) if applied.allowed => Ok(()),
            _ => Err(Refusal::TooManyFailures { retry_after_s: LOOK_UP_WINDOW_MS.div_ceil(1000) }),
        }
    }

    /// Drops the counters of addresses that no longer fail.
    pub(crate) fn sweep(&self) {
        self.store.sweep();
    }

    async fn apply(&self, claims: &[Claim], mode: Mode) -> Option<Applied> {
        match self.store.apply(claims, mode).await {
            Ok(Answer::Applied(applied)) => Some(applied),
            _ => None,
        }
    }
}

fn one() -> Amount {
    Amount::from(1)
}

fn claim(from: ClientAddr, what: &str, window: Span, limit: Amount) -> Claim {
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
