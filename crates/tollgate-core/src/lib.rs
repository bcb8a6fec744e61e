//! The decision engine: amounts, windows, claims, the algorithm that decides them, reservations, and the port to the
//! counters ([`store`]).
//!
//! It may use no other crate of Tollgate. It must not know I/O, a clock (every function that depends on the time takes
//! it as an argument), a lock, serde, a policy, or a protocol.

pub mod admission;
pub mod amount;
pub mod api_key;
pub mod claim;
pub mod ledger;
mod log;
pub mod records;
pub mod reservation;
mod slots;
pub mod store;
pub mod text;
pub mod time;
pub mod window;

pub use log::{EXACT_ENTRIES, MOST_ENTRIES, MOST_SET_ASIDE};
