//! How often an address may fail to log in.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tollgate_core::{
    amount::{Amount, Limit, UnitId},
    claim::{Answer, Claim, Effect, Fit, LedgerKey, Mode, Partition},
    store::Store,
    window::{SlidingWindow, Span},
};
use tollgate_store::{clock::Clock, memory::MemoryStore};

use super::{ClientAddr, Refusal};

/// Failures are counted over so long, and an address with too many is turned away for so long.
const WINDOW_MS: u64 = 30_000;
/// The most addresses that are counted at once.
const MAX_ADDRESSES: usize = 100_000;

/// Counts failed logins by address, in this node's memory. Its counters are sliding windows as those of any quota.
pub(crate) struct Throttle {
    store: MemoryStore<Arc<dyn Clock>>,
    clock: Arc<dyn Clock>,
    /// How many failures in which window; `None` if they are not bounded.
    bound: Option<(Span, Amount)>,
    /// When the last block ends: while there is none, nobody is looked up.
    blocked_until_ms: AtomicU64,
}

impl Throttle {
    /// Turns addresses away that fail more than `most` times in 30 seconds; none if `most` is 0.
    pub(crate) fn new(clock: Arc<dyn Clock>, most: u32) -> Self {
        let window = SlidingWindow::from_ms(WINDOW_MS).ok().filter(|_| most > 0);
        Self {
            // Two counters an address, the failures and the block.
            store: MemoryStore::new(Arc::clone(&clock), 2 * MAX_ADDRESSES),
            clock,
            bound: window.map(|window| (Span::Sliding(window), Amount::from(most))),
            blocked_until_ms: AtomicU64::new(0),
        }
    }

    /// Whether the address may try at all.
    pub(crate) async fn admits(&self, from: ClientAddr) -> Result<(), Refusal> {
        let Some((window, _)) = self.bound else { return Ok(()) };
        if self.blocked_until_ms.load(Ordering::Relaxed) <= self.clock.now().as_ms() {
            return Ok(());
        }
        let answer = self.store.apply(&[claim(from, "block", window, one())], Mode::Peek).await;
        let Ok(Answer::Applied(applied)) = answer else { return Ok(()) };
        match applied.statuses.first().map(|status| status.fit) {
            Some(Fit::At(until)) => {
                let wait_ms = until.as_ms().saturating_sub(applied.decided_at.as_ms());
                Err(Refusal::TooManyFailures { retry_after_s: wait_ms.div_ceil(1000).max(1) })
            }
            _ => Ok(()),
        }
    }

    /// Counts a failure. Where so many addresses fail that another one finds no room, it is not counted; those
    /// that are counted stay so.
    pub(crate) async fn failed(&self, from: ClientAddr) {
        let Some((window, most)) = self.bound else { return };
        let failure = claim(from, "failures", window, most);
        let Ok(Answer::Applied(applied)) = self.store.apply(&[failure], Mode::Try).await else { return };
        if applied.allowed {
            return;
        }
        if let Ok(Answer::Applied(applied)) = self.store.apply(&[claim(from, "block", window, one())], Mode::Try).await
        {
            let until = applied.decided_at.plus_ms(WINDOW_MS).as_ms();
            self.blocked_until_ms.fetch_max(until, Ordering::Relaxed);
        }
    }

    /// Drops the counters of addresses that no longer fail.
    pub(crate) fn sweep(&self) {
        self.store.sweep();
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
