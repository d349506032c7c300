//! The folder of an enclave: the program, the files and the folders that its manifest names, and the plan.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{PlanArgs, Runtime, Size};
use crate::binaries::ENCLAVED;
use crate::failure::Failure;

/// Where measured files and sealed folders are inside.
const FILES: &str = "/app/data";
const FOLDERS: &str = "/state";
/// Where data sets are.
const DATA: &str = "/data";

/// Something of the host, and where it is inside.
#[derive(Debug)]
struct Mapped {
    /// As the user gave it.
    given: String,
    /// In the manifest: relative to its folder for what was copied there.
    host: String,
    inside: String,
}

/// Everything that a manifest names.
#[derive(Debug)]
pub struct Staged {
    arguments: Vec<String>,
    files: Vec<Mapped>,
    folders: Vec<Mapped>,
}

impl Staged {
    /// Copies program and files into `folder`, so that the manifest names them by paths that are the same on every machine,
    /// and replaces their names in the arguments. Folders stay where they are.
    pub fn stage(folder: &Path, program: &Path, arguments: &[String]) -> Result<Self> {
        let mut staged = Self { arguments: Vec::new(), files: Vec::new(), folders: Vec::new() };
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        copy(program, &folder.join(ENCLAVED))?;
        let mut is_value = false;
        for argument in arguments {
            let mapped = match argument.strip_prefix("--").and_then(|flag| flag.split_once('=')) {
                Some((flag, value)) => format!("--{flag}={}", staged.map(folder, value)?),
                None if is_value => staged.map(folder, argument)?,
                None => argument.clone(),
            };
            is_value = argument.starts_with("--") && !argument.contains('=');
            staged.arguments.push(mapped);
        }
        Ok(staged)
    }

    /// What `value` is called inside: another path where it names a file or folder, else itself.
    fn map(&mut self, folder: &Path, value: &str) -> Result<String> {
        let path = Path::new(value);
        let known = self.files.iter().chain(&self.folders).find(|mapped| mapped.given == value);
        if let Some(mapped) = known {
            return Ok(mapped.inside.clone());
        }
        if !path.exists() {
            return Ok(value.to_owned());
        }
        let absolute = path.canonicalize().with_context(|| format!("cannot resolve {value}"))?;
        let name = absolute.file_name().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{value} has no name that is UTF-8"))?;
        let inside = format!("{}/{name}", if path.is_dir() { FOLDERS } else { FILES });
        if self.files.iter().chain(&self.folders).any(|mapped| mapped.inside == inside) {
            bail!(Failure::Usage(format!("two things are called {name}\nhelp: rename {value}")));
        }
        let given = value.to_owned();
        if path.is_dir() {
            let host = absolute.to_str().with_context(|| format!("{value} is not UTF-8"))?.to_owned();
            self.folders.push(Mapped { given, host, inside: inside.clone() });
        } else {
            std::fs::create_dir_all(folder.join("data")).context("cannot make the folder for measured files")?;
            let host = format!("data/{name}");
            copy(&absolute, &folder.join(&host))?;
            self.files.push(Mapped { given, host, inside: inside.clone() });
        }
        Ok(inside)
    }

    /// What the user gave, and what it is called inside.
    pub fn mapped(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().chain(&self.folders).map(|mapped| (mapped.given.as_str(), mapped.inside.as_str()))
    }

    /// The plan, for the program that writes manifests.
    pub fn plan(&self, args: &PlanArgs, size: &Size) -> Result<Value> {
        let mounts = |mapped: &[Mapped]| -> Vec<Value> {
            mapped.iter().map(|one| json!({"host": one.host, "path": one.inside})).collect()
        };
        let given = |folders: &[PathBuf], below: &str| {
            let mount = |folder: &PathBuf| {
                let host = folder.canonicalize().with_context(|| format!("cannot find {}", folder.display()))?;
                let name = host.file_name().context("the root of all files is no folder to mount")?;
                let (host, name) = (utf8(&host)?, utf8(Path::new(name))?);
                Ok(json!({"path": format!("{below}/{name}"), "host": host}))
            };
            folders.iter().map(mount).collect::<Result<Vec<Value>>>()
        };
        let sealed = [mounts(&self.folders), given(&args.sealed, FOLDERS)?].concat();
        Ok(json!({
            "runtime": if args.runtime == Runtime::GramineDirect { "gramine-direct" } else { "gramine-sgx" },
            "program": ENCLAVED,
            "arguments": self.arguments,
            "compute_threads": size.threads,
            "io_threads": args.io_threads,
            "peak_bytes": size.peak_bytes,
            "trusted_files": mounts(&self.files),
            "trusted_folders": given(&args.data, DATA)?,
            "sealed_folders": sealed,
            "encrypted_folders": given(&args.encrypted, FOLDERS)?,
            "shared_memory": args.shared_memory,
            "isv_svn": args.isv_svn,
            "insecure": args.insecure,
        }))
    }
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// A copy, unless the target is that file already.
fn copy(from: &Path, to: &PathBuf) -> Result<()> {
    if to.canonicalize().is_ok_and(|to| Some(to) == from.canonicalize().ok()) {
        return Ok(());
    }
    std::fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_files_and_folders_is_mapped_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| dir.path().join(name).to_str().expect("it is UTF-8").to_owned();
        std::fs::create_dir(at("ledger")).expect("it can be made");
        for name in ["program", "model", "serve"] {
            std::fs::write(at(name), name).expect("it can be written");
        }
        let arguments = [at("serve"), "--model".into(), at("model"), format!("--again={}", at("model"))];
        let more =
            ["--state".into(), at("ledger"), "--listen".into(), "0.0.0.0:1".into(), "--x=y".into(), "--quiet".into()];
        let arguments: Vec<String> = arguments.into_iter().chain(more).collect();
        let out = dir.path().join("out");
        let staged = Staged::stage(&out, Path::new(&at("program")), &arguments).expect("it can be staged");
        let (serve, data, state) = (at("serve"), "/app/data/model", "/state/ledger");
        let again = format!("--again={data}");
        let want = [&serve, "--model", data, &again, "--state", state, "--listen", "0.0.0.0:1", "--x=y", "--quiet"];
        assert_eq!(staged.arguments, want);
        assert_eq!(std::fs::read_to_string(out.join("data/model")).expect("it was copied"), "model");
        assert!(out.join(ENCLAVED).is_file());
        assert_eq!(staged.mapped().count(), 2);
        assert_eq!(staged.files[0].host, "data/model");
    }

    #[test]
    fn two_things_of_one_name_are_refused() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| dir.path().join(name).to_str().expect("it is UTF-8").to_owned();
        for name in ["a", "b"] {
            std::fs::create_dir(at(name)).expect("it can be made");
            std::fs::write(dir.path().join(name).join("model"), name).expect("it can be written");
        }
        let arguments = ["--one".into(), at("a/model"), "--two".into(), at("b/model")];
        let error =
            Staged::stage(&dir.path().join("out"), Path::new(&at("a/model")), &arguments).expect_err("one name");
        assert!(error.to_string().starts_with("two things are called model"), "{error}");
    }
}
