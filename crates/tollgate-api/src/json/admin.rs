//! The bodies of `/admin/v1`, for the node and for the command line, its client.

use indexmap::IndexMap;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::number::{numbers, numbers_or_null, whole_number};

/// A new account.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAccountBody {
    /// Its id: 1 to 128 bytes without control or invisible characters, unique in the domain.
    pub id: String,
    /// Its tier; the policy's default tier if absent.
    pub tier: Option<String>,
    /// Its balances by currency; only shown, never used for decisions.
    #[serde(default, deserialize_with = "numbers")]
    #[schema(value_type = std::collections::HashMap<String, f64>)]
    pub balances: IndexMap<String, f64>,
}

/// Changes of an account; absent fields stay unchanged.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AccountPatchBody {
    pub tier: Option<String>,
    #[serde(default, deserialize_with = "numbers_or_null")]
    #[schema(value_type = Option<std::collections::HashMap<String, f64>>)]
    pub balances: Option<IndexMap<String, f64>>,
}

/// A limit of one account or key, written as in policy files, with an optional expiry.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OverrideBody {
    /// Only for this resource, or for the resources that match this wildcard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<Value>,
    /// The unit that is counted.
    #[schema(value_type = String)]
    pub unit: Value,
    /// The window: `minute`, `30s` …, or `{"calendar": "day", "zone": "UTC"}`; `concurrent_requests` have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per: Option<Value>,
    /// The limit in a window, or `unlimited`.
    pub limit: Value,
    /// Only for the quota with this scope.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub scope: Option<Value>,
    /// When it expires, RFC 3339; never if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// An account.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct AccountBody {
    pub id: String,
    pub domain: String,
    /// Whether the policy file defines it. Then it can be changed only there.
    pub read_only: bool,
    /// Its version, which grows with every change; also the `ETag`.
    pub version: u64,
    pub tier: String,
    #[schema(value_type = std::collections::HashMap<String, f64>)]
    pub balances: IndexMap<String, f64>,
    /// Its overrides, by name.
    #[schema(value_type = std::collections::HashMap<String, OverrideBody>)]
    pub overrides: IndexMap<String, OverrideBody>,
    /// The number of its valid keys.
    pub active_keys: usize,
    /// When it was created; absent if the policy file defines it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// When it last changed; absent if the policy file defines it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed_at: Option<String>,
}

/// A page of accounts, in the order of their ids. Accounts in the policy file are not included.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct AccountPage {
    pub accounts: Vec<AccountBody>,
    /// The ids of accounts on this page whose records cannot be read; absent if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// The rights of a key.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It can call, and read its own limits.
    Inference,
    /// It can also read data of the whole account.
    Admin,
}

/// A new key.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKeyBody {
    pub kind: Kind,
    /// Its description, up to 64 characters.
    #[serde(default)]
    pub description: String,
    /// When it expires, RFC 3339; never if absent.
    pub expires_at: Option<String>,
}

/// Changes of a key; absent fields stay unchanged.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyPatchBody {
    pub description: Option<String>,
    /// When it expires, RFC 3339; `null` for never.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub expires_at: Option<Option<String>>,
}

/// The rotation of a key.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotationBody {
    /// For how many seconds the previous secret stays valid, at most 2592000; 0 if absent. The secret before that one
    /// becomes invalid now.
    #[serde(default, deserialize_with = "whole_number")]
    pub overlap_s: u64,
}

/// A key, without its secret.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct KeyBody {
    pub id: String,
    pub account: String,
    pub domain: String,
    /// Whether the policy file defines it. Then it can be changed only there.
    pub read_only: bool,
    pub kind: Kind,
    /// The prefix of its secret; empty if the policy file defines the key, because the file has only the hash.
    pub prefix: String,
    pub description: String,
    pub state: State,
    /// When it was created; absent if the policy file defines it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// When it expires; absent if never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// When it was revoked; absent if the policy file defines it as revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<String>,
    /// When it got its current secret, if that is not its first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotated_at: Option<String>,
    /// Until when the previous secret is valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_good_until: Option<String>,
    /// Its overrides, by name.
    #[schema(value_type = std::collections::HashMap<String, OverrideBody>)]
    pub overrides: IndexMap<String, OverrideBody>,
}

/// The state of a key.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Active,
    Expired,
    Revoked,
}

/// A page of an account's keys, oldest first.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct KeyPage {
    pub keys: Vec<KeyBody>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// A key with its secret, which is never shown again.
// Not `Debug`, because it contains a secret.
#[derive(Serialize, Deserialize, ToSchema)]
pub struct IssuedBody {
    pub key: KeyBody,
    pub secret: String,
}

/// An event of an account, such as a payment.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EventBody {
    /// Its id, such as that of the payment. A repeated event changes nothing for 30 days.
    pub id: String,
    /// Its type, as in `promotions` of the policy, such as `payment`.
    pub r#type: String,
}

/// The result of an event.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct EventAnswer {
    /// The account now; absent if it is not in the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountBody>,
    /// The tiers from which and to which it moved; absent if it did not move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promoted: Option<Promoted>,
    /// Whether the event was recorded before, so that it changed nothing now.
    pub repeated: bool,
}

/// A move from one tier to another.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Promoted {
    pub from: String,
    pub to: String,
}

/// Which counters are removed.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UsageResetBody {
    /// Only counters in the scopes of this quota or abuse rule (other quotas may share them); all of the account's if
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<String>,
}

/// The counters that were removed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct UsageResetAnswer {
    /// The number of removed keys in the store. All counters of a scope are one key, and its slots are another.
    pub counters: usize,
    /// The quotas and abuse rules whose counters were removed.
    pub quotas: Vec<String>,
}

/// The tiers of a domain, in the order of the policy.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct TierList {
    pub domain: String,
    pub tiers: Vec<TierBody>,
}

/// A tier.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct TierBody {
    pub name: String,
    /// Whether it is the tier of accounts without a tier of their own.
    pub default: bool,
    /// Whether its calls are charged for.
    pub is_charged: bool,
    /// From 1 (low) to 4 (critical).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// The tiers to which events move an account of this tier.
    pub promotions: Vec<PromotionBody>,
}

/// A move caused by an event.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct PromotionBody {
    /// The type of the event.
    pub on: String,
    /// The tier to which the account moves.
    pub to: String,
}

/// Reads a field that may be `null`; the outer `None` is an absent field.
#[expect(clippy::option_option, reason = "absent, null and a time are three things")]
fn nullable<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(from).map(Some)
}
