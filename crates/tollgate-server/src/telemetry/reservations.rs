//! What becomes of reservations, and the debt of settlements.

use std::collections::HashMap;

use metrics::Counter;
use tollgate_policy::Policy;

use super::{DEBT, RESERVATIONS, Telemetry, counter};

/// The counters of one domain.
pub(crate) struct ReservationMetrics {
    reserved: Counter,
    settled: Counter,
    cancelled: Counter,
    extended: Counter,
    unknown: Counter,
    debt: HashMap<Box<str>, Counter>,
    /// Of units that the policy no longer has.
    debt_other: Counter,
}

impl ReservationMetrics {
    pub(super) fn of(telemetry: &Telemetry, policy: &Policy) -> Self {
        let domain = &**policy.domain();
        let event = |event| counter(&telemetry.recorder, RESERVATIONS, &[("domain", domain), ("event", event)]);
        let debt = |unit| counter(&telemetry.recorder, DEBT, &[("domain", domain), ("unit", unit)]);
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

    pub(crate) fn reserved(&self) {
        self.reserved.increment(1);
    }

    pub(crate) fn extended(&self) {
        self.extended.increment(1);
    }

    /// A reservation that is not there, or no longer.
    pub(crate) fn unknown(&self) {
        self.unknown.increment(1);
    }

    /// A reservation that ended by this call, with the debt of each unit.
    pub(crate) fn ended<'a>(&self, cancelled: bool, debts: impl Iterator<Item = (&'a str, u64)>) {
        if cancelled { &self.cancelled } else { &self.settled }.increment(1);
        for (unit, debt) in debts {
            self.debt.get(unit).unwrap_or(&self.debt_other).increment(debt);
        }
    }
}
