//! Conversions of the messages of `ReportOutcome`.

use tollgate_api::v1;
use tollgate_service::{
    scope::DomainScope,
    service::{Rejection, Report, ReportOutcome},
};
use tonic::Status;

use super::{caller, reason, status, timestamp};

pub(super) fn from_wire<'a>(
    scope: &'a DomainScope,
    report: &'a v1::ReportOutcomeRequest,
) -> Result<Report<'a>, Status> {
    Ok(Report {
        scope,
        domain: &report.domain,
        caller: caller(report.caller.as_ref()).map_err(status)?,
        resource: &report.resource,
        attributes: report.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
        status: report.status,
    })
}

pub(super) fn to_wire(outcome: Result<&ReportOutcome<'_>, &Rejection<'_>>) -> v1::ReportOutcomeResponse {
    let (reason, counted, block, time) = match outcome {
        Ok(outcome) => (v1::Reason::Unspecified, outcome.counted, outcome.block, outcome.time),
        Err(rejection) => (reason(rejection.reason()), 0, rejection.block(), rejection.time),
    };
    v1::ReportOutcomeResponse {
        reason: reason.into(),
        counted: u32::try_from(counted).unwrap_or(u32::MAX),
        blocked_until: block.map(|block| timestamp(block.until)),
        block_message: block.map(|block| block.message(time)).unwrap_or_default(),
        decided_at: Some(timestamp(time)),
    }
}
