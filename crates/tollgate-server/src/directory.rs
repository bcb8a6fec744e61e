//! Who is who: accounts and their keys, found by secret, by id or by account.

use std::{collections::HashMap, sync::Arc};

use indexmap::IndexMap;
use tollgate_core::{
    claim::Partition,
    policy::{Caller, CallerKey, Override, Policy, TierId},
    time::Timestamp,
};

use crate::{key::KeyHash, policy_file::BootstrapAccount};

/// An account of a domain.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) id: Arc<str>,
    pub(crate) partition: Partition,
    pub(crate) tier: TierId,
    overrides: Arc<[Override]>,
    pub(crate) balances: IndexMap<String, f64>,
}

/// An API key, without its secret.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) id: Arc<str>,
    pub(crate) account: Arc<Account>,
    pub(crate) expires_at: Option<Timestamp>,
    revoked: bool,
    overrides: Arc<[Override]>,
}

/// Why a key is no good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadKey {
    /// There is no such key.
    Unknown,
    /// It was withdrawn.
    Revoked,
    /// It has ended.
    Expired,
}

/// The accounts and keys of one domain.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    accounts: HashMap<Arc<str>, Arc<Account>>,
    keys: HashMap<Arc<str>, Arc<Key>>,
    secrets: HashMap<[u8; 8], Vec<(KeyHash, Arc<Key>)>>,
}

/// A caller that was found.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) account: Arc<Account>,
    pub(crate) key: Option<Arc<Key>>,
}

impl Directory {
    /// The accounts of a policy file. Demo keys, whose secrets the world knows, come along only if
    /// `demo` says so.
    pub(crate) fn of(bootstrap: &[BootstrapAccount], demo: bool) -> Self {
        let mut directory = Self::default();
        for from in bootstrap {
            let account = Arc::new(Account {
                id: Arc::clone(&from.id),
                partition: from.partition,
                tier: from.tier,
                overrides: Arc::clone(&from.overrides),
                balances: from.balances.clone(),
            });
            for from in from.keys.iter().filter(|key| demo || !key.demo) {
                let key = Arc::new(Key {
                    id: Arc::clone(&from.id),
                    account: Arc::clone(&account),
                    expires_at: from.expires_at,
                    revoked: from.revoked,
                    overrides: Arc::clone(&from.overrides),
                });
                let hash = KeyHash::from_bytes(from.hash);
                directory.keys.insert(Arc::clone(&key.id), Arc::clone(&key));
                directory.secrets.entry(hash.bucket()).or_default().push((hash, key));
            }
            directory.accounts.insert(Arc::clone(&account.id), account);
        }
        directory
    }

    /// The key with this secret's hash. Hashes that share their first bytes are compared in constant
    /// time; which of those exist tells nothing about a secret.
    pub(crate) fn by_secret(&self, hash: &KeyHash) -> Option<&Arc<Key>> {
        let candidates = self.secrets.get(&hash.bucket())?;
        candidates.iter().find(|(known, _)| known.matches(hash)).map(|(_, key)| key)
    }

    pub(crate) fn by_id(&self, id: &str) -> Option<&Arc<Key>> {
        self.keys.get(id)
    }

    /// The account called `id`. One that is not known is on the default tier, so that a platform may
    /// start with no accounts at all; the calling service vouches for the name.
    pub(crate) fn account(&self, id: &str, policy: &Policy) -> Arc<Account> {
        self.accounts.get(id).cloned().unwrap_or_else(|| {
            Arc::new(Account {
                id: id.into(),
                partition: policy.account_partition(id),
                tier: policy.default_tier(),
                overrides: Arc::default(),
                balances: IndexMap::new(),
            })
        })
    }
}

impl Key {
    /// Whether the key is good at `now`.
    pub(crate) fn check(&self, now: Timestamp) -> Result<(), BadKey> {
        if self.revoked {
            Err(BadKey::Revoked)
        } else if self.expires_at.is_some_and(|end| end <= now) {
            Err(BadKey::Expired)
        } else {
            Ok(())
        }
    }
}

impl Identity {
    pub(crate) fn of_key(key: &Arc<Key>) -> Self {
        Self { account: Arc::clone(&key.account), key: Some(Arc::clone(key)) }
    }

    /// As policies see a caller.
    pub(crate) fn caller(&self) -> Caller<'_> {
        Caller {
            partition: self.account.partition,
            tier: self.account.tier,
            account_overrides: &self.account.overrides,
            key: self.key.as_deref().map(|key| CallerKey { id: &key.id, overrides: &key.overrides }),
        }
    }
}
