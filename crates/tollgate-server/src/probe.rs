//! Whether the stores can decide: the node itself asks once a second, and everybody else reads its result.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tollgate_core::store::{Obstacle, Store, StoreHealth};
use tollgate_service::metrics::Metrics;
use tollgate_store::accounts::AccountStore;

/// How long a store may take. It states a bound of its own; this is for one that does not hold it.
const WITHIN: Duration = Duration::from_millis(1_500);
/// For how long an answer is believed.
const MAX_AGE: Duration = Duration::from_secs(5);
/// A clock that is further off than this is complained of, until it is closer than half of it.
const MAX_SKEW_MS: u64 = 1_000;

/// The store that is asked.
pub(crate) enum ProbeTarget {
    /// The store of the counters.
    Counters {
        /// The store.
        store: Arc<dyn Store>,
        /// Whether accounts are in the same.
        with_accounts: bool,
    },
    /// The store of the accounts, where it is another one.
    Accounts(Arc<dyn AccountStore>),
}

/// Asks one store, and keeps its answer.
pub(crate) struct Probe {
    probed: ProbeTarget,
    metrics: Arc<Metrics>,
    last: Mutex<Option<LastAnswer>>,
}

struct LastAnswer {
    at: Instant,
    health: StoreHealth,
    skewed: bool,
}

/// The conclusion from a store's last answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoreState {
    /// Whether it is possible to write on every server.
    pub(crate) whole: bool,
    /// Whether it is on some.
    pub(crate) usable: bool,
    /// The problems and risks, in words for everybody.
    pub(crate) detail: Option<String>,
}

impl ProbeTarget {
    async fn health(&self) -> StoreHealth {
        match self {
            Self::Counters { store, .. } => store.health().await,
            Self::Accounts(store) => store.health().await,
        }
    }

    /// For logs and metrics.
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
    pub(crate) fn new(probed: ProbeTarget, metrics: Arc<Metrics>) -> Self {
        Self { probed, metrics, last: Mutex::new(None) }
    }

    /// Checks the store.
    pub(crate) async fn check(&self) {
        let health = tokio::time::timeout(WITHIN, self.probed.health()).await.unwrap_or_else(|_| {
            let reason = "does not answer".to_owned();
            StoreHealth::bad(Obstacle { error: format!("no answer within {WITHIN:?}"), reason })
        });
        match &self.probed {
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
        *last = Some(LastAnswer { at: Instant::now(), health, skewed });
    }

    /// Its last answer.
    pub(crate) fn state(&self) -> StoreState {
        match &*self.last.lock() {
            Some(last) if last.at.elapsed() < MAX_AGE => StoreState {
                whole: last.health.is_whole(),
                usable: last.health.can_charge(),
                detail: self.describe(last),
            },
            Some(_) => {
                StoreState { detail: Some("has not been checked for some time".to_owned()), ..Default::default() }
            }
            None => StoreState { detail: Some("has not been checked yet".to_owned()), ..Default::default() },
        }
    }

    fn describe(&self, LastAnswer { health, skewed, .. }: &LastAnswer) -> Option<String> {
        let mut said = Vec::new();
        let of = health.servers.max(1);
        for (reason, number) in reasons(health) {
            let where_at = if of == 1 { String::new() } else { format!("{number} of {of} servers: ") };
            said.push(format!("{where_at}{reason}: {}", self.probed.consequence()));
        }
        if let Some(policy) = &health.eviction {
            said.push(format!("evicting: maxmemory-policy is {policy}, so a full Redis loses counters and accounts"));
        }
        if let Some(skew_ms) = health.clock_skew_ms.filter(|_| *skewed) {
            let direction = if skew_ms > 0 { "ahead of" } else { "behind" };
            let seconds = skew_ms.unsigned_abs() / 1_000;
            said.push(format!("skewed: its clock is {seconds} s {direction} this node's"));
        }
        (!said.is_empty()).then(|| said.join("\n"))
    }

    /// Writes a line where something changed.
    fn log(&self, last: Option<&LastAnswer>, health: &StoreHealth, skewed: bool) {
        let store = self.probed.name();
        let before = last.map(|last| reasons(&last.health)).unwrap_or_default();
        let now = reasons(health);
        match health.obstacles.first() {
            Some(Obstacle { reason, error }) if before != now => {
                let failing = health.obstacles.len();
                tracing::warn!(store, reason, error, failing, servers = health.servers, "a store cannot be written to");
            }
            None if !before.is_empty() => tracing::info!(store, "the store can be written to again"),
            _ => {}
        }
        let evicted = last.and_then(|last| last.health.eviction.as_ref());
        match &health.eviction {
            Some(policy) if evicted != Some(policy) => {
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

/// Why servers cannot be written to, and of how many that is true.
fn reasons(health: &StoreHealth) -> Vec<(&str, usize)> {
    let mut reasons: Vec<(&str, usize)> = Vec::new();
    for Obstacle { reason, .. } in &health.obstacles {
        match reasons.iter_mut().find(|(known, _)| known == reason) {
            Some((_, number)) => *number += 1,
            None => reasons.push((reason, 1)),
        }
    }
    reasons.sort_unstable();
    reasons
}

fn is_skewed(health: &StoreHealth, before: bool) -> bool {
    let bound = if before { MAX_SKEW_MS / 2 } else { MAX_SKEW_MS };
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

    fn seen(health: StoreHealth) -> LastAnswer {
        let skewed = is_skewed(&health, false);
        LastAnswer { at: Instant::now(), health, skewed }
    }

    fn obstacle(reason: &str) -> Obstacle {
        Obstacle { reason: reason.into(), error: "10.0.0.1:6379: no".into() }
    }

    #[tokio::test]
    async fn an_answer_is_believed_for_a_while() {
        let probe = probe();
        assert!(!probe.state().usable, "nobody asked");
        probe.check().await;
        assert_eq!(probe.state(), StoreState { whole: true, usable: true, detail: None });
        probe.last.lock().as_mut().unwrap().at = Instant::now().checked_sub(MAX_AGE).unwrap();
        assert!(!probe.state().usable, "the task that asks is gone");
    }

    #[test]
    fn what_is_said_of_a_store() {
        let probe = probe();
        for (health, usable, said) in [
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
            let whole = health.is_whole();
            *probe.last.lock() = Some(seen(health));
            assert_eq!(probe.state(), StoreState { whole, usable, detail: said.map(str::to_owned) });
        }
    }
}
