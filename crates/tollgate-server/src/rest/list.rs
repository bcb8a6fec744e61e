//! `POST /v1/get_rate_limits`.

use axum::{extract::State, response::Response};
use tollgate_api::json::{
    error::ErrorBody,
    list::{ListBody, ListedBody, ResourceLimitsBody},
};
use tollgate_service::service::{CallError, LimitsPage, ListRequest, Rejection, page_size};

use super::{
    Body, ErrorResponses, Shared,
    decide::{attributes, caller, quota, reason},
    result_response,
};
use crate::auth::ServiceGrant;

/// Lists a caller's limits and their current usage, one page of resources at a time.
#[utoipa::path(post, operation_id = "list_rate_limits", path = "/v1/get_rate_limits", request_body = ListBody, responses(
    (status = 200, description = "A page; it is empty if the caller's key is invalid", body = ListedBody),
    (status = 404, description = "No such domain", body = ErrorBody),
    ErrorResponses,
))]
pub(super) async fn list_rate_limits(
    State(shared): State<Shared>,
    grant: ServiceGrant,
    Body(body): Body<ListBody>,
) -> Response {
    result_response(list(&shared, &grant, &body).await)
}

async fn list(shared: &Shared, grant: &ServiceGrant, body: &ListBody) -> Result<ListedBody, CallError> {
    let request = ListRequest {
        scope: grant.scope(),
        domain: &body.domain,
        caller: caller(&body.caller),
        attributes: attributes(&body.attributes),
        page_token: &body.page_token,
        page_size: page_size(body.page_size)?,
    };
    shared.service.list(request, limits).await.map_err(|error| error.in_field("page_token"))
}

fn limits(listed: Result<&LimitsPage<'_>, &Rejection<'_>>) -> ListedBody {
    match listed {
        Err(rejection) => ListedBody {
            reason: Some(reason(rejection.reason())),
            resources: Vec::new(),
            next_page_token: None,
            decided_at: rejection.time.to_string(),
            account: None,
            api_key_id: None,
            tier: None,
            blocked_until: rejection.block().map(|block| block.until.to_string()),
        },
        Ok(LimitsPage { identity, domain, resources, decided_at, next }) => ListedBody {
            reason: None,
            resources: resources
                .iter()
                .map(|(resource, decision)| ResourceLimitsBody {
                    resource: (*resource).to_owned(),
                    quotas: decision.quotas.iter().map(quota).collect(),
                    blocked_until: decision.block.map(|block| block.until.to_string()),
                })
                .collect(),
            next_page_token: next.clone(),
            decided_at: decided_at.to_string(),
            account: Some(identity.account.id.to_string()),
            api_key_id: identity.key.as_ref().map(|key| key.id.to_string()),
            tier: domain.policy.tier(identity.account.tier).map(|tier| tier.name.to_string()),
            blocked_until: None,
        },
    }
}
