//! Failures of the store, as callers see them: the reason in plain words, and the id of an incident under which the log
//! has the whole error.
//!
//! Callers never see a store's message, because it names keys, addresses and lines of scripts. Equal errors of one
//! period are one incident, so the log stays small while it contains every id that callers got.

use std::{
    collections::HashMap,
    sync::LazyLock,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rand::Rng;
use tollgate_core::store::StoreError;

/// How long equal errors are one incident.
const PERIOD: Duration = Duration::from_secs(10);
/// The maximum number of errors with an incident of their own in a period. Further ones share an incident for each
/// kind.
const MAX_APART: usize = 32;
/// The longest error in the log, in bytes.
const MAX_ERROR_BYTES: usize = 1024;

/// The incidents of this process, as it has one log.
static INCIDENTS: LazyLock<Incidents> = LazyLock::new(Incidents::default);

/// The text for a caller: the reason, and the incident.
pub fn describe(error: &StoreError) -> String {
    let reason = reason(error);
    match error {
        // Caused by the account itself, so it is reported in full.
        StoreError::CounterCapReached(_) => reason.to_owned(),
        _ => format!("{reason} ({})", incident(error)),
    }
}

/// The incident of an error, such as `incident 5f0c9a71d2e4b836`. Logs the error if it begins one.
pub fn incident(error: &StoreError) -> String {
    format!("incident {}", INCIDENTS.id_of(error, Instant::now()))
}

/// Why the store did not decide, without its message.
pub const fn reason(error: &StoreError) -> &'static str {
    match error {
        StoreError::Unreachable(_) => "the store cannot be reached; nothing was charged or changed",
        StoreError::Indeterminate(_) => "the store did not answer; whether it charged or changed anything is not known",
        StoreError::Overloaded(_) => "the store is full; nothing was charged or changed",
        StoreError::CounterCapReached(_) => {
            "the account has its maximum number of counters with names that callers choose"
        }
        StoreError::Refused(_) => "the store refused the call; nothing was charged or changed",
    }
}

/// Which errors were logged of late, and under which ids.
#[derive(Default)]
struct Incidents(Mutex<HashMap<Error, Incident>>);

/// A kind of error, and its text; none for those that come on top of [`MAX_APART`].
type Error = (&'static str, Option<String>);

struct Incident {
    id: u64,
    began: Instant,
    /// How many answers named it.
    met: u64,
}

impl Incidents {
    /// The id of an error's incident; an error that begins one is logged.
    fn id_of(&self, error: &StoreError, now: Instant) -> String {
        let text = cut(error.to_string());
        let mut known = self.0.lock();
        let mut key = (reason(error), Some(text.clone()));
        if !known.get(&key).is_some_and(|incident| incident.is_on(now)) && known.len() >= MAX_APART {
            known.retain(|_, incident| incident.is_on(now));
            if known.len() >= MAX_APART {
                key.1 = None;
            }
        }
        let before = match known.get_mut(&key) {
            Some(incident) if incident.is_on(now) => {
                incident.met += 1;
                return shown(incident.id);
            }
            Some(incident) => incident.met,
            None => 0,
        };
        let id = rand::rng().random();
        known.insert(key, Incident { id, began: now, met: 1 });
        drop(known);
        tracing::warn!(incident = shown(id), error = text, before, "the store failed a call");
        shown(id)
    }
}

impl Incident {
    fn is_on(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) < PERIOD
    }
}

fn shown(id: u64) -> String {
    format!("{id:016x}")
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_ERROR_BYTES {
        let end = (0..=MAX_ERROR_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: impl Into<String>) -> StoreError {
        StoreError::Refused(text.into())
    }

    /// Tried by breaking it: with the text left out of the key all errors are one incident.
    #[test]
    fn equal_errors_of_a_period_are_one_incident() {
        let (incidents, start) = (Incidents::default(), Instant::now());
        let first = incidents.id_of(&refused("a"), start);
        assert_eq!(incidents.id_of(&refused("a"), start + PERIOD / 2), first);
        assert_ne!(incidents.id_of(&refused("b"), start), first);
        assert_ne!(incidents.id_of(&StoreError::Unreachable("a".into()), start), first);
        assert_ne!(incidents.id_of(&refused("a"), start + PERIOD), first);
    }

    /// Tried by breaking it: with the bound left out each error has an incident, and its line in the log.
    #[test]
    fn a_flood_of_different_errors_is_bounded() {
        let (incidents, start) = (Incidents::default(), Instant::now());
        let ids = |from: usize, at: Instant| {
            let ids = (from..from + 10_000).map(|number| incidents.id_of(&refused(format!("key {number}")), at));
            ids.collect::<std::collections::HashSet<_>>().len()
        };
        assert_eq!(ids(0, start), MAX_APART + 1);
        assert_eq!(ids(10_000, start), 1, "what comes on top goes on to be one incident");
        assert_eq!(ids(20_000, start + PERIOD), MAX_APART + 1);
        assert!(incidents.0.lock().len() <= MAX_APART + 4);
    }

    #[test]
    fn long_errors_are_cut() {
        assert!(cut("ä".repeat(100_000)).len() <= MAX_ERROR_BYTES + '…'.len_utf8());
    }
}
