//! The decision engine of Tollgate: quotas, windows, policies, claims, decisions, and the port to
//! the counters. It has no I/O and no clock: every function that depends on the time takes it.

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

pub use log::{EXACT_ENTRIES, MOST_ENTRIES};
