//! `POST /v1/report_outcome`.

use axum::{extract::State, response::Response};
use tollgate_api::json::{
    error::ErrorBody,
    report::{ReportBody, ReportedBody},
};
use tollgate_service::service::{Rejection, Report, ReportOutcome};

use super::{
    Body, ErrorResponses, Shared,
    decide::{attributes, caller, reason},
    result_response,
};
use crate::auth::ServiceGrant;

/// Reports how an admitted call was answered, for the abuse rules of the policy. Refusals by Tollgate itself are
/// counted automatically.
#[utoipa::path(post, path = "/v1/report_outcome", request_body = ReportBody, responses(
    (status = 200, description = "The result of the report", body = ReportedBody),
    (status = 404, description = "No such domain", body = ErrorBody),
    ErrorResponses,
))]
pub(super) async fn report_outcome(
    State(shared): State<Shared>,
    grant: ServiceGrant,
    Body(body): Body<ReportBody>,
) -> Response {
    let report = Report {
        scope: grant.scope(),
        domain: &body.domain,
        caller: caller(&body.caller),
        resource: &body.resource,
        attributes: attributes(&body.attributes),
        status: body.status,
    };
    result_response(shared.service.report(report, reported).await)
}

fn reported(reported: Result<&ReportOutcome<'_>, &Rejection<'_>>) -> ReportedBody {
    let (reason, counted, block, time) = match reported {
        Ok(outcome) => (None, outcome.counted, outcome.block, outcome.time),
        Err(rejection) => (Some(reason(rejection.reason())), 0, rejection.block(), rejection.time),
    };
    ReportedBody {
        reason,
        counted,
        blocked_until: block.map(|block| block.until.to_string()),
        block_message: block.map(|block| block.message(time)),
        decided_at: time.to_string(),
    }
}
