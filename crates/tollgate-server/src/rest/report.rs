//! `POST /v1/report_outcome`: the RPC in JSON.

use axum::{extract::State, response::Response};
use serde::{Deserialize, Serialize};
use tollgate_service::service::{Rejection, Report, ReportOutcome};
use utoipa::ToSchema;

use super::{
    Body, ErrorBody, Failures, Shared, answer,
    decide::{CallerBody, ReasonBody, reason},
    entries::Entries,
    number::whole,
};
use crate::auth::ServiceGrant;

/// How a call was answered.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReportBody {
    /// The policy's domain. May be left out if the token has only one domain.
    #[serde(default)]
    domain: String,
    caller: CallerBody,
    /// The resource that was called: a model or an endpoint.
    #[schema(min_length = 1, max_length = 128)]
    resource: String,
    /// The attributes of the call, such as `ip`.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    attributes: Entries<String>,
    /// The HTTP status of the answer.
    #[serde(deserialize_with = "whole")]
    #[schema(minimum = 100, maximum = 599)]
    status: u32,
}

/// The result of a report.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReportedBody {
    /// Why the report was not accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<ReasonBody>,
    /// How many abuse rules counted it as a failure. A rule does not count while it blocks.
    counted: usize,
    /// When the caller's block ends, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_until: Option<String>,
    /// The policy's message for a blocked caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    block_message: Option<String>,
    /// The time by the clock of the counters' store, RFC 3339.
    decided_at: String,
}

/// Reports how an admitted call was answered, for the abuse rules of the policy. Refusals by Tollgate itself are
/// counted automatically.
#[utoipa::path(post, path = "/v1/report_outcome", request_body = ReportBody, responses(
    (status = 200, description = "The result of the report", body = ReportedBody),
    (status = 404, description = "No such domain", body = ErrorBody),
    Failures,
))]
pub(super) async fn report_outcome(
    State(shared): State<Shared>,
    grant: ServiceGrant,
    Body(body): Body<ReportBody>,
) -> Response {
    let report = Report {
        within: grant.scope(),
        domain: &body.domain,
        caller: body.caller.caller(),
        resource: &body.resource,
        attributes: body.attributes.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
        status: body.status,
    };
    answer(shared.service.report(report, reported).await)
}

fn reported(reported: Result<&ReportOutcome<'_>, &Rejection<'_>>) -> ReportedBody {
    let (why, counted, block, at) = match reported {
        Ok(outcome) => (None, outcome.counted, outcome.block, outcome.at),
        Err(rejection) => (Some(reason(rejection.reason())), 0, rejection.block(), rejection.at),
    };
    ReportedBody {
        reason: why,
        counted,
        blocked_until: block.map(|block| block.until.to_string()),
        block_message: block.map(|block| block.message(at)),
        decided_at: at.to_string(),
    }
}
