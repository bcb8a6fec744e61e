//! `ReportOutcome` on the wire.

use tollgate_policy::reason::Reason;
use tollgate_proto::v1;
use tollgate_service::{
    scope::DomainScope,
    service::{Report, Reported},
};
use tonic::Status;

use super::{caller, failed, reason, timestamp};

pub(super) fn from_wire<'a>(
    within: &'a DomainScope,
    report: &'a v1::ReportOutcomeRequest,
) -> Result<Report<'a>, Status> {
    Ok(Report {
        within,
        domain: &report.domain,
        caller: caller(report.caller.as_ref()).map_err(failed)?,
        resource: &report.resource,
        attributes: report.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
        status: report.status,
    })
}

pub(super) fn to_wire(reported: &Reported<'_>) -> v1::ReportOutcomeResponse {
    let (reason, counted, block, at) = match reported {
        Reported::Taken { counted, block, at } => (v1::Reason::Unspecified, *counted, *block, *at),
        Reported::BadKey { rejected, at } => (reason(Reason::InvalidKey(rejected.why)), 0, None, *at),
        Reported::Barred { block, at } => (v1::Reason::Blocked, 0, Some(*block), *at),
    };
    v1::ReportOutcomeResponse {
        reason: reason.into(),
        counted: u32::try_from(counted).unwrap_or(u32::MAX),
        blocked_until: block.map(|block| timestamp(block.until)),
        block_message: block.map(|block| block.message(at)).unwrap_or_default(),
        decided_at: Some(timestamp(at)),
    }
}
