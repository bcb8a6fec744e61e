//! Conversions between records and the bodies of `/admin/v1`.

use indexmap::IndexMap;
use serde_json::Value;
use tollgate_api::json::admin::{AccountBody, KeyBody, Kind, OverrideBody, PromotionBody, State, TierBody, TierList};
use tollgate_core::{api_key::KeyKind, time::Timestamp};
use tollgate_policy::file::parse_time;
use tollgate_service::{
    admin::{AdminError, is_in_policy_file},
    domains::Domain,
    service::CallError,
};
use tollgate_store::accounts::{AccountRecord, KeyRecord, OverrideRecord};

/// The record of an override that a body describes.
pub(super) fn override_record(body: OverrideBody) -> Result<OverrideRecord, AdminError> {
    let expires_at = expiry(body.expires_at.as_deref())?;
    let optional = [("per", body.per), ("resource", body.resource), ("scope", body.scope)];
    let optional = optional.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let fields = [("unit", body.unit), ("limit", body.limit)].into_iter().chain(optional);
    let fields = fields.map(|(name, value)| (name.to_owned(), value)).collect();
    Ok(OverrideRecord { written: Value::Object(fields), expires_at })
}

fn override_body(record: &OverrideRecord) -> OverrideBody {
    let field = |name: &str| record.written.get(name).cloned();
    OverrideBody {
        resource: field("resource"),
        unit: field("unit").unwrap_or_default(),
        per: field("per"),
        limit: field("limit").unwrap_or_default(),
        scope: field("scope"),
        expires_at: record.expires_at.map(|time| time.to_string()),
    }
}

pub(super) fn account_body(record: &AccountRecord, now: Timestamp) -> AccountBody {
    let read_only = is_in_policy_file(record);
    let known_time = |time: Timestamp| (!read_only).then(|| time.to_string());
    AccountBody {
        id: record.id.clone(),
        domain: record.domain.clone(),
        read_only,
        version: record.version,
        tier: record.tier.clone(),
        balances: record.balances.clone(),
        overrides: overrides(&record.overrides),
        active_keys: record.keys.values().filter(|key| key.is_active(now)).count(),
        created_at: known_time(record.created_at),
        changed_at: known_time(record.changed_at),
    }
}

fn overrides(records: &IndexMap<String, OverrideRecord>) -> IndexMap<String, OverrideBody> {
    records.iter().map(|(name, record)| (name.clone(), override_body(record))).collect()
}

pub(super) fn key_kind(kind: Kind) -> KeyKind {
    match kind {
        Kind::Inference => KeyKind::Inference,
        Kind::Admin => KeyKind::Admin,
    }
}

pub(super) fn key_body(account: &AccountRecord, id: &str, key: &KeyRecord, now: Timestamp) -> KeyBody {
    let read_only = is_in_policy_file(account);
    let text = |time: Option<Timestamp>| time.map(|time| time.to_string());
    let known_time = |time: Option<Timestamp>| time.filter(|_| !read_only).map(|time| time.to_string());
    let previous = key.previous.as_ref().map(|previous| previous.good_until).filter(|end| *end > now);
    KeyBody {
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
        created_at: known_time(Some(key.created_at)),
        expires_at: text(key.expires_at),
        revoked_at: known_time(key.revoked_at),
        rotated_at: text(key.rotated_at),
        previous_good_until: text(previous),
        overrides: overrides(&key.overrides),
    }
}

pub(super) fn tier_list(domain: &Domain) -> TierList {
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
    TierList { domain: policy.domain().to_string(), tiers: tiers.collect() }
}

/// The `expires_at` of a request, if it has one.
pub(super) fn expiry(text: Option<&str>) -> Result<Option<Timestamp>, AdminError> {
    let invalid = || CallError::field("expires_at", "is not a time; write it like 2027-01-31T00:00:00Z").into();
    text.map(|text| parse_time(text).ok_or_else(invalid)).transpose()
}
