//! Writes the manifest template of a plan: JSON on standard input, the template on standard output, and on standard error
//! what gives protection away. The files that exist are hashed. Exit code 2 when the plan makes no manifest.
#![expect(clippy::print_stderr, reason = "a command-line tool talks to its terminal")]

use std::fmt::Display;
use std::fs::File;
use std::io::{Read, Write, stdin, stdout};
use std::path::Path;
use std::process::ExitCode;

use asymflow_enclave::manifest::ManifestSpec;
use ring::digest::{Context, SHA256};

/// No plan is longer.
const PLAN_MAX_BYTES: u64 = 1 << 20;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<(), String> {
    let mut json = String::new();
    stdin().take(PLAN_MAX_BYTES).read_to_string(&mut json).map_err(failed("cannot read the plan"))?;
    let mut spec: ManifestSpec = serde_json::from_str(&json).map_err(failed("the plan is no plan"))?;
    if spec.program_sha256.is_none() {
        spec.program_sha256 = hash_if_there(&spec.program)?;
    }
    for file in spec.trusted_files.iter_mut().filter(|file| file.sha256.is_none()) {
        file.sha256 = hash_if_there(&file.mount.host)?;
    }
    let manifest = spec.render().map_err(failed("the plan makes no manifest"))?;
    manifest.insecure().iter().for_each(|option| eprintln!("INSECURE {option}"));
    stdout().write_all(manifest.text().as_bytes()).map_err(failed("cannot write the manifest"))
}

fn failed<E: Display>(what: &str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}

/// The SHA-256 of a file as hexadecimal digits; `None` where there is no such file on this machine.
fn hash_if_there(path: &str) -> Result<Option<String>, String> {
    if !Path::new(path).is_file() {
        return Ok(None);
    }
    let cannot = failed("cannot read a trusted file");
    let mut file = File::open(path).map_err(&cannot)?;
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk).map_err(&cannot)? {
            0 => break,
            read => context.update(chunk.get(..read).unwrap_or_default()),
        }
    }
    Ok(Some(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()))
}
