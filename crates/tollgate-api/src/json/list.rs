//! Lists of limits.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    call::CallerBody,
    decision::{QuotaBody, ReasonBody},
    entries::Entries,
    number::whole_number,
};

/// The caller whose limits are listed, and the page.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ListBody {
    /// The policy's domain. May be left out if the token has only one domain.
    #[serde(default)]
    pub domain: String,
    pub caller: CallerBody,
    /// Values of the attributes in the policy's scopes other than account, `api_key` and resource, such as `ip`.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub attributes: Entries<String>,
    /// Maximum number of resources, 1 to 100; 50 if absent.
    #[serde(default, deserialize_with = "whole_number")]
    #[schema(maximum = 100)]
    pub page_size: u32,
    /// `next_page_token` of the previous answer; absent for the first page.
    #[serde(default)]
    pub page_token: String,
}

/// A page of a caller's limits and their current usage.
#[derive(Debug, Serialize, ToSchema)]
pub struct ListedBody {
    /// Why the list is empty: the key is invalid, or the client address is blocked. Absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<ReasonBody>,
    pub resources: Vec<ResourceLimitsBody>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_page_token: Option<String>,
    /// The time by the clock of the counters' store, or of the node if no counter was read, RFC 3339.
    pub decided_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// When the block of the client address ends, if that is the reason, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_until: Option<String>,
}

/// The limits of one resource.
#[derive(Debug, Serialize, ToSchema)]
pub struct ResourceLimitsBody {
    /// The name of the resource, or a wildcard.
    pub resource: String,
    /// Empty if the resource is not limited.
    pub quotas: Vec<QuotaBody>,
    /// When the caller's block from this resource ends, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_until: Option<String>,
}
