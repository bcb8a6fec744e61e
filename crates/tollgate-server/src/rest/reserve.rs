//! `POST /v1/reserve`, `/v1/settle`, `/v1/cancel` and `/v1/extend`.

use axum::{extract::State, response::Response};
use tollgate_api::json::{
    decision::DecisionBody,
    error::ErrorBody,
    reservation::{CancelBody, ExtendBody, ReservationBody, ReserveBody, SettleBody, SettledUnitBody, SettlementBody},
};
use tollgate_service::service::{ReserveRequest, SettleRequest, Settlement};

use super::{
    Body, ErrorResponses, Shared,
    decide::{call, decision},
    reservation::reservation,
    result_response,
};
use crate::auth::ServiceGrant;

/// Like `consume`, for a call whose usage is known only afterwards: charges an estimate, takes a slot of every quota of
/// concurrent requests, and returns a reservation.
#[utoipa::path(post, path = "/v1/reserve", request_body = ReserveBody, responses(
    (status = 200, description = "A decision, with the reservation if the call is allowed", body = DecisionBody),
    (status = 404, description = "No such domain", body = ErrorBody),
    ErrorResponses,
))]
pub(super) async fn reserve(
    State(shared): State<Shared>,
    grant: ServiceGrant,
    Body(body): Body<ReserveBody>,
) -> Response {
    let reserve = ReserveRequest { inputs: body.inputs.iter().collect(), ttl_ms: body.ttl_ms };
    let call = call(&body.call, grant.scope());
    result_response(shared.service.reserve(call, &reserve, |response| decision(response, body.call.render)).await)
}

/// Corrects the charge of a reservation to the actual usage: what was not used is given back in the windows where it
/// still counts; what was used in excess is charged now. The same settlement may be sent again, to any node.
#[utoipa::path(post, path = "/v1/settle", request_body = SettleBody, responses(
    (status = 200, description = "The end of the reservation", body = SettlementBody),
    (status = 404, description = "No such reservation, or it has expired; what it charged stays charged", body = ErrorBody),
    (status = 409, description = "It was cancelled, or settled with another usage", body = ErrorBody),
    ErrorResponses,
))]
pub(super) async fn settle(
    State(shared): State<Shared>,
    grant: ServiceGrant,
    Body(body): Body<SettleBody>,
) -> Response {
    let SettleBody { reservation_id, usage, status } = &body;
    let settle =
        SettleRequest { scope: grant.scope(), reservation_id, usage: Some(usage.iter().collect()), status: *status };
    result_response(shared.service.settle(settle).await.map(settlement))
}

/// Gives everything back, including the request.
#[utoipa::path(post, path = "/v1/cancel", request_body = CancelBody, responses(
    (status = 200, description = "The end of the reservation", body = SettlementBody),
    (status = 404, description = "No such reservation, or it has expired; what it charged stays charged", body = ErrorBody),
    (status = 409, description = "It was settled", body = ErrorBody),
    ErrorResponses,
))]
pub(super) async fn cancel(
    State(shared): State<Shared>,
    grant: ServiceGrant,
    Body(body): Body<CancelBody>,
) -> Response {
    let CancelBody { reservation_id, status } = &body;
    let cancel = SettleRequest { scope: grant.scope(), reservation_id, usage: None, status: *status };
    result_response(shared.service.settle(cancel).await.map(settlement))
}

/// Starts the lifetime of a reservation, and of its slots, again from now.
#[utoipa::path(post, path = "/v1/extend", request_body = ExtendBody, responses(
    (status = 200, description = "The reservation with its new end", body = ReservationBody),
    (status = 404, description = "No such reservation, or it has expired", body = ErrorBody),
    (status = 409, description = "It was settled or cancelled", body = ErrorBody),
    ErrorResponses,
))]
pub(super) async fn extend(
    State(shared): State<Shared>,
    grant: ServiceGrant,
    Body(body): Body<ExtendBody>,
) -> Response {
    let extended = shared.service.extend(grant.scope(), &body.reservation_id, body.ttl_ms).await;
    result_response(extended.map(|ends_at| reservation(&body.reservation_id, ends_at)))
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
