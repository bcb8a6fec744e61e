//! The accounts and keys that a policy file defines.

use std::{collections::HashSet, sync::Arc};

use indexmap::IndexMap;
use serde_json::Value;
use tollgate_core::{
    api_key::{KeyHash, KeyKind},
    claim::Partition,
    time::Timestamp,
};

use crate::{
    format,
    policy::{Mistake, Override, Place, Policy, QuotaLevel, TierId},
};

/// An account of the bootstrap section.
#[derive(Debug, Clone)]
pub struct BootstrapAccount {
    /// Its id.
    pub id: Arc<str>,
    /// The partition of its counters.
    pub partition: Partition,
    /// Its tier, in the policy of the same file.
    pub tier: TierId,
    /// Its own limits.
    pub overrides: Arc<[Override]>,
    /// Its own limits as written in the file.
    pub written: Vec<Value>,
    /// Its balances, by currency.
    pub balances: IndexMap<String, f64>,
    /// Its keys.
    pub keys: Vec<BootstrapKey>,
}

/// A key of the bootstrap section.
#[derive(Debug, Clone)]
pub struct BootstrapKey {
    /// Its id, unique in the file.
    pub id: Arc<str>,
    /// The SHA-256 of the secret.
    pub hash: [u8; 32],
    /// The rights of the key.
    pub kind: KeyKind,
    /// When it expires.
    pub expires_at: Option<Timestamp>,
    /// Whether it was revoked.
    pub revoked: bool,
    /// Its own limits.
    pub overrides: Arc<[Override]>,
    /// Its own limits as written in the file.
    pub written: Vec<Value>,
    /// Whether it is only valid on a node that runs the embedded default policy.
    pub demo: bool,
}

/// Checks the section. `written` is its list of accounts as JSON.
pub(crate) fn check(
    section: &format::Bootstrap,
    written: &Value,
    policy: &Policy,
) -> Result<Vec<BootstrapAccount>, Vec<Mistake>> {
    let place = Place::root().at("bootstrap").at("accounts");
    let mut checker = BootstrapChecker { policy, mistakes: Vec::new(), seen: HashSet::new() };
    let accounts = section.accounts.iter().enumerate();
    let accounts: Vec<Option<BootstrapAccount>> =
        accounts.map(|(at, account)| checker.account(account, &written[at], &place.at(at))).collect();
    if checker.mistakes.is_empty() { Ok(accounts.into_iter().flatten().collect()) } else { Err(checker.mistakes) }
}

struct BootstrapChecker<'a> {
    policy: &'a Policy,
    mistakes: Vec<Mistake>,
    seen: HashSet<(&'static str, String)>,
}

impl BootstrapChecker<'_> {
    fn account(&mut self, account: &format::Account, written: &Value, place: &Place) -> Option<BootstrapAccount> {
        self.unique("account id", &account.id.0, place.at("id"));
        self.segment(&account.id.0, place.at("id"));
        let keys = account.keys.iter().enumerate();
        let keys: Vec<Option<BootstrapKey>> =
            keys.map(|(at, key)| self.key(key, &written["keys"][at], &place.at("keys").at(at))).collect();
        let overrides = self.overrides(&account.overrides, QuotaLevel::Account, place);
        let policy = self.policy;
        let tier = policy.tier_named(&account.tier.0);
        if tier.is_none() {
            let known: Vec<&str> = policy.tiers().iter().map(|tier| &*tier.name).collect();
            let message = format!("there is no tier {:?}; there is: {}", account.tier.0, known.join(", "));
            self.mistakes.push(Mistake::new(place.at("tier"), message));
        }
        Some(BootstrapAccount {
            id: account.id.0.as_str().into(),
            partition: policy.account_partition(&account.id.0),
            tier: tier?,
            overrides: overrides?,
            written: overrides_of(written),
            balances: account.balances.clone(),
            keys: keys.into_iter().flatten().collect(),
        })
    }

    fn key(&mut self, key: &format::Key, written: &Value, place: &Place) -> Option<BootstrapKey> {
        self.unique("key id", &key.id.0, place.at("id"));
        self.segment(&key.id.0, place.at("id"));
        self.unique("hash", &key.hash.0, place.at("hash"));
        let hash = KeyHash::parse(&key.hash.0).map(KeyHash::bytes);
        if hash.is_none() {
            self.mistakes.push(Mistake::new(place.at("hash"), "must be `sha256:` and 64 hexadecimal digits"));
        }
        let expires_at = key.expires_at.as_ref().map(|time| parse_time(&time.0));
        if expires_at == Some(None) {
            let message = "is not a time; write it like 2027-01-31T00:00:00Z";
            self.mistakes.push(Mistake::new(place.at("expires_at"), message));
        }
        let overrides = self.overrides(&key.overrides, QuotaLevel::Key, place);
        Some(BootstrapKey {
            id: key.id.0.as_str().into(),
            hash: hash?,
            kind: match key.kind {
                format::Kind::Inference => KeyKind::Inference,
                format::Kind::Admin => KeyKind::Admin,
            },
            expires_at: expires_at.flatten(),
            revoked: key.revoked,
            overrides: overrides?,
            written: overrides_of(written),
            demo: key.demo,
        })
    }

    fn overrides(
        &mut self,
        overrides: &[format::Override],
        level: QuotaLevel,
        place: &Place,
    ) -> Option<Arc<[Override]>> {
        match self.policy.overrides(overrides, level, &place.at("overrides")) {
            Ok(overrides) => Some(overrides.into()),
            Err(errors) => {
                self.mistakes.extend(errors.into_iter().map(Mistake::from));
                None
            }
        }
    }

    fn segment(&mut self, name: &str, place: Place) {
        self.mistakes.extend(segment_problem(name).map(|problem| Mistake::new(place, problem)));
    }

    fn unique(&mut self, what: &'static str, value: &str, place: Place) {
        if !self.seen.insert((what, value.to_owned())) {
            let message = format!("is the {what} of another one in this file; each needs its own");
            self.mistakes.push(Mistake::new(place, message));
        }
    }
}

/// The problem of a name that cannot be a path segment of the admin API. Clients resolve `.` and `..` as relative
/// paths, even if they are escaped.
pub fn segment_problem(name: &str) -> Option<&'static str> {
    matches!(name, "." | "..").then_some("cannot be \".\" or \"..\", because no URL can contain these")
}

fn overrides_of(written: &Value) -> Vec<Value> {
    written["overrides"].as_array().cloned().unwrap_or_default()
}

/// Parses a time in RFC 3339.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    let time = text.parse().ok().or_else(|| end_of_time(text))?;
    u64::try_from(time.as_millisecond()).ok().map(Timestamp::from_ms)
}

/// The last moment that can be stored, for times in the last two days of the year 9999, which many systems write for "never".
fn end_of_time(text: &str) -> Option<jiff::Timestamp> {
    let last = jiff::Timestamp::MAX;
    let pieces = jiff::fmt::temporal::Pieces::parse(text).ok()?;
    let is_time = pieces.time().is_some() && pieces.offset().is_some();
    (is_time && pieces.date() >= last.to_zoned(jiff::tz::TimeZone::UTC).date()).then_some(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen to fail: systems write the last second of 9999 for "never", and it was "not a time".
    #[test]
    fn the_end_of_the_year_9999_is_a_time() {
        let last = Timestamp::from_ms(u64::try_from(jiff::Timestamp::MAX.as_millisecond()).unwrap());
        for text in ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999+00:00", "9999-12-31T00:00:00-08:00"] {
            assert_eq!(parse_time(text), Some(last), "{text}");
        }
        assert!(parse_time("9999-12-29T00:00:00Z").is_some_and(|time| time < last));
        for text in ["9999-12-32T00:00:00Z", "10000-01-01T00:00:00Z", "9999-12-31", "9999-12-31T25:00:00Z", "never"] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }
}
