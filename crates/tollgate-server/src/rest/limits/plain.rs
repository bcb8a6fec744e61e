//! A caller's limits in Tollgate's own format.

use serde::Serialize;
use tollgate_api::json::decision::QuotaBody;
use tollgate_core::time::Timestamp;
use tollgate_policy::decision::Decision;
use tollgate_service::{directory::Identity, domains::Domain};
use utoipa::ToSchema;

use super::super::decide::quota;

/// A caller's limits and their current usage.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PlainLimits {
    account: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key_id: Option<String>,
    /// When the key expires, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key_expires_at: Option<String>,
    tier: String,
    /// From 1 (low) to 4 (critical).
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u8>,
    resources: Vec<PlainResource>,
    /// The active blocks.
    blocks: Vec<PlainBlock>,
    /// The time by the clock of the counters' store, or of the node if no counter was read, RFC 3339.
    decided_at: String,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct PlainResource {
    /// The name, or a wildcard.
    resource: String,
    /// Empty if the resource is not limited.
    quotas: Vec<QuotaBody>,
}

#[derive(Debug, Serialize, ToSchema)]
struct PlainBlock {
    resource: String,
    /// The abuse rule.
    rule: String,
    /// RFC 3339.
    until: String,
    message: String,
}

impl PlainLimits {
    pub(super) fn of(
        (identity, domain): (&Identity, &Domain),
        resources: &[(&str, Decision<'_>)],
        decided_at: Timestamp,
        next: Option<String>,
    ) -> Option<Self> {
        let tier = domain.policy.tier(identity.account.tier)?;
        let blocks = resources.iter().filter_map(|(resource, decision)| {
            let block = decision.block?;
            Some(PlainBlock {
                resource: (*resource).to_owned(),
                rule: block.rule.name.to_string(),
                until: block.until.to_string(),
                message: block.message(decided_at),
            })
        });
        let blocks = blocks.collect();
        let resource_body = |(resource, decision): &(&str, Decision<'_>)| PlainResource {
            resource: (*resource).to_owned(),
            quotas: decision.quotas.iter().filter(|status| status.quota.visible).map(quota).collect(),
        };
        Some(Self {
            account: identity.account.id.to_string(),
            api_key_id: identity.key.as_ref().map(|key| key.id.to_string()),
            api_key_expires_at: identity.key.as_ref().and_then(|key| key.expires_at).map(|time| time.to_string()),
            tier: tier.name.to_string(),
            priority: tier.priority,
            resources: resources.iter().map(resource_body).collect(),
            blocks,
            decided_at: decided_at.to_string(),
            next_cursor: next,
        })
    }
}
