//! The binary. All it does is in the library.

use std::process::ExitCode;

/// A call allocates in several places, often on one thread and freed on another; `tests/bench-node` shows the gain over
/// the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tollgate_server::cli::main()
}
