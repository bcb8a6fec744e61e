//! Accounts.

use std::time::Duration;

use indexmap::IndexMap;
use tollgate_store::accounts::{AccountRecord, Event, Page, SaveResult};

use super::{ATTEMPTS, AdminError, AdminSession, change, check_segment, check_version, policy_file};
use crate::service::{CallError, check_name};

/// The time for which a repeated event is recognized.
const EVENT_RETENTION: Duration = Duration::from_hours(30 * 24);
/// The maximum number of currencies.
const MAX_BALANCES: usize = 16;

/// The data of a new account.
pub struct NewAccount {
    /// Its id, unique in the domain.
    pub id: String,
    /// Its tier; the default tier if absent.
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
    /// Whether the event had already been recorded, so that nothing changed.
    pub repeated: bool,
}

impl AdminSession<'_> {
    /// Creates an account.
    pub async fn create_account(&self, new: NewAccount) -> Result<AccountRecord, AdminError> {
        check_segment("id", &new.id)?;
        self.check_not_in_policy_file(&new.id)?;
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
        match policy_file::account_record(&self.domain, id) {
            Some(record) => Ok(record),
            None => self.load_stored(id).await,
        }
    }

    /// The record of an account in the store.
    pub(super) async fn load_stored(&self, id: &str) -> Result<AccountRecord, AdminError> {
        self.check_not_in_policy_file(id)?;
        let record = self.admin.store.load(self.name(), id).await?;
        record.ok_or_else(|| AdminError::NotFound(format!("account: there is no account {id:?}")))
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
            let before = self.load_stored(id).await?;
            check_version(&before, if_match)?;
            if self.save(id, Some(&before), None, None).await? == SaveResult::Done {
                self.log("account deleted", id);
                return Ok(());
            }
        }
        Err(AdminError::Contended)
    }

    /// Records an event of an account, such as a payment; a repeated event changes nothing. An account without a record
    /// has the default tier, and gets a record when it moves to another tier.
    pub async fn record_event(&self, id: &str, event: &str, kind: &str) -> Result<EventOutcome, AdminError> {
        check_segment("account", id)?;
        check_name("id", event)?;
        self.check_not_in_policy_file(id)?;
        let kinds = self.domain.accounts.events();
        if !kinds.contains(&kind) {
            let names = if kinds.is_empty() { "there is none".to_owned() } else { kinds.join(", ") };
            return Err(CallError::field("type", format_args!("no promotion is on {kind:?}; known: {names}")).into());
        }
        for _ in 0..ATTEMPTS {
            let before = self.admin.store.load(self.name(), id).await?;
            let tier = before.as_ref().map_or_else(|| self.default_tier(), |record| record.tier.clone());
            let to = self.domain.accounts.promotion(kind, &tier).map(str::to_owned);
            let after = match (&before, &to) {
                (Some(before), Some(to)) => {
                    let mut after = before.clone();
                    change::finish_change(&mut after, self.now());
                    after.tier.clone_from(to);
                    Some(after)
                }
                (None, Some(to)) => Some(self.new_record(id, to.clone(), IndexMap::new())),
                (before, None) => before.clone(),
            };
            let event = Event { id: event, remember: EVENT_RETENTION };
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
    let is_currency = |name: &String| (1..=16).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric());
    if balances.len() > MAX_BALANCES
        || !balances.keys().all(is_currency)
        || balances.values().any(|sum| !sum.is_finite())
    {
        let problem =
            format!("must have at most {MAX_BALANCES} currencies of up to 16 letters and digits, and numbers");
        return Err(CallError::field("balances", problem).into());
    }
    Ok(())
}
