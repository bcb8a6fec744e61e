//! The last refusals of each account. [`memory`] is the embedded default; [`redis`] is shared by any number of
//! nodes, and outlives them.

pub mod memory;
pub mod redis;

use std::{pin::Pin, time::Duration};

use serde::{Deserialize, Serialize};
use tollgate_core::{claim::Partition, store::StoreError};

/// So many refusals of an account are kept.
pub const MAX_REFUSALS: usize = 50;
/// How long they are kept after the last one.
pub const RETENTION: Duration = Duration::from_hours(30 * 24);

/// A call that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The id of the key that it came by, if it came by one.
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The called resource.
    #[serde(rename = "r")]
    pub resource: String,
    /// The tier of the account at that time.
    #[serde(rename = "t")]
    pub tier: String,
    /// The label of the quota that refused, such as `RPM`.
    #[serde(rename = "q")]
    pub label: String,
    /// When, by the clock of the counters' store: milliseconds since 1970.
    #[serde(rename = "at")]
    pub at_ms: u64,
}

/// The future of one answer.
pub type RefusalFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Keeps the last [`MAX_REFUSALS`] refusals of each account, for [`RETENTION`].
///
/// An answer, or an error, comes within a bound that the store states. After an error it is not known whether
/// refusals were added.
pub trait RefusalLog: Send + Sync + 'static {
    /// Adds refusals of one account, oldest first; those of one call are consecutive.
    fn append<'a>(&'a self, account: Partition, refusals: &'a [Refusal]) -> RefusalFuture<'a, ()>;

    /// The account's refusals, newest first.
    fn latest(&self, account: Partition) -> RefusalFuture<'_, Vec<Refusal>>;
}
