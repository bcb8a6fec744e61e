//! A reservation in JSON.

use serde::Serialize;
use tollgate_core::time::Timestamp;
use utoipa::ToSchema;

/// An admitted call that waits for its settlement.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReservationBody {
    /// Keep it secret like a key: anyone who knows it can settle the reservation.
    id: String,
    /// When it expires, RFC 3339: its slots are freed, and what it charged stays charged.
    expires_at: String,
}

impl ReservationBody {
    pub(super) fn of(id: &str, ends_at: Timestamp) -> Self {
        Self { id: id.to_owned(), expires_at: ends_at.to_string() }
    }
}
