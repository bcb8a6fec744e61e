//! Keys.

use std::time::Duration;

use tollgate_core::{api_key::KeyKind, time::Timestamp};
use tollgate_store::accounts::{AccountRecord, KeyRecord};

use super::{AdminError, AdminSession, change, policy_file};

/// The data of a new key.
#[derive(Clone)]
pub struct NewKey {
    /// The rights of the key.
    pub kind: KeyKind,
    /// A description for people.
    pub description: String,
    /// When it expires.
    pub expires_at: Option<Timestamp>,
}

/// The changes of a key.
#[derive(Clone, Default)]
pub struct KeyPatch {
    /// A description for people.
    pub description: Option<String>,
    /// When it expires; `Some(None)` for never.
    pub expires_at: Option<Option<Timestamp>>,
}

/// A key and its account.
pub struct AccountKey {
    /// The account of the key.
    pub account: AccountRecord,
    /// The key's id.
    pub id: String,
}

/// A key with its new secret.
pub struct IssuedKey {
    /// The key.
    pub key: AccountKey,
    /// The secret, which is never shown again.
    pub secret: String,
}

impl AccountKey {
    /// Its record; `None` if the account has no such key.
    pub fn record(&self) -> Option<&KeyRecord> {
        self.account.keys.get(&self.id)
    }
}

impl AdminSession<'_> {
    /// Creates a key.
    pub async fn create_key(&self, account: &str, new: NewKey, if_match: Option<u64>) -> Result<IssuedKey, AdminError> {
        let now = self.now();
        change::check_key(&new.description, new.expires_at, now)?;
        let (id, secret, key) = change::new_key(new, now);
        let max_active = self.domain.accounts.max_active_keys;
        let (account, ()) = self
            .change(account, if_match, |account| change::add_key(account, &id, key.clone(), max_active, now))
            .await?;
        self.log_key("key created", &id);
        Ok(IssuedKey { key: AccountKey { account, id }, secret })
    }

    /// The key of this id.
    pub async fn key(&self, id: &str) -> Result<AccountKey, AdminError> {
        let account = self.domain.directory.identity_by_key_id(id).map(|identity| &identity.account.id);
        match account.and_then(|account| policy_file::account_record(&self.domain, account)) {
            Some(account) => Ok(AccountKey { account, id: id.to_owned() }),
            None => self.stored_key(id).await,
        }
    }

    /// A key in the store.
    pub(super) async fn stored_key(&self, id: &str) -> Result<AccountKey, AdminError> {
        let missing = || AdminError::NotFound(format!("key: there is no key {id:?}"));
        if self.domain.directory.identity_by_key_id(id).is_some() {
            return Err(AdminError::Refused(format!("key: {id:?} is defined in the policy file; change it there")));
        }
        let account = self.admin.store.find_key(self.name(), id).await?.ok_or_else(missing)?;
        let account = self.admin.store.load(self.name(), &account).await?.ok_or_else(missing)?;
        let key = AccountKey { account, id: id.to_owned() };
        if key.record().is_some() { Ok(key) } else { Err(missing()) }
    }

    /// Changes a key.
    pub async fn patch_key(&self, id: &str, patch: KeyPatch, if_match: Option<u64>) -> Result<AccountKey, AdminError> {
        let (now, max_active) = (self.now(), self.domain.accounts.max_active_keys);
        change::check_key(patch.description.as_deref().unwrap_or(""), patch.expires_at.flatten(), now)?;
        let (key, ()) = self
            .change_key(id, if_match, |account| {
                let others = account.keys.iter().filter(|(other, key)| *other != id && key.is_active(now)).count();
                let key = change::key_mut(account, id)?;
                if let Some(description) = &patch.description {
                    key.description.clone_from(description);
                }
                let was_active = key.is_active(now);
                if let Some(expires_at) = patch.expires_at {
                    key.expires_at = expires_at;
                }
                if !was_active && key.is_active(now) && others >= max_active {
                    return Err(change::too_many_keys(max_active));
                }
                Ok(())
            })
            .await?;
        self.log_key("key changed", id);
        Ok(key)
    }

    /// Gives the key a new secret. The previous secret stays valid for `overlap`.
    pub async fn rotate_key(
        &self,
        id: &str,
        overlap: Duration,
        if_match: Option<u64>,
    ) -> Result<IssuedKey, AdminError> {
        let now = self.now();
        let secret = tollgate_policy::api_key::generate();
        let (key, ()) =
            self.change_key(id, if_match, |account| change::rotate(account, id, &secret, overlap, now)).await?;
        self.log_key("key rotated", id);
        Ok(IssuedKey { key, secret })
    }

    /// Revokes a key.
    pub async fn revoke_key(&self, id: &str, if_match: Option<u64>) -> Result<AccountKey, AdminError> {
        let now = self.now();
        let (key, ()) = self
            .change_key(id, if_match, |account| {
                change::key_mut(account, id)?.revoked_at.get_or_insert(now);
                Ok(())
            })
            .await?;
        self.log_key("key revoked", id);
        Ok(key)
    }

    async fn change_key<T>(
        &self,
        id: &str,
        if_match: Option<u64>,
        change: impl Fn(&mut AccountRecord) -> Result<T, AdminError>,
    ) -> Result<(AccountKey, T), AdminError> {
        let account = self.stored_key(id).await?.account.id;
        let (account, output) = self.change(&account, if_match, change).await?;
        Ok((AccountKey { account, id: id.to_owned() }, output))
    }
}
