//! The gRPC API of Tollgate, generated from `proto/`. The comments of the `.proto` files are its
//! documentation.
//!
//! It may know prost and tonic. It must not know what the messages mean.

mod codec;

use std::fmt;

/// `tollgate.v1`.
#[expect(
    missing_docs,
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::large_enum_variant,
    clippy::allow_attributes_without_reason,
    reason = "generated; the documentation stands in the .proto file"
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
    /// Of an API key only that it is one: it is a secret.
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
