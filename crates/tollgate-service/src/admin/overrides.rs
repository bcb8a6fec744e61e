//! Overrides: limits of one account or key.

use std::sync::Arc;

use indexmap::IndexMap;
use tollgate_policy::{MAX_OVERRIDES, QuotaLevel};
use tollgate_store::accounts::{AccountRecord, OverrideRecord};

use super::{AdminError, AdminSession, change, check_segment};
use crate::service::CallError;

/// The account or key that has an override.
#[derive(Clone, Copy)]
pub enum OverrideTarget<'a> {
    /// An account, by its id.
    Account(&'a str),
    /// A key, by its id.
    Key(&'a str),
}

impl AdminSession<'_> {
    /// Sets an override.
    pub async fn put_override(
        &self,
        target: OverrideTarget<'_>,
        name: &str,
        record: OverrideRecord,
        if_match: Option<u64>,
    ) -> Result<AccountRecord, AdminError> {
        check_override_name(name)?;
        let (policy, now) = (Arc::clone(&self.domain.policy), self.now());
        if record.expires_at.is_some_and(|end| end <= now) {
            return Err(CallError::field("expires_at", "must be later than now").into());
        }
        let (level, account) = self.target_account(target).await?;
        let (changed, ()) = self
            .change(&account, if_match, |account| {
                let overrides = overrides_mut(account, target)?;
                if overrides.len() >= MAX_OVERRIDES && !overrides.contains_key(name) {
                    return Err(AdminError::Refused(format!(
                        "override: at most {MAX_OVERRIDES} are possible; clear one first"
                    )));
                }
                change::check_override(&policy, level, overrides, name, &record.written, now)?;
                overrides.insert(name.to_owned(), record.clone());
                Ok(())
            })
            .await?;
        self.log("override set", &account);
        Ok(changed)
    }

    /// Removes an override.
    pub async fn clear_override(
        &self,
        target: OverrideTarget<'_>,
        name: &str,
        if_match: Option<u64>,
    ) -> Result<AccountRecord, AdminError> {
        let (_, account) = self.target_account(target).await?;
        let (changed, ()) = self
            .change(&account, if_match, |account| {
                let removed = overrides_mut(account, target)?.shift_remove(name);
                removed
                    .map(|_| ())
                    .ok_or_else(|| AdminError::NotFound(format!("override: there is no override {name:?}")))
            })
            .await?;
        self.log("override cleared", &account);
        Ok(changed)
    }

    async fn target_account(&self, target: OverrideTarget<'_>) -> Result<(QuotaLevel, String), AdminError> {
        match target {
            OverrideTarget::Account(id) => Ok((QuotaLevel::Account, id.to_owned())),
            OverrideTarget::Key(id) => Ok((QuotaLevel::Key, self.stored_key(id).await?.account.id)),
        }
    }
}

fn overrides_mut<'a>(
    account: &'a mut AccountRecord,
    target: OverrideTarget<'_>,
) -> Result<&'a mut IndexMap<String, OverrideRecord>, AdminError> {
    match target {
        OverrideTarget::Account(_) => Ok(&mut account.overrides),
        OverrideTarget::Key(id) => Ok(&mut change::key_mut(account, id)?.overrides),
    }
}

fn check_override_name(name: &str) -> Result<(), AdminError> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 64 || !name.chars().all(is_allowed) {
        let problem = "must have 1 to 64 letters, digits, hyphens, underscores and dots";
        return Err(CallError::field("override", problem).into());
    }
    Ok(check_segment("override", name)?)
}
