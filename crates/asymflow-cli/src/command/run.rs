//! `asymflow run`: starts a run, or goes on with one.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use asymflow_enclave::runtime::TrustedRuntime;
use serde::Serialize;

use crate::error::CliError;
use crate::experiment::{Experiment, read, read_run};
use crate::extensions::Extensions;
use crate::folder::{Folder, STATUS};
use crate::host::runtime;
use crate::kind::Outcome;
use crate::machine;
use crate::output::print;
use crate::progress::Output;
use crate::run::{Interrupt, Run};

/// The most seeds of one run.
const MOST_SEEDS: u64 = 1000;

/// Flags of `asymflow run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The experiment file
    experiment: PathBuf,
    /// Set a key, e.g. --set train.epochs=3; may be given often
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// A data set on disk instead of the experiment's
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The small form: CPU, simulated enclave, under a minute
    #[arg(long)]
    smoke: bool,
    /// Show what would run and what it would cost, and end
    #[arg(long)]
    dry_run: bool,
    /// Run seeds 1 to N
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// Events and results as JSON
    #[arg(long)]
    json: bool,
    /// Folder that run folders are made in
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
}

/// Flags of `asymflow resume`.
#[derive(Debug, clap::Args)]
pub struct ResumeArgs {
    /// The folder of the run, from wherever it is called
    run: PathBuf,
    /// Set a key of [worker] that cannot change a result, e.g. --set worker.threads=4; may be given often
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Show what would run and what it would cost, and end
    #[arg(long)]
    dry_run: bool,
    /// Events and results as JSON
    #[arg(long)]
    json: bool,
}

/// What a run folder keeps of how it was started.
#[derive(Serialize)]
struct Kept<'a> {
    /// Name of the experiment.
    name: &'a str,
    #[serde(flatten)]
    experiment: &'a Experiment,
}

pub fn run(args: &Args, extensions: &Extensions, interrupt: Interrupt) -> Result<Outcome, CliError> {
    let (name, mut experiment) = told(args, extensions)?;
    if args.dry_run {
        return dry_run(&experiment, extensions);
    }
    check_networks(&experiment)?;
    extensions.kind_named(&experiment.kind)?;
    let runtime = runtime(&experiment.trusted)?;
    let folder = start(&args.runs, &name, &mut experiment)?;
    execute((name, experiment), (folder, runtime), Output { json: args.json }, extensions, interrupt)
}

/// Goes on with the jobs of a run that are not done, as they were told at its start.
pub fn resume(args: &ResumeArgs, extensions: &Extensions, interrupt: Interrupt) -> Result<Outcome, CliError> {
    let (name, experiment) = extensions.with_registered(|known| read_run(&args.run, &args.set, known))?;
    if args.dry_run {
        return dry_run(&experiment, extensions);
    }
    check_networks(&experiment)?;
    let runtime = runtime(&experiment.trusted)?;
    let folder = Folder::existing(&args.run)?;
    execute((name, experiment), (folder, runtime), Output { json: args.json }, extensions, interrupt)
}

fn dry_run(experiment: &Experiment, extensions: &Extensions) -> Result<Outcome, CliError> {
    check_networks(experiment)?;
    print(&estimate(experiment, extensions)?)?;
    print("`asymflow show` prints the settings\n")?;
    Ok(Outcome::Done)
}

/// Runs what a folder is of, alone in it, and leaves there how it ended.
fn execute(
    (name, experiment): (String, Experiment),
    (folder, runtime): (Folder, Box<dyn TrustedRuntime>),
    output: Output,
    extensions: &Extensions,
    interrupt: Interrupt,
) -> Result<Outcome, CliError> {
    let kind = extensions.kind_named(&experiment.kind)?;
    let _claim = folder.claim()?;
    folder.replace(STATUS, b"unfinished")?;
    let run = Run { name, experiment, folder, output, runtime, interrupt, worker: OnceLock::new() };
    let outcome = kind.run(&run);
    let status = match &outcome {
        Ok(Outcome::Done) => "done".to_owned(),
        Ok(Outcome::ClaimFailed) => "claim failed".to_owned(),
        Ok(Outcome::Interrupted) => "interrupted".to_owned(),
        Err(error) => error.to_string(),
    };
    let left = run.folder.replace(STATUS, status.as_bytes());
    outcome.and_then(|outcome| left.map(|()| outcome))
}

/// The experiment that the command line names, and its name.
fn told(args: &Args, extensions: &Extensions) -> Result<(String, Experiment), CliError> {
    let file = args.experiment.as_path();
    let mut set = args.set.clone();
    if let Some(seeds) = args.seeds {
        if !(1..=MOST_SEEDS).contains(&seeds) {
            let message =
                format!("--seeds {seeds}: that is {seeds} runs of every mode, from 1 to {MOST_SEEDS} are possible");
            return Err(CliError::usage(message, format!("for that one seed: --set train.seeds=[{seeds}]")));
        }
        let seeds: Vec<String> = (1..=seeds).map(|seed| seed.to_string()).collect();
        set.push(format!("train.seeds=[{}]", seeds.join(",")));
    }
    let mut experiment = extensions.with_registered(|known| read(file, args.smoke, &set, known))?;
    if let Some(path) = &args.data {
        experiment.data.path = Some(path.clone());
    }
    let name = file.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok((name, experiment))
}

/// Makes the folder of a new run, which holds everything that it needs to be resumed from anywhere.
fn start(runs: &Path, name: &str, experiment: &mut Experiment) -> Result<Folder, CliError> {
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|e| CliError::usage(format!("{}: {e}", path.display()), "name another path"))
    };
    let folder = Folder::of_its_own(&absolute(runs)?, &format!("{}-{name}", machine::timestamp()))?;
    for path in experiment.paths_mut() {
        *path = absolute(path)?;
    }
    if let Some(network) = experiment.network_of_file()? {
        folder.replace("network.json", network.as_bytes())?;
        experiment.model.file = Some(folder.path().join("network.json"));
    }
    let kept = toml::to_string(&Kept { name, experiment })
        .map_err(|e| CliError::failed(format!("cannot write the configuration: {e}"), ""))?;
    folder.replace("config.toml", kept.as_bytes())?;
    Ok(folder)
}

/// Every network in every mode, before anything is started.
fn check_networks(experiment: &Experiment) -> Result<(), CliError> {
    for name in &experiment.model.names {
        experiment.network(name)?;
        for &entry in &experiment.entries {
            let network = experiment.network(&entry.model(name))?;
            let mode = experiment.mode_spec(entry, name)?;
            let refused = |e: asymflow::modes::ModeError| CliError::usage(format!("{name}: {e}"), "");
            let (terms, records) = (experiment.terms(), experiment.data.train.unwrap_or(usize::MAX));
            mode.check(&experiment.facts(&network, &terms, records)).map_err(refused)?;
        }
    }
    Ok(())
}

/// What would run and what it would cost.
fn estimate(experiment: &Experiment, extensions: &Extensions) -> Result<String, CliError> {
    let kind = extensions.kind_named(&experiment.kind)?;
    experiment.model.names.iter().map(|name| kind.estimate(experiment, name)).collect()
}

/// The settings with everything that the file leaves out, and [`estimate`].
pub fn resolved(experiment: &Experiment, extensions: &Extensions) -> Result<String, CliError> {
    let settings = toml::to_string(experiment)
        .map_err(|e| CliError::failed(format!("cannot print the configuration: {e}"), ""))?;
    Ok(settings + &estimate(experiment, extensions)?)
}
