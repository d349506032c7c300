//! `cargo xtask bench`.

use anyhow::{Result, bail};
use clap::Args;

use crate::failure::{FAILED, Failure, INTERRUPTED};
use crate::nearest::nearest;
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

/// The package that holds the benches.
const PACKAGE: &str = "asymflow-benches";

/// Runs the benches, each in its own process.
pub fn run(workspace: &Workspace, args: &BenchArgs) -> Result<u8> {
    let mut cargo = process::cargo();
    cargo.current_dir(workspace.root()).args(["bench", "--package", PACKAGE]);
    // By name: `--benches` would also start the library's own harness, which does not know criterion's flags.
    for bench in chosen(workspace, args.bench.as_deref())? {
        cargo.args(["--bench", bench]);
    }
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

fn chosen<'a>(workspace: &'a Workspace, wanted: Option<&'a str>) -> Result<Vec<&'a str>> {
    let targets = workspace.packages.iter().filter(|package| package.name == PACKAGE).flat_map(|p| &p.targets);
    let benches: Vec<&str> =
        targets.filter(|target| target.kind.iter().any(|kind| kind == "bench")).map(|t| t.name.as_str()).collect();
    let Some(wanted) = wanted else {
        return Ok(benches);
    };
    if benches.contains(&wanted) {
        return Ok(vec![wanted]);
    }
    let hint = match nearest(wanted, benches.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("there are: {}", benches.join(", ")),
    };
    bail!(Failure::Usage(format!("unknown bench `{wanted}`\nhelp: {hint}")))
}
