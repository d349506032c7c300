//! The worker with the devices of PyTorch beside those of its own.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use asymflow_torch::{TorchBackend, TorchDeviceError};
use asymflow_worker::{Backends, main_with};

/// How the threads of OpenMP wait; read when it is loaded, so it has to stand there before this program begins.
const POLICY: &str = "OMP_WAIT_POLICY";

fn main() -> ExitCode {
    if std::env::var_os(POLICY).is_none() {
        // By default they spin, and beside a trusted part on the same cores every wait takes a time slice from it.
        if let Ok(program) = std::env::current_exe() {
            let _without_it_slower =
                Command::new(program).args(std::env::args_os().skip(1)).env(POLICY, "passive").exec();
        }
    }
    main_with(&Backends::standard().with("torch", |which| {
        let device = which.parse().map_err(|error: TorchDeviceError| error.to_string())?;
        Ok(Arc::new(TorchBackend { device }))
    }))
}
