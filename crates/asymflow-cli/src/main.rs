#![doc = include_str!("../README.md")]

mod budget_experiment;
mod client;
mod delta_section;
mod entry;
mod error;
mod experiment;
mod explain;
mod folder;
mod host;
mod machine;
mod memory;
mod plot;
mod progress;
mod report;
mod run;
mod serve_experiment;
mod shares_experiment;
mod summary;
mod tables;
mod worker;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};

use crate::error::{CliError, Exit};
use crate::host::Stopper;
use crate::run::{Interrupt, Outcome};

/// Runs and trains networks split between a trusted part and an untrusted accelerator.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run an experiment file
    Run(run::Args),
    /// Print an experiment resolved, its claim, and its split layer by layer
    Show {
        /// The experiment file
        experiment: PathBuf,
        /// Set a key, e.g. --set train.epochs=3
        #[arg(long = "set", value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
    /// Print the epsilon over time under every accountant, or the split layer by layer
    Explain(explain::Args),
    /// Ask a service about images, once it has proven what it is
    #[command(subcommand)]
    Client(client::Command),
    /// Write some of the built-in test images as PNG files
    Samples {
        /// The folder to write them into
        folder: PathBuf,
        /// How many
        #[arg(long, default_value_t = 10)]
        count: usize,
        /// Seed of the built-in set
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Render results into tables and plots
    Report(report::Args),
    /// List the networks of the zoo
    Models,
    /// List the modes
    Modes,
}

/// Writes a result to stdout; a closed stdout is no reason to fail.
fn print(text: &str) {
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

fn main() -> ExitCode {
    match execute(Cli::parse()) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::ClaimFailed) => ExitCode::from(Exit::Failed as u8),
        Ok(Outcome::Interrupted) => ExitCode::from(Exit::Interrupted as u8),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::from(error.exit() as u8)
        }
    }
}

fn execute(cli: Cli) -> Result<Outcome, CliError> {
    match cli.command {
        Command::Run(args) => run::run(&args, interrupts()?),
        Command::Show { experiment, set } => {
            let experiment = experiment::read(&experiment, false, &set)?;
            print(&tables::dry_run(&experiment)?);
            Ok(Outcome::Done)
        }
        Command::Explain(args) => {
            print(&explain::explain(&args)?);
            Ok(Outcome::Done)
        }
        Command::Client(command) => {
            client::execute(command)?;
            Ok(Outcome::Done)
        }
        Command::Samples { folder, count, seed } => {
            client::samples(&folder, count, seed)?;
            Ok(Outcome::Done)
        }
        Command::Report(args) => {
            report::report(&args)?;
            Ok(Outcome::Done)
        }
        Command::Models => {
            print(&asymflow_zoo::models::names().map(|name| format!("{name}\n")).collect::<String>());
            Ok(Outcome::Done)
        }
        Command::Modes => {
            print(&tables::modes());
            Ok(Outcome::Done)
        }
    }
}

/// The first Ctrl-C lets the job finish its step and leave a checkpoint; the second ends everything.
fn interrupts() -> Result<Interrupt, CliError> {
    let asked = Arc::new(AtomicBool::new(false));
    let stopper = Stopper::default();
    let interrupt = Interrupt { asked: Arc::clone(&asked), stopper: Arc::clone(&stopper) };
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(Exit::Interrupted as i32);
        }
        let _ = writeln!(std::io::stderr(), "stopping after this step; Ctrl-C again to end at once");
        host::stop(&stopper);
    })
    .map_err(|e| CliError::failed(format!("cannot handle Ctrl-C: {e}"), ""))?;
    Ok(interrupt)
}
