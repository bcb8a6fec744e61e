//! Keys: made, read, changed, rotated, revoked.

use std::time::Duration;

use tollgate_core::{api_key::KeyKind, time::Timestamp};
use tollgate_store::accounts::{AccountRecord, KeyRecord};

use super::{AdminError, AdminSession, change, policy_file};

/// A key to be made.
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
    /// `Some(None)`: it does not end.
    pub expires_at: Option<Option<Timestamp>>,
}

/// A key and its account.
pub struct AccountKey {
    /// The account of the key.
    pub account: AccountRecord,
    /// The key's id.
    pub id: String,
}

/// A key whose secret is shown once.
pub struct IssuedKey {
    /// The key.
    pub key: AccountKey,
    /// Its secret, which is shown this once.
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
        let most = self.domain.accounts.max_active_keys;
        let (account, ()) =
            self.change(account, if_match, |account| change::add_key(account, &id, key.clone(), most, now)).await?;
        self.log_key("key created", &id);
        Ok(IssuedKey { key: AccountKey { account, id }, secret })
    }

    /// The key of this id.
    pub async fn key(&self, id: &str) -> Result<AccountKey, AdminError> {
        let account = self.domain.directory.by_id(id).map(|identity| &identity.account.id);
        match account.and_then(|account| policy_file::record(&self.domain, account)) {
            Some(account) => Ok(AccountKey { account, id: id.to_owned() }),
            None => self.stored_key(id).await,
        }
    }

    /// A key that may be changed.
    pub(super) async fn stored_key(&self, id: &str) -> Result<AccountKey, AdminError> {
        let missing = || AdminError::NotFound(format!("key: there is no key {id:?}"));
        if self.domain.directory.by_id(id).is_some() {
            return Err(AdminError::Refused(format!("key: {id:?} is defined in the policy file; change it there")));
        }
        let account = self.admin.store.find_key(self.name(), id).await?.ok_or_else(missing)?;
        let account = self.admin.store.load(self.name(), &account).await?.ok_or_else(missing)?;
        let found = AccountKey { account, id: id.to_owned() };
        if found.record().is_some() { Ok(found) } else { Err(missing()) }
    }

    /// Changes a key.
    pub async fn patch_key(&self, id: &str, patch: KeyPatch, if_match: Option<u64>) -> Result<AccountKey, AdminError> {
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
                change::key_of(account, id)?.revoked_at.get_or_insert(now);
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
        let (account, made) = self.change(&account, if_match, change).await?;
        Ok((AccountKey { account, id: id.to_owned() }, made))
    }
}
