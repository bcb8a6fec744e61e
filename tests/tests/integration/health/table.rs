//! The table of `docs/operations.md`: what a node reports, and which alerts fire, in each state of its stores.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Nothing,
    Replica,
    Full,
    Hung,
    Gone,
    Evicting,
    Skewed,
    OneOfThreeFull,
    AccountsGone,
    AccountsReplica,
    AccountsFull,
}

/// The calls that can be decided: those of accounts in the policy file, and of others.
#[derive(Clone, Copy, Debug)]
pub(super) enum DecidableCalls {
    All,
    OfThePolicy,
    None,
    /// Depends on the master that holds the counters.
    Some,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "columns of a table")]
pub(super) struct State {
    pub(super) fault: Fault,
    pub(super) name: &'static str,
    pub(super) readyz: u16,
    /// A part of `/readyz`, its state, and the beginning of its detail.
    pub(super) says: Option<(&'static str, bool, &'static str)>,
    pub(super) serving: bool,
    pub(super) store_up: bool,
    pub(super) accounts_up: bool,
    pub(super) heard: bool,
    pub(super) decided: DecidableCalls,
    pub(super) alerts: &'static [&'static str],
}

pub(super) const TABLE: [State; 11] = [
    State {
        fault: Fault::Nothing,
        name: "healthy",
        readyz: 200,
        says: None,
        serving: true,
        store_up: true,
        accounts_up: true,
        heard: true,
        decided: DecidableCalls::All,
        alerts: &[],
    },
    State {
        fault: Fault::Replica,
        name: "read-only: a replica, as after a failover (`REPLICAOF`)",
        readyz: 503,
        says: Some(("store", false, "read-only")),
        serving: false,
        store_up: false,
        accounts_up: false,
        heard: false,
        decided: DecidableCalls::None,
        alerts: &[
            "TollgateStoreDown",
            "TollgateDecidesWithoutStore",
            "TollgateRedisRefuses",
            "TollgateAccountStoreDown",
            "TollgateAccountsUndecided",
            "TollgateAccountFeedDown",
        ],
    },
    State {
        fault: Fault::Full,
        name: "full (`maxmemory`, `noeviction`)",
        readyz: 503,
        says: Some(("store", false, "full")),
        serving: false,
        store_up: false,
        accounts_up: false,
        heard: true,
        decided: DecidableCalls::None,
        alerts: &[
            "TollgateStoreDown",
            "TollgateDecidesWithoutStore",
            "TollgateRedisRefuses",
            "TollgateAccountStoreDown",
        ],
    },
    State {
        fault: Fault::Hung,
        name: "hung: accepts connections and does not answer (`SIGSTOP`)",
        readyz: 503,
        says: Some(("store", false, "does not answer")),
        serving: false,
        store_up: false,
        accounts_up: false,
        heard: false,
        decided: DecidableCalls::None,
        alerts: &[
            "TollgateStoreDown",
            "TollgateDecidesWithoutStore",
            "TollgateAccountStoreDown",
            "TollgateAccountsUndecided",
            "TollgateAccountFeedDown",
        ],
    },
    State {
        fault: Fault::Gone,
        name: "down: nothing listens",
        readyz: 503,
        says: Some(("store", false, "cannot be reached")),
        serving: false,
        store_up: false,
        accounts_up: false,
        heard: false,
        decided: DecidableCalls::None,
        alerts: &[
            "TollgateStoreDown",
            "TollgateDecidesWithoutStore",
            "TollgateAccountStoreDown",
            "TollgateAccountsUndecided",
            "TollgateAccountFeedDown",
        ],
    },
    State {
        fault: Fault::Evicting,
        name: "evicting (`maxmemory-policy` is not `noeviction`)",
        readyz: 200,
        says: Some(("store", true, "evicting")),
        serving: true,
        store_up: true,
        accounts_up: true,
        heard: true,
        decided: DecidableCalls::All,
        alerts: &["TollgateRedisEvicts"],
    },
    State {
        fault: Fault::Skewed,
        name: "skewed: its clock differs from the node's by more than a second",
        readyz: 200,
        says: Some(("store", true, "skewed")),
        serving: true,
        store_up: true,
        accounts_up: true,
        heard: true,
        decided: DecidableCalls::All,
        alerts: &["TollgateClockSkew"],
    },
    State {
        fault: Fault::OneOfThreeFull,
        name: "a cluster with one of three masters full (or failed)",
        readyz: 200,
        says: Some(("store", false, "1 of 3 servers: full")),
        serving: true,
        store_up: false,
        accounts_up: false,
        heard: true,
        decided: DecidableCalls::Some,
        alerts: &["TollgateStoreDown", "TollgateRedisRefuses", "TollgateAccountStoreDown"],
    },
    State {
        fault: Fault::AccountsGone,
        name: "healthy; the Redis of accounts (`--accounts-redis`) is down",
        readyz: 200,
        says: Some(("accounts", false, "cannot be reached")),
        serving: true,
        store_up: true,
        accounts_up: false,
        heard: false,
        decided: DecidableCalls::OfThePolicy,
        alerts: &[
            "TollgateDecidesWithoutStore",
            "TollgateAccountStoreDown",
            "TollgateAccountsUndecided",
            "TollgateAccountFeedDown",
        ],
    },
    State {
        fault: Fault::AccountsReplica,
        name: "healthy; the Redis of accounts is read-only",
        readyz: 200,
        says: Some(("accounts", false, "read-only")),
        serving: true,
        store_up: true,
        accounts_up: false,
        heard: false,
        decided: DecidableCalls::OfThePolicy,
        alerts: &[
            "TollgateDecidesWithoutStore",
            "TollgateAccountStoreDown",
            "TollgateAccountsUndecided",
            "TollgateAccountFeedDown",
        ],
    },
    State {
        fault: Fault::AccountsFull,
        name: "healthy; the Redis of accounts is full",
        readyz: 200,
        says: Some(("accounts", false, "full")),
        serving: true,
        store_up: true,
        accounts_up: false,
        heard: true,
        decided: DecidableCalls::All,
        alerts: &["TollgateAccountStoreDown"],
    },
];

impl State {
    /// The row as Markdown.
    pub(super) fn line(&self) -> String {
        let says = self.says.map_or("–".to_owned(), |(part, ok, text)| {
            format!("`{part}` {}: {text}", if ok { "ok" } else { "not ok" })
        });
        let health = if self.serving { "SERVING" } else { "NOT_SERVING" };
        let decided = match self.decided {
            DecidableCalls::All => "all",
            DecidableCalls::OfThePolicy => "calls of accounts in policies",
            DecidableCalls::None => "none",
            DecidableCalls::Some => "calls on the other masters",
        };
        let alerts: Vec<String> = self.alerts.iter().map(|alert| format!("`{alert}`")).collect();
        let alerts = if alerts.is_empty() { "–".to_owned() } else { alerts.join(", ") };
        format!(
            "| {} | {}, {says} | `{health}` | {} | {} | {decided} | {alerts} |",
            self.name,
            self.readyz,
            u8::from(self.store_up),
            u8::from(self.accounts_up)
        )
    }
}
