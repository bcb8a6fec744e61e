//! The wire types of Tollgate's API: gRPC messages and services, generated from `proto/` (their documentation is
//! there), and the JSON bodies of REST ([`json`]).
//!
//! It may depend on prost, tonic, serde and utoipa. It contains no logic: the front doors convert the messages.

mod codec;
mod details;
#[expect(missing_docs, reason = "the names of undocumented fields are clear")]
pub mod json;

use std::fmt;

pub use details::{rendered_in, status_details};

/// `tollgate.v1`.
#[expect(
    missing_docs,
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::large_enum_variant,
    clippy::allow_attributes_without_reason,
    reason = "generated; the documentation is in the .proto file"
)]
pub mod v1 {
    include!("generated/tollgate.v1.rs");
}

impl fmt::Debug for v1::Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("by", &self.by).finish()
    }
}

impl fmt::Debug for v1::caller::By {
    /// Omits the secret of an API key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ApiKey(_) => f.write_str("ApiKey(…)"),
            Self::ApiKeyId(id) => f.debug_tuple("ApiKeyId").field(id).finish(),
            Self::Account(id) => f.debug_tuple("Account").field(id).finish(),
        }
    }
}

/// The compiled descriptors of all files, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("generated/descriptors.bin");
