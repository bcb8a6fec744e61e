//! Settlement, cancellation and extension of reservations.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use smallvec::SmallVec;
use tollgate_core::{
    amount::{Amount, AmountTooLarge, Limit},
    claim::{Charge, Claim, Effect},
    reservation::{CloseRequest, CloseResult, ClosedReservation, Extension, Reservation, ReservationState},
    store::StoreError,
    text::is_hidden,
    time::Timestamp,
    window::{CalendarUnit, CalendarWindow, WindowId, WindowInstance},
};
use tollgate_policy::CONCURRENT_REQUESTS;

use super::{CallMetadata, Token, check_ttl, truncate_hash};
use crate::{
    domains::{Domain, Domains},
    scope::DomainScope,
    service::{
        CallError, CallerRef, DecisionService, MAX_ENTRIES, Report,
        counters::{PeriodReply, retry_in_period},
    },
};

/// The request to end a reservation, decoded but not yet checked.
pub struct SettleRequest<'a> {
    /// The domains in which the calling service may act.
    pub scope: &'a DomainScope,
    /// The id of the reservation.
    pub reservation_id: &'a str,
    /// The actual usage; `None` cancels the reservation.
    pub usage: Option<SmallVec<[(&'a str, u64); 4]>>,
    /// The HTTP status of the response to the call, for the abuse rules.
    pub status: Option<u32>,
}

/// The end of a reservation.
#[derive(Debug)]
pub struct Settlement {
    /// The time by the store's clock.
    pub settled_at: Timestamp,
    /// The result for each unit.
    pub units: Vec<SettledUnit>,
    /// Whether the reservation had already ended like this.
    pub replayed: bool,
}

/// The settlement of one unit.
#[derive(Debug, Serialize, Deserialize)]
pub struct SettledUnit {
    /// The unit.
    #[serde(rename = "u")]
    pub unit: String,
    /// The reserved amount.
    #[serde(rename = "r")]
    pub reserved: u64,
    /// The actual usage.
    #[serde(rename = "a")]
    pub actual: u64,
    /// The largest amount given back in one of the windows. It is not part of the record, because it comes from the
    /// store's reply.
    #[serde(skip)]
    pub returned: u64,
    /// The usage above the reservation, which is charged now.
    #[serde(rename = "d")]
    pub debt: u64,
}

/// The record that an ended reservation keeps.
#[derive(Debug, Serialize, Deserialize)]
struct EndRecord {
    #[serde(rename = "c")]
    cancelled: bool,
    #[serde(rename = "u")]
    units: Vec<SettledUnit>,
    /// For each refund, the index of its unit in `units`.
    #[serde(rename = "f")]
    refunds: Vec<usize>,
    /// The account of the reservation.
    #[serde(rename = "a", default)]
    account: String,
}

impl DecisionService {
    /// Settles or cancels a reservation.
    pub async fn settle(&self, settle: SettleRequest<'_>) -> Result<Settlement, CallError> {
        let result = self.settle_unmeasured(&settle).await;
        if let Err(error) = &result {
            self.metrics.record_call_error(error.is_caller_error());
        }
        result
    }

    async fn settle_unmeasured(&self, settle: &SettleRequest<'_>) -> Result<Settlement, CallError> {
        let domains = self.domains.load().clone();
        let (token, domain) = find_reservation(&domains, settle.scope, settle.reservation_id)?;
        if settle.status.is_some_and(|status| !(100..=599).contains(&status)) {
            return Err(CallError::field("status", "must be an HTTP status from 100 to 599"));
        }
        let digest = end_digest(settle.usage.as_deref());
        let (now, reservation) = match self.counters.store().look(token.home, token.id).await? {
            ReservationState::Unknown => return Err(unknown_reservation(domain)),
            ReservationState::Closed(closed) => return repeated_end(token, domain, &closed, digest),
            ReservationState::Open { now, reservation, .. } => (now, reservation),
        };
        let metadata = read_metadata(token, domain, &reservation)?;
        let units = settled_units(domain, &metadata, settle.usage.as_deref())?;
        let refunds = refunds_of_units(&reservation, &metadata, &units);
        let end = EndRecord {
            cancelled: settle.usage.is_none(),
            refunds: refunds.iter().map(|(index, _)| *index).collect(),
            units,
            account: metadata.account.clone(),
        };
        let bytes = serde_json::to_vec(&end).map_err(|error| StoreError::Refused(format!("a metadata: {error}")))?;
        let refunds: Vec<Charge> = refunds.into_iter().map(|(_, charge)| charge).collect();
        let (reservation, refunds, end_metadata) = (&reservation, &refunds[..], &bytes[..]);
        let result = retry_in_period(now, |now| {
            let debts = debts_of_units(reservation, &metadata, &end.units, now);
            async move {
                let debts = debts?;
                let closing = CloseRequest { digest, refunds, debts: &debts, reservation, metadata: end_metadata };
                match self.counters.measure(self.counters.store().close(token.home, token.id, &closing)).await? {
                    CloseResult::OutsidePeriod(time) => Ok(PeriodReply::NotCurrent(time)),
                    result => Ok(PeriodReply::Current(result)),
                }
            }
        })
        .await?;
        match result {
            CloseResult::Done(closed) => {
                let debts = end.units.iter().map(|unit| (unit.unit.as_str(), unit.debt));
                domain.metrics.reservations.count_end(end.cancelled, debts);
                if let Some(status) = settle.status {
                    self.report_outcome(settle.scope, domain, &metadata, status).await;
                }
                Ok(to_settlement(end, &closed, false))
            }
            CloseResult::Before(closed) => repeated_end(token, domain, &closed, digest),
            CloseResult::Unknown | CloseResult::OutsidePeriod(_) => Err(unknown_reservation(domain)),
        }
    }

    /// Reports the status of a reservation's call. An error does not change the settlement.
    async fn report_outcome(&self, scope: &DomainScope, domain: &Domain, metadata: &CallMetadata, status: u32) {
        let report = Report {
            scope,
            domain: domain.policy.domain(),
            caller: metadata.key.as_deref().map_or(CallerRef::Account(&metadata.account), CallerRef::KeyId),
            resource: &metadata.resource,
            attributes: metadata.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
            status,
        };
        if let Err(error) = self.report(report, |_| ()).await {
            tracing::warn!(error = error.message(), "the outcome of a settled call was not counted");
        }
    }

    /// Extends the lifetime of a reservation. Returns its new end.
    pub async fn extend(&self, scope: &DomainScope, reservation_id: &str, ttl_ms: u32) -> Result<Timestamp, CallError> {
        let domains = self.domains.load().clone();
        let (token, domain) = find_reservation(&domains, scope, reservation_id)?;
        let reservation = match self.counters.store().look(token.home, token.id).await? {
            ReservationState::Unknown => return Err(unknown_reservation(domain)),
            ReservationState::Closed(closed) => return Err(ended_error(token, domain, &closed)),
            ReservationState::Open { reservation, .. } => reservation,
        };
        let ttl_ms = check_ttl(ttl_ms, read_metadata(token, domain, &reservation)?.ttl_ms)?;
        match self.counters.store().extend(token.home, token.id, ttl_ms, &reservation).await? {
            Extension::Until(ends_at) => {
                domain.metrics.reservations.count_extended();
                Ok(ends_at)
            }
            Extension::Closed(closed) => Err(ended_error(token, domain, &closed)),
            Extension::Unknown => Err(unknown_reservation(domain)),
        }
    }
}

/// The token of a reservation, and its domain. A reservation outside the scope is reported as unknown.
fn find_reservation<'a>(
    domains: &'a Domains,
    scope: &DomainScope,
    text: &str,
) -> Result<(Token, &'a Domain), CallError> {
    let invalid = || CallError::field("reservation_id", "must be the id that a response to Reserve contains");
    let token = Token::parse(text).ok_or_else(invalid)?;
    let name = domains.names().into_iter().find(|name| token.is_in_domain(name));
    let domain = name.and_then(|name| domains.get(name, scope)).ok_or(CallError::NoReservation)?;
    Ok((token, domain))
}

fn unknown_reservation(domain: &Domain) -> CallError {
    domain.metrics.reservations.count_unknown();
    CallError::NoReservation
}

/// The metadata of an open reservation, if the token belongs to this reservation in this domain.
fn read_metadata(token: Token, domain: &Domain, reservation: &Reservation) -> Result<CallMetadata, CallError> {
    // In a Redis Cluster only the record in the account's hash slot has metadata.
    if reservation.metadata.is_empty() {
        return Err(unknown_reservation(domain));
    }
    let metadata: CallMetadata = parse_record(&reservation.metadata)?;
    if token.is_bound_to(&domain.policy, &metadata.account) { Ok(metadata) } else { Err(unknown_reservation(domain)) }
}

/// The record of an ended reservation, if the token belongs to this reservation in this domain.
fn read_end_record(token: Token, domain: &Domain, closed: &ClosedReservation) -> Result<EndRecord, CallError> {
    let record: EndRecord = parse_record(&closed.metadata)?;
    if token.is_bound_to(&domain.policy, &record.account) { Ok(record) } else { Err(unknown_reservation(domain)) }
}

fn ended_error(token: Token, domain: &Domain, closed: &ClosedReservation) -> CallError {
    match read_end_record(token, domain, closed) {
        Ok(EndRecord { cancelled, .. }) => {
            CallError::Ended { state: if cancelled { "cancelled" } else { "settled" }, time: closed.at }
        }
        Err(error) => error,
    }
}

/// The result for a reservation that has already ended: its settlement if this is a repetition, otherwise an error.
fn repeated_end(
    token: Token,
    domain: &Domain,
    closed: &ClosedReservation,
    digest: [u8; 16],
) -> Result<Settlement, CallError> {
    if closed.digest != digest {
        return Err(ended_error(token, domain, closed));
    }
    let record = read_end_record(token, domain, closed)?;
    Ok(to_settlement(record, closed, true))
}

fn to_settlement(record: EndRecord, closed: &ClosedReservation, replayed: bool) -> Settlement {
    let EndRecord { mut units, refunds, .. } = record;
    for (index, amount) in refunds.iter().zip(&closed.refunded) {
        if let Some(unit) = units.get_mut(*index) {
            unit.returned = unit.returned.max(amount.get());
        }
    }
    Settlement { settled_at: closed.at, units, replayed }
}

fn parse_record<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CallError> {
    serde_json::from_slice(bytes)
        .map_err(|error| StoreError::Refused(format!("a reservation cannot be read: {error}")).into())
}

/// The settlement of every unit that was reserved or used.
fn settled_units(
    domain: &Domain,
    metadata: &CallMetadata,
    usage: Option<&[(&str, u64)]>,
) -> Result<Vec<SettledUnit>, CallError> {
    let unit = |unit: &str, reserved: u64, actual: u64| SettledUnit {
        unit: unit.to_owned(),
        reserved,
        actual,
        returned: 0,
        debt: actual.saturating_sub(reserved),
    };
    let Some(usage) = usage else {
        return Ok(metadata.reserved.iter().map(|(name, reserved)| unit(name, *reserved, 0)).collect());
    };
    if usage.len() > MAX_ENTRIES {
        return Err(CallError::field("usage", format_args!("has more than {MAX_ENTRIES} units")));
    }
    let mut units: Vec<SettledUnit> =
        metadata.reserved.iter().map(|(name, reserved)| unit(name, *reserved, *reserved)).collect();
    for (index, (name, actual)) in usage.iter().enumerate() {
        let error = |problem: String| Err(CallError::field(format_args!("usage.{}", printable(name)), problem));
        if usage[..index].iter().any(|(earlier, _)| earlier == name) {
            return error("named twice".to_owned());
        }
        if matches!(*name, "requests" | CONCURRENT_REQUESTS) {
            return error("stays as it was reserved; leave it out".to_owned());
        }
        if Amount::try_from(*actual).is_err() {
            return error(AmountTooLarge.to_string());
        }
        if let Some(existing) = units.iter_mut().find(|existing| existing.unit == *name) {
            *existing = unit(name, existing.reserved, *actual);
        } else if domain.policy.units().iter().any(|unit| *unit.name == **name) {
            units.push(unit(name, 0, *actual));
        } else {
            let available: Vec<&str> = domain.policy.units().iter().map(|unit| &*unit.name).collect();
            return error(format!("there is no such unit; the units are: {}", available.join(", ")));
        }
    }
    Ok(units)
}

fn printable(name: &str) -> String {
    name.chars().filter(|c| !is_hidden(*c)).take(64).collect()
}

/// The refunds, each with the index of its unit.
fn refunds_of_units(reservation: &Reservation, metadata: &CallMetadata, units: &[SettledUnit]) -> Vec<(usize, Charge)> {
    let mut refunds = Vec::new();
    for (index, unit) in units.iter().enumerate() {
        let unused = unit.reserved.saturating_sub(unit.actual);
        let is_refunded = |charge: &&Charge| unused > 0 && metadata.counts_unit(charge, &unit.unit);
        for charge in reservation.charges.iter().filter(is_refunded) {
            // A counter near the maximum amount may have been charged less than was reserved.
            let amount = charge.amount.min(Amount::try_from(unused).unwrap_or(Amount::MAX));
            if amount > Amount::ZERO {
                refunds.push((index, Charge { amount, ..*charge }));
            }
        }
    }
    refunds
}

/// The debts, on every counter of the reservation.
fn debts_of_units(
    reservation: &Reservation,
    metadata: &CallMetadata,
    units: &[SettledUnit],
    now: Timestamp,
) -> Result<Vec<Claim>, CallError> {
    let mut debts = Vec::new();
    for unit in units.iter().filter(|unit| unit.debt > 0) {
        let cost = Amount::try_from(unit.debt).unwrap_or(Amount::MAX);
        for charge in reservation.charges.iter().filter(|charge| metadata.counts_unit(charge, &unit.unit)) {
            let span = match charge.window {
                WindowId::Sliding(window) => WindowInstance::Sliding(window),
                WindowId::Calendar(id) => calendar_instance(metadata, id, now)?,
            };
            let (limit, effect) = (Limit::Unlimited, Effect::Charge);
            debts.push(Claim { ledger: charge.ledger, span, unit: charge.unit, cost, limit, effect });
        }
    }
    Ok(debts)
}

fn calendar_instance(metadata: &CallMetadata, id: u32, now: Timestamp) -> Result<WindowInstance, CallError> {
    let calendar = metadata.calendars.iter().find(|(calendar_id, ..)| *calendar_id == id);
    let window = calendar.and_then(|(_, unit, zone)| CalendarWindow::new(CalendarUnit::named(unit)?, zone).ok());
    let window = window.ok_or_else(|| StoreError::Refused("a reservation in an unknown calendar".into()))?;
    Ok(WindowInstance::Calendar { id, period: window.period_at(now) })
}

/// A digest that is equal for repetitions of the same end.
fn end_digest(usage: Option<&[(&str, u64)]>) -> [u8; 16] {
    let mut hasher = Sha256::new();
    hasher.update(if usage.is_some() { "settle" } else { "cancel" });
    let mut sorted: Vec<&(&str, u64)> = usage.unwrap_or_default().iter().collect();
    sorted.sort_unstable();
    for (name, amount) in sorted {
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name);
        hasher.update(amount.to_le_bytes());
    }
    truncate_hash(hasher.finalize())
}
