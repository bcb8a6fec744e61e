//! Administration: creates and changes the accounts and keys of the store.

mod accounts;
mod change;
mod keys;
mod overrides;
mod policy_file;
mod usage;

use std::sync::Arc;

use tollgate_core::{
    store::{Store, StoreError},
    time::Timestamp,
};
use tollgate_store::{
    accounts::{AccountRecord, AccountStore, Change, Event, SaveResult},
    clock::Clock,
};

pub use self::{
    accounts::{AccountPatch, NewAccount},
    keys::{AccountKey, IssuedKey, KeyPatch, NewKey},
    overrides::OverrideTarget,
    policy_file::is_in_policy_file,
};
use crate::{
    directory::Accounts,
    domains::{CurrentDomains, Domain},
    scope::DomainScope,
    service::{CallError, check_name, find_domain},
};

/// The maximum number of attempts if other clients change the account at the same time.
const ATTEMPTS: usize = 8;

/// Administers the accounts of the store.
pub struct Admin {
    domains: Arc<CurrentDomains>,
    store: Arc<dyn AccountStore>,
    counters: Arc<dyn Store>,
    accounts: Arc<Accounts>,
    clock: Arc<dyn Clock>,
}

/// The administrator, and the domains of its token.
pub struct AdminSession<'a> {
    admin: &'a Admin,
    administrator: &'a str,
    domain: Arc<Domain>,
}

/// The error of an administrative request.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The request is invalid, or the store did not execute it.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The account, key or override does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The account already exists.
    #[error("{0}")]
    Exists(String),
    /// The change is not possible in the current state.
    #[error("{0}")]
    Refused(String),
    /// The account does not have the version that the caller expects.
    #[error("if-match: the account has changed; its version is {0} now")]
    Changed(u64),
    /// Other clients changed the account at every attempt.
    #[error("account: concurrent changes; try again")]
    Contended,
}

impl From<StoreError> for AdminError {
    fn from(error: StoreError) -> Self {
        Self::Call(error.into())
    }
}

impl Admin {
    /// Administers the accounts in `store`, which `accounts` caches, and their `counters`.
    pub fn new(
        domains: Arc<CurrentDomains>,
        store: Arc<dyn AccountStore>,
        counters: Arc<dyn Store>,
        accounts: Arc<Accounts>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { domains, store, counters, accounts, clock }
    }

    /// The session of an administrator in a domain. An empty name means the only domain of the token.
    pub fn session<'a>(
        &'a self,
        administrator: &'a str,
        scope: &DomainScope,
        domain: &str,
    ) -> Result<AdminSession<'a>, AdminError> {
        let domain = Arc::clone(find_domain(&self.domains.load(), scope, domain)?);
        Ok(AdminSession { admin: self, administrator, domain })
    }
}

impl AdminSession<'_> {
    /// The time for the expiry of keys.
    pub fn now(&self) -> Timestamp {
        self.admin.clock.now()
    }

    /// The domain of the session.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Applies `change` to the current record of an account, and saves it.
    async fn change<T>(
        &self,
        id: &str,
        if_match: Option<u64>,
        change: impl Fn(&mut AccountRecord) -> Result<T, AdminError>,
    ) -> Result<(AccountRecord, T), AdminError> {
        for _ in 0..ATTEMPTS {
            let before = self.load_stored(id).await?;
            check_version(&before, if_match)?;
            let mut after = before.clone();
            let output = change(&mut after)?;
            if after == before {
                return Ok((after, output));
            }
            change::finish_change(&mut after, self.now());
            if self.save(id, Some(&before), Some(&after), None).await? == SaveResult::Done {
                return Ok((after, output));
            }
        }
        Err(AdminError::Contended)
    }

    async fn save(
        &self,
        id: &str,
        before: Option<&AccountRecord>,
        after: Option<&AccountRecord>,
        event: Option<Event<'_>>,
    ) -> Result<SaveResult, StoreError> {
        let change = Change { domain: self.name(), id, before, after, event };
        let saved = self.admin.store.save(change).await;
        // The cache of this node is updated without waiting for the subscription, so that the client sees its change
        // here. The change may have been made even if the request failed.
        self.admin.accounts.invalidate(&change.notice());
        saved
    }

    fn name(&self) -> &str {
        self.domain.policy.domain()
    }

    fn default_tier(&self) -> String {
        let policy = &self.domain.policy;
        policy.tier(policy.default_tier()).map(|tier| tier.name.to_string()).unwrap_or_default()
    }

    fn check_tier(&self, tier: &str) -> Result<(), AdminError> {
        let policy = &self.domain.policy;
        if policy.tier_named(tier).is_some() {
            return Ok(());
        }
        let names: Vec<&str> = policy.tiers().iter().map(|tier| &*tier.name).collect();
        let problem = format!("there is no tier {tier:?}; there is: {}", names.join(", "));
        Err(CallError::field("tier", problem).into())
    }

    fn check_not_in_policy_file(&self, id: &str) -> Result<(), AdminError> {
        match self.domain.directory.account(id) {
            Some(_) => {
                Err(AdminError::Refused(format!("account: {id:?} is defined in the policy file; change it there")))
            }
            None => Ok(()),
        }
    }

    fn log(&self, action: &'static str, account: &str) {
        tracing::info!(by = self.administrator, domain = self.name(), account, "{action}");
    }

    fn log_key(&self, action: &'static str, key: &str) {
        tracing::info!(by = self.administrator, domain = self.name(), key, "{action}");
    }
}

/// Checks a name that becomes part of a path of this API.
fn check_segment(field: &str, name: &str) -> Result<(), CallError> {
    check_name(field, name)?;
    tollgate_policy::file::segment_problem(name).map_or(Ok(()), |problem| Err(CallError::field(field, problem)))
}

fn check_version(record: &AccountRecord, if_match: Option<u64>) -> Result<(), AdminError> {
    if if_match.is_some_and(|version| version != record.version) {
        return Err(AdminError::Changed(record.version));
    }
    Ok(())
}
