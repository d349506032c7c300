//! Networks of squares on ciphertexts: what one costs, what it answers, and a server and a client of it.

mod classify;
mod evaluate;
mod explain;
mod keys;
mod protocol;
mod serve;
mod source;

use std::io::{Read, Write};
use std::process::ExitCode;

use anyhow::{Context, Error, Result};
use asymflow_cipher::{CipherError, CompileError};
use clap::{Parser, Subcommand};

/// Networks of squares on ciphertexts of one server.
#[derive(Debug, Parser)]
#[command(name = "asymflow-cipher", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
    /// Threads; 0 takes one a core
    #[arg(long, global = true, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=4096))]
    threads: u16,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print what a query takes, before anything is computed
    Explain(explain::Args),
    /// Answer test images encrypted, and compare every answer with the exact integers
    Evaluate(evaluate::Args),
    /// Compute on what clients encrypted; prints one line of JSON when it is ready
    Serve(serve::Args),
    /// Ask a server about images, without its seeing them
    Classify(classify::Args),
}

/// What to do about an error.
#[derive(Debug)]
struct Help(&'static str);

impl std::fmt::Display for Help {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&format!("error: {}\nhelp: {}", line(&error), help(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let threads = usize::from(args.threads);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("cannot start threads")?;
    match &args.command {
        Command::Explain(args) => explain::run(args),
        Command::Evaluate(args) => evaluate::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Classify(args) => classify::run(args),
    }
}

/// An error and its causes in one line, without the remedy.
fn line(error: &Error) -> String {
    let remedy = error.downcast_ref::<Help>().map(ToString::to_string);
    let causes = error.chain().map(ToString::to_string).filter(|cause| Some(cause) != remedy.as_ref());
    let mut causes: Vec<String> = causes.collect();
    causes.dedup();
    causes.join(": ")
}

fn help(error: &Error) -> &'static str {
    if let Some(Help(remedy)) = error.downcast_ref::<Help>() {
        return remedy;
    }
    let compile = error.downcast_ref::<CompileError>().or(match error.downcast_ref::<CipherError>() {
        Some(CipherError::Program(error)) => Some(error),
        _ => None,
    });
    match compile {
        Some(CompileError::Unsupported { .. }) => {
            "train the network again with what is named, e.g. `model.names = [\"NAME+react\"]`"
        }
        Some(CompileError::Depth { .. }) => {
            "`asymflow-cipher explain` says what a network takes; `--packing throughput` takes one square more"
        }
        Some(CompileError::Size { .. }) => "try `--packing throughput`",
        Some(CompileError::Range(_)) => "fewer bits by `--input-bits` and `--weight-bits` need less",
        Some(
            CompileError::Coefficient { .. }
            | CompileError::Program(_)
            | CompileError::Network(_)
            | CompileError::Weights(_)
            | CompileError::Reference(_),
        ) => "the weights must be those of a finished training of this network",
        None => "`asymflow-cipher help` lists commands and arguments",
    }
}

/// One line of JSON on stdout.
fn print(line: &serde_json::Value) -> Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).context("cannot write to stdout")
}

/// Reads stdin to its end, which comes when every holder of the other end is gone.
fn exit_with_stdin() {
    let _ = std::io::copy(&mut std::io::stdin().by_ref(), &mut std::io::sink());
    std::process::exit(0);
}

/// Diagnostics go to stderr; a closed stderr is no reason to stop.
fn report(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
