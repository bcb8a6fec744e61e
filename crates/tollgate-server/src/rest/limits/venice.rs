//! A caller's limits in the format of the Venice API's own endpoint, with some additional fields.

use indexmap::IndexMap;
use serde::Serialize;
use tollgate_core::{
    amount::Limit,
    time::Timestamp,
    window::{CalendarUnit, CalendarWindow},
};
use tollgate_policy::decision::Decision;
use tollgate_service::{directory::Identity, domains::Domain};
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct VeniceLimits {
    data: Limits,
}

/// A caller's limits.
#[expect(clippy::struct_field_names, reason = "the document's names")]
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Limits {
    /// False while an abuse rule blocks the key from every resource.
    access_permitted: bool,
    api_tier: ApiTier,
    /// The account's balances by currency.
    #[schema(value_type = std::collections::HashMap<String, f64>)]
    balances: IndexMap<String, f64>,
    /// When the key expires, RFC 3339; `null` if never.
    key_expiration: Option<String>,
    /// The next midnight, UTC.
    next_epoch_begins: String,
    rate_limits: Vec<ResourceBody>,
    /// The time by the clock of the counters' store, or of the node if no counter was read, RFC 3339.
    decided_at: String,
    /// When the last of the caller's blocks from these resources ends, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_until: Option<String>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ApiTier {
    id: String,
    is_charged: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ResourceBody {
    api_model_id: String,
    /// Empty if the resource is not limited.
    rate_limits: Vec<LimitBody>,
    /// When the caller's block from this resource ends, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_until: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct LimitBody {
    amount: u64,
    /// `RPM`, `TPM`, `RPD` …
    r#type: String,
    used: u64,
    /// The amount that could be admitted now.
    remaining: u64,
    /// When the current usage no longer counts, RFC 3339.
    resets_at: String,
    /// Whether the quota is a shadow: it refuses nothing yet.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    shadow: bool,
}

impl VeniceLimits {
    pub(super) fn of(
        (identity, domain): (&Identity, &Domain),
        resources: &[(&str, Decision<'_>)],
        decided_at: Timestamp,
        next: Option<String>,
    ) -> Option<Self> {
        let tier = domain.policy.tier(identity.account.tier)?;
        let blocks = || resources.iter().filter_map(|(_, decision)| decision.block);
        let data = Limits {
            access_permitted: !blocks()
                .any(|block| block.rule.scope.attributes().iter().all(|attribute| attribute.name() != "resource")),
            api_tier: ApiTier { id: tier.name.to_string(), is_charged: tier.is_charged },
            balances: identity.account.balances.clone(),
            key_expiration: identity.key.as_ref().and_then(|key| key.expires_at).map(|time| time.to_string()),
            next_epoch_begins: next_midnight(decided_at).to_string(),
            rate_limits: resources
                .iter()
                .map(|(name, decision)| ResourceBody {
                    api_model_id: (*name).to_owned(),
                    rate_limits: limit_bodies(decision),
                    blocked_until: decision.block.map(|block| block.until.to_string()),
                })
                .collect(),
            decided_at: decided_at.to_string(),
            blocked_until: blocks().map(|block| block.until).max().map(|until| until.to_string()),
            next_cursor: next,
        };
        Some(Self { data })
    }
}

fn limit_bodies(decision: &Decision<'_>) -> Vec<LimitBody> {
    let visible = decision.quotas.iter().filter(|status| status.quota.visible);
    let limited = visible.filter_map(|status| match status.limit {
        Limit::Finite(limit) => Some((status, limit)),
        Limit::Unlimited => None,
    });
    let body = limited.map(|(status, limit)| LimitBody {
        amount: limit.get(),
        r#type: status.quota.label.to_string(),
        used: status.used.get(),
        remaining: status.remaining().unwrap_or(limit).get(),
        resets_at: status.resets_at.to_string(),
        shadow: status.quota.shadow,
    });
    body.collect()
}

fn next_midnight(now: Timestamp) -> Timestamp {
    CalendarWindow::new(CalendarUnit::Day, "UTC").map_or(now, |day| day.period_at(now).end)
}
