//! The binary. All it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    tollgate_server::cli::main()
}
