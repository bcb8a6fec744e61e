//! A reservation in JSON.

use serde::Serialize;
use tollgate_core::time::Timestamp;
use utoipa::ToSchema;

/// What was admitted and awaits its settlement.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReservationBody {
    /// To be kept secret like a key: whoever knows it may settle it.
    id: String,
    /// When it ends by itself, RFC 3339: its slots return, and what it charged stays.
    expires_at: String,
}

impl ReservationBody {
    pub(super) fn of(id: &str, ends_at: Timestamp) -> Self {
        Self { id: id.to_owned(), expires_at: ends_at.to_string() }
    }
}
