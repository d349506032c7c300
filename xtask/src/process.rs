//! Child processes that receive the user's interrupt.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use crate::failure::{Failure, INTERRUPTED};

/// Process group of the running child, 0 when there is none.
static CHILD: AtomicU32 = AtomicU32::new(0);
static TERMINATES: AtomicBool = AtomicBool::new(false);
static WAS_INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Passes SIGINT, SIGTERM and SIGHUP on to the running child as an interrupt and waits for it.
///
/// Children run in a process group of their own, so that they get exactly one interrupt whether it comes
/// from the terminal or from `kill`: a second one would mean "abort".
pub fn handle_interrupts() -> Result<()> {
    ctrlc::set_handler(|| {
        WAS_INTERRUPTED.store(true, Ordering::SeqCst);
        match CHILD.load(Ordering::SeqCst) {
            0 => std::process::exit(i32::from(INTERRUPTED)),
            group => interrupt(group),
        }
    })
    .context("cannot handle interrupts")
}

/// Has the next interrupt reach the child as a termination, which is all that Gramine passes on to what it runs.
pub fn pass_on_as_termination() {
    TERMINATES.store(true, Ordering::SeqCst);
}

fn interrupt(group: u32) {
    let signal = if TERMINATES.load(Ordering::SeqCst) { "-TERM" } else { "-INT" };
    let sent = Command::new("kill").args([signal, "--", &format!("-{group}")]).status();
    if !sent.is_ok_and(|status| status.success()) {
        std::process::exit(i32::from(INTERRUPTED));
    }
}

/// Whether the user has interrupted.
pub fn was_interrupted() -> bool {
    WAS_INTERRUPTED.load(Ordering::SeqCst)
}

/// The cargo that runs us, without what it says of our own package: build scripts that watch these variables (ring's does)
/// would run again whenever cargo is started by us after a plain `cargo build`, or the other way round.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let is_of_package = |name: &OsString| {
        let name = name.to_string_lossy();
        name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
    };
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_package(name)) {
        cargo.env_remove(name);
    }
    cargo
}

/// Starts `command` in a process group of its own.
pub fn spawn(command: &mut Command) -> Result<Child> {
    let child = command.process_group(0).spawn().with_context(|| format!("cannot start {}", shown(command)))?;
    CHILD.store(child.id(), Ordering::SeqCst);
    if was_interrupted() {
        interrupt(child.id());
    }
    Ok(child)
}

/// Waits for a child of [`spawn`] and gives its exit code; 128 + signal when a signal ended it.
pub fn wait(child: &mut Child) -> Result<u8> {
    let status = child.wait().context("cannot wait for the child process")?;
    CHILD.store(0, Ordering::SeqCst);
    if was_interrupted() {
        return Ok(INTERRUPTED);
    }
    Ok(exit_code(status))
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Runs `command` with our terminal and gives its exit code.
pub fn run(command: &mut Command) -> Result<u8> {
    wait(&mut spawn(command)?)
}

/// Runs `command` and gives its standard output; its standard error goes to our terminal.
///
/// # Errors
/// It cannot start or does not exit with 0.
pub fn output(command: &mut Command) -> Result<String> {
    let output = captured(command.stderr(Stdio::inherit()))?;
    if !output.status.success() {
        bail!("{} failed with exit code {}", shown(command), exit_code(output.status));
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} printed something that is not UTF-8", shown(command)))
}

/// Runs `command` and gives what it printed and how it ended.
pub fn captured(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let output = spawn(command)?.wait_with_output().with_context(|| format!("cannot read from {}", shown(command)));
    CHILD.store(0, Ordering::SeqCst);
    if was_interrupted() {
        bail!(Failure::Interrupted);
    }
    output
}

/// The command line as a user would type it.
pub fn shown(command: &Command) -> String {
    let mut words = vec![match command.get_program().to_string_lossy().rsplit_once('/') {
        Some((_, name)) => name.to_owned(),
        None => command.get_program().to_string_lossy().into_owned(),
    }];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Where `program` lies on PATH.
pub fn find_program(program: &str) -> Option<std::path::PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
}
