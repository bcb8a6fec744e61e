//! Administration: makes and changes the accounts and keys of the store. It knows no protocol.

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

/// How often a change is repeated if another client changed the account in between.
const ATTEMPTS: usize = 8;

/// Administers the accounts of the store.
pub struct Admin {
    domains: Arc<CurrentDomains>,
    store: Arc<dyn AccountStore>,
    counters: Arc<dyn Store>,
    known: Arc<Accounts>,
    clock: Arc<dyn Clock>,
}

/// The administrator, and the domains of its token.
pub struct AdminSession<'a> {
    admin: &'a Admin,
    by: &'a str,
    domain: Arc<Domain>,
}

/// Why nothing was changed, or found.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// As of any call.
    #[error(transparent)]
    Call(#[from] CallError),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// There is one already.
    #[error("{0}")]
    Exists(String),
    /// It is as it is.
    #[error("{0}")]
    Refused(String),
    /// It is not as the caller last saw it.
    #[error("if-match: the account has changed; its version is {0} now")]
    Changed(u64),
    /// Others change it all the time.
    #[error("account: concurrent changes; try again")]
    Contended,
}

impl From<StoreError> for AdminError {
    fn from(error: StoreError) -> Self {
        Self::Call(error.into())
    }
}

impl Admin {
    /// Administers `store`, of which this node caches `known`, and the `counters` of its accounts.
    pub fn new(
        domains: Arc<CurrentDomains>,
        store: Arc<dyn AccountStore>,
        counters: Arc<dyn Store>,
        known: Arc<Accounts>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { domains, store, counters, known, clock }
    }

    /// The session of an administrator in a domain. An empty name means the only domain of the token.
    pub fn session<'a>(
        &'a self,
        by: &'a str,
        scope: &DomainScope,
        domain: &str,
    ) -> Result<AdminSession<'a>, AdminError> {
        let domain = Arc::clone(find_domain(&self.domains.load(), scope, domain)?);
        Ok(AdminSession { admin: self, by, domain })
    }
}

impl AdminSession<'_> {
    /// The time by which keys are good or not.
    pub fn now(&self) -> Timestamp {
        self.admin.clock.now()
    }

    /// Its place in the list.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Changes an account with `change`, based on its current record.
    async fn change<T>(
        &self,
        id: &str,
        if_match: Option<u64>,
        change: impl Fn(&mut AccountRecord) -> Result<T, AdminError>,
    ) -> Result<(AccountRecord, T), AdminError> {
        for _ in 0..ATTEMPTS {
            let before = self.stored(id).await?;
            check_version(&before, if_match)?;
            let mut after = before.clone();
            let made = change(&mut after)?;
            if after == before {
                return Ok((after, made));
            }
            change::touch(&mut after, self.now());
            if self.save(id, Some(&before), Some(&after), None).await? == SaveResult::Done {
                return Ok((after, made));
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
        // This node forgets the account at once instead of waiting for the feed, so that the client sees its change
        // here. The change may have been made even if the request failed.
        self.admin.known.forget(&change.notice());
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
        let known: Vec<&str> = policy.tiers().iter().map(|tier| &*tier.name).collect();
        let wrong = format!("there is no tier {tier:?}; there is: {}", known.join(", "));
        Err(CallError::field("tier", wrong).into())
    }

    fn not_in_policy_file(&self, id: &str) -> Result<(), AdminError> {
        match self.domain.directory.account(id) {
            Some(_) => {
                Err(AdminError::Refused(format!("account: {id:?} is defined in the policy file; change it there")))
            }
            None => Ok(()),
        }
    }

    fn log(&self, did: &'static str, account: &str) {
        tracing::info!(by = self.by, domain = self.name(), account, "{did}");
    }

    fn log_key(&self, did: &'static str, key: &str) {
        tracing::info!(by = self.by, domain = self.name(), key, "{did}");
    }
}

/// Checks a name that becomes part of a path of this API.
fn check_segment(field: &str, name: &str) -> Result<(), CallError> {
    check_name(field, name)?;
    tollgate_policy::file::segment_problem(name).map_or(Ok(()), |wrong| Err(CallError::field(field, wrong)))
}

fn check_version(record: &AccountRecord, if_match: Option<u64>) -> Result<(), AdminError> {
    if if_match.is_some_and(|version| version != record.version) {
        return Err(AdminError::Changed(record.version));
    }
    Ok(())
}
