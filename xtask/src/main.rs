//! `cargo xtask`: builds, tests and checks the workspace and drives the experiments.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool talks to its terminal")]

mod bench;
mod binaries;
mod check;
mod data;
mod doctor;
mod enclave;
mod experiments;
mod failure;
mod lines;
mod nearest;
mod process;
mod source;
mod table;
mod test;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Build automation and the experiment driver of asymflow.
///
/// Exit codes: 0 done (the claim holds), 1 a claim, check or test failed, 2 bad usage or configuration,
/// 3 a required capability is missing, 130 interrupted with valid artefacts.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the main job on built-in data: train, serve, print the comparison table, write the run folder
    Demo(experiments::DemoArgs),
    /// Run every test and every experiment's smoke form, with a table of what was skipped and why
    Test(test::TestArgs),
    /// Check format, layers, modules, links, paths, enclave tree, lints, docs and licences, cheapest first
    Check(check::CheckArgs),
    /// Count the lines of Rust of every crate, without its tests
    Lines,
    /// Report CPU, memory, GPU, SGX, Gramine, data sets and disk, each with its fix
    Doctor(doctor::DoctorArgs),
    /// Run an experiment: a name from `list`, or a path to a TOML file
    Run(experiments::RunArgs),
    /// Go on with a run from its folder, as it was told at its start
    Resume(experiments::ResumeArgs),
    /// List the experiments and the claim that each one tests
    List,
    /// Show the resolved configuration of an experiment
    Show(experiments::ShowArgs),
    /// Explain an experiment: its epsilon over time under every accountant, its split layer by layer, or its memory
    Explain(experiments::ExplainArgs),
    /// Write tables and plots from runs into docs/results
    Report(experiments::ReportArgs),
    /// Run the benches and print their ratios
    Bench(bench::BenchArgs),
    /// Write, sign and measure an enclave's manifest, and start the enclave program
    #[command(subcommand)]
    Enclave(enclave::EnclaveCommand),
    /// Verify or unpack the data sets
    #[command(subcommand)]
    Data(data::DataCommand),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(failure::exit_code(&error))
        }
    }
}

fn run(cli: Cli) -> Result<u8> {
    process::handle_interrupts()?;
    let workspace = Workspace::load()?;
    match cli.command {
        Command::Demo(args) => experiments::demo(&workspace, &args),
        Command::Test(args) => test::run(&workspace, &args),
        Command::Check(args) => check::run(&workspace, &args),
        Command::Lines => lines::run(&workspace),
        Command::Doctor(args) => doctor::run(&workspace, &args),
        Command::Run(args) => experiments::run(&workspace, &args),
        Command::Resume(args) => experiments::resume(&workspace, &args),
        Command::List => experiments::list(&workspace),
        Command::Show(args) => experiments::show(&workspace, &args),
        Command::Explain(args) => experiments::explain(&workspace, &args),
        Command::Report(args) => experiments::report(&workspace, &args),
        Command::Bench(args) => bench::run(&workspace, &args),
        Command::Enclave(command) => enclave::run(&workspace, &command),
        Command::Data(command) => data::run(&workspace, &command),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_demo_proposes_can_be_typed() {
        let workspace = Workspace::load().unwrap();
        for (command, _) in experiments::NEXT {
            let cli = Cli::try_parse_from(command.strip_prefix("cargo ").unwrap().split(' ')).unwrap();
            match cli.command {
                Command::Run(args) => experiments::find(&workspace, &args.experiment).map(drop).unwrap(),
                Command::Explain(args) => experiments::find(&workspace, &args.experiment).map(drop).unwrap(),
                _ => {}
            }
        }
    }
}
