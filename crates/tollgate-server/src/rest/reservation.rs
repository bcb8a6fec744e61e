//! The JSON body of a reservation.

use tollgate_api::json::reservation::ReservationBody;
use tollgate_core::time::Timestamp;

pub(super) fn reservation(id: &str, ends_at: Timestamp) -> ReservationBody {
    ReservationBody { id: id.to_owned(), expires_at: ends_at.to_string() }
}
