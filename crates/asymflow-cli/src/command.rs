//! The command line.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use clap::{Parser, Subcommand};

use crate::error::{CliError, Exit};
use crate::experiment::read;
use crate::extensions::Extensions;
use crate::kind::Outcome;
use crate::output::print;
use crate::run::Interrupt;
use crate::{client, explain, host};

mod report;
mod run;

/// Runs and trains networks split between a trusted part and an untrusted accelerator.
#[derive(Debug, Parser)]
#[command(name = "asymflow", version)]
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
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        count: u32,
        /// Seed of the built-in set
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Render results into tables and plots
    Report(report::Args),
    /// List the networks
    Models,
    /// List the modes
    Modes,
}

/// The whole command line, with what `extensions` adds. A program of one's own is this and what it registers.
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     asymflow_cli::main_with(asymflow_cli::Extensions::default())
/// }
/// ```
pub fn main_with(extensions: Extensions) -> ExitCode {
    match execute(Cli::parse(), &extensions) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::ClaimFailed) => ExitCode::from(Exit::Failed as u8),
        Ok(Outcome::Interrupted) => ExitCode::from(Exit::Interrupted as u8),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::from(error.exit() as u8)
        }
    }
}

fn execute(cli: Cli, extensions: &Extensions) -> Result<Outcome, CliError> {
    match cli.command {
        Command::Run(args) => return run::run(&args, extensions, interrupts()?),
        Command::Show { experiment, set } => {
            let experiment = extensions.with_registered(|known| read(&experiment, false, &set, known))?;
            print(&run::estimate(&experiment, extensions)?)?;
        }
        Command::Explain(args) => {
            let experiment = extensions.with_registered(|known| read(&args.experiment, false, &args.set, known))?;
            print(&explain::explain(args.what, &experiment)?)?;
        }
        Command::Client(command) => client::execute(command)?,
        Command::Samples { folder, count, seed } => client::samples(&folder, count as usize, seed)?,
        Command::Report(args) => report::report(&args, extensions)?,
        Command::Models => print(&extensions.network_names().map(|name| format!("{name}\n")).collect::<String>())?,
        Command::Modes => print(&extensions.mode_names().map(|name| format!("{name}\n")).collect::<String>())?,
    }
    Ok(Outcome::Done)
}

/// The first Ctrl-C lets the job finish its step and leave a checkpoint; the second ends everything.
fn interrupts() -> Result<Interrupt, CliError> {
    let interrupt = Interrupt::default();
    let (asked, stopper) = (Arc::clone(&interrupt.asked), Arc::clone(&interrupt.stopper));
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
