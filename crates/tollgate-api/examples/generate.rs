//! Generates the code of the gRPC API from `proto/`, with a compiler in Rust, so that no `protoc` need be installed:
//!
//!     cargo run -p tollgate-api --example generate
//!
//! The result is checked in, as compiling the generator takes longer than compiling what it generates. A test compares both.

use std::{
    error::Error,
    path::{Path, PathBuf},
};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    generate(&crate_folder().join("src/generated"))
}

fn crate_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Writes the messages and services, and the descriptors that server reflection answers with, into `folder`.
fn generate(folder: &Path) -> Result<(), Box<dyn Error>> {
    let root = crate_folder().join("../../proto");
    let files = protox::compile([root.join("tollgate/v1/rate_limit.proto")], [&root])?;
    std::fs::write(folder.join("descriptors.bin"), files.encode_to_vec())?;
    // A call has few units and attributes: ordered maps of those cost less than hashed ones. What most answers are without
    // is boxed, so that they are moved for less. The Debug of callers is in lib.rs, where it prints no secret.
    tonic_prost_build::configure()
        .out_dir(folder)
        .btree_map(".")
        .boxed(".tollgate.v1.QuotaStatus.details")
        .boxed(".tollgate.v1.Decision.rendered")
        .boxed(".tollgate.v1.Decision.reservation")
        .skip_debug([".tollgate.v1.Caller"])
        .codec_path("crate::codec::Codec")
        .client_mod_attribute(".", "#[cfg(feature = \"client\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        .compile_fds(files)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_code_is_what_the_proto_files_generate() {
        let fresh = tempfile::tempdir().unwrap();
        generate(fresh.path()).unwrap();
        let checked_in = crate_folder().join("src/generated");
        let names = |folder: &Path| {
            let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
            entries.collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(names(fresh.path()), names(&checked_in));
        for name in names(&checked_in) {
            let read = |folder: &Path| std::fs::read(folder.join(&name)).unwrap();
            let same = read(fresh.path()) == read(&checked_in);
            assert!(same, "{name:?} is out of date: cargo run -p tollgate-api --example generate");
        }
    }
}
