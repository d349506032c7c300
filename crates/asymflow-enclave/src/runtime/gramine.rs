//! Gramine: the enclave program in an SGX enclave, or under the same library without SGX.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::launch::{Availability, EnclaveSpec, LaunchError, Streams, TrustedRuntime, TrustedSession};
use crate::Assurance;
use crate::codes;
use crate::probe::{Machine, Need};

/// How much of what Gramine says last is kept to be explained.
const SAID_MAX_BYTES: usize = 16 << 10;

/// Runs the enclave program under Gramine.
#[derive(Clone, Debug)]
pub struct Gramine {
    program: &'static str,
    /// Path of the manifest without its extension.
    app: PathBuf,
    extensions: &'static [&'static str],
    needs: &'static [Need],
    assurance: Assurance,
    machine: Machine,
}

impl Gramine {
    /// Under `gramine-direct`, the program of the manifest `app.manifest`, given as the path `app`: the same system calls and
    /// manifest as in an enclave, and none of its protection. For tests.
    pub fn direct(app: impl Into<PathBuf>) -> Self {
        Self {
            program: "gramine-direct",
            app: app.into(),
            extensions: &["manifest"],
            needs: &[Need::Direct],
            assurance: Assurance::Simulated,
            machine: Machine::this(),
        }
    }

    /// In an SGX enclave, the program of the signed manifest `app.manifest.sgx` with its signature `app.sig`, given as the path
    /// `app`. Until a client has verified its quote, nobody knows that it is one.
    pub fn sgx(app: impl Into<PathBuf>) -> Self {
        Self {
            program: "gramine-sgx",
            app: app.into(),
            extensions: &["manifest.sgx", "sig"],
            needs: &[Need::Run],
            assurance: Assurance::Isolated,
            machine: Machine::this(),
        }
    }

    /// Refuses a manifest whose enclave cannot hold what is planned; its size is fixed when it is signed.
    fn check_size(&self, spec: &EnclaveSpec) -> Result<(), LaunchError> {
        let path = with_extension(&self.app, "manifest");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        match (spec.peak_bytes, enclave_bytes(&text)) {
            (Some(peak_bytes), Some(enclave_bytes)) if peak_bytes > enclave_bytes => {
                Err(LaunchError::TooSmall { path, enclave_bytes, peak_bytes })
            }
            _ => Ok(()),
        }
    }
}

impl TrustedRuntime for Gramine {
    fn name(&self) -> &'static str {
        self.program
    }

    fn probe(&self) -> Availability {
        match self.machine.first_missing(self.needs) {
            None => Availability::Ready,
            Some(probe) => Availability::Missing {
                what: format!("{} ({})", probe.what, probe.detail),
                fix: probe.fix.unwrap_or_default().to_owned(),
            },
        }
    }

    fn assurance(&self) -> Assurance {
        self.assurance
    }

    fn launch(&self, spec: &EnclaveSpec) -> Result<Box<dyn TrustedSession>, LaunchError> {
        if let Availability::Missing { what, fix } = self.probe() {
            return Err(LaunchError::Missing { what, fix });
        }
        for path in self.extensions.iter().map(|extension| with_extension(&self.app, extension)) {
            if !path.is_file() {
                let fix =
                    "make it with `cargo xtask enclave manifest`, and `cargo xtask enclave sign` for SGX".to_owned();
                return Err(LaunchError::Missing { what: path.display().to_string(), fix });
            }
        }
        self.check_size(spec)?;
        let (folder, name) = match (self.app.parent(), self.app.file_name()) {
            (Some(folder), Some(name)) if spec.program.file_name() == Some(name) => (folder, name),
            _ => return Err(LaunchError::OtherProgram { program: spec.program.clone(), app: self.app.clone() }),
        };
        if !spec.arguments.is_empty() || !spec.environment.is_empty() {
            return Err(LaunchError::Measured { app: self.app.clone() });
        }
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let mut child = Command::new(self.program)
            .arg(name)
            .current_dir(folder)
            .env_clear()
            .env("PATH", &self.machine.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // As for `Sim`: a Ctrl-C at the terminal is for the host.
            .process_group(0)
            .spawn()
            .map_err(|error| LaunchError::Start { program: self.program.into(), error })?;
        let listener = child.stderr.take().map(Listener::start);
        Ok(Box::new(Session { child, listener }))
    }
}

/// Size of the enclave that a manifest makes, where it names one.
fn enclave_bytes(manifest: &str) -> Option<u64> {
    let (_, value) = manifest.lines().filter_map(|line| line.split_once('=')).find(|(key, _)| {
        let key = key.trim();
        key == "enclave_size" || key.ends_with(".enclave_size")
    })?;
    let value = value.trim().trim_matches(['"', '\'']);
    let (number, shift) = [("K", 10), ("M", 20), ("G", 30), ("T", 40)]
        .into_iter()
        .find_map(|(unit, shift)| Some((value.strip_suffix(unit)?, shift)))
        .unwrap_or((value, 0));
    number.parse::<u64>().ok()?.checked_shl(shift)
}

fn with_extension(app: &Path, extension: &str) -> PathBuf {
    let mut path = OsString::from(app);
    path.push(".");
    path.push(extension);
    path.into()
}

/// Passes on what Gramine and the program say, and keeps the end of it.
#[derive(Debug)]
pub(super) struct Listener {
    said: Arc<Mutex<VecDeque<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    fn start(mut stderr: ChildStderr) -> Self {
        let said = Arc::new(Mutex::new(VecDeque::new()));
        let keep = said.clone();
        let thread = std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(read @ 1..) = stderr.read(&mut chunk) {
                let new = chunk.get(..read).unwrap_or_default();
                // Where our own standard error is closed, nobody wants to hear it.
                let _ = std::io::stderr().write_all(new);
                let Ok(mut said) = keep.lock() else { return };
                said.extend(new);
                let excess = said.len().saturating_sub(SAID_MAX_BYTES);
                said.drain(..excess);
            }
        });
        Self { said, thread: Some(thread) }
    }

    /// What a program said that has ended.
    fn said(&mut self) -> String {
        if let Some(thread) = self.thread.take() {
            // A thread that has panicked has kept what it heard until then.
            let _ = thread.join();
        }
        let said = self.said.lock().map(|said| said.iter().copied().collect::<Vec<_>>());
        String::from_utf8_lossy(&said.unwrap_or_default()).into_owned()
    }
}

/// A child process, and where it is Gramine's what it says.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) child: Child,
    pub(super) listener: Option<Listener>,
}

impl TrustedSession for Session {
    fn streams(&mut self) -> Option<Streams> {
        let (to, from) = (self.child.stdin.take()?, self.child.stdout.take()?);
        Some((Box::new(to), Box::new(from)))
    }

    fn wait(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait()
    }

    fn kill(&mut self) -> std::io::Result<()> {
        self.child.kill()
    }

    fn failure(&mut self) -> Option<LaunchError> {
        let status = self.child.try_wait().ok().flatten()?;
        if status.success() {
            return None;
        }
        explained(&self.listener.as_mut()?.said())
    }
}

/// The first line that says why Gramine ended, explained.
fn explained(said: &str) -> Option<LaunchError> {
    let of_line = |line: &str| {
        let code = codes::explain(line)?;
        let (what, fix) = (code.sentence.to_owned(), code.fix.to_owned());
        Some(LaunchError::Runtime { said: line.trim().to_owned(), what, fix })
    };
    // What the program says is not Gramine's, and a line of numbers is no error.
    said.lines().filter(|line| line.to_ascii_lowercase().contains("error")).find_map(of_line)
}

impl Drop for Session {
    fn drop(&mut self) {
        // Both fail only where the program has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_here_is_named_before_anything_is_started() {
        let mut runtime = Gramine::sgx("app");
        runtime.machine = Machine { root: "no-such-folder".into(), path: OsString::new() };
        assert!(matches!(runtime.probe(), Availability::Missing { what, .. } if what.starts_with("SGX (")));
        let error = runtime.launch(&EnclaveSpec::new("app")).unwrap_err();
        assert!(matches!(error, LaunchError::Missing { fix, .. } if fix.contains("firmware")));
        assert_eq!((runtime.name(), runtime.assurance()), ("gramine-sgx", Assurance::Isolated));
        assert_eq!(Gramine::direct("app").assurance(), Assurance::Simulated);
    }

    /// A folder with a program that stands for `gramine-direct`, and a manifest.
    fn made_up(script: &str) -> (tempfile::TempDir, Gramine) {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("gramine-direct");
        // Written by another process: a child that another test starts meanwhile would hold our file open, and what is open
        // for writing cannot be run.
        let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$2\" && chmod 700 \"$2\"";
        let written = Command::new("sh").args(["-c", write, "sh", script]).arg(&program).status().unwrap();
        assert!(written.success());
        std::fs::write(folder.path().join("app.manifest"), "").unwrap();
        let mut runtime = Gramine::direct(folder.path().join("app"));
        let path = std::env::var_os("PATH").unwrap();
        let folders = std::iter::once(folder.path().to_owned()).chain(std::env::split_paths(&path));
        runtime.machine.path = std::env::join_paths(folders).unwrap();
        (folder, runtime)
    }

    #[test]
    fn the_program_is_started_in_the_folder_of_its_manifest_and_spoken_to() {
        let (_folder, runtime) = made_up("echo \"$1 in $(ls *.manifest)\"; cat");
        let mut session = runtime.launch(&EnclaveSpec::new("anywhere/app")).unwrap();
        let (mut to, mut from) = session.streams().unwrap();
        to.write_all(b"hello").unwrap();
        drop(to);
        let mut heard = String::new();
        from.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "app in app.manifest\nhello");
        assert!(session.wait().unwrap().success());
        assert!(session.failure().is_none());
    }

    #[test]
    fn what_gramine_says_when_it_fails_is_explained() {
        let (_folder, runtime) = made_up("echo 'error: AESM service returned error 46' >&2; exit 1");
        let mut session = runtime.launch(&EnclaveSpec::new("app")).unwrap();
        session.wait().unwrap();
        let failure = session.failure().unwrap();
        assert_eq!(
            failure.to_string(),
            "aesmd has lost its quoting enclave (SGX_QL_ENCLAVE_LOST) (error: AESM service returned error 46)"
        );
        let (_folder, silent) = made_up("echo 57372; echo 57372 >&2; exit 1");
        let mut session = silent.launch(&EnclaveSpec::new("app")).unwrap();
        session.wait().unwrap();
        assert!(session.failure().is_none());
    }

    #[test]
    fn however_much_is_said_only_the_end_is_kept() {
        let (_folder, runtime) = made_up("head -c 40000 /dev/zero >&2; echo >&2; echo 'error 0xe019' >&2; exit 1");
        let mut session = runtime.launch(&EnclaveSpec::new("app")).unwrap();
        session.wait().unwrap();
        assert!(matches!(session.failure(), Some(LaunchError::Runtime { said, .. }) if said == "error 0xe019"));
    }

    #[test]
    fn an_enclave_that_is_too_small_for_the_plan_is_not_started() {
        let (folder, runtime) = made_up("true");
        let manifest = folder.path().join("app.manifest");
        std::fs::write(&manifest, "loader.argv = [\"app\"]\n[sgx]\nenclave_size = \"512M\"\n").unwrap();
        let spec = |mib: u64| EnclaveSpec { peak_bytes: Some(mib << 20), ..EnclaveSpec::new("app") };
        let error = runtime.launch(&spec(513)).unwrap_err();
        assert!(matches!(error, LaunchError::TooSmall { enclave_bytes, .. } if enclave_bytes == 512 << 20), "{error}");
        assert!(runtime.launch(&spec(512)).is_ok());
        assert_eq!(enclave_bytes("sgx.enclave_size = \"2G\""), Some(2 << 30));
        assert_eq!(enclave_bytes("sgx.enclave_size = 'many'\nsgx.max_threads = 4"), None);
    }

    #[test]
    fn what_the_manifest_says_cannot_be_said_again() {
        let (folder, runtime) = made_up("true");
        let mut spec = EnclaveSpec::new("app");
        spec.arguments.push("--more".into());
        assert!(matches!(runtime.launch(&spec), Err(LaunchError::Measured { .. })));
        assert!(matches!(runtime.launch(&EnclaveSpec::new("other")), Err(LaunchError::OtherProgram { .. })));
        std::fs::remove_file(folder.path().join("app.manifest")).unwrap();
        let error = runtime.launch(&EnclaveSpec::new("app")).unwrap_err();
        assert!(matches!(error, LaunchError::Missing { what, .. } if what.ends_with("app.manifest")));
    }
}
