//! Probes: whether the stores can decide. The node checks them once a second; everything else reads the last result.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tollgate_core::store::{Obstacle, Store, StoreHealth};
use tollgate_service::metrics::Metrics;
use tollgate_store::accounts::AccountStore;

/// The maximum time of a check, for a store that does not keep its own bound.
const TIMEOUT: Duration = Duration::from_millis(1_500);
/// The maximum age of a result.
const MAX_AGE: Duration = Duration::from_secs(5);
/// A larger clock skew is reported, until it is smaller than half of this.
const MAX_SKEW_MS: u64 = 1_000;

/// The store to check.
pub(crate) enum ProbeTarget {
    /// The store of the counters.
    Counters {
        /// The store.
        store: Arc<dyn Store>,
        /// Whether it also contains the accounts.
        with_accounts: bool,
    },
    /// The store of the accounts, if it is another store.
    Accounts(Arc<dyn AccountStore>),
}

/// Checks a store, and keeps the last result.
pub(crate) struct Probe {
    target: ProbeTarget,
    metrics: Arc<Metrics>,
    last: Mutex<Option<LastCheck>>,
}

struct LastCheck {
    time: Instant,
    health: StoreHealth,
    skewed: bool,
}

/// The state of a store by the last check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoreState {
    /// Whether every server can be written to.
    pub(crate) all_usable: bool,
    /// Whether some server can be written to.
    pub(crate) some_usable: bool,
    /// The problems and risks, without addresses and other internals.
    pub(crate) detail: Option<String>,
}

impl ProbeTarget {
    async fn health(&self) -> StoreHealth {
        match self {
            Self::Counters { store, .. } => store.health().await,
            Self::Accounts(store) => store.health().await,
        }
    }

    /// Its name in logs and metrics.
    const fn name(&self) -> &'static str {
        match self {
            Self::Counters { .. } => "counters",
            Self::Accounts(_) => "accounts",
        }
    }

    const fn consequence(&self) -> &'static str {
        match self {
            Self::Counters { .. } => "no charge is possible",
            Self::Accounts(_) => {
                "no account can be changed, and calls of accounts that are in no policy file may be unavailable"
            }
        }
    }
}

impl Probe {
    pub(crate) fn new(target: ProbeTarget, metrics: Arc<Metrics>) -> Self {
        Self { target, metrics, last: Mutex::new(None) }
    }

    /// Checks the store.
    pub(crate) async fn check(&self) {
        let health = tokio::time::timeout(TIMEOUT, self.target.health()).await.unwrap_or_else(|_| {
            let reason = "does not answer".to_owned();
            StoreHealth::bad(Obstacle { error: format!("no answer within {TIMEOUT:?}"), reason })
        });
        match &self.target {
            ProbeTarget::Counters { with_accounts, .. } => {
                self.metrics.set_counter_store_health(&health);
                if *with_accounts {
                    self.metrics.set_account_store_health(&health);
                }
            }
            ProbeTarget::Accounts(_) => self.metrics.set_account_store_health(&health),
        }
        let mut last = self.last.lock();
        let skewed = is_skewed(&health, last.as_ref().is_some_and(|last| last.skewed));
        self.log(last.as_ref(), &health, skewed);
        *last = Some(LastCheck { time: Instant::now(), health, skewed });
    }

    /// The state by the last check.
    pub(crate) fn state(&self) -> StoreState {
        match &*self.last.lock() {
            Some(last) if last.time.elapsed() < MAX_AGE => StoreState {
                all_usable: last.health.is_whole(),
                some_usable: last.health.can_charge(),
                detail: self.describe(last),
            },
            Some(_) => {
                StoreState { detail: Some("has not been checked for some time".to_owned()), ..Default::default() }
            }
            None => StoreState { detail: Some("has not been checked yet".to_owned()), ..Default::default() },
        }
    }

    fn describe(&self, LastCheck { health, skewed, .. }: &LastCheck) -> Option<String> {
        let mut lines = Vec::new();
        let servers = health.servers.max(1);
        for (reason, count) in reasons(health) {
            let affected = if servers == 1 { String::new() } else { format!("{count} of {servers} servers: ") };
            lines.push(format!("{affected}{reason}: {}", self.target.consequence()));
        }
        if let Some(policy) = &health.eviction {
            lines.push(format!("evicting: maxmemory-policy is {policy}, so a full Redis loses counters and accounts"));
        }
        if let Some(skew_ms) = health.clock_skew_ms.filter(|_| *skewed) {
            let direction = if skew_ms > 0 { "ahead of" } else { "behind" };
            let seconds = skew_ms.unsigned_abs() / 1_000;
            lines.push(format!("skewed: its clock is {seconds} s {direction} this node's"));
        }
        (!lines.is_empty()).then(|| lines.join("\n"))
    }

    /// Logs changes.
    fn log(&self, last: Option<&LastCheck>, health: &StoreHealth, skewed: bool) {
        let store = self.target.name();
        let previous = last.map(|last| reasons(&last.health)).unwrap_or_default();
        let current = reasons(health);
        match health.obstacles.first() {
            Some(Obstacle { reason, error }) if previous != current => {
                let failing = health.obstacles.len();
                tracing::warn!(store, reason, error, failing, servers = health.servers, "a store cannot be written to");
            }
            None if !previous.is_empty() => tracing::info!(store, "the store can be written to again"),
            _ => {}
        }
        let last_eviction = last.and_then(|last| last.health.eviction.as_ref());
        match &health.eviction {
            Some(policy) if last_eviction != Some(policy) => {
                tracing::warn!(
                    store,
                    maxmemory_policy = policy,
                    "the store is evicting keys when it is full; set maxmemory-policy noeviction"
                );
            }
            _ => {}
        }
        if skewed && !last.is_some_and(|last| last.skewed) {
            tracing::warn!(
                store,
                skew_ms = health.clock_skew_ms,
                "the clock of the store is skewed; run NTP on both machines"
            );
        }
    }
}

/// The reasons why servers cannot be written to, each with the number of servers.
fn reasons(health: &StoreHealth) -> Vec<(&str, usize)> {
    let mut reasons: Vec<(&str, usize)> = Vec::new();
    for Obstacle { reason, .. } in &health.obstacles {
        match reasons.iter_mut().find(|(existing, _)| existing == reason) {
            Some((_, count)) => *count += 1,
            None => reasons.push((reason, 1)),
        }
    }
    reasons.sort_unstable();
    reasons
}

fn is_skewed(health: &StoreHealth, was_skewed: bool) -> bool {
    let bound = if was_skewed { MAX_SKEW_MS / 2 } else { MAX_SKEW_MS };
    health.clock_skew_ms.is_some_and(|skew| skew.unsigned_abs() > bound)
}

#[cfg(test)]
mod tests {
    use tollgate_store::{clock::SystemClock, memory::MemoryStore};

    use super::*;

    fn probe() -> Probe {
        let store = Arc::new(MemoryStore::new(SystemClock, 10));
        Probe::new(ProbeTarget::Counters { store, with_accounts: true }, Arc::new(Metrics::new("memory").unwrap()))
    }

    fn last_check(health: StoreHealth) -> LastCheck {
        let skewed = is_skewed(&health, false);
        LastCheck { time: Instant::now(), health, skewed }
    }

    fn obstacle(reason: &str) -> Obstacle {
        Obstacle { reason: reason.into(), error: "10.0.0.1:6379: no".into() }
    }

    #[tokio::test]
    async fn a_result_expires() {
        let probe = probe();
        assert!(!probe.state().some_usable, "not checked yet");
        probe.check().await;
        assert_eq!(probe.state(), StoreState { all_usable: true, some_usable: true, detail: None });
        probe.last.lock().as_mut().unwrap().time = Instant::now().checked_sub(MAX_AGE).unwrap();
        assert!(!probe.state().some_usable, "the result is too old");
    }

    #[test]
    fn the_state_describes_the_problems_of_a_store() {
        let probe = probe();
        for (health, some_usable, detail) in [
            (StoreHealth::good(), true, None),
            (StoreHealth::bad(obstacle("full")), false, Some("full: no charge is possible")),
            (
                StoreHealth { servers: 3, obstacles: vec![obstacle("full")], ..StoreHealth::default() },
                true,
                Some("1 of 3 servers: full: no charge is possible"),
            ),
            (
                StoreHealth {
                    servers: 2,
                    obstacles: vec![obstacle("full"), obstacle("full")],
                    ..StoreHealth::default()
                },
                false,
                Some("2 of 2 servers: full: no charge is possible"),
            ),
            (StoreHealth { clock_skew_ms: Some(1_000), ..StoreHealth::good() }, true, None),
            (
                StoreHealth { clock_skew_ms: Some(-5_001), ..StoreHealth::good() },
                true,
                Some("skewed: its clock is 5 s behind this node's"),
            ),
        ] {
            let all_usable = health.is_whole();
            *probe.last.lock() = Some(last_check(health));
            assert_eq!(probe.state(), StoreState { all_usable, some_usable, detail: detail.map(str::to_owned) });
        }
    }
}
