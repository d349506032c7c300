//! Builds the processes of a deployment.

use anyhow::Result;

use crate::failure::{FAILED, Failure, INTERRUPTED};
use crate::process;
use crate::workspace::Workspace;

/// The command-line process, which knows experiments and reports.
pub const CLI: &str = "asymflow-cli";
/// The process inside the enclave.
pub const ENCLAVED: &str = "asymflow-enclaved";
/// The process beside the accelerator.
pub const WORKER: &str = "asymflow-worker";
/// One of the two servers on secret shares.
pub const SERVER: &str = "asymflow-server";

/// The name of the CLI's binary.
pub const CLI_BINARY: &str = "asymflow";

/// Builds `packages` in one go, so that what several of them link is compiled once. The features of each then hold for all:
/// what is to be measured as an enclave is built by itself.
pub fn build(workspace: &Workspace, packages: &[&str], worker_features: &[String]) -> Result<u8> {
    let is_first = !workspace.binary(WORKER).is_file() && packages.contains(&WORKER);
    if is_first {
        eprintln!("the first build takes about 8 minutes on two cores; later builds take seconds");
    }
    let mut cargo = process::cargo();
    cargo.current_dir(workspace.root()).args(["build", "--release"]);
    for &package in packages {
        if !workspace.has(package) {
            anyhow::bail!(Failure::Usage(format!("the workspace has no package {package}")));
        }
        cargo.args(["--package", package]);
    }
    if packages.contains(&WORKER) {
        cargo.args(worker_features.iter().map(|feature| format!("--features={WORKER}/{feature}")));
    }
    Ok(match process::run(&mut cargo)? {
        code @ (0 | INTERRUPTED) => code,
        _ => FAILED,
    })
}

/// Builds what computes on ciphertexts.
pub fn build_cipher(workspace: &Workspace) -> Result<u8> {
    let mut cargo = process::cargo();
    cargo
        .current_dir(workspace.root())
        .args(["build", "--release", "--manifest-path"])
        .arg(workspace.cipher_manifest());
    process::run(cargo.arg("--target-dir").arg(workspace.cipher_target()))
}
