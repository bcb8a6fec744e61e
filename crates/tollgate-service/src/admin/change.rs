//! Changes of records, without access to a clock or a store.

use std::time::Duration;

use indexmap::IndexMap;
use rand::{Rng, distr::Alphanumeric};
use serde_json::Value;
use tollgate_core::{api_key::KeyHash, text::has_hidden, time::Timestamp};
use tollgate_policy::{Place, Policy, Problem, QuotaLevel, api_key, file};
use tollgate_store::accounts::{AccountRecord, KeyRecord, OverrideRecord, PreviousSecret};

use super::{AdminError, NewKey};
use crate::{directory::valid_overrides, service::CallError};

/// The number of characters of a secret that stay visible.
const SHOWN_CHARS: usize = 8;
/// The maximum length of a key's description, in characters.
const MAX_DESCRIPTION: usize = 64;
/// The maximum number of expired and revoked keys that an account keeps for reference; older ones are removed.
const MAX_ENDED_KEYS: usize = 500;
/// The maximum time for which a rotated key has two secrets.
pub(super) const MAX_OVERLAP: Duration = Duration::from_hours(30 * 24);

/// Sets the time of the change, and removes expired data.
pub(super) fn finish_change(record: &mut AccountRecord, now: Timestamp) {
    record.version = (record.version + 1).max(now.as_ms());
    record.changed_at = now;
    let lasts = |_: &String, over: &mut OverrideRecord| over.expires_at.is_none_or(|end| end > now);
    record.overrides.retain(lasts);
    for key in record.keys.values_mut() {
        key.overrides.retain(lasts);
        key.previous.take_if(|previous| previous.good_until <= now);
    }
    let mut ended = record.keys.values().filter(|key| !key.is_active(now)).count();
    record.keys.retain(|_, key| {
        let is_removed = ended > MAX_ENDED_KEYS && !key.is_active(now);
        ended -= usize::from(is_removed);
        !is_removed
    });
}

/// A new key: its id, secret and record.
pub(super) fn new_key(new: NewKey, now: Timestamp) -> (String, String, KeyRecord) {
    let secret = api_key::generate();
    let id: String = "key_".chars().chain(rand::rng().sample_iter(Alphanumeric).take(20).map(char::from)).collect();
    let record = KeyRecord {
        hash: KeyHash::of(&secret),
        previous: None,
        kind: new.kind,
        prefix: secret.chars().take(SHOWN_CHARS).collect(),
        description: new.description,
        created_at: now,
        expires_at: new.expires_at,
        revoked_at: None,
        rotated_at: None,
        overrides: IndexMap::new(),
        later: serde_json::Map::new(),
    };
    (id, secret, record)
}

/// Adds a key, if the account has fewer than `max_active` valid keys.
pub(super) fn add_key(
    account: &mut AccountRecord,
    id: &str,
    key: KeyRecord,
    max_active: usize,
    now: Timestamp,
) -> Result<(), AdminError> {
    if account.keys.values().filter(|key| key.is_active(now)).count() >= max_active {
        return Err(too_many_keys(max_active));
    }
    account.keys.insert(id.to_owned(), key);
    Ok(())
}

pub(super) fn too_many_keys(max_active: usize) -> AdminError {
    AdminError::Refused(format!("keys: an account can have at most {max_active} valid keys; revoke one first"))
}

pub(super) fn key_mut<'a>(account: &'a mut AccountRecord, id: &str) -> Result<&'a mut KeyRecord, AdminError> {
    account.keys.get_mut(id).ok_or_else(|| AdminError::NotFound(format!("key: there is no key {id:?}")))
}

/// Gives a key a new secret.
pub(super) fn rotate(
    account: &mut AccountRecord,
    id: &str,
    secret: &str,
    overlap: Duration,
    now: Timestamp,
) -> Result<(), AdminError> {
    if overlap > MAX_OVERLAP {
        let max_s = MAX_OVERLAP.as_secs();
        return Err(CallError::field("overlap_s", format_args!("must be at most {max_s}, which is 30 days")).into());
    }
    let key = key_mut(account, id)?;
    if !key.is_active(now) {
        return Err(AdminError::Refused(format!("key: {id:?} is no longer valid; create a new one")));
    }
    let good_until = now.plus_ms(u64::try_from(overlap.as_millis()).unwrap_or(u64::MAX));
    key.previous = Some(PreviousSecret { hash: key.hash, good_until });
    key.hash = KeyHash::of(secret);
    key.prefix = secret.chars().take(SHOWN_CHARS).collect();
    key.rotated_at = Some(now);
    Ok(())
}

/// Checks the description and the expiry of a key.
pub(super) fn check_key(description: &str, expires_at: Option<Timestamp>, now: Timestamp) -> Result<(), AdminError> {
    if description.chars().count() > MAX_DESCRIPTION || has_hidden(description) {
        let problem =
            format!("must have at most {MAX_DESCRIPTION} characters, none of them a control or invisible character");
        return Err(CallError::field("description", problem).into());
    }
    if expires_at.is_some_and(|end| end <= now) {
        return Err(CallError::field("expires_at", "must be later than now").into());
    }
    Ok(())
}

/// Checks that an override can be parsed, and fits the policy together with the other overrides.
pub(super) fn check_override(
    policy: &Policy,
    level: QuotaLevel,
    others: &IndexMap<String, OverrideRecord>,
    name: &str,
    definition: &Value,
    now: Timestamp,
) -> Result<(), AdminError> {
    let error = |place: &Place, problem: String| {
        let field = if *place == Place::root() { "override".to_owned() } else { place.to_string() };
        AdminError::from(CallError::field(field, problem))
    };
    if let Some(mistake) = file::check_override(definition).into_iter().next() {
        return Err(error(&mistake.place, mistake.message));
    }
    let unreadable = || error(&Place::root(), "cannot be understood".to_owned());
    let candidate = file::read_override(definition).ok_or_else(unreadable)?;
    let others = others
        .iter()
        .filter(|(other, over)| *other != name && over.expires_at.is_none_or(|end| end > now))
        .filter_map(|(_, over)| file::read_override(&over.written));
    // Other overrides that no longer fit the policy are ignored.
    let mut overrides = valid_overrides(policy, others.collect(), level);
    overrides.push(candidate);
    let Err(errors) = policy.overrides(&overrides, level, &Place::root()) else { return Ok(()) };
    let Some(first) = errors.into_iter().next() else { return Ok(()) };
    let place: Place = first.place.steps().iter().skip(1).cloned().collect();
    Err(match first.problem {
        Problem::SameCounter(_) => error(
            &Place::root(),
            "another override has the same resource, unit, window and scope; change that one instead".to_owned(),
        ),
        problem => error(&place, problem.to_string()),
    })
}
