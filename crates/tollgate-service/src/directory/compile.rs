//! Compiles an account's record under the current policy.

use std::{collections::HashMap, sync::Arc};

use indexmap::IndexMap;
use tollgate_core::{api_key::KeyHash, time::Timestamp};
use tollgate_policy::{Override, Place, Policy, QuotaLevel, file, format, reason::InvalidKey};
use tollgate_store::accounts::{AccountRecord, KeyRecord, OverrideRecord, PreviousSecret};

use super::{Account, Key};

/// A compiled account, with or without a record in the store.
#[derive(Debug)]
pub(super) struct CompiledAccount {
    pub(super) account: Arc<Account>,
    pub(super) keys: HashMap<Box<str>, CompiledKey>,
    /// The policy that it was compiled for.
    pub(super) policy: Arc<Policy>,
    /// When it must be compiled again, because an override expires.
    pub(super) valid_until: Option<Timestamp>,
    /// The number of overrides that no longer fit the policy.
    pub(super) ignored_overrides: usize,
}

#[derive(Debug)]
pub(super) struct CompiledKey {
    pub(super) key: Arc<Key>,
    hash: KeyHash,
    previous: Option<PreviousSecret>,
}

impl CompiledKey {
    /// Checks that a secret with this hash is the key's at `now`.
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
    /// An account without a record. It has the default tier, so that a platform needs no accounts to start with.
    pub(super) fn without_record(id: &str, policy: &Arc<Policy>) -> Self {
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
            valid_until: None,
            ignored_overrides: 0,
        }
    }

    /// Compiles a record. Overrides that no longer fit the policy are ignored; a tier that no longer exists is replaced
    /// by the default tier.
    pub(super) fn new(record: &AccountRecord, policy: &Arc<Policy>, now: Timestamp) -> Self {
        let mut compiler = Compiler { policy, now, valid_until: None, ignored_overrides: 0 };
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
        let Compiler { valid_until, ignored_overrides, .. } = compiler;
        if ignored_overrides > 0 {
            tracing::warn!(
                domain = record.domain,
                account = record.id,
                left_out = ignored_overrides,
                "overrides do not fit the policy"
            );
        }
        Self { account: Arc::new(account), keys, policy: Arc::clone(policy), valid_until, ignored_overrides }
    }

    /// Its weight in the cache.
    pub(super) fn weight(&self) -> u64 {
        1 + (self.keys.len() + self.account.overrides.len()) as u64 / 16
    }
}

struct Compiler<'a> {
    policy: &'a Policy,
    now: Timestamp,
    valid_until: Option<Timestamp>,
    ignored_overrides: usize,
}

impl Compiler<'_> {
    fn key(&mut self, id: &str, record: &KeyRecord) -> CompiledKey {
        let key = Key {
            id: id.into(),
            kind: record.kind,
            expires_at: record.expires_at,
            revoked: record.revoked_at.is_some(),
            overrides: self.overrides(&record.overrides, QuotaLevel::Key),
        };
        CompiledKey { key: Arc::new(key), hash: record.hash, previous: record.previous.clone() }
    }

    fn overrides(&mut self, records: &IndexMap<String, OverrideRecord>, level: QuotaLevel) -> Arc<[Override]> {
        let mut overrides = Vec::with_capacity(records.len());
        for record in records.values().filter(|record| record.expires_at.is_none_or(|end| end > self.now)) {
            self.valid_until = [self.valid_until, record.expires_at].into_iter().flatten().min();
            match file::read_override(&record.written) {
                Some(parsed) => overrides.push(parsed),
                None => self.ignored_overrides += 1,
            }
        }
        if overrides.is_empty() {
            return Arc::default();
        }
        let count = overrides.len();
        let overrides = valid_overrides(self.policy, overrides, level);
        self.ignored_overrides += count - overrides.len();
        self.policy.overrides(&overrides, level, &Place::root()).unwrap_or_default().into()
    }
}

/// The overrides that fit the policy. If not all of them do, an override is left out if it does not fit together with
/// the previous ones.
pub fn valid_overrides(policy: &Policy, overrides: Vec<format::Override>, level: QuotaLevel) -> Vec<format::Override> {
    let fit = |overrides: &[format::Override]| policy.overrides(overrides, level, &Place::root()).is_ok();
    if fit(&overrides) {
        return overrides;
    }
    overrides.into_iter().fold(Vec::new(), |mut valid, candidate| {
        valid.push(candidate);
        if !fit(&valid) {
            valid.pop();
        }
        valid
    })
}
