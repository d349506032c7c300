//! The folder of a run: written as it goes, valid after a kill.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::CliError;

/// How a run ended, or `unfinished`: one line in its folder.
pub const STATUS: &str = "status";

/// A folder that a run writes into.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

fn disk(path: &Path, error: &std::io::Error) -> CliError {
    let help = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "free some disk space and continue with `asymflow resume`; what was written before is intact"
        }
        _ => "check the folder and its permissions; what was written before is intact",
    };
    CliError::failed(format!("cannot write {}: {error}", path.display()), help)
}

impl Folder {
    /// The folder at `path`, made where it does not exist.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, CliError> {
        let path = path.into();
        fs::create_dir_all(&path).map_err(|e| disk(&path, &e))?;
        Ok(Self { path })
    }

    /// A new folder in `parent`, called `name` or, where there is one of that name, `name-2` and so on.
    pub fn of_its_own(parent: &Path, name: &str) -> Result<Self, CliError> {
        fs::create_dir_all(parent).map_err(|e| disk(parent, &e))?;
        let mut path = parent.join(name);
        for number in 2.. {
            match fs::create_dir(&path) {
                Ok(()) => break,
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    path = parent.join(format!("{name}-{number}"))
                }
                Err(e) => return Err(disk(&path, &e)),
            }
        }
        Ok(Self { path })
    }

    /// A folder that is there.
    pub fn existing(path: &Path) -> Result<Self, CliError> {
        let path = fs::canonicalize(path).map_err(|e| {
            CliError::usage(format!("cannot open {}: {e}", path.display()), "name a folder under runs/")
        })?;
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps other processes from running in this folder for as long as the file is open.
    pub fn claim(&self) -> Result<File, CliError> {
        let file = File::open(&self.path).map_err(|e| disk(&self.path, &e))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let message = format!("{} is being run by another process", self.path.display());
                Err(CliError::usage(message, "wait until it ends, or stop it"))
            }
            // Where a file system has no locks, the user has to know.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
        }
    }

    pub fn inside(&self, name: &str) -> Result<Self, CliError> {
        Self::create(self.path.join(name))
    }

    /// Adds one line of JSON to a file.
    pub fn append(&self, name: &str, line: &impl Serialize) -> Result<(), CliError> {
        let path = self.path.join(name);
        let mut text = serde_json::to_string(line)
            .map_err(|e| CliError::failed(format!("cannot write {}: {e}", path.display()), ""))?;
        text.push('\n');
        self.append_text(name, &text)
    }

    /// Adds text to a file, on a line of its own also where a full disk or a kill left half a line.
    pub fn append_text(&self, name: &str, text: &str) -> Result<(), CliError> {
        let path = self.path.join(name);
        let write = || {
            let mut file = OpenOptions::new().create(true).read(true).append(true).open(&path)?;
            let mut last = [b'\n'];
            if let Some(end) = file.metadata()?.len().checked_sub(1) {
                file.read_exact_at(&mut last, end)?;
            }
            let break_line = if last == *b"\n" { "" } else { "\n" };
            file.write_all(format!("{break_line}{text}").as_bytes())
        };
        write().map_err(|e| disk(&path, &e))
    }

    /// Replaces a file: after a crash at any point, the old or the new one is there, whole.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), CliError> {
        let path = self.path.join(name);
        let new = self.path.join(format!("{name}.new"));
        let write = || {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let mut file = File::create(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().map_err(|e| {
            let _ = fs::remove_file(&new);
            disk(&path, &e)
        })
    }

    /// Replaces a file by a JSON document.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), CliError> {
        let mut text = serde_json::to_string_pretty(value)
            .map_err(|e| CliError::failed(format!("cannot write {name}: {e}"), ""))?;
        text.push('\n');
        self.replace(name, text.as_bytes())
    }

    /// Reads a file, where there is one.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, CliError> {
        let path = self.path.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(CliError::failed(format!("cannot read {}: {e}", path.display()), "")),
        }
    }
}
