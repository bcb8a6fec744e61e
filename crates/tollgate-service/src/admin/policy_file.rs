//! Accounts of the policy file, as records: they are read like those of the store, and never changed here.

use indexmap::IndexMap;
use serde_json::Value;
use tollgate_core::{api_key::KeyHash, time::Timestamp};
use tollgate_policy::file::BootstrapKey;
use tollgate_store::accounts::{AccountRecord, KeyRecord, OverrideRecord};

use crate::domains::Domain;

/// The version of accounts in policy files, and the time of their events, which is not known. The version of an account
/// in the store is a time, so never this value.
const UNKNOWN: u64 = 0;

/// Whether the policy file defines it.
pub const fn is_in_policy_file(account: &AccountRecord) -> bool {
    account.version == UNKNOWN
}

/// The account of this id, if the policy file defines it.
pub(super) fn record(domain: &Domain, id: &str) -> Option<AccountRecord> {
    let account = domain.directory.written(id)?;
    let tier = domain.policy.tier(account.tier)?;
    let unknown = Timestamp::from_ms(UNKNOWN);
    let key = |key: &BootstrapKey| KeyRecord {
        hash: KeyHash::from_bytes(key.hash),
        previous: None,
        kind: key.kind,
        prefix: String::new(),
        description: String::new(),
        created_at: unknown,
        expires_at: key.expires_at,
        revoked_at: key.revoked.then_some(unknown),
        rotated_at: None,
        overrides: overrides(&key.written),
        later: serde_json::Map::new(),
    };
    Some(AccountRecord {
        domain: domain.policy.domain().to_string(),
        id: id.to_owned(),
        version: UNKNOWN,
        tier: tier.name.to_string(),
        balances: account.balances.clone(),
        overrides: overrides(&account.written),
        keys: account.keys.iter().map(|from| (from.id.to_string(), key(from))).collect(),
        created_at: unknown,
        changed_at: unknown,
        later: serde_json::Map::new(),
    })
}

/// Overrides of the file have no names; they are numbered in its order.
fn overrides(written: &[Value]) -> IndexMap<String, OverrideRecord> {
    let record = |written: &Value| OverrideRecord { written: written.clone(), expires_at: None };
    written.iter().zip(1..).map(|(written, number): (_, usize)| (number.to_string(), record(written))).collect()
}
