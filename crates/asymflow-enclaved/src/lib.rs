#![doc = include_str!("../README.md")]

mod args;
mod dealing;
mod door;
mod evidence;
mod executor;
mod listen;
mod model;
mod serving;
mod state;

use std::io::{BufWriter, Write, stderr, stdin, stdout};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use args::Command;
use asymflow::modes::Registry;
use asymflow::serve::JobRules;

const USAGE: u8 = 2;

/// The whole program, with everything that `registry` knows by a name. A program of one's own that adds modes, mechanisms or
/// decompositions calls it from its `main`:
///
/// ```no_run
/// use std::process::ExitCode;
///
/// use asymflow::modes::{ModeFamily, Registry};
///
/// fn program(mine: Box<dyn ModeFamily>) -> ExitCode {
///     asymflow_enclaved::main_with(&Registry::default().with_mode(mine))
/// }
/// ```
pub fn main_with(registry: &Registry) -> ExitCode {
    let command = match args::parse(lexopt::Parser::from_env()) {
        Ok(command) => command,
        Err(error) => return report(&error, USAGE),
    };
    let done = match command {
        Command::Help => {
            let _ = stdout().write_all(args::HELP.as_bytes());
            Ok(())
        }
        Command::Job { policy } => job(policy.as_deref(), registry),
        Command::Serve(args) => serving::serve(&args, registry),
        Command::Plan(args) => serving::plan(&args, registry),
        Command::SealModel { model, state } => model::seal(&model, &state, registry),
        Command::Deal(args) => dealing::deal(args),
    };
    done.map_or_else(|error| report(&error, 1), |()| ExitCode::SUCCESS)
}

/// Serves one job. Without a policy an enclave does none, and what is no enclave does whatever its host asks for.
fn job(policy: Option<&Path>, registry: &Registry) -> Result<()> {
    let rules = match policy {
        Some(path) => {
            let named = || path.display().to_string();
            let text = std::fs::read(path).with_context(named)?;
            JobRules::Measured(serde_json::from_slice(&text).with_context(named)?)
        }
        // A program that cannot simulate evidence is for enclaves, wherever it believes to be.
        None if cfg!(feature = "simulated") && evidence::runtime() == evidence::SIM => JobRules::Host,
        None => JobRules::Missing,
    };
    Ok(asymflow::serve::serve(stdin(), BufWriter::new(stdout()), registry, &rules, &state::open_vault)?)
}

fn report(error: &anyhow::Error, code: u8) -> ExitCode {
    let _ = writeln!(stderr(), "error: {error:#}");
    ExitCode::from(code)
}
