//! Resetting the usage of an account.

use std::collections::{BTreeSet, HashSet};

use tollgate_core::claim::LedgerKey;
use tollgate_policy::Caller;

use super::{AdminError, AdminSession};
use crate::{directory::Identity, service::check_name};

/// The counters that were reset.
#[derive(Debug)]
pub struct UsageReset {
    /// The number of removed ledgers. The slots of a scope count as another one.
    pub counters: usize,
    /// The names of the quotas and abuse rules whose counters were reset.
    pub quotas: Vec<String>,
}

impl AdminSession<'_> {
    /// Removes the counters of an account: those of its quotas and abuse rules in every tier, its slots, those of its
    /// keys, and caller-named ones. With `quota`, only counters in the scopes of the quotas and rules with this name,
    /// which other quotas may share. Counters that several accounts share are not removed.
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
            let message = format!("quota: the account has no own counter for a quota or rule {quota:?}");
            return Err(AdminError::NotFound(message));
        }
        let ledgers: Vec<LedgerKey> = ledgers.into_iter().collect();
        let counters = self.admin.counters.reset(policy.account_partition(id), &ledgers, caller_named).await?;
        let domain = self.name();
        tracing::info!(by = self.administrator, domain, account = id, quota, counters, "usage reset");
        Ok(UsageReset { counters, quotas: names.into_iter().collect() })
    }

    /// The identities of an account: without a key, and with each of its keys. An account without a record, or whose
    /// record cannot be read, may have counters too.
    async fn identities(&self, id: &str) -> Vec<Identity> {
        let (policy, now) = (&self.domain.policy, self.now());
        if let Some(account) = self.domain.directory.account(id) {
            let keys = self.domain.directory.definition(id).into_iter().flat_map(|definition| &definition.keys);
            let key_identities = keys.filter_map(|key| self.domain.directory.identity_by_key_id(&key.id).cloned());
            return [Identity::new(account.clone(), None)].into_iter().chain(key_identities).collect();
        }
        let mut identities = vec![self.admin.accounts.identity_by_account(id, policy, now).await];
        if let Ok(Some(record)) = self.admin.store.load(self.name(), id).await {
            for key in record.keys.keys() {
                identities.extend(self.admin.accounts.identity_by_key_id(key, policy, now).await.ok().flatten());
            }
        }
        identities
    }
}
