//! Tiers: what a domain offers. They are changed in its policy file.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};

use super::{Asked, Failures, InDomain, shapes::TierList};
use crate::{admin::AdminError, auth::AdminGrant, rest::Shared};

/// List the tiers of a domain.
#[utoipa::path(get, operation_id = "list_tiers", path = "/admin/v1/tiers", params(InDomain), responses(
    (status = 200, description = "The tiers", body = TierList), Failures))]
pub(super) async fn list(
    State(shared): State<Shared>,
    grant: AdminGrant,
    Asked(at): Asked<InDomain>,
) -> Result<Response, AdminError> {
    let desk = shared.admin.desk(&grant, &at.domain)?;
    Ok(Json(TierList::of(desk.domain())).into_response())
}
