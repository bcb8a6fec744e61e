//! Identities: accounts and their keys. Those of policy files are in a [`Directory`] of their domain; those of the
//! store are read through [`Accounts`].

mod cache;
mod compile;
mod new_accounts;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc};

use indexmap::IndexMap;
use tollgate_core::{
    api_key::{KeyHash, KeyKind},
    claim::Partition,
    store::StoreError,
    time::Timestamp,
};
use tollgate_policy::{Caller, CallerKey, Override, TierId, file::BootstrapAccount, reason::InvalidKey};

pub use self::{
    cache::{Accounts, CacheBounds},
    compile::valid_overrides,
};

/// An account of a domain.
#[derive(Debug)]
pub struct Account {
    /// Its id, unique in the domain.
    pub id: Arc<str>,
    /// Where its counters live.
    pub partition: Partition,
    /// Its tier.
    pub tier: TierId,
    overrides: Arc<[Override]>,
    /// Its balances, by currency; shown, and never used for decisions.
    pub balances: IndexMap<String, f64>,
}

/// An API key, without its secret.
#[derive(Debug)]
pub struct Key {
    /// Its id, unique in the domain.
    pub id: Arc<str>,
    /// The rights of the key.
    pub kind: KeyKind,
    /// When it expires.
    pub expires_at: Option<Timestamp>,
    revoked: bool,
    overrides: Arc<[Override]>,
}

/// What a node knows about a secret without a look-up in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CachedKey {
    /// It is that of a good key, as far as the node last heard.
    Valid,
    /// It is invalid.
    Invalid,
    /// Only the store can tell.
    Unknown,
}

/// A caller that was found.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The account.
    pub account: Arc<Account>,
    /// The key, if the call came by one.
    pub key: Option<Arc<Key>>,
    /// Why the store of accounts could not be read. The identity is then the last known one: good enough to report
    /// mistakes of a call, but not to decide it.
    stale: Option<StoreError>,
}

/// The accounts and keys that the policy file of one domain brings along.
#[derive(Debug, Default)]
pub struct Directory {
    accounts: HashMap<Arc<str>, Arc<Account>>,
    keys: HashMap<Arc<str>, Identity>,
    secrets: HashMap<[u8; 8], Vec<(KeyHash, Identity)>>,
    written: HashMap<Arc<str>, BootstrapAccount>,
}

impl Directory {
    /// The accounts of a policy file. Demo keys, whose secrets are public, are included only if `demo` is set.
    pub fn of(bootstrap: Vec<BootstrapAccount>, demo: bool) -> Self {
        let mut directory = Self::default();
        for mut from in bootstrap {
            from.keys.retain(|key| demo || !key.demo);
            let account = Arc::new(Account {
                id: Arc::clone(&from.id),
                partition: from.partition,
                tier: from.tier,
                overrides: Arc::clone(&from.overrides),
                balances: from.balances.clone(),
            });
            for from in &from.keys {
                let key = Key {
                    id: Arc::clone(&from.id),
                    kind: from.kind,
                    expires_at: from.expires_at,
                    revoked: from.revoked,
                    overrides: Arc::clone(&from.overrides),
                };
                let identity = Identity::certain(Arc::clone(&account), Some(Arc::new(key)));
                let hash = KeyHash::from_bytes(from.hash);
                directory.keys.insert(Arc::clone(&from.id), identity.clone());
                directory.secrets.entry(hash.bucket()).or_default().push((hash, identity));
            }
            directory.written.insert(Arc::clone(&account.id), from);
            directory.accounts.insert(Arc::clone(&account.id), account);
        }
        directory
    }

    /// The key with this secret's hash. Hashes with the same first bytes are compared in constant time; which first
    /// bytes exist says nothing about a secret.
    pub fn by_secret(&self, hash: &KeyHash) -> Option<&Identity> {
        let candidates = self.secrets.get(&hash.bucket())?;
        candidates.iter().find(|(known, _)| known.matches(hash)).map(|(_, identity)| identity)
    }

    /// The key of this id.
    pub fn by_id(&self, id: &str) -> Option<&Identity> {
        self.keys.get(id)
    }

    /// An account as the file has it.
    pub fn written(&self, id: &str) -> Option<&BootstrapAccount> {
        self.written.get(id)
    }

    /// The account of this id.
    pub fn account(&self, id: &str) -> Option<&Arc<Account>> {
        self.accounts.get(id)
    }
}

impl Key {
    /// Whether the key is good at `now`.
    pub fn check(&self, now: Timestamp) -> Result<(), InvalidKey> {
        if self.revoked {
            Err(InvalidKey::Revoked)
        } else if self.expires_at.is_some_and(|end| end <= now) {
            Err(InvalidKey::Expired)
        } else {
            Ok(())
        }
    }
}

impl Identity {
    /// A caller that was found where nothing is stale.
    pub fn certain(account: Arc<Account>, key: Option<Arc<Key>>) -> Self {
        Self { account, key, stale: None }
    }

    /// Fails if the store of accounts could not be read. Call this before deciding, or before showing data of the
    /// caller.
    pub fn check(&self) -> Result<(), StoreError> {
        self.stale.clone().map_or(Ok(()), Err)
    }

    /// As policies see a caller.
    pub fn caller(&self) -> Caller<'_> {
        Caller {
            partition: self.account.partition,
            tier: self.account.tier,
            account_overrides: &self.account.overrides,
            key: self.key.as_deref().map(|key| CallerKey { id: &key.id, overrides: &key.overrides }),
        }
    }
}
