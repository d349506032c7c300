//! `cargo xtask bench`.

use anyhow::Result;
use clap::Args;

use crate::failure::{FAILED, INTERRUPTED};
use crate::process;
use crate::workspace::Workspace;

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// One bench; all of them without this
    bench: Option<String>,
    /// Keep the figures under this name
    #[arg(long, value_name = "NAME", conflicts_with = "against")]
    save: Option<String>,
    /// Compare with the figures kept under this name
    #[arg(long, value_name = "NAME")]
    against: Option<String>,
}

/// Runs the benches, each in its own process.
pub fn run(workspace: &Workspace, args: &BenchArgs) -> Result<u8> {
    let mut cargo = process::cargo();
    cargo.current_dir(workspace.root()).args(["bench", "--package", "asymflow-benches"]);
    match &args.bench {
        Some(bench) => cargo.args(["--bench", bench]),
        None => cargo.arg("--benches"),
    };
    if let Some(name) = &args.save {
        cargo.args(["--", "--save-baseline", name]);
    }
    if let Some(name) = &args.against {
        cargo.args(["--", "--baseline", name]);
    }
    Ok(match process::run(&mut cargo)? {
        code @ (0 | INTERRUPTED) => code,
        _ => FAILED,
    })
}
