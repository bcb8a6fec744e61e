//! How records change. Nothing here reads a clock or a store.

use std::time::Duration;

use indexmap::IndexMap;
use rand::{Rng, distr::Alphanumeric};
use serde_json::Value;
use tollgate_core::{api_key::KeyHash, text::has_hidden, time::Timestamp};
use tollgate_policy::{Place, Policy, Problem, QuotaLevel, api_key, file};
use tollgate_store::accounts::{AccountRecord, KeyRecord, OverrideRecord, PreviousSecret};

use super::{AdminError, NewKey};
use crate::{directory::valid_overrides, service::CallError};

/// How much of a secret is shown afterwards.
const SHOWN: usize = 8;
/// The longest description of a key, in characters.
const MAX_DESCRIPTION: usize = 64;
/// How many keys that are not valid any more an account keeps, for people to look up; the oldest go first.
const MAX_ENDED_KEYS: usize = 500;
/// The longest time for which a rotated key has two secrets.
pub(super) const MAX_OVERLAP: Duration = Duration::from_hours(30 * 24);

/// Sets the time of the change, and removes expired data.
pub(super) fn touch(record: &mut AccountRecord, now: Timestamp) {
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
        let goes = ended > MAX_ENDED_KEYS && !key.is_active(now);
        ended -= usize::from(goes);
        !goes
    });
}

/// A key with a new secret, and both.
pub(super) fn new_key(new: NewKey, now: Timestamp) -> (String, String, KeyRecord) {
    let secret = api_key::generate();
    let id: String = "key_".chars().chain(rand::rng().sample_iter(Alphanumeric).take(20).map(char::from)).collect();
    let record = KeyRecord {
        hash: KeyHash::of(&secret),
        previous: None,
        kind: new.kind,
        prefix: secret.chars().take(SHOWN).collect(),
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

/// Adds a key, if fewer than `most` are good.
pub(super) fn add_key(
    account: &mut AccountRecord,
    id: &str,
    key: KeyRecord,
    most: usize,
    now: Timestamp,
) -> Result<(), AdminError> {
    if account.keys.values().filter(|key| key.is_active(now)).count() >= most {
        return Err(too_many(most));
    }
    account.keys.insert(id.to_owned(), key);
    Ok(())
}

pub(super) fn too_many(most: usize) -> AdminError {
    AdminError::Refused(format!("keys: an account can have at most {most} valid keys; revoke one first"))
}

pub(super) fn key_of<'a>(account: &'a mut AccountRecord, id: &str) -> Result<&'a mut KeyRecord, AdminError> {
    account.keys.get_mut(id).ok_or_else(|| AdminError::NotFound(format!("key: there is no key {id:?}")))
}

/// Gives a key another secret.
pub(super) fn rotate(
    account: &mut AccountRecord,
    id: &str,
    secret: &str,
    overlap: Duration,
    now: Timestamp,
) -> Result<(), AdminError> {
    if overlap > MAX_OVERLAP {
        let most = MAX_OVERLAP.as_secs();
        return Err(CallError::field("overlap_s", format_args!("must be at most {most}, which is 30 days")).into());
    }
    let key = key_of(account, id)?;
    if !key.is_active(now) {
        return Err(AdminError::Refused(format!("key: {id:?} is no longer valid; create a new one")));
    }
    let good_until = now.plus_ms(u64::try_from(overlap.as_millis()).unwrap_or(u64::MAX));
    key.previous = Some(PreviousSecret { hash: key.hash, good_until });
    key.hash = KeyHash::of(secret);
    key.prefix = secret.chars().take(SHOWN).collect();
    key.rotated_at = Some(now);
    Ok(())
}

/// Checks the texts of a key.
pub(super) fn check_key(description: &str, expires_at: Option<Timestamp>, now: Timestamp) -> Result<(), AdminError> {
    if description.chars().count() > MAX_DESCRIPTION || has_hidden(description) {
        let wrong =
            format!("must have at most {MAX_DESCRIPTION} characters, none of them a control or invisible character");
        return Err(CallError::field("description", wrong).into());
    }
    if expires_at.is_some_and(|end| end <= now) {
        return Err(CallError::field("expires_at", "must be later than now").into());
    }
    Ok(())
}

/// Checks that an override can be read, fits the policy, and fits beside the others.
pub(super) fn check_override(
    policy: &Policy,
    level: QuotaLevel,
    others: &IndexMap<String, OverrideRecord>,
    name: &str,
    written: &Value,
    now: Timestamp,
) -> Result<(), AdminError> {
    let said = |place: &Place, wrong: String| {
        let field = if *place == Place::root() { "override".to_owned() } else { place.to_string() };
        AdminError::from(CallError::field(field, wrong))
    };
    if let Some(mistake) = file::check_override(written).into_iter().next() {
        return Err(said(&mistake.place, mistake.message));
    }
    let unreadable = || said(&Place::root(), "cannot be understood".to_owned());
    let draft = file::read_override(written).ok_or_else(unreadable)?;
    let lasts =
        |(other, over): &(&String, &OverrideRecord)| *other != name && over.expires_at.is_none_or(|end| end > now);
    let others: Vec<_> = others
        .iter()
        .filter(lasts)
        .filter_map(|(name, over)| Some((name, file::read_override(&over.written)?)))
        .collect();
    // Others that do not fit any more are not this one's fault.
    let mut drafts = valid_overrides(policy, others.iter().map(|(_, draft)| draft.clone()).collect(), level);
    drafts.push(draft);
    let Err(errors) = policy.overrides(&drafts, level, &Place::root()) else { return Ok(()) };
    let Some(error) = errors.into_iter().next() else { return Ok(()) };
    let place: Place = error.place.steps().iter().skip(1).cloned().collect();
    Err(match error.problem {
        Problem::SameCounter(_) => said(
            &Place::root(),
            "another override has the same resource, unit, window and scope; change that one instead".to_owned(),
        ),
        problem => said(&place, problem.to_string()),
    })
}
