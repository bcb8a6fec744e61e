//! Tiers of a domain. They are changed in its policy file.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};

use tollgate_api::json::admin::TierList;

use super::{AdminFailure, Checked, DomainQuery, Failures, bodies::tier_list};
use crate::{auth::AdminGrant, rest::Shared};

/// List the tiers of a domain.
#[utoipa::path(get, operation_id = "list_tiers", path = "/admin/v1/tiers", params(DomainQuery), responses(
    (status = 200, description = "The tiers", body = TierList), Failures))]
pub(super) async fn list(
    State(shared): State<Shared>,
    grant: AdminGrant,
    Checked(at): Checked<DomainQuery>,
) -> Result<Response, AdminFailure> {
    let session = shared.admin.session(grant.name(), grant.scope(), &at.domain)?;
    Ok(Json(tier_list(session.domain())).into_response())
}
