//! The JSON of `/admin/v1`, for the node and for the command line, its client.

use clap::ValueEnum;
use indexmap::IndexMap;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use tollgate_core::{api_key::KeyKind, time::Timestamp};
use tollgate_policy::file::parse_time;
use tollgate_service::{
    admin::{AdminError, is_in_policy_file},
    domains::Domain,
    service::CallError,
};
use tollgate_store::accounts::{AccountRecord, KeyRecord, OverrideRecord};
use utoipa::ToSchema;

use crate::rest::number::{numbers, numbers_or_null, whole};

/// A new account.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewAccountBody {
    /// Its id: 1 to 128 bytes without control or invisible characters, unique in the domain.
    pub(crate) id: String,
    /// Its tier; the policy's default tier if absent.
    pub(crate) tier: Option<String>,
    /// Its balances by currency; only shown, never used for decisions.
    #[serde(default, deserialize_with = "numbers")]
    #[schema(value_type = std::collections::HashMap<String, f64>)]
    pub(crate) balances: IndexMap<String, f64>,
}

/// Changes of an account; absent fields stay unchanged.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccountPatchBody {
    pub(crate) tier: Option<String>,
    #[serde(default, deserialize_with = "numbers_or_null")]
    #[schema(value_type = Option<std::collections::HashMap<String, f64>>)]
    pub(crate) balances: Option<IndexMap<String, f64>>,
}

/// A limit of one account or key, written as in policy files, with an optional expiry.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OverrideBody {
    /// Only for this resource, or for the resources that match this wildcard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resource: Option<Value>,
    /// The unit that is counted.
    #[schema(value_type = String)]
    pub(crate) unit: Value,
    /// The window: `minute`, `30s` …, or `{"calendar": "day", "zone": "UTC"}`; `concurrent_requests` have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) per: Option<Value>,
    /// The limit in a window, or `unlimited`.
    pub(crate) limit: Value,
    /// Only for the quota with this scope.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub(crate) scope: Option<Value>,
    /// When it expires, RFC 3339; never if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<String>,
}

impl OverrideBody {
    pub(super) fn record(self) -> Result<OverrideRecord, AdminError> {
        let expires_at = self.expires_at.as_deref().map(|text| time("expires_at", text)).transpose()?;
        let given = [("per", self.per), ("resource", self.resource), ("scope", self.scope)];
        let given = given.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let written = [("unit", self.unit), ("limit", self.limit)].into_iter().chain(given);
        let written = written.map(|(name, value)| (name.to_owned(), value)).collect();
        Ok(OverrideRecord { written: Value::Object(written), expires_at })
    }

    fn of(record: &OverrideRecord) -> Self {
        let field = |name: &str| record.written.get(name).cloned();
        Self {
            resource: field("resource"),
            unit: field("unit").unwrap_or_default(),
            per: field("per"),
            limit: field("limit").unwrap_or_default(),
            scope: field("scope"),
            expires_at: record.expires_at.map(|at| at.to_string()),
        }
    }
}

/// An account.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct AccountBody {
    pub(crate) id: String,
    pub(crate) domain: String,
    /// Whether the policy file defines it. Then it can be changed only there.
    pub(crate) read_only: bool,
    /// Its version, which grows with every change; also the `ETag`.
    pub(crate) version: u64,
    pub(crate) tier: String,
    #[schema(value_type = std::collections::HashMap<String, f64>)]
    pub(crate) balances: IndexMap<String, f64>,
    /// Its overrides, by name.
    #[schema(value_type = std::collections::HashMap<String, OverrideBody>)]
    pub(crate) overrides: IndexMap<String, OverrideBody>,
    /// The number of its valid keys.
    pub(crate) active_keys: usize,
    /// When it was created; absent if the policy file defines it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) created_at: Option<String>,
    /// When it last changed; absent if the policy file defines it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) changed_at: Option<String>,
}

impl AccountBody {
    pub(super) fn of(record: &AccountRecord, now: Timestamp) -> Self {
        let read_only = is_in_policy_file(record);
        let known = |time: Timestamp| (!read_only).then(|| time.to_string());
        Self {
            id: record.id.clone(),
            domain: record.domain.clone(),
            read_only,
            version: record.version,
            tier: record.tier.clone(),
            balances: record.balances.clone(),
            overrides: overrides(&record.overrides),
            active_keys: record.keys.values().filter(|key| key.is_active(now)).count(),
            created_at: known(record.created_at),
            changed_at: known(record.changed_at),
        }
    }
}

fn overrides(records: &IndexMap<String, OverrideRecord>) -> IndexMap<String, OverrideBody> {
    records.iter().map(|(name, record)| (name.clone(), OverrideBody::of(record))).collect()
}

/// A page of accounts, in the order of their ids. Accounts in the policy file are not included.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct AccountPage {
    pub(crate) accounts: Vec<AccountBody>,
    /// The ids of accounts on this page whose records cannot be read; absent if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) unreadable: Vec<String>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next_cursor: Option<String>,
}

/// What a key may do.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// It can call, and read its own limits.
    Inference,
    /// It can also read what concerns the whole account.
    Admin,
}

impl From<Kind> for KeyKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Inference => Self::Inference,
            Kind::Admin => Self::Admin,
        }
    }
}

/// A new key.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewKeyBody {
    pub(crate) kind: Kind,
    /// Its description, up to 64 characters.
    #[serde(default)]
    pub(crate) description: String,
    /// When it expires, RFC 3339; never if absent.
    pub(crate) expires_at: Option<String>,
}

/// Changes of a key; absent fields stay unchanged.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyPatchBody {
    pub(crate) description: Option<String>,
    /// When it expires, RFC 3339; `null` for never.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    #[expect(clippy::option_option, reason = "absent, null and a time are three things")]
    pub(crate) expires_at: Option<Option<String>>,
}

/// Tells `null` from what is absent.
#[expect(clippy::option_option, reason = "absent, null and a time are three things")]
fn given<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(from).map(Some)
}

/// The rotation of a key.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RotationBody {
    /// For how many seconds the previous secret stays valid, at most 2592000; 0 if absent. The secret before that one
    /// becomes invalid now.
    #[serde(default, deserialize_with = "whole")]
    pub(crate) overlap_s: u64,
}

/// A key, without its secret.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct KeyBody {
    pub(crate) id: String,
    pub(crate) account: String,
    pub(crate) domain: String,
    /// Whether the policy file defines it. Then it can be changed only there.
    pub(crate) read_only: bool,
    pub(crate) kind: Kind,
    /// The prefix of its secret; empty if the policy file defines the key, because the file has only the hash.
    pub(crate) prefix: String,
    pub(crate) description: String,
    pub(crate) state: State,
    /// When it was created; absent if the policy file defines it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) created_at: Option<String>,
    /// When it expires; absent if never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<String>,
    /// When it was revoked; absent if the policy file defines it as revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) revoked_at: Option<String>,
    /// When it got its current secret, if that is not its first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rotated_at: Option<String>,
    /// Until when the previous secret is valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) previous_good_until: Option<String>,
    /// Its overrides, by name.
    #[schema(value_type = std::collections::HashMap<String, OverrideBody>)]
    pub(crate) overrides: IndexMap<String, OverrideBody>,
}

/// The state of a key.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    Active,
    Expired,
    Revoked,
}

impl KeyBody {
    pub(super) fn of(account: &AccountRecord, id: &str, key: &KeyRecord, now: Timestamp) -> Self {
        let read_only = is_in_policy_file(account);
        let text = |time: Option<Timestamp>| time.map(|time| time.to_string());
        let known = |time: Option<Timestamp>| time.filter(|_| !read_only).map(|time| time.to_string());
        let previous = key.previous.as_ref().map(|previous| previous.good_until).filter(|end| *end > now);
        Self {
            id: id.to_owned(),
            account: account.id.clone(),
            domain: account.domain.clone(),
            read_only,
            kind: match key.kind {
                KeyKind::Inference => Kind::Inference,
                KeyKind::Admin => Kind::Admin,
            },
            prefix: key.prefix.clone(),
            description: key.description.clone(),
            state: match key.revoked_at {
                Some(_) => State::Revoked,
                None if key.is_active(now) => State::Active,
                None => State::Expired,
            },
            created_at: known(Some(key.created_at)),
            expires_at: text(key.expires_at),
            revoked_at: known(key.revoked_at),
            rotated_at: text(key.rotated_at),
            previous_good_until: text(previous),
            overrides: overrides(&key.overrides),
        }
    }
}

/// A page of an account's keys, oldest first.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct KeyPage {
    pub(crate) keys: Vec<KeyBody>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next_cursor: Option<String>,
}

/// A key with its secret, which is never shown again.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct IssuedBody {
    pub(crate) key: KeyBody,
    pub(crate) secret: String,
}

/// An event of an account, such as a payment.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventBody {
    /// Its id, such as that of the payment. A repeated event changes nothing for 30 days.
    pub(crate) id: String,
    /// Its type, as in `promotions` of the policy, such as `payment`.
    pub(crate) r#type: String,
}

/// The result of an event.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct EventAnswer {
    /// The account now; absent if it is not in the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) account: Option<AccountBody>,
    /// The tiers from which and to which it moved; absent if it did not move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) promoted: Option<Promoted>,
    /// Whether the event was recorded before, so that it changed nothing now.
    pub(crate) repeated: bool,
}

/// A move from one tier to another.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Promoted {
    pub(crate) from: String,
    pub(crate) to: String,
}

/// Which counters are removed.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UsageResetBody {
    /// Only counters in the scopes of this quota or abuse rule (other quotas may share them); all of the account's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) quota: Option<String>,
}

/// The counters that were removed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct UsageResetAnswer {
    /// The number of removed keys in the store. All counters of a scope are one key, and its slots are another.
    pub(crate) counters: usize,
    /// The quotas and abuse rules whose counters were removed.
    pub(crate) quotas: Vec<String>,
}

/// The tiers of a domain, in the order of the policy.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct TierList {
    pub(crate) domain: String,
    pub(crate) tiers: Vec<TierBody>,
}

/// A tier.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct TierBody {
    pub(crate) name: String,
    /// Whether it is the tier of accounts without a tier of their own.
    pub(crate) default: bool,
    /// Whether its calls are charged for.
    pub(crate) is_charged: bool,
    /// From 1 (low) to 4 (critical).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) priority: Option<u8>,
    /// The tiers to which events move an account of this tier.
    pub(crate) promotions: Vec<PromotionBody>,
}

/// A move caused by an event.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct PromotionBody {
    /// The type of the event.
    pub(crate) on: String,
    /// The tier to which the account moves.
    pub(crate) to: String,
}

impl TierList {
    pub(super) fn of(domain: &Domain) -> Self {
        let policy = &domain.policy;
        let tiers = policy.tiers().iter().map(|tier| TierBody {
            name: tier.name.to_string(),
            default: tier.id == policy.default_tier(),
            is_charged: tier.is_charged,
            priority: tier.priority,
            promotions: (domain.accounts.promotions_from(&tier.name))
                .map(|(on, to)| PromotionBody { on: on.to_owned(), to: to.to_owned() })
                .collect(),
        });
        Self { domain: policy.domain().to_string(), tiers: tiers.collect() }
    }
}

/// A time of a request.
pub(super) fn time(field: &str, text: &str) -> Result<Timestamp, AdminError> {
    let wrong = || CallError::field(field, "is not a time; write it like 2027-01-31T00:00:00Z").into();
    parse_time(text).ok_or_else(wrong)
}
