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
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use args::Command;
use asymflow::job::FailureCode;
use asymflow::modes::Registry;
use asymflow::serve::{JobRules, report_failure};

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
        Command::Job { policy } => return job(policy.as_deref(), registry),
        Command::Serve(args) => serving::serve(&args, registry),
        Command::Plan(args) => serving::plan(&args, registry),
        Command::SealModel { model, state } => model::seal(&model, &state, registry),
        Command::Deal(args) => dealing::deal(args),
    };
    done.map_or_else(|error| report(&error, 1), |()| ExitCode::SUCCESS)
}

/// Serves one job. Whatever goes wrong is told to the host in a frame: Gramine writes standard error to standard output, where it
/// would stand among them.
fn job(policy: Option<&Path>, registry: &Registry) -> ExitCode {
    let panicked = Arc::new(Mutex::new(String::new()));
    let keep = Arc::clone(&panicked);
    std::panic::set_hook(Box::new(move |panic| {
        *keep.lock().unwrap_or_else(PoisonError::into_inner) = panic.to_string();
    }));
    let mut host = BufWriter::new(stdout());
    let served = catch_unwind(AssertUnwindSafe(|| {
        let rules = rules(policy)?;
        Ok::<_, anyhow::Error>(asymflow::serve::serve(stdin(), &mut host, registry, &rules, &state::open_vault)?)
    }));
    let (code, detail) = match served {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(error)) => (FailureCode::Job, format!("{error:#}")),
        Err(_) => (
            FailureCode::Host,
            format!("the trusted part: {}", panicked.lock().unwrap_or_else(PoisonError::into_inner)),
        ),
    };
    // A host that is gone hears nothing.
    let _ = report_failure(&mut host, code, detail);
    ExitCode::FAILURE
}

/// Without a policy an enclave does no job, and what is no enclave does whatever its host asks for.
fn rules(policy: Option<&Path>) -> Result<JobRules> {
    match policy {
        Some(path) => {
            let named = || path.display().to_string();
            let text = std::fs::read(path).with_context(named)?;
            Ok(JobRules::Measured(serde_json::from_slice(&text).with_context(named)?))
        }
        // A program that cannot simulate evidence is for enclaves, wherever it believes to be.
        None if cfg!(feature = "simulated") && evidence::runtime() != evidence::SGX => Ok(JobRules::Host),
        None => Ok(JobRules::Missing),
    }
}

fn report(error: &anyhow::Error, code: u8) -> ExitCode {
    let _ = writeln!(stderr(), "error: {error:#}");
    ExitCode::from(code)
}
