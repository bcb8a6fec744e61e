//! `GET /api_keys/rate_limits`: a caller reads its limits and where it stands, in the shape of the Venice
//! API's own endpoint of this name, with what a caller wants besides.

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use tollgate_core::{amount::Limit, decision::Decision, time::Timestamp, window::CalendarUnit, window::CalendarWindow};
use utoipa::{IntoParams, ToSchema};

use super::{Shared, traceparent};
use crate::{
    auth::{Reach, token},
    service::{CallError, CallerRef, Listed, Listing},
    telemetry::traced,
};

const DEFAULT_PAGE: usize = 200;
const LARGEST_PAGE: usize = 500;

/// Which part of the list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// How many resources at most, 1 to 500; 200 if absent.
    limit: Option<usize>,
    /// `nextCursor` of the previous answer.
    cursor: Option<usize>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct LimitsBody {
    data: Limits,
}

/// A caller's limits.
#[expect(clippy::struct_field_names, reason = "the document's names")]
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Limits {
    /// Whether the key may call at all.
    access_permitted: bool,
    api_tier: ApiTier,
    /// What the account has to spend, by currency.
    #[schema(value_type = std::collections::HashMap<String, f64>)]
    balances: IndexMap<String, f64>,
    /// When the key ends, RFC 3339; `null` if it does not.
    key_expiration: Option<String>,
    /// The next midnight, UTC.
    next_epoch_begins: String,
    rate_limits: Vec<ResourceBody>,
    /// The time by the clock of the counters' store, RFC 3339.
    decided_at: String,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<usize>,
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
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct LimitBody {
    amount: u64,
    /// `RPM`, `TPM`, `RPD` …
    r#type: String,
    used: u64,
    /// What could be admitted now.
    remaining: u64,
    /// When nothing of now will count any more, RFC 3339.
    resets_at: String,
    /// Whether nothing is refused by it yet.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    shadow: bool,
}

/// An error as the Venice document has it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PlainError {
    error: String,
}

/// The caller's limits, and where it stands.
#[utoipa::path(get, path = "/api_keys/rate_limits", params(Page), responses(
    (status = 200, description = "The limits of the key and its account", body = LimitsBody),
    (status = 400, description = "The query is wrong", body = PlainError),
    (status = 401, description = "There is no good API key in the Authorization header", body = PlainError),
    (status = 429, description = "The node has more to do than it takes in", body = PlainError),
    (status = 503, description = "The counters cannot be reached within the deadline", body = PlainError),
    (status = 504, description = "The call took too long", body = super::ErrorBody),
))]
pub(super) async fn get_rate_limits(
    State(shared): State<Shared>,
    headers: HeaderMap,
    page: Result<Query<Page>, QueryRejection>,
) -> Response {
    let (skip, take) = match page {
        Ok(Query(Page { limit, cursor })) => (cursor.unwrap_or(0), limit.unwrap_or(DEFAULT_PAGE)),
        Err(rejection) => return plain(StatusCode::BAD_REQUEST, rejection.body_text()),
    };
    if take == 0 || take > LARGEST_PAGE {
        return plain(StatusCode::BAD_REQUEST, format!("limit: must be from 1 to {LARGEST_PAGE}"));
    }
    let Some(secret) = token(&headers) else { return unauthenticated() };
    let listing = Listing {
        within: &Reach::All,
        domain: "",
        caller: CallerRef::Secret(secret),
        attributes: SmallVec::new(),
        skip,
        take,
    };
    match traced(traceparent(&headers), shared.service.list(listing, limits)).await {
        Ok(Some(limits)) => Json(LimitsBody { data: limits }).into_response(),
        // A secret that cannot be one is as good as none.
        Ok(None) | Err(CallError::Invalid(_) | CallError::UnknownDomain { .. } | CallError::Forbidden { .. }) => {
            unauthenticated()
        }
        Err(error @ (CallError::Late | CallError::Store(_))) => plain(error.status().0, error.to_string()),
    }
}

/// The same, where clients of the Venice API expect it.
#[utoipa::path(get, path = "/api/v1/api_keys/rate_limits", params(Page), responses(
    (status = 200, description = "The limits of the key and its account", body = LimitsBody),
    (status = 400, description = "The query is wrong", body = PlainError),
    (status = 401, description = "There is no good API key in the Authorization header", body = PlainError),
    (status = 429, description = "The node has more to do than it takes in", body = PlainError),
    (status = 503, description = "The counters cannot be reached within the deadline", body = PlainError),
    (status = 504, description = "The call took too long", body = super::ErrorBody),
))]
pub(super) async fn get_rate_limits_v1(
    state: State<Shared>,
    headers: HeaderMap,
    page: Result<Query<Page>, QueryRejection>,
) -> Response {
    get_rate_limits(state, headers, page).await
}

fn limits(listed: &Listed<'_>) -> Option<Limits> {
    let Listed::Page { identity, domain, resources, decided_at, next } = listed else { return None };
    let tier = domain.policy.tier(identity.account.tier)?;
    Some(Limits {
        access_permitted: true,
        api_tier: ApiTier { id: tier.name.to_string(), is_charged: tier.is_charged },
        balances: identity.account.balances.clone(),
        key_expiration: identity.key.as_ref().and_then(|key| key.expires_at).map(|at| at.to_string()),
        next_epoch_begins: next_midnight(*decided_at).to_string(),
        rate_limits: resources
            .iter()
            .map(|(name, decision)| ResourceBody {
                api_model_id: (*name).to_owned(),
                rate_limits: of_resource(decision),
            })
            .collect(),
        decided_at: decided_at.to_string(),
        next_cursor: *next,
    })
}

fn of_resource(decision: &Decision<'_>) -> Vec<LimitBody> {
    let limited = decision.quotas.iter().filter_map(|status| match status.limit {
        Limit::Finite(limit) => Some((status, limit)),
        Limit::Unlimited => None,
    });
    let body = limited.map(|(status, limit)| LimitBody {
        amount: limit.get(),
        r#type: status.quota.label.to_string(),
        used: status.used.get(),
        remaining: limit.saturating_sub(status.used).get(),
        resets_at: status.resets_at.to_string(),
        shadow: status.quota.shadow,
    });
    body.collect()
}

fn next_midnight(now: Timestamp) -> Timestamp {
    CalendarWindow::new(CalendarUnit::Day, "UTC").map_or(now, |day| day.period_at(now).end)
}

fn unauthenticated() -> Response {
    plain(StatusCode::UNAUTHORIZED, "Authentication failed".to_owned())
}

fn plain(status: StatusCode, error: String) -> Response {
    (status, Json(PlainError { error })).into_response()
}
