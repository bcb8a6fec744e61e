//! The usage of an account: resetting its counters.

use std::collections::{BTreeSet, HashSet};

use tollgate_core::claim::LedgerKey;
use tollgate_policy::Caller;

use super::{AdminError, AdminSession};
use crate::{directory::Identity, service::check_name};

/// The counters that were reset.
#[derive(Debug)]
pub struct UsageReset {
    /// How many keys of the store were removed. The counters of a scope are one, and its slots another.
    pub counters: usize,
    /// The names of the quotas and abuse rules whose counters were reset.
    pub quotas: Vec<String>,
}

impl AdminSession<'_> {
    /// Removes the counters of an account, whatever they hold: those of its quotas and abuse rules in every tier, its
    /// slots, those of its keys, and those whose names callers choose. With `quota`, only those of the scopes that a quota
    /// or rule of this name has, which others may share. Counters that accounts share stay.
    pub async fn reset_usage(&self, id: &str, quota: Option<&str>) -> Result<UsageReset, AdminError> {
        check_name("account", id)?;
        let policy = &self.domain.policy;
        let identities = self.identities(id).await;
        let (mut ledgers, mut names, mut caller_named) = (HashSet::new(), BTreeSet::new(), false);
        for identity in &identities {
            for tier in policy.tiers().iter().filter_map(|tier| policy.tier_named(&tier.name)) {
                let caller = Caller { tier, ..identity.caller() };
                for resolved in policy.resolve_all(&caller).flatten() {
                    caller_named |= resolved.own_ledgers(quota, |name, ledger| {
                        names.insert(name.to_owned());
                        ledgers.extend(ledger);
                    });
                }
            }
        }
        if let (Some(quota), true) = (quota, names.is_empty()) {
            let wrong = format!("quota: the account has no own counter for a quota or rule {quota:?}");
            return Err(AdminError::NotFound(wrong));
        }
        let ledgers: Vec<LedgerKey> = ledgers.into_iter().collect();
        let counters = self.admin.counters.reset(policy.account_partition(id), &ledgers, caller_named).await?;
        let domain = self.name();
        tracing::info!(by = self.by, domain, account = id, quota, counters, "usage reset");
        Ok(UsageReset { counters, quotas: names.into_iter().collect() })
    }

    /// The account by its name and by each of its keys. An account that was never created, or whose record cannot be
    /// read, has counters too.
    async fn identities(&self, id: &str) -> Vec<Identity> {
        let (policy, now) = (&self.domain.policy, self.now());
        if let Some(account) = self.domain.directory.account(id) {
            let keys = self.domain.directory.written(id).into_iter().flat_map(|written| &written.keys);
            let of_keys = keys.filter_map(|key| self.domain.directory.by_id(&key.id).cloned());
            return [Identity::certain(account.clone(), None)].into_iter().chain(of_keys).collect();
        }
        let mut identities = vec![self.admin.known.by_name(id, policy, now).await];
        if let Ok(Some(record)) = self.admin.store.load(self.name(), id).await {
            for key in record.keys.keys() {
                identities.extend(self.admin.known.by_key_id(key, policy, now).await.ok().flatten());
            }
        }
        identities
    }
}
