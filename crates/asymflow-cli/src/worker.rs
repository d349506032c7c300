//! The worker process beside the run: started, watched, and started again when it dies.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;

use crate::error::CliError;
use crate::experiment::WorkerSection;
use crate::machine;

/// What a worker says when it is ready.
#[derive(Clone, Debug, Deserialize)]
struct Ready {
    listening: String,
    fingerprint: Option<String>,
    device: String,
}

/// A worker that serves this run.
#[derive(Debug)]
pub struct WorkerProcess {
    pub address: String,
    /// Fingerprint of its certificate.
    pub fingerprint: Option<String>,
    /// The secret it was started with.
    pub token: String,
    /// Its device, in words.
    pub device: String,
    child: Option<Arc<Mutex<Child>>>,
    identity: Option<PathBuf>,
    stopping: Arc<AtomicBool>,
}

/// Says what happened to the worker.
pub type Tell = Arc<dyn Fn(&str) + Send + Sync>;

#[derive(Clone)]
struct Starter {
    program: PathBuf,
    section: WorkerSection,
    token: String,
    identity: PathBuf,
}

impl Starter {
    fn start(&self, listen: &str) -> Result<(Child, Ready), CliError> {
        let mut command = Command::new(&self.program);
        command.args(["--listen", listen, "--device", &self.section.device, "--exit-with-parent"]);

        command.arg("--identity").arg(&self.identity);
        command.args(["--threads", &self.section.threads.to_string()]);
        if self.section.insecure_plaintext {
            command.arg("--insecure-plaintext");
        }
        let mut child = command
            .env("ASYMFLOW_WORKER_TOKEN", &self.token)
            .envs(machine::KEPT_PAGES)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A Ctrl-C at the terminal is for us; we end the worker when its work is done.
            .process_group(0)
            .spawn()
            .map_err(|e| not_started(&self.program, &e))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            let _ = BufReader::new(stdout).read_line(&mut line);
        }
        match serde_json::from_str(&line) {
            Ok(ready) => Ok((child, ready)),
            Err(_) => {
                let status = child.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
                let message = format!("the worker did not start: {status}");
                Err(CliError::missing(message, "its own message stands above; `cargo xtask doctor` shows the devices"))
            }
        }
    }
}

fn not_started(program: &Path, error: &std::io::Error) -> CliError {
    let message = format!("cannot start {}: {error}", program.display());
    CliError::missing(message, "build it (cargo build --release -p asymflow-worker), or name another by worker.program")
}

impl WorkerProcess {
    /// Starts a worker as `section` says, or takes the one it names. A worker that was started here and
    /// dies is started again at the same address with the same certificate.
    pub fn open(section: &WorkerSection, program: PathBuf, tell: Tell) -> Result<Self, CliError> {
        if let Some(address) = &section.address {
            return Self::existing(section, address);
        }
        let mut token = [0u8; 32];
        getrandom::fill(&mut token)
            .map_err(|e| CliError::missing(format!("no randomness for the worker's token: {e}"), ""))?;
        let token: String = token.iter().map(|b| format!("{b:02x}")).collect();
        // The certificate outlives a worker that dies, so that its successor is recognised.
        let identity = std::env::temp_dir().join(format!("asymflow-worker-{}.pem", &token[..16]));
        let starter = Starter { program, section: section.clone(), token: token.clone(), identity };
        let (child, ready) = starter.start("127.0.0.1:0")?;
        tell(&format!("worker {} listens on {} ({})", child.id(), ready.listening, ready.device));
        let child = Arc::new(Mutex::new(child));
        let stopping = Arc::new(AtomicBool::new(false));
        let identity = starter.identity.clone();
        let (watched, stop, address) = (Arc::clone(&child), Arc::clone(&stopping), ready.listening.clone());
        std::thread::spawn(move || watch(&watched, &stop, &starter, &address, &tell));
        Ok(Self {
            address: ready.listening,
            fingerprint: ready.fingerprint,
            token,
            device: ready.device,
            child: Some(child),
            identity: Some(identity),
            stopping,
        })
    }

    fn existing(section: &WorkerSection, address: &str) -> Result<Self, CliError> {
        let Some(file) = &section.token_file else {
            return Err(CliError::usage("worker.address needs worker.token_file", "name the file with its token"));
        };
        let token = std::fs::read_to_string(file)
            .map_err(|e| CliError::usage(format!("cannot read {}: {e}", file.display()), ""))?;
        Ok(Self {
            address: address.to_owned(),
            fingerprint: section.fingerprint.clone(),
            token: token.trim().to_owned(),
            device: format!("worker at {address}"),
            child: None,
            identity: None,
            stopping: Arc::new(AtomicBool::new(true)),
        })
    }
}

fn watch(child: &Mutex<Child>, stopping: &AtomicBool, starter: &Starter, address: &str, tell: &Tell) {
    while !stopping.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
        let ended = child.lock().unwrap_or_else(PoisonError::into_inner).try_wait();
        let Ok(Some(status)) = ended else { continue };
        if stopping.load(Ordering::Relaxed) {
            return;
        }
        tell(&format!("the worker ended ({status}); starting it again"));
        match starter.start(address) {
            Ok((new, _)) => {
                tell(&format!("worker {} listens on {address} again", new.id()));
                *child.lock().unwrap_or_else(PoisonError::into_inner) = new;
            }
            Err(error) => {
                tell(&error.to_string());
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(child) = &self.child {
            let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
            // Both fail only where it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(identity) = &self.identity {
            // Absent in plaintext.
            let _ = std::fs::remove_file(identity);
        }
    }
}
