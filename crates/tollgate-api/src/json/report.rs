//! Reports of how calls were answered.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{call::CallerBody, decision::ReasonBody, entries::Entries, number::whole_number};

/// How a call was answered.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReportBody {
    /// The policy's domain. May be left out if the token has only one domain.
    #[serde(default)]
    pub domain: String,
    pub caller: CallerBody,
    /// The resource that was called: a model or an endpoint.
    #[schema(min_length = 1, max_length = 128)]
    pub resource: String,
    /// The attributes of the call, such as `ip`.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub attributes: Entries<String>,
    /// The HTTP status of the answer.
    #[serde(deserialize_with = "whole_number")]
    #[schema(minimum = 100, maximum = 599)]
    pub status: u32,
}

/// The result of a report.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReportedBody {
    /// Why the report was not accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<ReasonBody>,
    /// How many abuse rules counted it as a failure. A rule does not count while it blocks.
    pub counted: usize,
    /// When the caller's block ends, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_until: Option<String>,
    /// The policy's message for a blocked caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_message: Option<String>,
    /// The time by the clock of the counters' store, RFC 3339.
    pub decided_at: String,
}
