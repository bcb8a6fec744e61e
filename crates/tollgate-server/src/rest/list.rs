//! `POST /v1/get_rate_limits`: the RPC in JSON.

use axum::{extract::State, response::Response};
use serde::{Deserialize, Serialize};
use tollgate_service::service::{CallError, LimitsPage, Listing, Rejection, page_size};
use utoipa::ToSchema;

use super::{
    Body, ErrorBody, Failures, Shared, answer,
    decide::{CallerBody, QuotaBody, ReasonBody, quota, reason},
    entries::Entries,
    number::whole,
};
use crate::auth::ServiceGrant;

/// The caller whose limits are listed, and the page.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListBody {
    /// The policy's domain. May be left out if the token has only one domain.
    #[serde(default)]
    domain: String,
    caller: CallerBody,
    /// Values of the attributes in the policy's scopes other than account, `api_key` and resource, such as `ip`.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    attributes: Entries<String>,
    /// Maximum number of resources, 1 to 100; 50 if absent.
    #[serde(default, deserialize_with = "whole")]
    #[schema(maximum = 100)]
    page_size: u32,
    /// `next_page_token` of the previous answer; absent for the first page.
    #[serde(default)]
    page_token: String,
}

/// A page of a caller's limits and their current usage.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ListedBody {
    /// Why the list is empty: the key is invalid, or the client address is blocked. Absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<ReasonBody>,
    resources: Vec<ResourceLimitsBody>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
    /// The time by the clock of the counters' store, or of the node if no counter was read, RFC 3339.
    decided_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tier: Option<String>,
    /// When the block of the client address ends, if that is the reason, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_until: Option<String>,
}

/// The limits of one resource.
#[derive(Debug, Serialize, ToSchema)]
struct ResourceLimitsBody {
    /// The name of the resource, or a wildcard.
    resource: String,
    /// Empty if the resource is not limited.
    quotas: Vec<QuotaBody>,
    /// When the caller's block from this resource ends, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_until: Option<String>,
}

/// Lists a caller's limits and their current usage, one page of resources at a time.
#[utoipa::path(post, operation_id = "list_rate_limits", path = "/v1/get_rate_limits", request_body = ListBody, responses(
    (status = 200, description = "A page; it is empty if the caller's key is invalid", body = ListedBody),
    (status = 404, description = "No such domain", body = ErrorBody),
    Failures,
))]
pub(super) async fn list_rate_limits(
    State(shared): State<Shared>,
    grant: ServiceGrant,
    Body(body): Body<ListBody>,
) -> Response {
    answer(list(&shared, &grant, &body).await)
}

async fn list(shared: &Shared, grant: &ServiceGrant, body: &ListBody) -> Result<ListedBody, CallError> {
    let listing = Listing {
        within: grant.scope(),
        domain: &body.domain,
        caller: body.caller.caller(),
        attributes: body.attributes.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
        page_token: &body.page_token,
        take: page_size(body.page_size)?,
    };
    shared.service.list(listing, limits).await.map_err(|error| error.in_field("page_token"))
}

fn limits(listed: Result<&LimitsPage<'_>, &Rejection<'_>>) -> ListedBody {
    match listed {
        Err(rejection) => ListedBody {
            reason: Some(reason(rejection.reason())),
            resources: Vec::new(),
            next_page_token: None,
            decided_at: rejection.at.to_string(),
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
