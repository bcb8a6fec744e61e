//! Accounts: made, read, changed, deleted, promoted.

use std::time::Duration;

use indexmap::IndexMap;
use tollgate_store::accounts::{AccountRecord, Event, Page, SaveResult};

use super::{ATTEMPTS, AdminError, AdminSession, change, check_segment, check_version, policy_file};
use crate::service::{CallError, check_name};

/// How long an event is remembered.
const REMEMBER_EVENT: Duration = Duration::from_hours(30 * 24);
/// The most currencies of a balance.
const MAX_BALANCES: usize = 16;

/// An account to be made.
pub struct NewAccount {
    /// Its id, unique in the domain.
    pub id: String,
    /// The default tier if absent.
    pub tier: Option<String>,
    /// Its balances, by currency.
    pub balances: IndexMap<String, f64>,
}

/// The changes of an account.
#[derive(Clone, Default)]
pub struct AccountPatch {
    /// The name of its tier.
    pub tier: Option<String>,
    /// Its balances, by currency; they replace all previous ones.
    pub balances: Option<IndexMap<String, f64>>,
}

/// The result of an event.
pub struct EventOutcome {
    /// The account; `None` if it is not in the store.
    pub account: Option<AccountRecord>,
    /// The tiers that it moved from and to.
    pub promoted: Option<(String, String)>,
    /// Whether the event was recorded before, and so changed nothing now.
    pub repeated: bool,
}

impl AdminSession<'_> {
    /// Creates an account.
    pub async fn create_account(&self, new: NewAccount) -> Result<AccountRecord, AdminError> {
        check_segment("id", &new.id)?;
        self.not_in_policy_file(&new.id)?;
        let tier = new.tier.unwrap_or_else(|| self.default_tier());
        self.check_tier(&tier)?;
        check_balances(&new.balances)?;
        let record = self.new_record(&new.id, tier, new.balances);
        match self.save(&new.id, None, Some(&record), None).await? {
            SaveResult::Done => self.log("account created", &new.id),
            SaveResult::Conflict | SaveResult::Repeated => {
                return Err(AdminError::Exists(format!("id: the account {:?} already exists", new.id)));
            }
        }
        Ok(record)
    }

    /// The account's record.
    pub async fn account(&self, id: &str) -> Result<AccountRecord, AdminError> {
        match policy_file::record(&self.domain, id) {
            Some(record) => Ok(record),
            None => self.stored(id).await,
        }
    }

    /// An account that may be changed.
    pub(super) async fn stored(&self, id: &str) -> Result<AccountRecord, AdminError> {
        self.not_in_policy_file(id)?;
        let found = self.admin.store.load(self.name(), id).await?;
        found.ok_or_else(|| AdminError::NotFound(format!("account: there is no account {id:?}")))
    }

    /// Up to `take` accounts whose ids come after `after`, in the order of their bytes.
    pub async fn accounts(&self, after: &str, take: usize) -> Result<Page, AdminError> {
        Ok(self.admin.store.list(self.name(), after, take).await?)
    }

    /// Changes an account.
    pub async fn patch_account(
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

    /// Deletes an account, with its keys.
    pub async fn delete_account(&self, id: &str, if_match: Option<u64>) -> Result<(), AdminError> {
        for _ in 0..ATTEMPTS {
            let before = self.stored(id).await?;
            check_version(&before, if_match)?;
            if self.save(id, Some(&before), None, None).await? == SaveResult::Done {
                self.log("account deleted", id);
                return Ok(());
            }
        }
        Err(AdminError::Contended)
    }

    /// Takes note of something that happened to an account, once. An account that the store does not know is on the
    /// default tier, and comes into being if it moves to another.
    pub async fn record_event(&self, id: &str, event: &str, kind: &str) -> Result<EventOutcome, AdminError> {
        check_segment("account", id)?;
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
                SaveResult::Done => {
                    self.log("event recorded", id);
                    return Ok(EventOutcome { account: after, promoted: to.map(|to| (tier, to)), repeated: false });
                }
                SaveResult::Repeated => return Ok(EventOutcome { account: before, promoted: None, repeated: true }),
                SaveResult::Conflict => {}
            }
        }
        Err(AdminError::Contended)
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
            later: serde_json::Map::new(),
        }
    }
}

fn check_balances(balances: &IndexMap<String, f64>) -> Result<(), AdminError> {
    let named = |name: &String| (1..=16).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric());
    if balances.len() > MAX_BALANCES || !balances.keys().all(named) || balances.values().any(|sum| !sum.is_finite()) {
        let wrong = format!("must have at most {MAX_BALANCES} currencies of up to 16 letters and digits, and numbers");
        return Err(CallError::field("balances", wrong).into());
    }
    Ok(())
}
