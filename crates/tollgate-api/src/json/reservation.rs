//! Reservations and their ends.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    call::CallBody,
    entries::Entries,
    number::{WholeNumber, whole_number, whole_number_or_null},
};

/// A call whose usage is known only afterwards.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReserveBody {
    /// For units that its `usage` does not name, the policy's estimate is reserved.
    pub call: CallBody,
    /// Inputs of the estimates, such as the length of the prompt and `max_tokens`; at most 16.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, u64>)]
    pub inputs: Entries<WholeNumber>,
    /// Lifetime of the reservation unless it is extended; the node's default if absent (10 minutes).
    #[serde(default, deserialize_with = "whole_number")]
    #[schema(minimum = 1000, maximum = 3_600_000)]
    pub ttl_ms: u32,
}

/// The settlement of a reservation with the actual usage.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SettleBody {
    pub reservation_id: String,
    /// The actual usage by unit; 0 is allowed. Units that are not named keep the reserved amount, and so do `requests`.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, u64>)]
    pub usage: Entries<WholeNumber>,
    /// The HTTP status that the call was answered with, for the abuse rules of the policy.
    #[serde(default, deserialize_with = "whole_number_or_null")]
    #[schema(minimum = 100, maximum = 599)]
    pub status: Option<u32>,
}

/// The cancellation of a reservation, which gives everything back.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelBody {
    pub reservation_id: String,
    /// As for a settlement.
    #[serde(default, deserialize_with = "whole_number_or_null")]
    #[schema(minimum = 100, maximum = 599)]
    pub status: Option<u32>,
}

/// The extension of a reservation.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtendBody {
    pub reservation_id: String,
    /// Its lifetime from now on; the original lifetime if absent.
    #[serde(default, deserialize_with = "whole_number")]
    #[schema(minimum = 1000, maximum = 3_600_000)]
    pub ttl_ms: u32,
}

/// The end of a reservation.
#[derive(Debug, Serialize, ToSchema)]
pub struct SettlementBody {
    /// The time by the clock of the counters' store, RFC 3339.
    pub settled_at: String,
    /// All units that were reserved or used.
    pub units: Vec<SettledUnitBody>,
    /// Whether the reservation had already ended like this, so that the first answer is repeated.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub replayed: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct SettledUnitBody {
    pub unit: String,
    pub reserved: u64,
    /// The amount that is charged now.
    pub actual: u64,
    /// The largest amount given back in one of the windows.
    pub returned: u64,
    /// The usage above the reservation, charged at the settlement.
    pub debt: u64,
}

/// An admitted call that waits for its settlement.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReservationBody {
    /// Keep it secret like a key: anyone who knows it can settle the reservation.
    pub id: String,
    /// When it expires, RFC 3339: its slots are freed, and what it charged stays charged.
    pub expires_at: String,
}
