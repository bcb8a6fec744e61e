//! The bound on new accounts: ids that a service sends, for which neither the policy file nor the store has a record,
//! and which the node's cache does not contain. Each of them creates counters in the store.
//!
//! Every pair of a domain and a scope of tokens has its own rate, so that services with other scopes are not affected.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{gcra::Gcra, scope::DomainScope};

const MINUTE: Duration = Duration::from_mins(1);
/// The maximum number of pairs with their own rate; further pairs share one.
const MAX_RATES: usize = 4_096;

/// Limits the rate of new accounts.
pub(super) struct NewAccountLimiter {
    /// The rate; a minute's worth may come at once. `None` if the rate is not limited.
    rate: Option<Gcra>,
    /// The theoretical arrival times.
    tats: Mutex<HashMap<(Arc<str>, u64), Instant>>,
}

impl NewAccountLimiter {
    /// The rate is not limited if `per_minute` is 0.
    pub(super) fn new(per_minute: u32) -> Self {
        let rate = (per_minute > 0).then(|| Gcra::new(MINUTE / per_minute, MINUTE));
        Self { rate, tats: Mutex::default() }
    }

    /// Whether a new account of the domain is accepted at `now` from a service with this scope.
    pub(super) fn accept(&self, domain: &Arc<str>, scope: &DomainScope, now: Instant) -> bool {
        let Some(rate) = self.rate else { return true };
        let mut tats = self.tats.lock();
        let mut key = (Arc::clone(domain), fingerprint(scope));
        if tats.len() >= MAX_RATES && !tats.contains_key(&key) {
            key = ("".into(), 0);
        }
        let (time, tat) = rate.next_event(tats.get(&key).copied(), now);
        let accepted = time <= now;
        if accepted {
            tats.insert(key, tat);
        }
        accepted
    }
}

/// Identifies the scope of a token within this process.
fn fingerprint(scope: &DomainScope) -> u64 {
    let mut hasher = DefaultHasher::new();
    scope.counter_name().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails with one rate for all.
    #[test]
    fn each_domain_and_scope_has_its_own_rate() {
        let (limiter, now) = (NewAccountLimiter::new(60), Instant::now());
        let (shop, other): (Arc<str>, Arc<str>) = ("shop".into(), "other".into());
        let only = DomainScope::only(["shop".to_owned()]);
        let accepted = |domain, scope, now| (0..200).filter(|_| limiter.accept(domain, scope, now)).count();
        assert_eq!(accepted(&shop, &DomainScope::All, now), 60);
        assert_eq!(accepted(&shop, &only, now), 60);
        assert_eq!(accepted(&other, &DomainScope::All, now), 60);
        assert_eq!(accepted(&shop, &DomainScope::All, now + Duration::from_millis(10_500)), 10);
        assert_eq!(accepted(&shop, &DomainScope::All, now + Duration::from_hours(2)), 60);
        assert!((0..1_000).all(|_| NewAccountLimiter::new(0).accept(&shop, &DomainScope::All, now)));
    }

    #[test]
    fn the_number_of_rates_is_bounded() {
        let (limiter, now) = (NewAccountLimiter::new(1), Instant::now());
        for number in 0..2 * MAX_RATES {
            limiter.accept(&number.to_string().into(), &DomainScope::All, now);
        }
        assert_eq!(limiter.tats.lock().len(), MAX_RATES + 1);
    }
}
