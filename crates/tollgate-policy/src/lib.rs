//! Policies: the content of one platform's policy file, and the values that are computed from it.
//!
//! [`mod@format`] has the types of a policy file, and [`mod@file`] reads them. [`LoadedPolicy::parse`] checks all of a file at once.
//! [`Policy`] is compiled from it: a lookup from a call to its claims. [`decision`] merges the answers of a store into one
//! decision about a call, and [`dialect`] renders the decision as the response that the platform's customers see.
//!
//! It may know `tollgate-core`, serde, and the crates that read YAML and JSON Schema. It must not know a socket, a file
//! system, a clock, a store, or a protocol: texts come in, values go out.

pub mod api_key;
mod claim_set;
pub mod decision;
pub mod dialect;
pub mod file;
pub mod format;
mod loaded;
mod policy;
pub mod reason;
pub mod redaction;
pub mod uploads;

pub use claim_set::ClaimSet;
pub use loaded::LoadedPolicy;
pub use policy::*;
