//! Metrics and logs of calls that shadow quotas and shadow abuse rules would have refused.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::DomainMetrics;
use tollgate_policy::TierId;

/// The minimum interval between log lines.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

impl DomainMetrics {
    /// Counts the shadow quotas and rules that would have refused a call, and logs some of them.
    pub fn count_shadow_refusals<'q>(
        &self,
        account: &str,
        tier: TierId,
        class: Option<&str>,
        refusals: impl Iterator<Item = &'q str>,
    ) {
        let classes = self.classes_by_tier.get(&tier);
        let class = classes.and_then(|classes| classes.get(class.unwrap_or("")));
        for quota in refusals {
            if let Some(class) = class {
                class.shadow.get(quota).unwrap_or(&class.shadow_other).increment(1);
            }
            self.shadow_log.log(account, quota);
        }
    }
}

/// Logs a sample of the shadow refusals. Each line contains the number of refusals since the last one.
pub(super) struct ShadowLog {
    domain: Arc<str>,
    last: Mutex<Option<Instant>>,
    suppressed: AtomicU64,
}

impl ShadowLog {
    pub(super) fn new(domain: Arc<str>) -> Self {
        Self { domain, last: Mutex::new(None), suppressed: AtomicU64::new(0) }
    }

    fn log(&self, account: &str, quota: &str) {
        if !self.is_due() {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let suppressed = self.suppressed.swap(0, Ordering::Relaxed);
        tracing::info!(
            domain = &*self.domain,
            account,
            quota,
            suppressed = suppressed,
            "a shadow would have refused a call"
        );
    }

    fn is_due(&self) -> bool {
        // If the lock is held, another thread is writing a line.
        let Ok(mut last) = self.last.try_lock() else { return false };
        let due = last.is_none_or(|last| last.elapsed() >= LOG_INTERVAL);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}
