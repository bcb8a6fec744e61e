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
    /// The partition of its counters.
    pub partition: Partition,
    /// Its tier.
    pub tier: TierId,
    overrides: Arc<[Override]>,
    /// Its balances, by currency; only shown, never used for decisions.
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

/// The state of a secret in a node's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CachedKey {
    /// It belongs to a valid key.
    Valid,
    /// It is invalid.
    Invalid,
    /// It is not in the cache.
    Unknown,
}

/// An authenticated caller.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The account.
    pub account: Arc<Account>,
    /// The key, if the call names one.
    pub key: Option<Arc<Key>>,
    /// The error of the store, if the account could not be read and its cached state is used. This is enough to report
    /// errors in a call, but not to decide it.
    stale: Option<StoreError>,
}

/// The accounts and keys in the policy file of a domain.
#[derive(Debug, Default)]
pub struct Directory {
    accounts: HashMap<Arc<str>, Arc<Account>>,
    keys: HashMap<Arc<str>, Identity>,
    secrets: HashMap<[u8; 8], Vec<(KeyHash, Identity)>>,
    definitions: HashMap<Arc<str>, BootstrapAccount>,
}

impl Directory {
    /// The accounts of a policy file. Demo keys, whose secrets are public, are included only if `demo` is set.
    pub fn new(bootstrap: Vec<BootstrapAccount>, demo: bool) -> Self {
        let mut directory = Self::default();
        for mut definition in bootstrap {
            definition.keys.retain(|key| demo || !key.demo);
            let account = Arc::new(Account {
                id: Arc::clone(&definition.id),
                partition: definition.partition,
                tier: definition.tier,
                overrides: Arc::clone(&definition.overrides),
                balances: definition.balances.clone(),
            });
            for definition in &definition.keys {
                let key = Key {
                    id: Arc::clone(&definition.id),
                    kind: definition.kind,
                    expires_at: definition.expires_at,
                    revoked: definition.revoked,
                    overrides: Arc::clone(&definition.overrides),
                };
                let identity = Identity::new(Arc::clone(&account), Some(Arc::new(key)));
                let hash = KeyHash::from_bytes(definition.hash);
                directory.keys.insert(Arc::clone(&definition.id), identity.clone());
                directory.secrets.entry(hash.bucket()).or_default().push((hash, identity));
            }
            directory.definitions.insert(Arc::clone(&account.id), definition);
            directory.accounts.insert(Arc::clone(&account.id), account);
        }
        directory
    }

    /// The caller with this secret. Hashes with the same first bytes are compared in constant time. The time of the
    /// lookup depends only on the first bytes of the hashes, from which no secret can be derived.
    pub fn identity_by_secret(&self, hash: &KeyHash) -> Option<&Identity> {
        let candidates = self.secrets.get(&hash.bucket())?;
        candidates.iter().find(|(candidate, _)| candidate.matches(hash)).map(|(_, identity)| identity)
    }

    /// The caller with the key of this id.
    pub fn identity_by_key_id(&self, id: &str) -> Option<&Identity> {
        self.keys.get(id)
    }

    /// The definition of an account in the policy file.
    pub fn definition(&self, id: &str) -> Option<&BootstrapAccount> {
        self.definitions.get(id)
    }

    /// The account of this id.
    pub fn account(&self, id: &str) -> Option<&Arc<Account>> {
        self.accounts.get(id)
    }
}

impl Key {
    /// Checks that the key is valid at `now`.
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
    /// A caller whose account is not stale.
    pub fn new(account: Arc<Account>, key: Option<Arc<Key>>) -> Self {
        Self { account, key, stale: None }
    }

    /// Fails if the store of accounts could not be read. Call this before deciding, or before showing data of the
    /// caller.
    pub fn check(&self) -> Result<(), StoreError> {
        self.stale.clone().map_or(Ok(()), Err)
    }

    /// The caller, as policies need it.
    pub fn caller(&self) -> Caller<'_> {
        Caller {
            partition: self.account.partition,
            tier: self.account.tier,
            account_overrides: &self.account.overrides,
            key: self.key.as_deref().map(|key| CallerKey { id: &key.id, overrides: &key.overrides }),
        }
    }
}
