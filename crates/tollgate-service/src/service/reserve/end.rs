//! How a reservation ends: settled, cancelled, or later than it would.

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

use super::{CallMetadata, Token, checked_ttl, cut};
use crate::{
    domains::{Domain, Domains},
    scope::DomainScope,
    service::{
        CallError, CallerRef, DecisionService, MAX_ENTRIES, Report,
        counters::{Period, in_period},
    },
};

/// The parameters of an end, decoded but not yet checked.
pub struct Settle<'a> {
    /// Where the calling service may act.
    pub within: &'a DomainScope,
    /// The id that the reservation was answered with.
    pub reservation_id: &'a str,
    /// The actual usage; `None` cancels.
    pub usage: Option<SmallVec<[(&'a str, u64); 4]>>,
    /// How the call was answered, for the abuse rules.
    pub status: Option<u32>,
}

/// How a reservation ended.
#[derive(Debug)]
pub struct Settlement {
    /// When, by the store's clock.
    pub settled_at: Timestamp,
    /// The result for each unit.
    pub units: Vec<SettledUnit>,
    /// Whether this was done before.
    pub replayed: bool,
}

/// One unit of it.
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
    /// The amount given back, in the window in which it was largest. It is not in the metadata, because the store knows
    /// it.
    #[serde(skip)]
    pub returned: u64,
    /// The usage above the reservation, which is charged now.
    #[serde(rename = "d")]
    pub debt: u64,
}

/// The record of an end.
#[derive(Debug, Serialize, Deserialize)]
struct EndRecord {
    #[serde(rename = "c")]
    cancelled: bool,
    #[serde(rename = "u")]
    units: Vec<SettledUnit>,
    /// For each refund, the number of its unit in `units`.
    #[serde(rename = "f")]
    refunds: Vec<usize>,
    /// The account whose reservation it was.
    #[serde(rename = "a", default)]
    account: String,
}

impl DecisionService {
    /// Settles a reservation, or cancels it.
    pub async fn settle(&self, settle: Settle<'_>) -> Result<Settlement, CallError> {
        let settled = self.settle_unmeasured(&settle).await;
        if let Err(error) = &settled {
            self.metrics.call_failed(error.is_of_the_call());
        }
        settled
    }

    async fn settle_unmeasured(&self, settle: &Settle<'_>) -> Result<Settlement, CallError> {
        let domains = self.domains.load().clone();
        let (token, domain) = find(&domains, settle.within, settle.reservation_id)?;
        if settle.status.is_some_and(|status| !(100..=599).contains(&status)) {
            return Err(CallError::field("status", "must be an HTTP status from 100 to 599"));
        }
        let digest = digest_of(settle.usage.as_deref());
        let (now, reservation) = match self.counters.store().look(token.home, token.id).await? {
            ReservationState::Unknown => return Err(unknown(domain)),
            ReservationState::Closed(closed) => return before(token, domain, &closed, digest),
            ReservationState::Open { now, reservation, .. } => (now, reservation),
        };
        let metadata = metadata_of(token, domain, &reservation)?;
        let units = units_of(domain, &metadata, settle.usage.as_deref())?;
        let refunds = refunds_of(&reservation, &metadata, &units);
        let end = EndRecord {
            cancelled: settle.usage.is_none(),
            refunds: refunds.iter().map(|(at, _)| *at).collect(),
            units,
            account: metadata.account.clone(),
        };
        let bytes = serde_json::to_vec(&end).map_err(|error| StoreError::Refused(format!("a metadata: {error}")))?;
        let refunds: Vec<Charge> = refunds.into_iter().map(|(_, charge)| charge).collect();
        let (reservation, refunds, end_metadata) = (&reservation, &refunds[..], &bytes[..]);
        let closure = in_period(now, |now| {
            let debts = debts_of(reservation, &metadata, &end.units, now);
            async move {
                let debts = debts?;
                let closing = CloseRequest { digest, refunds, debts: &debts, reservation, metadata: end_metadata };
                match self.counters.measure(self.counters.store().close(token.home, token.id, &closing)).await? {
                    CloseResult::OutsidePeriod(at) => Ok(Period::Outside(at)),
                    closure => Ok(Period::Inside(closure)),
                }
            }
        })
        .await?;
        match closure {
            CloseResult::Done(closed) => {
                let debts = end.units.iter().map(|unit| (unit.unit.as_str(), unit.debt));
                domain.metrics.reservations.ended(end.cancelled, debts);
                if let Some(status) = settle.status {
                    self.report_of(settle.within, domain, &metadata, status).await;
                }
                Ok(settlement_of(end, &closed, false))
            }
            CloseResult::Before(closed) => before(token, domain, &closed, digest),
            CloseResult::Unknown | CloseResult::OutsidePeriod(_) => Err(unknown(domain)),
        }
    }

    /// Reports how the call of a reservation was answered. The settlement stands whatever the result is.
    async fn report_of(&self, within: &DomainScope, domain: &Domain, metadata: &CallMetadata, status: u32) {
        let report = Report {
            within,
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

    /// Keeps a reservation alive. Returns when it ends now.
    pub async fn extend(
        &self,
        within: &DomainScope,
        reservation_id: &str,
        ttl_ms: u32,
    ) -> Result<Timestamp, CallError> {
        let domains = self.domains.load().clone();
        let (token, domain) = find(&domains, within, reservation_id)?;
        let reservation = match self.counters.store().look(token.home, token.id).await? {
            ReservationState::Unknown => return Err(unknown(domain)),
            ReservationState::Closed(closed) => return Err(ended(token, domain, &closed)),
            ReservationState::Open { reservation, .. } => reservation,
        };
        let ttl_ms = checked_ttl(ttl_ms, metadata_of(token, domain, &reservation)?.ttl_ms)?;
        match self.counters.store().extend(token.home, token.id, ttl_ms, &reservation).await? {
            Extension::Until(at) => {
                domain.metrics.reservations.extended();
                Ok(at)
            }
            Extension::Closed(closed) => Err(ended(token, domain, &closed)),
            Extension::Unknown => Err(unknown(domain)),
        }
    }
}

/// The reservation's place, and its domain. One of a domain where the service may not act is as unknown as one that
/// never was.
fn find<'a>(domains: &'a Domains, within: &DomainScope, text: &str) -> Result<(Token, &'a Domain), CallError> {
    let wrong = || CallError::field("reservation_id", "must be the id that an answer to Reserve carried");
    let token = Token::parse(text).ok_or_else(wrong)?;
    let named = domains.names().into_iter().find(|name| token.is_of(name));
    let domain = named.and_then(|name| domains.get(name, within)).ok_or(CallError::NoReservation)?;
    Ok((token, domain))
}

fn unknown(domain: &Domain) -> CallError {
    domain.metrics.reservations.unknown();
    CallError::NoReservation
}

/// The data that an open reservation keeps of its call, if the token names this reservation in this domain.
fn metadata_of(token: Token, domain: &Domain, reservation: &Reservation) -> Result<CallMetadata, CallError> {
    // In a Redis Cluster the parts of a reservation outside the account's slot remember nothing of the call.
    if reservation.metadata.is_empty() {
        return Err(unknown(domain));
    }
    let metadata: CallMetadata = read_note(&reservation.metadata)?;
    if token.is_bound_to(&domain.policy, &metadata.account) { Ok(metadata) } else { Err(unknown(domain)) }
}

/// The record of an end, if the token names this reservation in this domain.
fn end_metadata_of(token: Token, domain: &Domain, closed: &ClosedReservation) -> Result<EndRecord, CallError> {
    let metadata: EndRecord = read_note(&closed.metadata)?;
    if token.is_bound_to(&domain.policy, &metadata.account) { Ok(metadata) } else { Err(unknown(domain)) }
}

fn ended(token: Token, domain: &Domain, closed: &ClosedReservation) -> CallError {
    match end_metadata_of(token, domain, closed) {
        Ok(EndRecord { cancelled, .. }) => {
            CallError::Ended { how: if cancelled { "cancelled" } else { "settled" }, at: closed.at }
        }
        Err(error) => error,
    }
}

/// The answer to an end that came before: the same if it is the same end.
fn before(
    token: Token,
    domain: &Domain,
    closed: &ClosedReservation,
    digest: [u8; 16],
) -> Result<Settlement, CallError> {
    if closed.digest != digest {
        return Err(ended(token, domain, closed));
    }
    let metadata = end_metadata_of(token, domain, closed)?;
    Ok(settlement_of(metadata, closed, true))
}

fn settlement_of(metadata: EndRecord, closed: &ClosedReservation, replayed: bool) -> Settlement {
    let EndRecord { mut units, refunds, .. } = metadata;
    for (at, amount) in refunds.iter().zip(&closed.refunded) {
        if let Some(unit) = units.get_mut(*at) {
            unit.returned = unit.returned.max(amount.get());
        }
    }
    Settlement { settled_at: closed.at, units, replayed }
}

fn read_note<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CallError> {
    serde_json::from_slice(bytes)
        .map_err(|error| StoreError::Refused(format!("a reservation cannot be read: {error}")).into())
}

/// Every unit that was reserved or used.
fn units_of(
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
    for (at, (name, actual)) in usage.iter().enumerate() {
        let wrong = |wrong: String| Err(CallError::field(format_args!("usage.{}", printable(name)), wrong));
        if usage[..at].iter().any(|(before, _)| before == name) {
            return wrong("named twice".to_owned());
        }
        if matches!(*name, "requests" | CONCURRENT_REQUESTS) {
            return wrong("stays as it was reserved; leave it out".to_owned());
        }
        if Amount::try_from(*actual).is_err() {
            return wrong(AmountTooLarge.to_string());
        }
        if let Some(known) = units.iter_mut().find(|known| known.unit == *name) {
            *known = unit(name, known.reserved, *actual);
        } else if domain.policy.units().iter().any(|known| *known.name == **name) {
            units.push(unit(name, 0, *actual));
        } else {
            let known: Vec<&str> = domain.policy.units().iter().map(|unit| &*unit.name).collect();
            return wrong(format!("there is no such unit; the units are: {}", known.join(", ")));
        }
    }
    Ok(units)
}

fn printable(name: &str) -> String {
    name.chars().filter(|c| !is_hidden(*c)).take(64).collect()
}

/// The refunds, each with the index of its unit.
fn refunds_of(reservation: &Reservation, metadata: &CallMetadata, units: &[SettledUnit]) -> Vec<(usize, Charge)> {
    let mut refunds = Vec::new();
    for (at, unit) in units.iter().enumerate() {
        let over = unit.reserved.saturating_sub(unit.actual);
        for charge in reservation.charges.iter().filter(|charge| over > 0 && metadata.is_of(charge, &unit.unit)) {
            // At the end of counting less may have been charged than was reserved.
            let amount = charge.amount.min(Amount::try_from(over).unwrap_or(Amount::MAX));
            if amount > Amount::ZERO {
                refunds.push((at, Charge { amount, ..*charge }));
            }
        }
    }
    refunds
}

/// The debts, on every counter of the reservation.
fn debts_of(
    reservation: &Reservation,
    metadata: &CallMetadata,
    units: &[SettledUnit],
    now: Timestamp,
) -> Result<Vec<Claim>, CallError> {
    let mut debts = Vec::new();
    for unit in units.iter().filter(|unit| unit.debt > 0) {
        let cost = Amount::try_from(unit.debt).unwrap_or(Amount::MAX);
        for charge in reservation.charges.iter().filter(|charge| metadata.is_of(charge, &unit.unit)) {
            let span = match charge.window {
                WindowId::Sliding(window) => WindowInstance::Sliding(window),
                WindowId::Calendar(id) => span_of(metadata, id, now)?,
            };
            let (limit, effect) = (Limit::Unlimited, Effect::Charge);
            debts.push(Claim { ledger: charge.ledger, span, unit: charge.unit, cost, limit, effect });
        }
    }
    Ok(debts)
}

fn span_of(metadata: &CallMetadata, id: u32, now: Timestamp) -> Result<WindowInstance, CallError> {
    let calendar = metadata.calendars.iter().find(|(known, ..)| *known == id);
    let window = calendar.and_then(|(_, unit, zone)| CalendarWindow::new(CalendarUnit::named(unit)?, zone).ok());
    let window = window.ok_or_else(|| StoreError::Refused("a reservation in an unknown calendar".into()))?;
    Ok(WindowInstance::Calendar { id, period: window.period_at(now) })
}

/// Identifies an end.
fn digest_of(usage: Option<&[(&str, u64)]>) -> [u8; 16] {
    let mut hasher = Sha256::new();
    hasher.update(if usage.is_some() { "settle" } else { "cancel" });
    let mut sorted: Vec<&(&str, u64)> = usage.unwrap_or_default().iter().collect();
    sorted.sort_unstable();
    for (name, amount) in sorted {
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name);
        hasher.update(amount.to_le_bytes());
    }
    cut(hasher.finalize())
}
