//! Generates the code of the gRPC API from `proto/`, with a compiler in Rust, so that no `protoc` need be installed:
//!
//!     cargo run -p tollgate-api --example generate
//!
//! The generated code is checked in, because the generator takes long to compile. A test compares both.

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

/// Writes the messages, the services, and the descriptors for server reflection into `folder`.
fn generate(folder: &Path) -> Result<(), Box<dyn Error>> {
    let root = crate_folder().join("../../proto");
    let files = protox::compile([root.join("tollgate/v1/rate_limit.proto")], [&root])?;
    std::fs::write(folder.join("descriptors.bin"), files.encode_to_vec())?;
    // Ordered maps are faster than hash maps for the few units and attributes of a call. Rare fields of responses are
    // boxed, so that moving a response costs less. The `Debug` of callers is in lib.rs, because it must not print
    // secrets.
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
            let is_current = read(fresh.path()) == read(&checked_in);
            assert!(is_current, "{name:?} is out of date: cargo run -p tollgate-api --example generate");
        }
    }
}
