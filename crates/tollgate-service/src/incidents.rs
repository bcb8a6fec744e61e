//! Errors of the store, as callers see them: the reason, and the id of an incident. The log contains the error of each
//! incident.
//!
//! Callers never see a store's message, because it contains keys, addresses and lines of scripts. Equal errors within
//! a period share an incident, so the log stays small and contains every id that callers got.

use std::{
    collections::HashMap,
    sync::LazyLock,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rand::Rng;
use tollgate_core::store::StoreError;

/// How long equal errors share an incident.
const PERIOD: Duration = Duration::from_secs(10);
/// The maximum number of different errors with their own incident in a period. Further errors share one incident per
/// reason.
const MAX_INCIDENTS: usize = 32;
/// The maximum length of an error in the log, in bytes.
const MAX_ERROR_BYTES: usize = 1024;

/// The incidents of this process.
static INCIDENTS: LazyLock<Incidents> = LazyLock::new(Incidents::default);

/// The message for a caller: the reason, and the incident.
pub fn describe(error: &StoreError) -> String {
    let reason = reason(error);
    match error {
        // The account itself is the cause, so there is no incident.
        StoreError::CounterCapReached(_) => reason.to_owned(),
        _ => format!("{reason} ({})", incident(error)),
    }
}

/// The incident of an error, such as `incident 5f0c9a71d2e4b836`. A new incident is logged.
pub fn incident(error: &StoreError) -> String {
    format!("incident {}", INCIDENTS.incident_id(error, Instant::now()))
}

/// Why the store did not decide, without the store's message.
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

/// The recent incidents.
#[derive(Default)]
struct Incidents(Mutex<HashMap<ErrorKey, Incident>>);

/// The reason of an error, and its text; no text for errors above [`MAX_INCIDENTS`].
type ErrorKey = (&'static str, Option<String>);

struct Incident {
    id: u64,
    start: Instant,
    /// The number of responses that contain its id.
    responses: u64,
}

impl Incidents {
    /// The id of an error's incident. A new incident is logged.
    fn incident_id(&self, error: &StoreError, now: Instant) -> String {
        let text = truncate(error.to_string());
        let mut incidents = self.0.lock();
        let mut key = (reason(error), Some(text.clone()));
        if !incidents.get(&key).is_some_and(|incident| incident.is_current(now)) && incidents.len() >= MAX_INCIDENTS {
            incidents.retain(|_, incident| incident.is_current(now));
            if incidents.len() >= MAX_INCIDENTS {
                key.1 = None;
            }
        }
        let previous_responses = match incidents.get_mut(&key) {
            Some(incident) if incident.is_current(now) => {
                incident.responses += 1;
                return format_id(incident.id);
            }
            Some(incident) => incident.responses,
            None => 0,
        };
        let id = rand::rng().random();
        incidents.insert(key, Incident { id, start: now, responses: 1 });
        drop(incidents);
        tracing::warn!(incident = format_id(id), error = text, before = previous_responses, "the store failed a call");
        format_id(id)
    }
}

impl Incident {
    fn is_current(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.start) < PERIOD
    }
}

fn format_id(id: u64) -> String {
    format!("{id:016x}")
}

fn truncate(mut text: String) -> String {
    if text.len() > MAX_ERROR_BYTES {
        let end = (0..=MAX_ERROR_BYTES).rev().find(|index| text.is_char_boundary(*index)).unwrap_or_default();
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

    /// Fails if the key of an incident does not contain the text of the error.
    #[test]
    fn equal_errors_of_a_period_share_an_incident() {
        let (incidents, start) = (Incidents::default(), Instant::now());
        let first = incidents.incident_id(&refused("a"), start);
        assert_eq!(incidents.incident_id(&refused("a"), start + PERIOD / 2), first);
        assert_ne!(incidents.incident_id(&refused("b"), start), first);
        assert_ne!(incidents.incident_id(&StoreError::Unreachable("a".into()), start), first);
        assert_ne!(incidents.incident_id(&refused("a"), start + PERIOD), first);
    }

    /// Fails without the bound.
    #[test]
    fn the_number_of_incidents_is_bounded() {
        let (incidents, start) = (Incidents::default(), Instant::now());
        let ids = |from: usize, now: Instant| {
            let ids = (from..from + 10_000).map(|number| incidents.incident_id(&refused(format!("key {number}")), now));
            ids.collect::<std::collections::HashSet<_>>().len()
        };
        assert_eq!(ids(0, start), MAX_INCIDENTS + 1);
        assert_eq!(ids(10_000, start), 1, "further errors share the same incident");
        assert_eq!(ids(20_000, start + PERIOD), MAX_INCIDENTS + 1);
        assert!(incidents.0.lock().len() <= MAX_INCIDENTS + 4);
    }

    #[test]
    fn long_errors_are_truncated() {
        assert!(truncate("ä".repeat(100_000)).len() <= MAX_ERROR_BYTES + '…'.len_utf8());
    }
}
