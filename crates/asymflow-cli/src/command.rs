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

mod export;
mod import;
mod report;
mod run;
mod runs;

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
    /// Go on with a run, as it was told at its start
    Resume(run::ResumeArgs),
    /// List the runs and how far each came
    List {
        /// Folder that run folders are in
        #[arg(long, default_value = "runs", value_name = "DIR")]
        runs: PathBuf,
    },
    /// Print a run folder's results and how far it came; or an experiment resolved, its claim, and its split layer by layer
    Show {
        /// The run folder, or the experiment file
        experiment: PathBuf,
        /// Set a key of an experiment, e.g. --set train.epochs=3
        #[arg(long = "set", value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
    /// Print the epsilon over time under every accountant, or the split layer by layer
    Explain(explain::Args),
    /// Write the weights of a run as ONNX, PyTorch or safetensors
    Export(export::Args),
    /// Make a network and weights for experiments of an ONNX file
    Import(import::Args),
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
        Command::Resume(args) => return run::resume(&args, extensions, interrupts()?),
        Command::List { runs } => print(&runs::list(&runs)?)?,
        Command::Show { experiment, .. } if experiment.is_dir() => print(&runs::show(&experiment)?)?,
        Command::Show { experiment, set } => {
            let experiment = extensions.with_registered(|known| read(&experiment, false, &set, known))?;
            print(&run::resolved(&experiment, extensions)?)?;
        }
        Command::Explain(args) => {
            let experiment = extensions.with_registered(|known| read(&args.experiment, false, &args.set, known))?;
            print(&explain::explain(args.what, &experiment)?)?;
        }
        Command::Export(args) => extensions.with_registered(|known| export::export(&args, known.registry))?,
        Command::Import(args) => import::import(&args)?,
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

#[cfg(test)]
mod tests {
    use std::any::TypeId;

    use clap::CommandFactory;

    use super::*;

    /// Every flag that takes a number, with the commands before it and the arguments that the last of them needs.
    fn numbers(command: &clap::Command, before: &[String], found: &mut Vec<(Vec<String>, String)>) {
        let types = [TypeId::of::<u8>(), TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>()];
        let more = [TypeId::of::<usize>(), TypeId::of::<f64>(), TypeId::of::<f32>(), TypeId::of::<i64>()];
        let mut needed = before.to_vec();
        let is_needed =
            |arg: &&clap::Arg| arg.is_required_set() || ["account", "experiment"].contains(&arg.get_id().as_str());
        for arg in command.get_arguments().filter(is_needed) {
            needed.extend(arg.get_long().map(|long| format!("--{long}")));
            let values = arg.get_possible_values();
            needed.push(values.first().map_or("/dev/null/x", |value| value.get_name()).to_owned());
        }
        for arg in command.get_arguments() {
            let kind = arg.get_value_parser().type_id();
            if let Some(long) = arg.get_long().filter(|_| types.iter().chain(&more).any(|&number| kind == number)) {
                found.push((needed.clone(), format!("--{long}")));
            }
        }
        for sub in command.get_subcommands() {
            let path = [before, &[sub.get_name().to_owned()]].concat();
            numbers(sub, &path, found);
        }
    }

    #[test]
    fn no_number_of_a_flag_does_harm() {
        let values = [
            "-1",
            "0",
            "1",
            "-0",
            "0.5",
            "1e-300",
            "1e300",
            "nan",
            "inf",
            "-inf",
            "4294967296",
            "9223372036854775807",
            "18446744073709551615",
            "18446744073709551616",
            "1e400",
            "",
            "x",
        ];
        let mut found = Vec::new();
        numbers(&Cli::command(), &[], &mut found);
        let mut refused = 0;
        for (needed, flag) in &found {
            for value in values {
                let arguments = [&["asymflow".to_owned()][..], needed, &[format!("{flag}={value}")]].concat();
                let outcome = match Cli::try_parse_from(&arguments) {
                    Err(_) => None,
                    // Its handler of signals is one a process.
                    Ok(Cli { command: Command::Run(args) }) => {
                        Some(run::run(&args, &Extensions::default(), Interrupt::default()).map(drop))
                    }
                    Ok(cli) => Some(execute(cli, &Extensions::default()).map(drop)),
                };
                refused += usize::from(outcome.is_none());
                // Nothing is at the paths and addresses named: only a load that nobody answers is measured all the same.
                let is_load = needed.contains(&"load".to_owned());
                assert!(is_load || outcome.is_none_or(|outcome| outcome.is_err()), "{arguments:?}");
            }
        }
        println!("{} flags, {} values, {refused} refused when read", found.len(), found.len() * values.len());
        assert!(found.len() >= 8, "{found:?}");
    }
}
