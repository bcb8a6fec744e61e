//! The gRPC API of Tollgate, generated from `proto/`. The comments of the `.proto` files are its
//! documentation.

mod codec;

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
    tonic::include_proto!("tollgate.v1");
}

/// The compiled descriptors of all files, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
