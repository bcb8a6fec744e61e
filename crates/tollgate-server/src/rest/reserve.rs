//! `POST /v1/reserve`, `/v1/settle`, `/v1/cancel` and `/v1/extend`: the RPCs in JSON.

use axum::{extract::State, response::Response};
use serde::{Deserialize, Serialize};
use tollgate_service::service::{Reserve, Settle, Settlement};
use utoipa::ToSchema;

use super::{
    Body, ErrorBody, Failures, Shared, answer,
    decide::{CallBody, DecisionBody, decision},
    entries::Entries,
    number::{Whole, whole, whole_or_null},
    reservation::ReservationBody,
};
use crate::auth::ServiceGrant;

/// A call whose usage is known only afterwards.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReserveBody {
    /// For units that its `usage` does not name, the policy's estimate is reserved.
    call: CallBody,
    /// Inputs of the estimates, such as the length of the prompt and `max_tokens`; at most 16.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, u64>)]
    inputs: Entries<Whole>,
    /// Lifetime of the reservation unless it is extended; the node's default if absent (10 minutes).
    #[serde(default, deserialize_with = "whole")]
    #[schema(minimum = 1000, maximum = 3_600_000)]
    ttl_ms: u32,
}

/// The settlement of a reservation with the actual usage.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SettleBody {
    reservation_id: String,
    /// The actual usage by unit; 0 is allowed. Units that are not named keep the reserved amount, and so do `requests`.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, u64>)]
    usage: Entries<Whole>,
    /// The HTTP status that the call was answered with, for the abuse rules of the policy.
    #[serde(default, deserialize_with = "whole_or_null")]
    #[schema(minimum = 100, maximum = 599)]
    status: Option<u32>,
}

/// The cancellation of a reservation, which gives everything back.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CancelBody {
    reservation_id: String,
    /// As for a settlement.
    #[serde(default, deserialize_with = "whole_or_null")]
    #[schema(minimum = 100, maximum = 599)]
    status: Option<u32>,
}

/// The extension of a reservation.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExtendBody {
    reservation_id: String,
    /// Its lifetime from now on; the original lifetime if absent.
    #[serde(default, deserialize_with = "whole")]
    #[schema(minimum = 1000, maximum = 3_600_000)]
    ttl_ms: u32,
}

/// The end of a reservation.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SettlementBody {
    /// The time by the clock of the counters' store, RFC 3339.
    settled_at: String,
    /// All units that were reserved or used.
    units: Vec<SettledUnitBody>,
    /// Whether the reservation had already ended like this, so that the first answer is repeated.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    replayed: bool,
}

#[derive(Debug, Serialize, ToSchema)]
struct SettledUnitBody {
    unit: String,
    reserved: u64,
    /// The amount that is charged now.
    actual: u64,
    /// The largest amount given back in one of the windows.
    returned: u64,
    /// The usage above the reservation, charged at the settlement.
    debt: u64,
}

/// Like `consume`, for a call whose usage is known only afterwards: charges an estimate, takes a slot of every quota of
/// concurrent requests, and returns a reservation.
#[utoipa::path(post, path = "/v1/reserve", request_body = ReserveBody, responses(
    (status = 200, description = "A decision, with the reservation if the call is allowed", body = DecisionBody),
    (status = 404, description = "No such domain", body = ErrorBody),
    Failures,
))]
pub(super) async fn reserve(
    State(shared): State<Shared>,
    grant: ServiceGrant,
    Body(body): Body<ReserveBody>,
) -> Response {
    let reserve = Reserve { inputs: body.inputs.iter().collect(), ttl_ms: body.ttl_ms };
    let call = body.call.to_call(grant.scope());
    let reserved = shared.service.reserve(call, &reserve, |outcome| decision(outcome, body.call.render));
    answer(reserved.await)
}

/// Corrects the charge of a reservation to the actual usage: what was not used is given back in the windows where it
/// still counts; what was used in excess is charged now. The same settlement may be sent again, to any node.
#[utoipa::path(post, path = "/v1/settle", request_body = SettleBody, responses(
    (status = 200, description = "The end of the reservation", body = SettlementBody),
    (status = 404, description = "No such reservation, or it has expired; what it charged stays charged", body = ErrorBody),
    (status = 409, description = "It was cancelled, or settled with another usage", body = ErrorBody),
    Failures,
))]
pub(super) async fn settle(
    State(shared): State<Shared>,
    grant: ServiceGrant,
    Body(body): Body<SettleBody>,
) -> Response {
    let SettleBody { reservation_id, usage, status } = &body;
    let settle = Settle { within: grant.scope(), reservation_id, usage: Some(usage.iter().collect()), status: *status };
    answer(shared.service.settle(settle).await.map(settlement))
}

/// Gives everything back, including the request.
#[utoipa::path(post, path = "/v1/cancel", request_body = CancelBody, responses(
    (status = 200, description = "The end of the reservation", body = SettlementBody),
    (status = 404, description = "No such reservation, or it has expired; what it charged stays charged", body = ErrorBody),
    (status = 409, description = "It was settled", body = ErrorBody),
    Failures,
))]
pub(super) async fn cancel(
    State(shared): State<Shared>,
    grant: ServiceGrant,
    Body(body): Body<CancelBody>,
) -> Response {
    let CancelBody { reservation_id, status } = &body;
    let cancel = Settle { within: grant.scope(), reservation_id, usage: None, status: *status };
    answer(shared.service.settle(cancel).await.map(settlement))
}

/// Starts the lifetime of a reservation, and of its slots, again from now.
#[utoipa::path(post, path = "/v1/extend", request_body = ExtendBody, responses(
    (status = 200, description = "The reservation with its new end", body = ReservationBody),
    (status = 404, description = "No such reservation, or it has expired", body = ErrorBody),
    (status = 409, description = "It was settled or cancelled", body = ErrorBody),
    Failures,
))]
pub(super) async fn extend(
    State(shared): State<Shared>,
    grant: ServiceGrant,
    Body(body): Body<ExtendBody>,
) -> Response {
    let extended = shared.service.extend(grant.scope(), &body.reservation_id, body.ttl_ms);
    let extended = extended.await;
    answer(extended.map(|ends_at| ReservationBody::of(&body.reservation_id, ends_at)))
}

fn settlement(settlement: Settlement) -> SettlementBody {
    let units = settlement.units.into_iter().map(|unit| SettledUnitBody {
        unit: unit.unit,
        reserved: unit.reserved,
        actual: unit.actual,
        returned: unit.returned,
        debt: unit.debt,
    });
    SettlementBody {
        settled_at: settlement.settled_at.to_string(),
        units: units.collect(),
        replayed: settlement.replayed,
    }
}
