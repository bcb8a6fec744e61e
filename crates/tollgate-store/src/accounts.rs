//! Accounts and their keys. [`memory`] is the embedded default; [`redis`] is shared by any number of
//! nodes. Neither knows a policy: a tier is a name, and an override is kept as it was written.

pub mod memory;
mod record;
pub mod redis;

use std::{pin::Pin, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tollgate_core::{
    api_key::KeyHash,
    store::{HealthFuture, StoreError},
};

pub use record::{AccountRecord, KeyRecord, OverrideRecord, PreviousSecret};

/// The future of one answer.
pub type AccountFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// The maximum number of changes that wait for a listening node. A node that falls further behind loses its feed and
/// must subscribe again.
const MAX_WAITING_CHANGES: usize = 4096;

/// Keeps accounts.
///
/// The promise: the record is authoritative, and [`AccountStore::save`] replaces it in one atomic step, if nobody else
/// did since it was read. Every listener of [`AccountStore::changes`] hears of a change once it can be read, or its
/// feed ends. An index entry (from a secret, from a key) is a hint: it may lead to a record without such a key, or to
/// no record, but every key of every record has one. An answer, or an error, comes within a bound that the store
/// states. After [`StoreError::Indeterminate`] a change may have been made.
pub trait AccountStore: Send + Sync + 'static {
    /// The account's record.
    fn load<'a>(&'a self, domain: &'a str, id: &'a str) -> AccountFuture<'a, Option<AccountRecord>>;

    /// Where a key with this secret might be.
    fn find_secret<'a>(&'a self, hash: &'a KeyHash) -> AccountFuture<'a, Option<KeyLocation>>;

    /// The id of the account that might have this key.
    fn find_key<'a>(&'a self, domain: &'a str, key: &'a str) -> AccountFuture<'a, Option<String>>;

    /// Makes a change.
    fn save<'a>(&'a self, change: Change<'a>) -> AccountFuture<'a, SaveResult>;

    /// Up to `take` accounts of a domain whose ids follow `after`, in the order of their bytes.
    fn list<'a>(&'a self, domain: &'a str, after: &'a str, take: usize) -> AccountFuture<'a, Page>;

    /// Hears of all changes from now on.
    fn changes(&self) -> AccountFuture<'_, Changes>;

    /// Whether accounts can be read and changed now. The check writes a value that belongs to no account.
    fn health(&self) -> HealthFuture<'_>;
}

/// Where a key is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyLocation {
    /// The domain.
    pub domain: String,
    /// The account's id.
    pub account: String,
    /// The key's id.
    pub key: String,
}

/// A change of one account.
#[derive(Clone, Copy)]
pub struct Change<'a> {
    /// The domain.
    pub domain: &'a str,
    /// The account's id.
    pub id: &'a str,
    /// The record as it was read; `None` if there was none.
    pub before: Option<&'a AccountRecord>,
    /// The record as it is to be, of a later version; `None` if there is to be none.
    pub after: Option<&'a AccountRecord>,
    /// The event that caused the change, if the change must be made only once.
    pub event: Option<Event<'a>>,
}

/// An event that happened once, and may be reported more than once.
#[derive(Clone, Copy)]
pub struct Event<'a> {
    /// Its id, unique within the account.
    pub id: &'a str,
    /// How long it is remembered.
    pub remember: Duration,
}

/// The result of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveResult {
    /// It was made.
    Done,
    /// The record is not the one that was read; nothing was done.
    Conflict,
    /// The event was done before; nothing was done.
    Repeated,
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// The accounts.
    pub accounts: Vec<AccountRecord>,
    /// The ids of accounts between them whose records cannot be read.
    pub unreadable: Vec<String>,
    /// The position of the next page; `None` on the last one.
    pub next: Option<String>,
}

/// An account that changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountChange {
    /// The domain.
    pub domain: String,
    /// The account's id.
    pub account: String,
    /// The secrets that came into being.
    #[serde(with = "record::hash::list")]
    pub secrets: Vec<KeyHash>,
    /// The ids of keys that came into being.
    pub keys: Vec<String>,
}

/// A feed of changes.
#[derive(Debug)]
pub struct Changes(mpsc::Receiver<AccountChange>);

impl Changes {
    /// The next change. `None` once one may have been missed; the feed has ended then.
    pub async fn next(&mut self) -> Option<AccountChange> {
        self.0.recv().await
    }
}

impl Change<'_> {
    /// The messages for listeners.
    pub fn notice(&self) -> AccountChange {
        let new = self.after.into_iter().flat_map(|after| &after.keys);
        let known = |id: &str| self.before.is_some_and(|before| before.keys.contains_key(id));
        AccountChange {
            domain: self.domain.to_owned(),
            account: self.id.to_owned(),
            secrets: self.added().map(|(hash, _)| hash).collect(),
            keys: new.filter(|(id, _)| !known(id)).map(|(id, _)| id.clone()).collect(),
        }
    }

    /// The secrets that come into being, with the ids of their keys.
    fn added(&self) -> impl Iterator<Item = (KeyHash, &str)> {
        secrets_without(self.after, self.before)
    }

    /// The secrets that go, with the ids of their keys.
    fn gone(&self) -> impl Iterator<Item = (KeyHash, &str)> {
        secrets_without(self.before, self.after)
    }

    /// The ids of keys that go.
    fn gone_keys(&self) -> impl Iterator<Item = &str> {
        let stays = |id: &str| self.after.is_some_and(|after| after.keys.contains_key(id));
        self.before.into_iter().flat_map(|before| before.keys.keys()).map(String::as_str).filter(move |id| !stays(id))
    }
}

fn secrets_without<'a>(
    of: Option<&'a AccountRecord>,
    without: Option<&'a AccountRecord>,
) -> impl Iterator<Item = (KeyHash, &'a str)> {
    let in_other = move |id: &str, hash: &KeyHash| {
        without.and_then(|record| record.keys.get(id)).is_some_and(|key| key.secrets().any(|known| known == hash))
    };
    let keys = of.into_iter().flat_map(|record| &record.keys);
    keys.flat_map(|(id, key)| key.secrets().map(move |hash| (*hash, id.as_str())))
        .filter(move |(hash, id)| !in_other(id, hash))
}
