//! The way of a refusal into the log: off the way of the call, through a bounded queue.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use indexmap::IndexMap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tollgate_core::{claim::Partition, store::StoreError};
use tollgate_store::refusals::{MAX_REFUSALS, Refusal, RefusalLog};

use crate::metrics::Metrics;

/// The most refusals that wait, over all accounts.
const MAX_WAITING: usize = 10_000;
/// An account is written at most so often, however often it is refused.
const WRITE_EVERY: Duration = Duration::from_millis(100);
/// How long to wait after the store did not take a refusal.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The log of refusals, and its queue.
///
/// For each account at most as many refusals wait as the log keeps, so that an account with many refusals takes no
/// place of others. When the queue is full, further refusals are dropped and counted.
pub struct Refusals {
    log: Arc<dyn RefusalLog>,
    waiting: Mutex<WaitingRefusals>,
    wake: Notify,
    /// Held during a write, so that the last writer ends after all others.
    writing: tokio::sync::Mutex<()>,
    metrics: Arc<Metrics>,
    most: usize,
}

#[derive(Default)]
struct WaitingRefusals {
    /// Oldest first; the account that waits longest comes first.
    accounts: IndexMap<Partition, VecDeque<Refusal>>,
    refusals: usize,
}

impl Refusals {
    /// The refusals that wait to be written to `log`.
    pub fn new(log: Arc<dyn RefusalLog>, metrics: Arc<Metrics>) -> Self {
        // So that both series are there before anything is lost.
        for reason in ["full", "store"] {
            metrics.refusals_dropped(reason, 0);
        }
        let (wake, writing) = (Notify::new(), tokio::sync::Mutex::default());
        Self { log, waiting: Mutex::default(), wake, writing, metrics, most: MAX_WAITING }
    }

    /// Notes a refusal of an account. Never waits.
    pub fn record(&self, account: Partition, refusal: Refusal) {
        let waiting = &mut *self.waiting.lock();
        let of_account = waiting.accounts.get_mut(&account);
        match of_account {
            // The log would forget the oldest at once.
            Some(of_account) if of_account.len() >= MAX_REFUSALS => {
                of_account.pop_front();
                of_account.push_back(refusal);
            }
            _ if waiting.refusals >= self.most => return self.metrics.refusals_dropped("full", 1),
            Some(of_account) => {
                of_account.push_back(refusal);
                waiting.refusals += 1;
            }
            None => {
                waiting.accounts.insert(account, VecDeque::from([refusal]));
                waiting.refusals += 1;
            }
        }
        self.metrics.refusals_waiting(waiting.refusals);
        self.wake.notify_one();
    }

    /// The account's refusals, newest first.
    pub async fn latest(&self, account: Partition) -> Result<Vec<Refusal>, StoreError> {
        self.log.latest(account).await
    }

    /// Writes waiting refusals for as long as the node runs.
    pub async fn keep_writing(self: Arc<Self>) {
        loop {
            self.wake.notified().await;
            let pause = if self.write_all().await.is_ok() { WRITE_EVERY } else { RETRY_AFTER };
            tokio::time::sleep(pause).await;
        }
    }

    /// Writes waiting refusals once more before the node ends.
    pub async fn flush(&self) {
        if let Err(error) = self.write_all().await {
            let lost = self.waiting.lock().refusals;
            self.metrics.refusals_dropped("store", lost as u64);
            tracing::warn!(%error, lost, "refusals were not written to the log");
        }
    }

    /// Writes account by account. Refusals that the store did not accept stay in the queue.
    async fn write_all(&self) -> Result<(), StoreError> {
        let _writing = self.writing.lock().await;
        // Only the accounts that are waiting now; later ones are written next time.
        let accounts = self.waiting.lock().accounts.len();
        for _ in 0..accounts {
            let Some((account, mut refusals)) = self.waiting.lock().take() else { return Ok(()) };
            if let Err(error) = self.log.append(account, refusals.make_contiguous()).await {
                self.put_back(account, refusals);
                return Err(error);
            }
            self.metrics.refusals_waiting(self.waiting.lock().refusals);
        }
        Ok(())
    }

    fn put_back(&self, account: Partition, mut refusals: VecDeque<Refusal>) {
        let waiting = &mut *self.waiting.lock();
        let newer = waiting.accounts.shift_remove(&account).unwrap_or_default();
        waiting.refusals -= newer.len();
        refusals.extend(newer);
        let room = MAX_REFUSALS.min(self.most.saturating_sub(waiting.refusals));
        let beyond = refusals.len().saturating_sub(MAX_REFUSALS);
        let dropped = refusals.len().saturating_sub(room);
        refusals.drain(..dropped);
        // Refusals that the log would remove at once are no loss.
        self.metrics.refusals_dropped("full", (dropped - beyond) as u64);
        waiting.refusals += refusals.len();
        if !refusals.is_empty() {
            waiting.accounts.insert(account, refusals);
        }
        self.wake.notify_one();
    }
}

impl WaitingRefusals {
    fn take(&mut self) -> Option<(Partition, VecDeque<Refusal>)> {
        let (account, refusals) = self.accounts.shift_remove_index(0)?;
        self.refusals -= refusals.len();
        Some((account, refusals))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::FutureExt;
    use tollgate_store::refusals::{RefusalFuture, memory::MemoryRefusals};

    use super::*;

    /// A log that can be made to fail or to be slow.
    struct FailingLog {
        inner: MemoryRefusals,
        broken: AtomicBool,
        gate: tokio::sync::Semaphore,
    }

    impl RefusalLog for FailingLog {
        fn append<'a>(&'a self, account: Partition, refusals: &'a [Refusal]) -> RefusalFuture<'a, ()> {
            if self.broken.load(Ordering::SeqCst) {
                return Box::pin(std::future::ready(Err(StoreError::Unreachable("told to fail".into()))));
            }
            assert!(refusals.len() <= MAX_REFUSALS, "no batch is larger than what is kept");
            Box::pin(async move {
                drop(self.gate.acquire().await);
                self.inner.append(account, refusals).await
            })
        }

        fn latest(&self, account: Partition) -> RefusalFuture<'_, Vec<Refusal>> {
            self.inner.latest(account)
        }
    }

    fn account(number: usize) -> Partition {
        Partition::of(["account", number.to_string().as_str()])
    }

    fn refusal(at_ms: u64) -> Refusal {
        Refusal { key: None, resource: "model".into(), tier: "paid".into(), label: "RPM".into(), at_ms }
    }

    fn refusals(most: usize) -> (Refusals, Arc<FailingLog>, Arc<Metrics>) {
        let gate = tokio::sync::Semaphore::new(1);
        let log = Arc::new(FailingLog { inner: MemoryRefusals::new(100), broken: AtomicBool::new(false), gate });
        let metrics = Arc::new(Metrics::new("memory").unwrap());
        let mut refusals = Refusals::new(Arc::clone(&log) as _, Arc::clone(&metrics));
        refusals.most = most;
        (refusals, log, metrics)
    }

    fn metric(metrics: &Metrics, series: &str) -> u64 {
        let text = metrics.render();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
        line.unwrap_or_else(|| panic!("no {series} in {text}"))
    }

    const DROPPED: &str = "tollgate_refusal_log_dropped_total{reason=\"full\"}";
    const WAITING: &str = "tollgate_refusal_log_waiting";

    /// Broken to try it: the flood's refusals kept beyond fifty, drops not counted, the new put before the old.
    #[tokio::test]
    async fn a_flood_takes_nobody_else_s_place_and_drops_are_counted() {
        let (refusals, log, metrics) = refusals(120);
        (0..5_000).for_each(|at| refusals.record(account(0), refusal(at)));
        assert_eq!(metric(&metrics, WAITING), 50);
        assert_eq!(metric(&metrics, DROPPED), 0, "the log would have forgotten the others");
        (0..50).for_each(|at| refusals.record(account(1), refusal(at)));
        (0..50).for_each(|at| refusals.record(account(2), refusal(at)));
        assert_eq!((metric(&metrics, WAITING), metric(&metrics, DROPPED)), (120, 30));
        refusals.write_all().await.unwrap();
        assert_eq!(metric(&metrics, WAITING), 0);
        let kept = |number| log.latest(account(number));
        let times: Vec<u64> = kept(0).await.unwrap().iter().map(|refusal| refusal.at_ms).collect();
        assert_eq!(times, (4_950..5_000).rev().collect::<Vec<_>>(), "the last fifty, newest first");
        assert_eq!(kept(1).await.unwrap().len(), 50);
        assert_eq!(kept(2).await.unwrap().len(), 20);
    }

    /// The node ends after the flush, even if another writer was active.
    #[tokio::test]
    async fn a_flush_waits_for_what_is_being_written() {
        let (refusals, log, _) = refusals(120);
        let refusals = Arc::new(refusals);
        log.gate.forget_permits(1);
        refusals.record(account(0), refusal(1));
        let writer = tokio::spawn(Arc::clone(&refusals).keep_writing());
        while refusals.waiting.lock().refusals > 0 {
            tokio::task::yield_now().await;
        }
        let mut flush = std::pin::pin!(refusals.flush());
        assert!(flush.as_mut().now_or_never().is_none(), "it left the other's refusal behind");
        log.gate.add_permits(1);
        flush.await;
        writer.abort();
        assert_eq!(log.latest(account(0)).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn what_the_store_did_not_take_waits_in_order() {
        let (refusals, log, metrics) = refusals(120);
        (0..30).for_each(|at| refusals.record(account(0), refusal(at)));
        log.broken.store(true, Ordering::SeqCst);
        assert!(refusals.write_all().await.is_err());
        assert_eq!(metric(&metrics, DROPPED), 0);
        (30..70).for_each(|at| refusals.record(account(0), refusal(at)));
        log.broken.store(false, Ordering::SeqCst);
        refusals.write_all().await.unwrap();
        let times: Vec<u64> = log.latest(account(0)).await.unwrap().iter().map(|refusal| refusal.at_ms).collect();
        assert_eq!(times, (20..70).rev().collect::<Vec<_>>());
        refusals.record(account(0), refusal(70));
        log.broken.store(true, Ordering::SeqCst);
        refusals.flush().await;
        assert_eq!(metric(&metrics, "tollgate_refusal_log_dropped_total{reason=\"store\"}"), 1, "lost at the end");
    }
}
