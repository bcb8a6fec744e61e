//! Refusals in Redis: `tg{<partition>}refusals` is a list beside the account's counters, the newest first.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use redis::Cmd;
use tollgate_core::{claim::Partition, store::StoreError};

use super::{MAX_REFUSALS, RETENTION, Refusal, RefusalFuture, RefusalLog};
use crate::redis::{RedisClient, Script, scripts};

/// A log in Redis.
pub struct RedisRefusals {
    link: RedisClient,
    script: Script,
    latest: Script,
}

/// The longest refusal, in bytes.
const MAX_REFUSAL_BYTES: usize = 8_192;

impl RedisRefusals {
    /// A log at the other end of `link`, which others may use too.
    pub fn on(link: RedisClient) -> Self {
        let script = scripts::script("refusals.lua");
        let latest = scripts::script("refused.lua");
        Self { link, script, latest }
    }

    fn key(&self, account: Partition) -> String {
        format!("{}{{{}}}refusals", self.link.key_prefix(), URL_SAFE_NO_PAD.encode(account.bytes()))
    }

    async fn push(&self, account: Partition, refusals: &[Refusal]) -> Result<(), StoreError> {
        if refusals.is_empty() {
            return Ok(());
        }
        let unreadable =
            |error: serde_json::Error| StoreError::Refused(format!("a refusal cannot be written: {error}"));
        let written: Vec<String> =
            refusals.iter().map(serde_json::to_string).collect::<Result<_, _>>().map_err(unreadable)?;
        let key = self.key(account);
        let kept_ms = u64::try_from(RETENTION.as_millis()).unwrap_or(u64::MAX);
        let command = |verb: &str, script: &str| {
            let mut command = Cmd::new();
            command.arg(verb).arg(script).arg(1).arg(&key).arg(MAX_REFUSALS).arg(kept_ms).arg(&written);
            command
        };
        self.link.script(&self.script, command).await.map(drop)
    }

    async fn read(&self, account: Partition) -> Result<Vec<Refusal>, StoreError> {
        let key = self.key(account);
        let read = self.link.script(&self.latest, |verb, script| {
            let mut command = Cmd::new();
            command.arg(verb).arg(script).arg(1).arg(&key).arg(MAX_REFUSALS).arg(MAX_REFUSAL_BYTES);
            command
        });
        let written: Vec<Vec<u8>> = redis::from_redis_value(read.await?)
            .map_err(|error| StoreError::Refused(format!("its answer cannot be read: {error}")))?;
        // One that was changed by hand hides none of the others.
        Ok(written.iter().filter_map(|text| serde_json::from_slice(text).ok()).collect())
    }
}

impl RefusalLog for RedisRefusals {
    fn append<'a>(&'a self, account: Partition, refusals: &'a [Refusal]) -> RefusalFuture<'a, ()> {
        Box::pin(self.push(account, refusals))
    }

    fn latest(&self, account: Partition) -> RefusalFuture<'_, Vec<Refusal>> {
        Box::pin(self.read(account))
    }
}
