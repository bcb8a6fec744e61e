//! The queue of the log of refusals, so that calls do not wait for the log.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use indexmap::IndexMap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tollgate_core::{claim::Partition, store::StoreError};
use tollgate_store::refusals::{MAX_REFUSALS, Refusal, RefusalLog};

use crate::metrics::Metrics;

/// The maximum number of queued refusals of all accounts.
const MAX_WAITING: usize = 10_000;
/// The minimum interval between writes.
const WRITE_INTERVAL: Duration = Duration::from_millis(100);
/// The pause after a failed write.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The log of refusals, and its queue.
///
/// The queue of each account holds at most as many refusals as the log keeps, so that an account with many refusals
/// does not displace those of others. When all queues together are full, further refusals are dropped and counted.
pub struct Refusals {
    log: Arc<dyn RefusalLog>,
    waiting: Mutex<WaitingRefusals>,
    wake: Notify,
    /// Held during a write, so that the last write ends after all others.
    write_lock: tokio::sync::Mutex<()>,
    metrics: Arc<Metrics>,
    capacity: usize,
}

#[derive(Default)]
struct WaitingRefusals {
    /// The accounts in the order of their oldest refusal.
    accounts: IndexMap<Partition, VecDeque<Refusal>>,
    refusals: usize,
}

impl Refusals {
    /// An empty queue for `log`.
    pub fn new(log: Arc<dyn RefusalLog>, metrics: Arc<Metrics>) -> Self {
        // Both series exist from the start, so that Prometheus sees the first increase.
        for reason in ["full", "store"] {
            metrics.count_dropped_refusals(reason, 0);
        }
        let (wake, write_lock) = (Notify::new(), tokio::sync::Mutex::default());
        Self { log, waiting: Mutex::default(), wake, write_lock, metrics, capacity: MAX_WAITING }
    }

    /// Adds a refusal of an account to the queue. Never waits.
    pub fn record(&self, account: Partition, refusal: Refusal) {
        let waiting = &mut *self.waiting.lock();
        let queue = waiting.accounts.get_mut(&account);
        match queue {
            // The log would remove the oldest one.
            Some(queue) if queue.len() >= MAX_REFUSALS => {
                queue.pop_front();
                queue.push_back(refusal);
            }
            _ if waiting.refusals >= self.capacity => return self.metrics.count_dropped_refusals("full", 1),
            Some(queue) => {
                queue.push_back(refusal);
                waiting.refusals += 1;
            }
            None => {
                waiting.accounts.insert(account, VecDeque::from([refusal]));
                waiting.refusals += 1;
            }
        }
        self.metrics.set_queued_refusals(waiting.refusals);
        self.wake.notify_one();
    }

    /// The account's refusals, newest first.
    pub async fn latest(&self, account: Partition) -> Result<Vec<Refusal>, StoreError> {
        self.log.latest(account).await
    }

    /// Writes queued refusals as long as the node runs.
    pub async fn run_writer(self: Arc<Self>) {
        loop {
            self.wake.notified().await;
            let pause = if self.write_all().await.is_ok() { WRITE_INTERVAL } else { RETRY_AFTER };
            tokio::time::sleep(pause).await;
        }
    }

    /// Writes the queued refusals before the node stops.
    pub async fn flush(&self) {
        if let Err(error) = self.write_all().await {
            let lost = self.waiting.lock().refusals;
            self.metrics.count_dropped_refusals("store", lost as u64);
            tracing::warn!(%error, lost, "refusals were not written to the log");
        }
    }

    /// Writes one account after the other. After an error, its refusals stay in the queue.
    async fn write_all(&self) -> Result<(), StoreError> {
        let _write_lock = self.write_lock.lock().await;
        // Accounts that are added meanwhile are written by the next call.
        let accounts = self.waiting.lock().accounts.len();
        for _ in 0..accounts {
            let Some((account, mut refusals)) = self.waiting.lock().take() else { return Ok(()) };
            if let Err(error) = self.log.append(account, refusals.make_contiguous()).await {
                self.requeue(account, refusals);
                return Err(error);
            }
            self.metrics.set_queued_refusals(self.waiting.lock().refusals);
        }
        Ok(())
    }

    fn requeue(&self, account: Partition, mut refusals: VecDeque<Refusal>) {
        let waiting = &mut *self.waiting.lock();
        let newer = waiting.accounts.shift_remove(&account).unwrap_or_default();
        waiting.refusals -= newer.len();
        refusals.extend(newer);
        let room = MAX_REFUSALS.min(self.capacity.saturating_sub(waiting.refusals));
        let obsolete = refusals.len().saturating_sub(MAX_REFUSALS);
        let dropped = refusals.len().saturating_sub(room);
        refusals.drain(..dropped);
        // Refusals that the log would remove anyway are not counted.
        self.metrics.count_dropped_refusals("full", (dropped - obsolete) as u64);
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

    /// A log whose writes can fail or be delayed.
    struct FailingLog {
        inner: MemoryRefusals,
        is_broken: AtomicBool,
        writes: tokio::sync::Semaphore,
    }

    impl RefusalLog for FailingLog {
        fn append<'a>(&'a self, account: Partition, refusals: &'a [Refusal]) -> RefusalFuture<'a, ()> {
            if self.is_broken.load(Ordering::SeqCst) {
                return Box::pin(std::future::ready(Err(StoreError::Unreachable("is_broken".into()))));
            }
            assert!(refusals.len() <= MAX_REFUSALS, "a write is not larger than the log");
            Box::pin(async move {
                drop(self.writes.acquire().await);
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

    fn refusals(capacity: usize) -> (Refusals, Arc<FailingLog>, Arc<Metrics>) {
        let writes = tokio::sync::Semaphore::new(1);
        let log = Arc::new(FailingLog { inner: MemoryRefusals::new(100), is_broken: AtomicBool::new(false), writes });
        let metrics = Arc::new(Metrics::new("memory").unwrap());
        let mut refusals = Refusals::new(Arc::clone(&log) as _, Arc::clone(&metrics));
        refusals.capacity = capacity;
        (refusals, log, metrics)
    }

    fn metric(metrics: &Metrics, series: &str) -> u64 {
        let text = metrics.render();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
        line.unwrap_or_else(|| panic!("no {series} in {text}"))
    }

    const DROPPED: &str = "tollgate_refusal_log_dropped_total{reason=\"full\"}";
    const WAITING: &str = "tollgate_refusal_log_waiting";

    /// Fails if an account may queue more than fifty refusals, if drops are not counted, and if newer refusals are
    /// written before older ones.
    #[tokio::test]
    async fn a_flood_of_one_account_does_not_displace_others_and_drops_are_counted() {
        let (refusals, log, metrics) = refusals(120);
        (0..5_000).for_each(|time_ms| refusals.record(account(0), refusal(time_ms)));
        assert_eq!(metric(&metrics, WAITING), 50);
        assert_eq!(metric(&metrics, DROPPED), 0, "the log would have removed the others");
        (0..50).for_each(|time_ms| refusals.record(account(1), refusal(time_ms)));
        (0..50).for_each(|time_ms| refusals.record(account(2), refusal(time_ms)));
        assert_eq!((metric(&metrics, WAITING), metric(&metrics, DROPPED)), (120, 30));
        refusals.write_all().await.unwrap();
        assert_eq!(metric(&metrics, WAITING), 0);
        let kept = |number| log.latest(account(number));
        let times: Vec<u64> = kept(0).await.unwrap().iter().map(|refusal| refusal.at_ms).collect();
        assert_eq!(times, (4_950..5_000).rev().collect::<Vec<_>>(), "the last fifty, newest first");
        assert_eq!(kept(1).await.unwrap().len(), 50);
        assert_eq!(kept(2).await.unwrap().len(), 20);
    }

    /// The node stops after the flush, even if another write was in progress.
    #[tokio::test]
    async fn a_flush_waits_for_a_write_in_progress() {
        let (refusals, log, _) = refusals(120);
        let refusals = Arc::new(refusals);
        log.writes.forget_permits(1);
        refusals.record(account(0), refusal(1));
        let writer = tokio::spawn(Arc::clone(&refusals).run_writer());
        while refusals.waiting.lock().refusals > 0 {
            tokio::task::yield_now().await;
        }
        let mut flush = std::pin::pin!(refusals.flush());
        assert!(flush.as_mut().now_or_never().is_none(), "the other write has not ended");
        log.writes.add_permits(1);
        flush.await;
        writer.abort();
        assert_eq!(log.latest(account(0)).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn refusals_of_a_failed_write_stay_queued_in_order() {
        let (refusals, log, metrics) = refusals(120);
        (0..30).for_each(|time_ms| refusals.record(account(0), refusal(time_ms)));
        log.is_broken.store(true, Ordering::SeqCst);
        assert!(refusals.write_all().await.is_err());
        assert_eq!(metric(&metrics, DROPPED), 0);
        (30..70).for_each(|time_ms| refusals.record(account(0), refusal(time_ms)));
        log.is_broken.store(false, Ordering::SeqCst);
        refusals.write_all().await.unwrap();
        let times: Vec<u64> = log.latest(account(0)).await.unwrap().iter().map(|refusal| refusal.at_ms).collect();
        assert_eq!(times, (20..70).rev().collect::<Vec<_>>());
        refusals.record(account(0), refusal(70));
        log.is_broken.store(true, Ordering::SeqCst);
        refusals.flush().await;
        assert_eq!(metric(&metrics, "tollgate_refusal_log_dropped_total{reason=\"store\"}"), 1, "lost at the end");
    }
}
