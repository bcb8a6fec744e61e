//! `RateLimit-Policy` and `RateLimit`, the structured fields of draft-ietf-httpapi-ratelimit-headers-10.

use sfv::{Integer, KeyRef, ListSerializer, StringRef, integer};
use tollgate_core::{amount::Limit, claim::Fit};

use super::{
    Facts, ResponseKind,
    select::{length_ms, strictness},
};
use crate::decision::QuotaStatus;

/// The policies: `"requests_per_minute";q=100;w=60`. A unit other than requests is named with `qu`. `None` if no
/// quota limits the call.
pub(super) fn policies(facts: &Facts<'_>) -> Option<String> {
    let mut list = ListSerializer::new();
    for status in limiting(facts) {
        let Limit::Finite(limit) = status.limit else { continue };
        let Ok(name) = StringRef::from_str(&status.quota.name) else { continue };
        let mut item = list.bare_item(name).parameter(KeyRef::constant("q"), number(limit.get()));
        let unit = status.quota.unit.name.replace('_', "-");
        if unit != "requests"
            && let Ok(unit) = StringRef::from_str(&unit)
        {
            item = item.parameter(KeyRef::constant("qu"), unit);
        }
        if let Some(length) = length_ms(&status.quota.window) {
            item.parameter(KeyRef::constant("w"), number(length.div_ceil(1000)));
        }
    }
    list.finish()
}

/// The state of the quotas: `"requests_per_minute";r=99;t=60`. On a refusal `t` is the wait of each refusing quota, and
/// is omitted for the others, so that none is later than Retry-After.
pub(super) fn limits(facts: &Facts<'_>) -> Option<String> {
    let mut list = ListSerializer::new();
    for status in limiting(facts) {
        let (Some(remaining), Ok(name)) = (status.remaining(), StringRef::from_str(&status.quota.name)) else {
            continue;
        };
        let reset = match (facts.kind, status.fit) {
            (_, Fit::At(at)) => Some(at),
            (ResponseKind::Allowed, Fit::Now) => status.window_reset(),
            (ResponseKind::Refused(_) | ResponseKind::Unavailable, Fit::Now) | (_, Fit::Never) => None,
        };
        let item = list.bare_item(name).parameter(KeyRef::constant("r"), number(remaining.get()));
        if let Some(at) = reset {
            item.parameter(KeyRef::constant("t"), number(at.ms_since(facts.now).div_ceil(1000)));
        }
    }
    list.finish()
}

/// The limited quotas that customers see. A name must identify one policy, so of several quotas with one name only the
/// strictest is shown.
fn limiting<'f>(facts: &'f Facts<'f>) -> impl Iterator<Item = &'f QuotaStatus<'f>> {
    let limited = |status: &QuotaStatus<'_>| status.limit != Limit::Unlimited && status.is_shown();
    facts.quotas.iter().enumerate().filter(move |(_, status)| limited(status)).filter_map(move |(at, status)| {
        let same_name = facts.quotas.iter().enumerate().filter(|(_, other)| other.quota.name == status.quota.name);
        let strictest = same_name.filter(|(_, other)| limited(other)).min_by_key(|(_, other)| strictness(other));
        strictest.is_some_and(|(strictest, _)| strictest == at).then_some(status)
    })
}

/// Integers of structured fields have at most fifteen digits.
fn number(value: u64) -> Integer {
    Integer::try_from(value).unwrap_or(integer(999_999_999_999_999))
}
