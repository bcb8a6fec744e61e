//! From an account's record to the form that calls are decided with, under the current policy.

use std::{collections::HashMap, sync::Arc};

use indexmap::IndexMap;
use tollgate_core::{api_key::KeyHash, time::Timestamp};
use tollgate_policy::{Override, Place, Policy, QuotaLevel, file, format, reason::InvalidKey};
use tollgate_store::accounts::{AccountRecord, KeyRecord, OverrideRecord, PreviousSecret};

use super::{Account, Key};

/// An account of the store, or one that it does not know.
#[derive(Debug)]
pub(super) struct CompiledAccount {
    pub(super) account: Arc<Account>,
    pub(super) keys: HashMap<Box<str>, KnownKey>,
    /// The policy that it was compiled for.
    pub(super) policy: Arc<Policy>,
    /// When it must be compiled again, because an override ends.
    pub(super) good_until: Option<Timestamp>,
    /// Overrides that do not fit the policy any more.
    pub(super) left_out: usize,
}

#[derive(Debug)]
pub(super) struct KnownKey {
    pub(super) key: Arc<Key>,
    hash: KeyHash,
    previous: Option<PreviousSecret>,
}

impl KnownKey {
    /// Whether the secret of this hash is the key's at `now`.
    pub(super) fn check_secret(&self, hash: &KeyHash, now: Timestamp) -> Result<(), InvalidKey> {
        if self.hash.matches(hash) {
            return Ok(());
        }
        match &self.previous {
            Some(previous) if previous.hash.matches(hash) && previous.good_until > now => Ok(()),
            Some(previous) if previous.hash.matches(hash) => Err(InvalidKey::Expired),
            _ => Err(InvalidKey::Unknown),
        }
    }
}

impl CompiledAccount {
    /// An account that the store does not know is on the default tier, so that a platform may start with no
    /// accounts at all; the calling service vouches for the name.
    pub(super) fn unknown(id: &str, policy: &Arc<Policy>) -> Self {
        let account = Account {
            id: id.into(),
            partition: policy.account_partition(id),
            tier: policy.default_tier(),
            overrides: Arc::default(),
            balances: IndexMap::new(),
        };
        Self {
            account: Arc::new(account),
            keys: HashMap::new(),
            policy: Arc::clone(policy),
            good_until: None,
            left_out: 0,
        }
    }

    /// The account of `record`. Parts that do not fit the policy any more are omitted: overrides, or the tier, which is
    /// replaced by the default.
    pub(super) fn of(record: &AccountRecord, policy: &Arc<Policy>, now: Timestamp) -> Self {
        let mut compiler = Compiler { policy, now, good_until: None, left_out: 0 };
        let tier = policy.tier_named(&record.tier).unwrap_or_else(|| {
            tracing::warn!(
                domain = record.domain,
                account = record.id,
                tier = record.tier,
                "account has an unknown tier"
            );
            policy.default_tier()
        });
        let account = Account {
            id: record.id.as_str().into(),
            partition: policy.account_partition(&record.id),
            tier,
            overrides: compiler.overrides(&record.overrides, QuotaLevel::Account),
            balances: record.balances.clone(),
        };
        let keys = record.keys.iter().map(|(id, key)| (id.as_str().into(), compiler.key(id, key))).collect();
        let Compiler { good_until, left_out, .. } = compiler;
        if left_out > 0 {
            tracing::warn!(domain = record.domain, account = record.id, left_out, "overrides do not fit the policy");
        }
        Self { account: Arc::new(account), keys, policy: Arc::clone(policy), good_until, left_out }
    }

    /// Its weight in the cache.
    pub(super) fn weight(&self) -> u64 {
        1 + (self.keys.len() + self.account.overrides.len()) as u64 / 16
    }
}

struct Compiler<'a> {
    policy: &'a Policy,
    now: Timestamp,
    good_until: Option<Timestamp>,
    left_out: usize,
}

impl Compiler<'_> {
    fn key(&mut self, id: &str, record: &KeyRecord) -> KnownKey {
        let key = Key {
            id: id.into(),
            kind: record.kind,
            expires_at: record.expires_at,
            revoked: record.revoked_at.is_some(),
            overrides: self.overrides(&record.overrides, QuotaLevel::Key),
        };
        KnownKey { key: Arc::new(key), hash: record.hash, previous: record.previous.clone() }
    }

    fn overrides(&mut self, records: &IndexMap<String, OverrideRecord>, level: QuotaLevel) -> Arc<[Override]> {
        let mut written = Vec::with_capacity(records.len());
        for record in records.values().filter(|record| record.expires_at.is_none_or(|end| end > self.now)) {
            self.good_until = [self.good_until, record.expires_at].into_iter().flatten().min();
            match file::read_override(&record.written) {
                Some(over) => written.push(over),
                None => self.left_out += 1,
            }
        }
        if written.is_empty() {
            return Arc::default();
        }
        let count = written.len();
        let written = valid_overrides(self.policy, written, level);
        self.left_out += count - written.len();
        self.policy.overrides(&written, level, &Place::root()).unwrap_or_default().into()
    }
}

/// The overrides that fit the policy, each tried in its turn beside those before it where not all do.
pub fn valid_overrides(policy: &Policy, written: Vec<format::Override>, level: QuotaLevel) -> Vec<format::Override> {
    let fits = |written: &[format::Override]| policy.overrides(written, level, &Place::root()).is_ok();
    if fits(&written) {
        return written;
    }
    written.into_iter().fold(Vec::new(), |mut valid_overrides, over| {
        valid_overrides.push(over);
        if !fits(&valid_overrides) {
            valid_overrides.pop();
        }
        valid_overrides
    })
}
