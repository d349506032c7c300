//! The `asymflow` command, with nothing added to what its library has.

use std::process::ExitCode;

fn main() -> ExitCode {
    asymflow_cli::main_with(asymflow_cli::Extensions::default())
}
