//! The binary. All it does is in the library.

use std::process::ExitCode;

/// A call allocates here and there, often on one thread and freed on another; see `tests/bench-node` for what
/// this one saves over the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tollgate_server::cli::main()
}
