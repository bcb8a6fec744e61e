//! Tiers: what a domain offers. They are changed in its policy file.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};

use super::{Asked, Failed, Failures, InDomain, shapes::TierList};
use crate::{auth::AdminGrant, rest::Shared};

/// List the tiers of a domain.
#[utoipa::path(get, operation_id = "list_tiers", path = "/admin/v1/tiers", params(InDomain), responses(
    (status = 200, description = "The tiers", body = TierList), Failures))]
pub(super) async fn list(
    State(shared): State<Shared>,
    grant: AdminGrant,
    Asked(at): Asked<InDomain>,
) -> Result<Response, Failed> {
    let desk = shared.admin.desk(grant.name(), grant.scope(), &at.domain)?;
    Ok(Json(TierList::of(desk.domain())).into_response())
}
