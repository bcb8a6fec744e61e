//! A bound on new accounts: names that a calling service vouches for, of which neither the policy nor the store has a
//! record, and which this node does not remember. Each of them brings counters of its own into the store.
//!
//! A token bucket for each domain and each reach of tokens, so that services with other domains have buckets of their own.
//! Accounts with a record, and those that the node remembers, are never counted.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Instant,
};

use parking_lot::Mutex;

use crate::scope::DomainScope;

/// The most buckets; more domains and reaches than that share one.
const MAX_BUCKETS: usize = 4_096;

/// Counts new accounts.
pub(super) struct NewAccounts {
    /// How many a minute, and how many at once after a quiet minute; unbounded if 0.
    per_minute: u32,
    buckets: Mutex<HashMap<(Arc<str>, u64), Bucket>>,
}

/// The remaining new accounts of a minute.
#[derive(Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl NewAccounts {
    pub(super) fn new(per_minute: u32) -> Self {
        Self { per_minute, buckets: Mutex::default() }
    }

    /// Whether one more new account of the domain is accepted at `now` from a service of this reach.
    pub(super) fn accepts(&self, domain: &Arc<str>, within: &DomainScope, now: Instant) -> bool {
        if self.per_minute == 0 {
            return true;
        }
        let most = f64::from(self.per_minute);
        let mut buckets = self.buckets.lock();
        let mut key = (Arc::clone(domain), fingerprint(within));
        if buckets.len() >= MAX_BUCKETS && !buckets.contains_key(&key) {
            key = ("".into(), 0);
        }
        let bucket = buckets.entry(key).or_insert(Bucket { left: most, at: now });
        let gained = now.saturating_duration_since(bucket.at).as_secs_f64() * most / 60.0;
        *bucket = Bucket { left: (bucket.left + gained).min(most), at: now };
        let accepts = bucket.left >= 1.0;
        if accepts {
            bucket.left -= 1.0;
        }
        accepts
    }
}

/// Identifies the scope of a token within this process.
fn fingerprint(within: &DomainScope) -> u64 {
    let mut hasher = DefaultHasher::new();
    within.counted_as().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Seen to fail with one bucket for all.
    #[test]
    fn each_domain_and_reach_has_a_bucket_that_fills_within_a_minute() {
        let (bound, now) = (NewAccounts::new(60), Instant::now());
        let (shop, other): (Arc<str>, Arc<str>) = ("shop".into(), "other".into());
        let only = DomainScope::only(["shop".to_owned()]);
        let accepted = |domain, within, now| (0..200).filter(|_| bound.accepts(domain, within, now)).count();
        assert_eq!(accepted(&shop, &DomainScope::All, now), 60);
        assert_eq!(accepted(&shop, &only, now), 60);
        assert_eq!(accepted(&other, &DomainScope::All, now), 60);
        assert_eq!(accepted(&shop, &DomainScope::All, now + Duration::from_millis(10_500)), 10);
        assert_eq!(accepted(&shop, &DomainScope::All, now + Duration::from_hours(2)), 60);
        assert!((0..1_000).all(|_| NewAccounts::new(0).accepts(&shop, &DomainScope::All, now)));
    }

    #[test]
    fn buckets_are_bounded() {
        let (bound, now) = (NewAccounts::new(1), Instant::now());
        for number in 0..2 * MAX_BUCKETS {
            bound.accepts(&number.to_string().into(), &DomainScope::All, now);
        }
        assert_eq!(bound.buckets.lock().len(), MAX_BUCKETS + 1);
    }
}
