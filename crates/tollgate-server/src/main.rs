//! The binary; its code is in the library.

use std::process::ExitCode;

/// A call allocates in several places; `tests/bench-node` shows the gain over the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tollgate_server::cli::main()
}
