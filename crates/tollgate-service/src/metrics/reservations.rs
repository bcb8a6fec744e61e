//! Metrics of reservations.

use std::collections::HashMap;

use metrics::Counter;
use tollgate_policy::Policy;

use super::{DEBT, Metrics, RESERVATIONS, counter};

/// The metrics of the reservations of a domain.
pub struct ReservationMetrics {
    reserved: Counter,
    settled: Counter,
    cancelled: Counter,
    extended: Counter,
    unknown: Counter,
    debt: HashMap<Box<str>, Counter>,
    /// For units that the policy no longer has.
    debt_other: Counter,
}

impl ReservationMetrics {
    pub(super) fn new(metrics: &Metrics, policy: &Policy) -> Self {
        let domain = &**policy.domain();
        let event = |event| counter(&metrics.recorder, RESERVATIONS, &[("domain", domain), ("event", event)]);
        let debt = |unit| counter(&metrics.recorder, DEBT, &[("domain", domain), ("unit", unit)]);
        Self {
            reserved: event("reserved"),
            settled: event("settled"),
            cancelled: event("cancelled"),
            extended: event("extended"),
            unknown: event("unknown"),
            debt: policy.units().iter().map(|unit| (Box::from(&*unit.name), debt(&unit.name))).collect(),
            debt_other: debt("other"),
        }
    }

    /// Counts a new reservation.
    pub fn count_reserved(&self) {
        self.reserved.increment(1);
    }

    /// Counts an extension.
    pub fn count_extended(&self) {
        self.extended.increment(1);
    }

    /// Counts a request for a reservation that does not exist, or no longer exists.
    pub fn count_unknown(&self) {
        self.unknown.increment(1);
    }

    /// Counts the end of a reservation, with the debt of each unit.
    pub fn count_end<'a>(&self, cancelled: bool, debts: impl Iterator<Item = (&'a str, u64)>) {
        if cancelled { &self.cancelled } else { &self.settled }.increment(1);
        for (unit, debt) in debts {
            self.debt.get(unit).unwrap_or(&self.debt_other).increment(debt);
        }
    }
}
