//! What the host's paths are called inside an enclave: its manifest says what it mounts, and nothing else is there.

use std::path::{Path, PathBuf};

use asymflow::job::{JobSpec, Task};
use serde::Deserialize;

use crate::error::CliError;
use crate::experiment::TrustedSection;

/// The part of a manifest that says where the host's files are inside.
#[derive(Deserialize)]
struct Manifest {
    fs: FileSystem,
}

#[derive(Deserialize)]
struct FileSystem {
    mounts: Vec<Mount>,
}

#[derive(Deserialize)]
struct Mount {
    path: PathBuf,
    uri: Option<String>,
}

impl Mount {
    /// What `path` of the host is called inside, where this mount holds it; relative mounts are relative to `folder`.
    fn inside(&self, folder: &Path, path: &Path) -> Option<PathBuf> {
        let host = folder.join(self.uri.as_ref()?.strip_prefix("file:")?).canonicalize().ok()?;
        let rest = path.strip_prefix(host).ok()?;
        Some(if rest.as_os_str().is_empty() { self.path.clone() } else { self.path.join(rest) })
    }
}

/// What `path` of the host is called by the runtime's program, under which `flag` of `cargo xtask enclave manifest` it is mounted
/// where it is not.
pub fn place(trusted: &TrustedSection, path: &Path, flag: &str) -> Result<PathBuf, CliError> {
    if trusted.runtime == "sim" {
        return Ok(path.to_owned());
    }
    let manifest = trusted.app.with_added_extension("manifest");
    let unusable = |e: String| {
        let help = "make it with `cargo xtask enclave manifest`, and `cargo xtask enclave sign` for SGX";
        CliError::missing(format!("{}: {e}", manifest.display()), help)
    };
    let text = std::fs::read_to_string(&manifest).map_err(|e| unusable(e.to_string()))?;
    let Manifest { fs } = toml::from_str(&text).map_err(|e| unusable(e.message().to_owned()))?;
    let folder = manifest.parent().unwrap_or(Path::new("."));
    // What is not there yet will lie in a folder that is.
    let known = path.ancestors().find_map(|part| Some((part, part.canonicalize().ok()?)));
    let whole = known.map(|(part, real)| real.join(path.strip_prefix(part).unwrap_or(Path::new(""))));
    let inside = whole.and_then(|whole| fs.mounts.iter().find_map(|mount| mount.inside(folder, &whole)));
    inside.ok_or_else(|| {
        let message = format!("{} mounts nothing that holds {}", manifest.display(), path.display());
        CliError::usage(message, format!("`cargo xtask enclave manifest {flag} DIR` makes one that does"))
    })
}

/// A job with its paths as the runtime's program sees them.
pub fn of_job(trusted: &TrustedSection, mut job: JobSpec) -> Result<JobSpec, CliError> {
    let replace = |path: &mut PathBuf, flag: &str| {
        *path = place(trusted, path, flag)?;
        Ok::<(), CliError>(())
    };
    if let Some(path) = &mut job.data.path {
        replace(path, "--data")?;
    }
    if let Task::Train(train) = &mut job.task
        && let Some(teacher) = &mut train.teacher
    {
        replace(&mut teacher.model, "--sealed")?;
    }
    if let Some(vault) = &mut job.vault {
        replace(&mut vault.folder, "--sealed")?;
        replace(&mut vault.guard, "--sealed")?;
    }
    Ok(job)
}
