//! Calls that shadow quotas and abuse rules would have refused, counted and logged.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::DomainMetrics;
use tollgate_policy::TierId;

/// A line comes at most once in so long.
const EVERY: Duration = Duration::from_secs(1);

impl DomainMetrics {
    /// Counts the shadows that would have refused a call, and logs some of them.
    pub fn count_shadows<'q>(
        &self,
        account: &str,
        tier: TierId,
        class: Option<&str>,
        refusals: impl Iterator<Item = &'q str>,
    ) {
        let classes = self.by_tier.get(&tier);
        let class = classes.and_then(|classes| classes.get(class.unwrap_or("")));
        for quota in refusals {
            if let Some(class) = class {
                class.shadow.get(quota).unwrap_or(&class.shadow_other).increment(1);
            }
            self.shadow_log.say(account, quota);
        }
    }
}

/// A sample of the shadow refusals, each line with the number of those before it that had none.
pub(super) struct ShadowLog {
    domain: Arc<str>,
    last: Mutex<Option<Instant>>,
    unsaid: AtomicU64,
}

impl ShadowLog {
    pub(super) fn of(domain: Arc<str>) -> Self {
        Self { domain, last: Mutex::new(None), unsaid: AtomicU64::new(0) }
    }

    fn say(&self, account: &str, quota: &str) {
        if !self.is_due() {
            self.unsaid.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let unsaid = self.unsaid.swap(0, Ordering::Relaxed);
        tracing::info!(
            domain = &*self.domain,
            account,
            quota,
            suppressed = unsaid,
            "a shadow would have refused a call"
        );
    }

    fn is_due(&self) -> bool {
        // The holder of the lock is about to write a line.
        let Ok(mut last) = self.last.try_lock() else { return false };
        let due = last.is_none_or(|last| last.elapsed() >= EVERY);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}
