//! The tiers of a domain, which are defined in its policy file.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use tollgate_api::json::admin::TierList;

use super::{AdminErrorResponse, AdminRequest, DomainQuery, ErrorResponses, bodies::tier_list};

/// List the tiers of a domain.
#[utoipa::path(get, operation_id = "list_tiers", path = "/admin/v1/tiers", params(DomainQuery), responses(
    (status = 200, description = "The tiers", body = TierList), ErrorResponses))]
pub(super) async fn list(request: AdminRequest) -> Result<Response, AdminErrorResponse> {
    let session = request.session()?;
    Ok(Json(tier_list(session.domain())).into_response())
}
