//! The experiments: finding them, and handing them to the `asymflow` command.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::binaries::{self, CLI, CLI_BINARY, ENCLAVED, WORKER};
use crate::failure::Failure;
use crate::nearest::nearest;
use crate::process;
use crate::table::table;
use crate::workspace::Workspace;

const DEMO: &str = "demo";
const CIPHER_DEMO: &str = "cipher-demo";
/// What a newcomer may try after the demo.
pub const NEXT: [(&str, &str); 5] = [
    ("cargo xtask report --html", "a page of all runs: accuracy against trusted time, epochs, what was rebuilt"),
    ("cargo xtask explain epsilon demo", "what each ε promises, and to whom"),
    ("cargo xtask run audit", "what attacks get out of each mode (minutes)"),
    ("cargo xtask demo --cipher", "a network answered on ciphertexts as well"),
    ("cargo xtask list", "all experiments, each with the claim that it tests"),
];

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Folder with the data sets; without it the demo uses what is built in
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print events as JSON lines
    #[arg(long)]
    json: bool,
    /// Features to build the worker with, such as `wgpu`
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    worker_features: Vec<String>,
    /// Also classify on ciphertexts; builds asymflow-cipher, which links a library under BSD-3-Clause-Clear: it grants no patents
    #[arg(long)]
    cipher: bool,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// A name from `list`, or a path to a TOML file
    pub experiment: String,
    /// Override a key of the experiment
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Folder with the data sets
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The short form of the experiment: CPU, simulated enclave, under a minute
    #[arg(long)]
    smoke: bool,
    /// Resolve and validate the configuration and estimate the cost, then stop
    #[arg(long)]
    dry_run: bool,
    /// Repeat with this many seeds
    #[arg(long, value_name = "N")]
    seeds: Option<u32>,
    /// Print events as JSON lines
    #[arg(long)]
    json: bool,
    /// Features to build the worker with, such as `wgpu`
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    worker_features: Vec<String>,
}

/// Arguments of `resume`.
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// The folder of the run
    run: PathBuf,
    /// Override a key of `[worker]` that cannot change a result
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print events as JSON lines
    #[arg(long)]
    json: bool,
    /// Features to build the worker with, such as `wgpu`
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    worker_features: Vec<String>,
}

/// Arguments of `show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// A name from `list`, or a path to a TOML file
    pub experiment: String,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// `epsilon`, `model` or `memory`
    what: String,
    /// A name from `list`, or a path to a TOML file
    pub experiment: String,
    /// Set a key, e.g. --set delta.views=4; may be given often
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Arguments of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Run folders; all of them without this
    runs: Vec<PathBuf>,
    /// Write nothing and fail when the committed report is stale
    #[arg(long)]
    check: bool,
    /// Write the trade-off page of all results to this file
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "trade-off.html", conflicts_with = "check")]
    html: Option<PathBuf>,
}

/// What `list` shows of an experiment file.
#[derive(Debug, Deserialize)]
struct Heading {
    schema: u32,
    title: String,
    claim: String,
    kind: String,
}

pub fn demo(workspace: &Workspace, args: &DemoArgs) -> Result<u8> {
    if args.cipher {
        match binaries::build_cipher(workspace)? {
            0 => {}
            code => return Ok(code),
        }
    }
    for name in [DEMO].into_iter().chain(args.cipher.then_some(CIPHER_DEMO)) {
        let mut words = vec!["run".into(), find(workspace, name)?];
        push_path(&mut words, "--data", args.data.as_deref())?;
        if args.json {
            words.push("--json".into());
        }
        match build_and_call(workspace, &[ENCLAVED, WORKER, CLI], &args.worker_features, &words)? {
            0 => {}
            code => return Ok(code),
        }
    }
    if !args.json {
        println!("\nNext:");
        NEXT.iter().for_each(|(command, what)| println!("  {command:<34}{what}"));
    }
    Ok(0)
}

pub fn run(workspace: &Workspace, args: &RunArgs) -> Result<u8> {
    let mut words = vec!["run".into(), find(workspace, &args.experiment)?];
    for assignment in &args.set {
        words.extend(["--set".into(), assignment.into()]);
    }
    push_path(&mut words, "--data", args.data.as_deref())?;
    if let Some(seeds) = args.seeds {
        words.extend(["--seeds".into(), seeds.to_string().into()]);
    }
    for (flag, is_set) in [("--smoke", args.smoke), ("--dry-run", args.dry_run), ("--json", args.json)] {
        if is_set {
            words.push(flag.into());
        }
    }
    let packages: &[&str] = if args.dry_run { &[CLI] } else { &[ENCLAVED, WORKER, CLI] };
    build_and_call(workspace, packages, &args.worker_features, &words)
}

/// Goes on with a run.
pub fn resume(workspace: &Workspace, args: &ResumeArgs) -> Result<u8> {
    let mut words = vec!["resume".into(), from_here(&args.run)?];
    for assignment in &args.set {
        words.extend(["--set".into(), assignment.into()]);
    }
    if args.json {
        words.push("--json".into());
    }
    build_and_call(workspace, &[ENCLAVED, WORKER, CLI], &args.worker_features, &words)
}

pub fn list(workspace: &Workspace) -> Result<u8> {
    let mut rows = Vec::new();
    for path in all(workspace)? {
        let heading = read_heading(&path)?;
        rows.push(vec![name_of(&path), heading.kind, heading.title, heading.claim]);
    }
    print!("{}", table(&["experiment", "kind", "title", "claim"], &rows));
    Ok(0)
}

pub fn show(workspace: &Workspace, args: &ShowArgs) -> Result<u8> {
    let words = vec!["show".into(), find(workspace, &args.experiment)?];
    build_and_call(workspace, &[CLI], &[], &words)
}

pub fn explain(workspace: &Workspace, args: &ExplainArgs) -> Result<u8> {
    let mut words = vec!["explain".into(), args.what.clone().into(), find(workspace, &args.experiment)?];
    for item in &args.set {
        words.extend(["--set".into(), item.into()]);
    }
    build_and_call(workspace, &[CLI], &[], &words)
}

pub fn report(workspace: &Workspace, args: &ReportArgs) -> Result<u8> {
    let mut words = vec!["report".into()];
    for run in &args.runs {
        words.push(from_here(run)?);
    }
    if args.check {
        words.push("--check".into());
    }
    if let Some(file) = &args.html {
        words.extend(["--html".into(), from_here(file)?]);
    }
    build_and_call(workspace, &[CLI], &[], &words)
}

fn build_and_call(
    workspace: &Workspace,
    packages: &[&str],
    worker_features: &[String],
    words: &[PathBuf],
) -> Result<u8> {
    match binaries::build(workspace, packages, worker_features)? {
        0 => process::run(asymflow(workspace).args(words)),
        code => Ok(code),
    }
}

/// The built `asymflow` command, to run in the root of the workspace, where `runs/` lies. It finds `asymflow-cipher` if that was built.
pub fn asymflow(workspace: &Workspace) -> Command {
    let mut command = Command::new(workspace.binary(CLI_BINARY));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([workspace.cipher_target().join("release")]);
    if let Ok(path) = std::env::join_paths(folders) {
        command.env("PATH", path);
    }
    command.current_dir(workspace.root());
    command
}

/// The experiment files, sorted by name.
pub fn all(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let dir = workspace.root().join("xtask/experiments");
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The file name without its extension.
pub fn name_of(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The path of an experiment given by name or path, relative to the root where it lies below it.
pub fn find(workspace: &Workspace, experiment: &str) -> Result<PathBuf> {
    let known = all(workspace)?;
    if let Some(path) = known.iter().find(|path| name_of(path) == experiment) {
        return Ok(path.strip_prefix(workspace.root()).unwrap_or(path).to_owned());
    }
    if Path::new(experiment).is_file() {
        return from_here(Path::new(experiment));
    }
    let names: Vec<String> = known.iter().map(|path| name_of(path)).collect();
    let hint = match nearest(experiment, names.iter().map(String::as_str)) {
        Some(name) => format!("did you mean `{name}`?"),
        None => "`cargo xtask list` shows what there is".to_owned(),
    };
    bail!(Failure::Usage(format!("unknown experiment `{experiment}`\nhelp: {hint}")))
}

fn read_heading(path: &Path) -> Result<Heading> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let heading: Heading =
        toml::from_str(&text).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
    if heading.schema != 1 {
        bail!(Failure::Usage(format!("{}: schema {} is unknown, this build reads 1", path.display(), heading.schema)));
    }
    Ok(heading)
}

fn push_path(words: &mut Vec<PathBuf>, flag: &str, path: Option<&Path>) -> Result<()> {
    if let Some(path) = path {
        words.extend([flag.into(), from_here(path)?]);
    }
    Ok(())
}

/// `path` as an absolute path when it exists from where the user stands, else as it is: the child runs in
/// the root of the workspace.
fn from_here(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        return std::path::absolute(path).with_context(|| format!("cannot resolve {}", path.display()));
    }
    Ok(path.to_owned())
}
