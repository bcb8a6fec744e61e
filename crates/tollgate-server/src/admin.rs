//! Administration: makes and changes the accounts and keys of the store. It knows no protocol.

mod change;

use std::{sync::Arc, time::Duration};

use indexmap::IndexMap;
use tollgate_core::{policy::Chain, store::StoreError, time::Timestamp};
use tollgate_store::{
    accounts::{AccountRecord, AccountStore, Change, Event, KeyKind, KeyRecord, OverrideRecord, Page, Saved},
    clock::Clock,
};

use crate::{
    auth::{AdminGrant, Reach},
    directory::Accounts,
    policies::{Domain, Policies},
    service::{CallError, check_name, find_domain},
};

/// How often a change is tried anew when somebody else changed the account meanwhile.
const ATTEMPTS: usize = 8;
/// How long an event is remembered.
const REMEMBER_EVENT: Duration = Duration::from_hours(30 * 24);
/// The most overrides of an account or a key.
const MAX_OVERRIDES: usize = tollgate_core::policy::MAX_OVERRIDES;
/// The most currencies of a balance.
const MAX_BALANCES: usize = 16;

/// Administers the accounts of the store.
pub(crate) struct Admin {
    policies: Arc<Policies>,
    store: Arc<dyn AccountStore>,
    known: Arc<Accounts>,
    clock: Arc<dyn Clock>,
}

/// Who administers, and where.
pub(crate) struct Desk<'a> {
    admin: &'a Admin,
    by: &'a str,
    domain: Arc<Domain>,
}

/// Why nothing was changed, or found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
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
    #[error("account: others change it at the same time; try again")]
    Contended,
}

impl From<StoreError> for AdminError {
    fn from(error: StoreError) -> Self {
        Self::Call(error.into())
    }
}

/// An account to be made.
pub(crate) struct NewAccount {
    pub(crate) id: String,
    /// The default tier if absent.
    pub(crate) tier: Option<String>,
    pub(crate) balances: IndexMap<String, f64>,
}

/// What is to be different of an account.
#[derive(Clone, Default)]
pub(crate) struct AccountPatch {
    pub(crate) tier: Option<String>,
    pub(crate) balances: Option<IndexMap<String, f64>>,
}

/// A key to be made.
#[derive(Clone)]
pub(crate) struct NewKey {
    pub(crate) kind: KeyKind,
    pub(crate) description: String,
    pub(crate) expires_at: Option<Timestamp>,
}

/// What is to be different of a key.
#[derive(Clone, Default)]
pub(crate) struct KeyPatch {
    pub(crate) description: Option<String>,
    /// `Some(None)`: it does not end.
    #[expect(clippy::option_option, reason = "to stay, to end never, and to end at a time are three things")]
    pub(crate) expires_at: Option<Option<Timestamp>>,
}

/// A key and its account.
pub(crate) struct KeyOf {
    pub(crate) account: AccountRecord,
    pub(crate) id: String,
}

/// A key whose secret is shown once.
pub(crate) struct Issued {
    pub(crate) key: KeyOf,
    pub(crate) secret: String,
}

/// What an event did.
pub(crate) struct Told {
    /// The account; `None` if it is not in the store.
    pub(crate) account: Option<AccountRecord>,
    /// The tiers that it moved from and to.
    pub(crate) promoted: Option<(String, String)>,
    /// Whether it was told before, and so did nothing now.
    pub(crate) repeated: bool,
}

/// Whose override.
#[derive(Clone, Copy)]
pub(crate) enum Whose<'a> {
    Account(&'a str),
    Key(&'a str),
}

impl KeyOf {
    pub(crate) fn record(&self) -> Option<&KeyRecord> {
        self.account.keys.get(&self.id)
    }
}

impl Admin {
    /// Administers `store`, of which this node remembers what is `known`.
    pub(crate) fn new(
        policies: Arc<Policies>,
        store: Arc<dyn AccountStore>,
        known: Arc<Accounts>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { policies, store, known, clock }
    }

    /// The desk of an administrator in a domain; no name stands for the only one within reach.
    pub(crate) fn desk<'a>(&'a self, grant: &'a AdminGrant, domain: &str) -> Result<Desk<'a>, AdminError> {
        let reach: &Reach = grant.reach();
        let domain = Arc::clone(find_domain(&self.policies.current(), reach, domain)?);
        Ok(Desk { admin: self, by: grant.name(), domain })
    }
}

impl Desk<'_> {
    /// The time by which keys are good or not.
    pub(crate) fn now(&self) -> Timestamp {
        self.admin.clock.now()
    }

    /// Where it stands.
    pub(crate) fn domain(&self) -> &Domain {
        &self.domain
    }

    pub(crate) async fn create_account(&self, new: NewAccount) -> Result<AccountRecord, AdminError> {
        check_name("id", &new.id)?;
        self.not_in_policy_file(&new.id)?;
        let tier = new.tier.unwrap_or_else(|| self.default_tier());
        self.check_tier(&tier)?;
        check_balances(&new.balances)?;
        let record = self.new_record(&new.id, tier, new.balances);
        match self.save(&new.id, None, Some(&record), None).await? {
            Saved::Done => self.log("account created", &new.id),
            Saved::Conflict | Saved::Repeated => {
                return Err(AdminError::Exists(format!("id: there is an account {:?} already", new.id)));
            }
        }
        Ok(record)
    }

    pub(crate) async fn account(&self, id: &str) -> Result<AccountRecord, AdminError> {
        self.not_in_policy_file(id)?;
        let found = self.admin.store.load(self.name(), id).await?;
        found.ok_or_else(|| AdminError::NotFound(format!("account: there is no account {id:?}")))
    }

    pub(crate) async fn accounts(&self, after: &str, take: usize) -> Result<Page, AdminError> {
        Ok(self.admin.store.list(self.name(), after, take).await?)
    }

    pub(crate) async fn patch_account(
        &self,
        id: &str,
        patch: AccountPatch,
        if_match: Option<u64>,
    ) -> Result<AccountRecord, AdminError> {
        if let Some(tier) = &patch.tier {
            self.check_tier(tier)?;
        }
        if let Some(balances) = &patch.balances {
            check_balances(balances)?;
        }
        let (record, ()) = self
            .change(id, if_match, |record| {
                if let Some(tier) = &patch.tier {
                    record.tier.clone_from(tier);
                }
                if let Some(balances) = &patch.balances {
                    record.balances.clone_from(balances);
                }
                Ok(())
            })
            .await?;
        self.log("account changed", id);
        Ok(record)
    }

    pub(crate) async fn delete_account(&self, id: &str, if_match: Option<u64>) -> Result<(), AdminError> {
        for _ in 0..ATTEMPTS {
            let before = self.account(id).await?;
            check_version(&before, if_match)?;
            if self.save(id, Some(&before), None, None).await? == Saved::Done {
                self.log("account deleted", id);
                return Ok(());
            }
        }
        Err(AdminError::Contended)
    }

    pub(crate) async fn put_override(
        &self,
        whose: Whose<'_>,
        name: &str,
        record: OverrideRecord,
        if_match: Option<u64>,
    ) -> Result<AccountRecord, AdminError> {
        check_override_name(name)?;
        let (policy, now) = (Arc::clone(&self.domain.policy), self.now());
        if record.expires_at.is_some_and(|end| end <= now) {
            return Err(CallError::field("expires_at", "must be later than now").into());
        }
        let (chain, account) = self.whose(whose).await?;
        let (changed, ()) = self
            .change(&account, if_match, |account| {
                let overrides = overrides_of(account, whose)?;
                if overrides.len() >= MAX_OVERRIDES && !overrides.contains_key(name) {
                    return Err(AdminError::Refused(format!("override: at most {MAX_OVERRIDES} fit; clear one first")));
                }
                change::check_override(&policy, chain, overrides, name, &record.written, now)?;
                overrides.insert(name.to_owned(), record.clone());
                Ok(())
            })
            .await?;
        self.log("override set", &account);
        Ok(changed)
    }

    pub(crate) async fn clear_override(
        &self,
        whose: Whose<'_>,
        name: &str,
        if_match: Option<u64>,
    ) -> Result<AccountRecord, AdminError> {
        let (_, account) = self.whose(whose).await?;
        let (changed, ()) = self
            .change(&account, if_match, |account| {
                let gone = overrides_of(account, whose)?.shift_remove(name);
                gone.map(|_| ()).ok_or_else(|| AdminError::NotFound(format!("override: there is no override {name:?}")))
            })
            .await?;
        self.log("override cleared", &account);
        Ok(changed)
    }

    pub(crate) async fn create_key(
        &self,
        account: &str,
        new: NewKey,
        if_match: Option<u64>,
    ) -> Result<Issued, AdminError> {
        let now = self.now();
        change::check_key(&new.description, new.expires_at, now)?;
        let (id, secret, key) = change::new_key(new, now);
        let most = self.domain.accounts.max_active_keys;
        let (account, ()) =
            self.change(account, if_match, |account| change::add_key(account, &id, key.clone(), most, now)).await?;
        self.log_key("key created", &id);
        Ok(Issued { key: KeyOf { account, id }, secret })
    }

    pub(crate) async fn key(&self, id: &str) -> Result<KeyOf, AdminError> {
        let missing = || AdminError::NotFound(format!("key: there is no key {id:?}"));
        if self.domain.directory.by_id(id).is_some() {
            return Err(AdminError::Refused(format!("key: {id:?} is defined in the policy file; change it there")));
        }
        let account = self.admin.store.find_key(self.name(), id).await?.ok_or_else(missing)?;
        let account = self.admin.store.load(self.name(), &account).await?.ok_or_else(missing)?;
        let found = KeyOf { account, id: id.to_owned() };
        if found.record().is_some() { Ok(found) } else { Err(missing()) }
    }

    pub(crate) async fn patch_key(
        &self,
        id: &str,
        patch: KeyPatch,
        if_match: Option<u64>,
    ) -> Result<KeyOf, AdminError> {
        let (now, most) = (self.now(), self.domain.accounts.max_active_keys);
        change::check_key(patch.description.as_deref().unwrap_or(""), patch.expires_at.flatten(), now)?;
        let (key, ()) = self
            .change_key(id, if_match, |account| {
                let others = account.keys.iter().filter(|(other, key)| *other != id && key.is_active(now)).count();
                let key = change::key_of(account, id)?;
                if let Some(description) = &patch.description {
                    key.description.clone_from(description);
                }
                let was_active = key.is_active(now);
                if let Some(expires_at) = patch.expires_at {
                    key.expires_at = expires_at;
                }
                if !was_active && key.is_active(now) && others >= most {
                    return Err(change::too_many(most));
                }
                Ok(())
            })
            .await?;
        self.log_key("key changed", id);
        Ok(key)
    }

    /// Gives the key another secret. The one before is good for `overlap` longer.
    pub(crate) async fn rotate_key(
        &self,
        id: &str,
        overlap: Duration,
        if_match: Option<u64>,
    ) -> Result<Issued, AdminError> {
        let now = self.now();
        let secret = crate::key::generate();
        let (key, ()) =
            self.change_key(id, if_match, |account| change::rotate(account, id, &secret, overlap, now)).await?;
        self.log_key("key rotated", id);
        Ok(Issued { key, secret })
    }

    pub(crate) async fn revoke_key(&self, id: &str, if_match: Option<u64>) -> Result<KeyOf, AdminError> {
        let now = self.now();
        let (key, ()) = self
            .change_key(id, if_match, |account| {
                change::key_of(account, id)?.revoked_at.get_or_insert(now);
                Ok(())
            })
            .await?;
        self.log_key("key revoked", id);
        Ok(key)
    }

    /// Takes note of something that happened to an account, once. An account that the store does not know is on the
    /// default tier, and comes into being if it moves to another.
    pub(crate) async fn tell(&self, id: &str, event: &str, kind: &str) -> Result<Told, AdminError> {
        check_name("account", id)?;
        check_name("id", event)?;
        self.not_in_policy_file(id)?;
        let known = self.domain.accounts.events();
        if !known.contains(&kind) {
            let known = if known.is_empty() { "there is none".to_owned() } else { known.join(", ") };
            return Err(CallError::field("type", format_args!("no promotion is on {kind:?}; known: {known}")).into());
        }
        for _ in 0..ATTEMPTS {
            let before = self.admin.store.load(self.name(), id).await?;
            let tier = before.as_ref().map_or_else(|| self.default_tier(), |record| record.tier.clone());
            let to = self.domain.accounts.promotion(kind, &tier).map(str::to_owned);
            let after = match (&before, &to) {
                (Some(before), Some(to)) => {
                    let mut after = before.clone();
                    change::touch(&mut after, self.now());
                    after.tier.clone_from(to);
                    Some(after)
                }
                (None, Some(to)) => Some(self.new_record(id, to.clone(), IndexMap::new())),
                (before, None) => before.clone(),
            };
            let event = Event { id: event, remember: REMEMBER_EVENT };
            match self.save(id, before.as_ref(), after.as_ref(), Some(event)).await? {
                Saved::Done => {
                    self.log("event told", id);
                    return Ok(Told { account: after, promoted: to.map(|to| (tier, to)), repeated: false });
                }
                Saved::Repeated => return Ok(Told { account: before, promoted: None, repeated: true }),
                Saved::Conflict => {}
            }
        }
        Err(AdminError::Contended)
    }

    async fn change_key<T>(
        &self,
        id: &str,
        if_match: Option<u64>,
        change: impl Fn(&mut AccountRecord) -> Result<T, AdminError>,
    ) -> Result<(KeyOf, T), AdminError> {
        let account = self.key(id).await?.account.id;
        let (account, made) = self.change(&account, if_match, change).await?;
        Ok((KeyOf { account, id: id.to_owned() }, made))
    }

    /// Changes an account as `change` says, upon whatever others changed meanwhile.
    async fn change<T>(
        &self,
        id: &str,
        if_match: Option<u64>,
        change: impl Fn(&mut AccountRecord) -> Result<T, AdminError>,
    ) -> Result<(AccountRecord, T), AdminError> {
        for _ in 0..ATTEMPTS {
            let before = self.account(id).await?;
            check_version(&before, if_match)?;
            let mut after = before.clone();
            let made = change(&mut after)?;
            if after == before {
                return Ok((after, made));
            }
            change::touch(&mut after, self.now());
            if self.save(id, Some(&before), Some(&after), None).await? == Saved::Done {
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
    ) -> Result<Saved, StoreError> {
        let change = Change { domain: self.name(), id, before, after, event };
        let saved = self.admin.store.save(change).await;
        // This node need not wait to hear of it, so that whoever made it sees it here at once; it may have been made
        // even if it failed.
        self.admin.known.forget(&change.told());
        saved
    }

    async fn whose(&self, whose: Whose<'_>) -> Result<(Chain, String), AdminError> {
        match whose {
            Whose::Account(id) => Ok((Chain::Account, id.to_owned())),
            Whose::Key(id) => Ok((Chain::Key, self.key(id).await?.account.id)),
        }
    }

    fn new_record(&self, id: &str, tier: String, balances: IndexMap<String, f64>) -> AccountRecord {
        let now = self.now();
        AccountRecord {
            domain: self.name().to_owned(),
            id: id.to_owned(),
            version: now.as_ms(),
            tier,
            balances,
            overrides: IndexMap::new(),
            keys: IndexMap::new(),
            created_at: now,
            changed_at: now,
        }
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

fn overrides_of<'a>(
    account: &'a mut AccountRecord,
    whose: Whose<'_>,
) -> Result<&'a mut IndexMap<String, OverrideRecord>, AdminError> {
    match whose {
        Whose::Account(_) => Ok(&mut account.overrides),
        Whose::Key(id) => Ok(&mut change::key_of(account, id)?.overrides),
    }
}

fn check_version(record: &AccountRecord, if_match: Option<u64>) -> Result<(), AdminError> {
    if if_match.is_some_and(|version| version != record.version) {
        return Err(AdminError::Changed(record.version));
    }
    Ok(())
}

fn check_override_name(name: &str) -> Result<(), AdminError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
        let wrong = "must have 1 to 64 letters, digits, hyphens, underscores and dots";
        return Err(CallError::field("override", wrong).into());
    }
    Ok(())
}

fn check_balances(balances: &IndexMap<String, f64>) -> Result<(), AdminError> {
    let named = |name: &String| (1..=16).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric());
    if balances.len() > MAX_BALANCES || !balances.keys().all(named) || balances.values().any(|sum| !sum.is_finite()) {
        let wrong = format!("must have at most {MAX_BALANCES} currencies of up to 16 letters and digits, and numbers");
        return Err(CallError::field("balances", wrong).into());
    }
    Ok(())
}
