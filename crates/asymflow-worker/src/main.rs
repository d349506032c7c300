//! The worker with the backends of this workspace.

use std::process::ExitCode;

use asymflow_worker::{Backends, main_with};

fn main() -> ExitCode {
    main_with(&Backends::standard())
}
