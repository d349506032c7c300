//! `cargo xtask data`: checksums of the data sets, and unpacking them into a cache.

use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use sha2::{Digest, Sha256};

use crate::failure::{FAILED, Failure};
use crate::process;
use crate::workspace::Workspace;

const SUMS: &str = "SHA256SUMS";
const CIFAR10: &str = "cifar10.tar.xz";

/// What to do with the data sets.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Compare every file with SHA256SUMS
    Verify {
        /// Folder with the data sets; ASYMFLOW_DATA without this
        dir: Option<PathBuf>,
    },
    /// Unpack CIFAR-10 into a cache folder, once
    Unpack {
        /// Folder with the data sets; ASYMFLOW_DATA without this
        dir: Option<PathBuf>,
        /// Folder to unpack into; the user's cache without this
        #[arg(long, value_name = "CACHE")]
        into: Option<PathBuf>,
    },
}

/// Runs one of the commands.
pub fn run(workspace: &Workspace, command: &DataCommand) -> Result<u8> {
    match command {
        DataCommand::Verify { dir } => verify(&find_dir(workspace, dir.as_deref())?),
        DataCommand::Unpack { dir, into } => {
            let into = into.clone().map_or_else(cache_dir, Ok)?;
            unpack(&find_dir(workspace, dir.as_deref())?, &into, workspace.root())
        }
    }
}

/// The folder with the data sets: the one given, else ASYMFLOW_DATA, else `shared/data` beside the checkout.
///
/// # Errors
/// None of them is a folder.
pub fn find_dir(workspace: &Workspace, given: Option<&Path>) -> Result<PathBuf> {
    let dir = match (given, std::env::var_os("ASYMFLOW_DATA")) {
        (Some(dir), _) => dir.to_owned(),
        (None, Some(dir)) => dir.into(),
        (None, None) => workspace.root().join("../shared/data"),
    };
    if dir.is_dir() {
        return dir.canonicalize().with_context(|| format!("cannot resolve {}", dir.display()));
    }
    bail!(Failure::Missing {
        what: format!("there is no data folder {}", dir.display()),
        fix: "name it on the command line, or set ASYMFLOW_DATA".into(),
    })
}

fn verify(dir: &Path) -> Result<u8> {
    let sums = std::fs::read_to_string(dir.join(SUMS)).map_err(|error| Failure::Missing {
        what: format!("cannot read {SUMS} in {}: {error}", dir.display()),
        fix: format!("write it with `sha256sum FILE… > {SUMS}`"),
    })?;
    let mut failed = false;
    for (number, line) in sums.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let Some((expected, name)) = line.split_once([' ', '\t']) else {
            bail!(Failure::Usage(format!("{SUMS}:{}: expected `CHECKSUM  FILE`", number + 1)));
        };
        let name = name.trim_start().trim_start_matches('*');
        let verdict = match sha256(&dir.join(name)) {
            Ok(actual) if actual.eq_ignore_ascii_case(expected) => "ok".to_owned(),
            Ok(actual) => format!("FAILED: its checksum is {actual}"),
            Err(error) => format!("FAILED: {error:#}"),
        };
        failed |= verdict != "ok";
        println!("{name}: {verdict}");
    }
    Ok(if failed { FAILED } else { 0 })
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path).context("cannot open it")?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).context("cannot read it")? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            read => hash.update(&buffer[..read]),
        }
    }
}

fn cache_dir() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    match set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache"))) {
        Some(dir) => Ok(dir.join("asymflow")),
        None => bail!(Failure::Usage("neither XDG_CACHE_HOME nor HOME is set; give --into CACHE".into())),
    }
}

/// Unpacks the CIFAR-10 image folders into `into`/cifar10 and prints that folder. Does nothing when it is there.
fn unpack(dir: &Path, into: &Path, root: &Path) -> Result<u8> {
    let into = resolve(into)?;
    if into.starts_with(root) {
        let message = format!("{} lies inside the project; data sets belong outside it", into.display());
        bail!(Failure::Usage(message));
    }
    let target = into.join("cifar10");
    if target.is_dir() {
        println!("{}", target.display());
        return Ok(0);
    }
    let archive = dir.join(CIFAR10);
    if !archive.is_file() {
        bail!(Failure::Missing {
            what: format!("{} does not exist", archive.display()),
            fix: "put CIFAR-10 there, or name the folder that holds it".into(),
        });
    }
    for program in ["tar", "xz"] {
        if process::find_program(program).is_none() {
            let fix = "install it: packages tar and xz-utils on Debian".to_owned();
            bail!(Failure::Missing { what: format!("{program} is not on PATH"), fix });
        }
    }
    // Unpack beside the target and rename, so that an interrupted run leaves no half data set behind.
    let partial = into.join(format!("cifar10.partial-{}", std::process::id()));
    std::fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    let mut tar = Command::new("tar");
    tar.arg("-xJf").arg(&archive).arg("-C").arg(&partial);
    let moved = match process::run(&mut tar)? {
        0 => std::fs::rename(inner(&partial)?, &target).with_context(|| format!("cannot create {}", target.display())),
        130 => Err(Failure::Interrupted.into()),
        code => Err(anyhow::anyhow!("{} ended with exit code {code}", process::shown(&tar))),
    };
    if partial.exists() {
        std::fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    moved?;
    println!("{}", target.display());
    Ok(0)
}

/// `path` as an absolute path without `..`, whether it exists or not.
fn resolve(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).with_context(|| format!("cannot resolve {}", path.display()))?;
    let mut resolved = PathBuf::new();
    for part in absolute.components() {
        match part {
            Component::ParentDir => _ = resolved.pop(),
            part => resolved.push(part),
        }
    }
    Ok(resolved)
}

/// The folder that holds `train`: `dir` itself, or the single folder in it.
fn inner(dir: &Path) -> Result<PathBuf> {
    if dir.join("train").is_dir() {
        return Ok(dir.to_owned());
    }
    let mut entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    match (entries.next(), entries.next()) {
        (Some(only), None) => Ok(only?.path()),
        _ => Ok(dir.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_the_standard_example() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").expect("it can be written");
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&path).expect("it can be read"), expected);
    }

    #[test]
    fn a_changed_or_missing_file_fails() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let sums = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  abc\n";
        std::fs::write(dir.path().join(SUMS), sums).expect("it can be written");
        assert_eq!(verify(dir.path()).expect("it runs"), FAILED);
        std::fs::write(dir.path().join("abc"), "abc").expect("it can be written");
        assert_eq!(verify(dir.path()).expect("it runs"), 0);
        std::fs::write(dir.path().join("abc"), "abd").expect("it can be written");
        assert_eq!(verify(dir.path()).expect("it runs"), FAILED);
    }

    #[test]
    fn data_is_never_unpacked_into_the_project() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let error = unpack(dir.path(), &dir.path().join("cache"), dir.path()).expect_err("it refuses");
        assert!(error.to_string().contains("inside the project"), "{error}");
    }

    #[test]
    fn a_folder_beside_the_project_may_be_named_from_within() {
        assert_eq!(resolve(Path::new("/project/../cache/./x")).expect("it resolves"), Path::new("/cache/x"));
    }
}
