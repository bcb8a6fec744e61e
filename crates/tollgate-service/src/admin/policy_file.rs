//! Accounts in the policy file, converted to records. They can be read, and not changed.

use indexmap::IndexMap;
use serde_json::Value;
use tollgate_core::{api_key::KeyHash, time::Timestamp};
use tollgate_policy::file::BootstrapKey;
use tollgate_store::accounts::{AccountRecord, KeyRecord, OverrideRecord};

use crate::domains::Domain;

/// The version of accounts in policy files, and the times that are not known. The version of an account in the store is
/// a time, so it is never 0.
const UNKNOWN: u64 = 0;

/// Whether the account is defined in the policy file.
pub const fn is_in_policy_file(account: &AccountRecord) -> bool {
    account.version == UNKNOWN
}

/// The record of an account in the policy file.
pub(super) fn account_record(domain: &Domain, id: &str) -> Option<AccountRecord> {
    let account = domain.directory.definition(id)?;
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
        keys: account.keys.iter().map(|definition| (definition.id.to_string(), key(definition))).collect(),
        created_at: unknown,
        changed_at: unknown,
        later: serde_json::Map::new(),
    })
}

/// Overrides in the policy file have no names; here they are numbered.
fn overrides(definitions: &[Value]) -> IndexMap<String, OverrideRecord> {
    let record = |definition: &Value| OverrideRecord { written: definition.clone(), expires_at: None };
    let records = definitions.iter().map(record).zip(1_usize..);
    records.map(|(record, number)| (number.to_string(), record)).collect()
}
