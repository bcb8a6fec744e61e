//! Generates the API from `proto/`, with a compiler in Rust, so that no `protoc` need be installed.

use std::{error::Error, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let files = protox::compile([root.join("tollgate/v1/rate_limit.proto")], [&root])?;
    let descriptors = PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(descriptors, files.encode_to_vec())?;
    // A call has few units and attributes: ordered maps of those cost less than hashed ones. What most answers are without
    // is boxed, so that they are moved for less. The Debug of callers is in lib.rs, where it prints no secret.
    tonic_prost_build::configure()
        .btree_map(".")
        .boxed(".tollgate.v1.QuotaStatus.details")
        .boxed(".tollgate.v1.Decision.rendered")
        .boxed(".tollgate.v1.Decision.reservation")
        .skip_debug([".tollgate.v1.Caller"])
        .codec_path("crate::codec::Codec")
        .compile_fds(files)?;
    Ok(())
}
