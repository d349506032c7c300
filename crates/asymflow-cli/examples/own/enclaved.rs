//! The trusted part of `own_command`. It stands beside that as `asymflow-enclaved`.

mod registry;

use std::process::ExitCode;

fn main() -> ExitCode {
    asymflow_enclaved::main_with(&registry::registry())
}
