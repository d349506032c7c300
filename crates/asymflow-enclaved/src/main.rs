#![doc = include_str!("../README.md")]

mod args;
mod door;
mod evidence;
mod executor;
mod listen;
mod model;
mod serving;
mod state;

use std::io::{BufWriter, Write, stderr, stdin, stdout};
use std::process::ExitCode;

use args::Command;
use asymflow::memory::heap::CountingAllocator;

/// Says at the end how much heap was held at most.
#[global_allocator]
static HEAP: CountingAllocator = CountingAllocator;

/// Exit code of bad usage.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let command = match args::parse(lexopt::Parser::from_env()) {
        Ok(command) => command,
        Err(error) => return report(&error, USAGE),
    };
    let done = match command {
        Command::Help => {
            let _ = stdout().write_all(args::HELP.as_bytes());
            Ok(())
        }
        Command::Job => {
            asymflow::serve::serve(stdin(), BufWriter::new(stdout()), &state::open_vault).map_err(Into::into)
        }
        Command::Serve(args) => serving::serve(&args),
        Command::Plan(args) => serving::plan(&args),
        Command::SealModel { model, state } => model::seal(&model, &state),
    };
    done.map_or_else(|error| report(&error, 1), |()| ExitCode::SUCCESS)
}

fn report(error: &anyhow::Error, code: u8) -> ExitCode {
    let _ = writeln!(stderr(), "error: {error:#}");
    ExitCode::from(code)
}
