//! Accounts in Redis, shared by any number of nodes.
//!
//! `tg{<partition>}account` is an account's record, in the slot of its counters; `tg{<partition>}<event>` is one of its
//! events. `tg{<hash>}secret` and `tg{<name>}key` lead to the account of a key, and `tg{<domain>}accounts` is the
//! sorted set of a domain's accounts. Index entries are written before the record and removed after it, so a crash in
//! between leaves at most entries that lead to nothing.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use redis::{Cmd, FromRedisValue, Value, aio::PubSub};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tollgate_core::{
    claim::{LedgerKey, Partition},
    store::{HealthFuture, StoreError},
};

use super::{
    AccountChange, AccountFuture, AccountRecord, AccountStore, Change, Changes, KeyHash, KeyLocation,
    MAX_WAITING_CHANGES, Page, SaveResult, record,
};
use crate::redis::{RedisClient, Script, layout::ACCOUNT_VERSION_DIGITS, scripts};

/// How often a subscription is tried, and how long it may take to answer. A connection that broke without a
/// word is found out within two of these.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// The longest id of an account, in bytes.
const MAX_ID_BYTES: usize = 128;
/// The largest record that is written or read, in bytes.
const MAX_RECORD_BYTES: usize = 1 << 20;

/// A store in Redis.
pub struct RedisAccounts {
    link: RedisClient,
    script: Script,
    list: Script,
}

impl RedisAccounts {
    /// A store at the other end of `link`, which others may use too.
    pub fn on(link: RedisClient) -> Self {
        let script = scripts::script("account.lua");
        let list = scripts::script("accounts.lua");
        Self { link, script, list }
    }

    fn key(&self, tag: &str, name: &str) -> String {
        format!("{}{{{tag}}}{name}", self.link.key_prefix())
    }

    fn record_key(&self, domain: &str, id: &str) -> String {
        self.key(&tag(Partition::of([domain, "account", id])), "account")
    }

    fn secret_key(&self, hash: &KeyHash) -> String {
        self.key(&record::encoded(hash), "secret")
    }

    fn id_key(&self, domain: &str, key: &str) -> String {
        self.key(&tag(Partition::of([domain, "key", key])), "key")
    }

    fn list_key(&self, domain: &str) -> String {
        self.key(domain, "accounts")
    }

    fn channel(&self) -> String {
        format!("{}:accounts", self.link.key_prefix())
    }

    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        redis::from_redis_value(self.link.query(command).await?)
            .map_err(|error| StoreError::Refused(format!("its answer cannot be read: {error}")))
    }

    async fn read<T: serde::de::DeserializeOwned>(&self, key: &str, skip: usize) -> Result<Option<T>, StoreError> {
        let bytes: Vec<u8> = self.ask(Cmd::new().arg("GETRANGE").arg(key).arg(0).arg(MAX_RECORD_BYTES)).await?;
        if bytes.is_empty() {
            return Ok(None);
        }
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(StoreError::Refused(format!("what it keeps at {key} is too long to be a record")));
        }
        let written = bytes.get(skip..).unwrap_or_default();
        serde_json::from_slice(written)
            .map(Some)
            .map_err(|error| StoreError::Refused(format!("what it keeps at {key} cannot be read: {error}")))
    }

    async fn change(&self, change: &Change<'_>) -> Result<SaveResult, StoreError> {
        let creates = change.before.is_none() && change.after.is_some();
        if creates {
            self.enlist(change).await?;
        }
        for (hash, key) in change.added() {
            let (domain, account) = (change.domain.to_owned(), change.id.to_owned());
            let place = json(&KeyLocation { domain, account, key: key.to_owned() })?;
            self.ask::<()>(Cmd::new().arg("SET").arg(self.id_key(change.domain, key)).arg(json(&change.id)?)).await?;
            self.ask::<()>(Cmd::new().arg("SET").arg(self.secret_key(&hash)).arg(place)).await?;
        }
        let saved = self.replace(change).await?;
        // Only index entries remain to be removed; the result of the change does not depend on that.
        let _ = match saved {
            SaveResult::Done if creates => self.enlist(change).await,
            SaveResult::Done => self.tidy(change).await,
            SaveResult::Conflict | SaveResult::Repeated => self.take_back(change).await,
        };
        Ok(saved)
    }

    async fn replace(&self, change: &Change<'_>) -> Result<SaveResult, StoreError> {
        let before = change.before.map(|record| digits(record.version)).unwrap_or_default();
        let after = match change.after {
            Some(record) => digits(record.version) + &json(record)?,
            None => String::new(),
        };
        if after.len() > MAX_RECORD_BYTES {
            let text = format!("the record of an account has at most {MAX_RECORD_BYTES} bytes");
            return Err(StoreError::Overloaded(text));
        }
        let mut keys = vec![self.record_key(change.domain, change.id)];
        let partition = Partition::of([change.domain, "account", change.id]);
        keys.extend(change.event.map(|event| {
            let name = LedgerKey::of(partition, ["event", event.id]).scope_bytes();
            self.key(&tag(partition), &format!("event{}", URL_SAFE_NO_PAD.encode(name)))
        }));
        let notice = json(&change.notice())?;
        let remember = change.event.map_or(0, |event| event.remember.as_millis());
        let remember = u64::try_from(remember).unwrap_or(u64::MAX).clamp(1, 1 << 48);
        let reply = self.link.script(&self.script, |verb, script| {
            let mut command = Cmd::new();
            command.arg(verb).arg(script).arg(keys.len()).arg(&keys);
            command.arg(&before).arg(&after).arg(self.channel()).arg(&notice).arg(remember);
            command
        });
        match reply.await? {
            Value::Int(0) => Ok(SaveResult::Conflict),
            Value::Int(1) => Ok(SaveResult::Done),
            Value::Int(2) => Ok(SaveResult::Repeated),
            other => Err(StoreError::Refused(format!("the script replied {other:?}"))),
        }
    }

    /// Adds the account to the list of its domain: before it is created, so that the list always contains it, and
    /// after, because a client that deleted it just before may be about to remove it from the list.
    async fn enlist(&self, change: &Change<'_>) -> Result<(), StoreError> {
        self.ask(Cmd::new().arg("ZADD").arg(self.list_key(change.domain)).arg(0).arg(change.id)).await
    }

    /// Removes the index entries of deleted secrets, keys and accounts.
    async fn tidy(&self, change: &Change<'_>) -> Result<(), StoreError> {
        for (hash, _) in change.gone() {
            self.ask::<()>(Cmd::new().arg("DEL").arg(self.secret_key(&hash))).await?;
        }
        for key in change.gone_keys() {
            self.ask::<()>(Cmd::new().arg("DEL").arg(self.id_key(change.domain, key))).await?;
        }
        if change.before.is_some() && change.after.is_none() {
            self.ask::<()>(Cmd::new().arg("ZREM").arg(self.list_key(change.domain)).arg(change.id)).await?;
            let made_again: bool =
                self.ask(Cmd::new().arg("EXISTS").arg(self.record_key(change.domain, change.id))).await?;
            if made_again {
                self.enlist(change).await?;
            }
        }
        Ok(())
    }

    /// Removes the index entries of secrets and keys that were not created. They are random, so no other account has
    /// them.
    async fn take_back(&self, change: &Change<'_>) -> Result<(), StoreError> {
        let notice = change.notice();
        for hash in &notice.secrets {
            self.ask::<()>(Cmd::new().arg("DEL").arg(self.secret_key(hash))).await?;
        }
        for key in &notice.keys {
            self.ask::<()>(Cmd::new().arg("DEL").arg(self.id_key(change.domain, key))).await?;
        }
        Ok(())
    }

    async fn load_record(&self, domain: &str, id: &str) -> Result<Option<AccountRecord>, StoreError> {
        let key = self.record_key(domain, id);
        let record: Option<AccountRecord> = self.read(&key, ACCOUNT_VERSION_DIGITS).await?;
        if record.as_ref().is_some_and(|record| record.domain != domain || record.id != id) {
            return Err(StoreError::Refused(format!("what it keeps at {key} is the record of another account")));
        }
        Ok(record)
    }

    async fn page(&self, domain: &str, after: &str, take: usize) -> Result<Page, StoreError> {
        let from = if after.is_empty() { "-".to_owned() } else { format!("({after}") };
        let key = self.list_key(domain);
        let listed = self.link.script(&self.list, |verb, script| {
            let mut command = Cmd::new();
            command.arg(verb).arg(script).arg(1).arg(&key).arg(&from).arg(take + 1).arg(MAX_ID_BYTES);
            command
        });
        let mut ids: Vec<Vec<u8>> = redis::from_redis_value(listed.await?)
            .map_err(|error| StoreError::Refused(format!("its answer cannot be read: {error}")))?;
        let more = ids.len() > take;
        ids.truncate(take);
        // The id of an account is valid UTF-8, so no account can be requested by any other bytes.
        let mut ids: Vec<String> = ids.into_iter().filter_map(|id| String::from_utf8(id).ok()).collect();
        if more && ids.is_empty() {
            return Err(StoreError::Refused("the list of accounts holds names that are no text".into()));
        }
        let (mut accounts, mut unreadable) = (Vec::with_capacity(ids.len()), Vec::new());
        for id in &ids {
            match self.load_record(domain, id).await {
                // One that was just deleted, or is just being made, is not there.
                Ok(found) => accounts.extend(found),
                Err(StoreError::Refused(error)) => {
                    self.link.log_unreadable(&[&[self.record_key(domain, id)]], &error);
                    unreadable.push(id.clone());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Page { accounts, unreadable, next: ids.pop().filter(|_| more) })
    }

    async fn listen(&self) -> Result<Changes, StoreError> {
        let heard = self.link.subscribe(&self.channel()).await?;
        let (tell, told) = mpsc::channel(MAX_WAITING_CHANGES);
        tokio::spawn(pass_on(self.link.clone(), heard, tell));
        Ok(Changes(told))
    }
}

/// Forwards messages until the connection breaks, a message cannot be understood, or there is no listener any more; or
/// until the server has become a replica, which may miss changes made elsewhere.
async fn pass_on(link: RedisClient, heard: PubSub, tell: mpsc::Sender<AccountChange>) {
    let (mut ping, mut messages) = heard.split();
    let heartbeat = async {
        loop {
            tokio::time::sleep(HEARTBEAT).await;
            if link.is_read_only() {
                return;
            }
            match tokio::time::timeout(HEARTBEAT, ping.ping::<Value>()).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    };
    tokio::pin!(heartbeat);
    loop {
        let message = tokio::select! {
            message = messages.next() => message,
            () = &mut heartbeat => return,
            () = tell.closed() => return,
        };
        let changed = message.and_then(|message| serde_json::from_slice(message.get_payload_bytes()).ok());
        let Some(changed) = changed else { return };
        if tell.try_send(changed).is_err() {
            return;
        }
    }
}

fn tag(partition: Partition) -> String {
    URL_SAFE_NO_PAD.encode(partition.bytes())
}

fn digits(version: u64) -> String {
    format!("{version:0ACCOUNT_VERSION_DIGITS$}")
}

fn json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Refused(format!("cannot be written: {error}")))
}

impl AccountStore for RedisAccounts {
    fn load<'a>(&'a self, domain: &'a str, id: &'a str) -> AccountFuture<'a, Option<AccountRecord>> {
        Box::pin(self.load_record(domain, id))
    }

    fn find_secret<'a>(&'a self, hash: &'a KeyHash) -> AccountFuture<'a, Option<KeyLocation>> {
        Box::pin(async { self.read(&self.secret_key(hash), 0).await })
    }

    fn find_key<'a>(&'a self, domain: &'a str, key: &'a str) -> AccountFuture<'a, Option<String>> {
        Box::pin(async move { self.read(&self.id_key(domain, key), 0).await })
    }

    fn save<'a>(&'a self, change: Change<'a>) -> AccountFuture<'a, SaveResult> {
        Box::pin(async move { self.change(&change).await })
    }

    fn list<'a>(&'a self, domain: &'a str, after: &'a str, take: usize) -> AccountFuture<'a, Page> {
        Box::pin(self.page(domain, after, take))
    }

    fn changes(&self) -> AccountFuture<'_, Changes> {
        Box::pin(self.listen())
    }

    fn health(&self) -> HealthFuture<'_> {
        Box::pin(self.link.health())
    }
}
