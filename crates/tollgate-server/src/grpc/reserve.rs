//! Conversions of the messages of `Reserve`, `Settle`, `Cancel` and `Extend`.

use tokio::time::Instant;
use tollgate_api::v1;
use tollgate_core::time::Timestamp;
use tollgate_service::{
    scope::DomainScope,
    service::{Call, CallError, ReserveRequest, SettleRequest, Settlement},
};

use super::{Api, decision, from_wire, timestamp};

impl Api {
    pub(super) async fn reserve_one(
        &self,
        scope: &DomainScope,
        message: &v1::ReserveRequest,
        deadline: Instant,
    ) -> Result<v1::Decision, CallError> {
        let call = message.call.as_ref().ok_or_else(|| CallError::field("call", "is required"))?;
        let inputs = message.inputs.iter().map(|(name, amount)| (name.as_str(), *amount)).collect();
        let reserve = ReserveRequest { inputs, ttl_ms: message.ttl_ms };
        let decoded = Call { deadline: Some(deadline), ..from_wire(scope, call)? };
        self.service.reserve(decoded, &reserve, |response| decision(response, call)).await
    }
}

pub(super) fn settle<'a>(scope: &'a DomainScope, message: &'a v1::SettleRequest) -> SettleRequest<'a> {
    let usage = message.usage.iter().map(|(unit, amount)| (unit.as_str(), *amount)).collect();
    let status = reported_status(message.status);
    SettleRequest { scope, reservation_id: &message.reservation_id, usage: Some(usage), status }
}

pub(super) fn cancel<'a>(scope: &'a DomainScope, message: &'a v1::CancelRequest) -> SettleRequest<'a> {
    let status = reported_status(message.status);
    SettleRequest { scope, reservation_id: &message.reservation_id, usage: None, status }
}

/// The status; 0 means that none is reported.
fn reported_status(status: u32) -> Option<u32> {
    (status != 0).then_some(status)
}

pub(super) fn reservation(id: String, ends_at: Timestamp) -> v1::Reservation {
    v1::Reservation { id, expires_at: Some(timestamp(ends_at)) }
}

pub(super) fn settlement(settlement: Settlement) -> v1::Settlement {
    let units = settlement.units.into_iter().map(|unit| v1::SettledUnit {
        unit: unit.unit,
        reserved: unit.reserved,
        actual: unit.actual,
        returned: unit.returned,
        debt: unit.debt,
    });
    v1::Settlement {
        settled_at: Some(timestamp(settlement.settled_at)),
        units: units.collect(),
        replayed: settlement.replayed,
    }
}
