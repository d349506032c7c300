//! What `cargo metadata` says about this workspace.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process;

/// The workspace: its packages and folders.
#[derive(Debug, Deserialize)]
pub struct Workspace {
    /// Members, without third-party packages.
    pub packages: Vec<Package>,
    /// Absolute path of the folder of the root manifest.
    pub workspace_root: PathBuf,
    /// Absolute path of the build folder.
    pub target_directory: PathBuf,
    #[serde(default)]
    pub metadata: Option<WorkspaceMetadata>,
}

/// The `[workspace.metadata]` table of the root manifest.
#[derive(Debug, Default, Deserialize)]
pub struct WorkspaceMetadata {
    /// Layer of each crate.
    #[serde(default)]
    pub layers: BTreeMap<String, u32>,
}

/// One member of the workspace.
#[derive(Debug, Deserialize)]
pub struct Package {
    pub name: String,
    /// Absolute path of its manifest.
    #[serde(default)]
    pub manifest_path: PathBuf,
    /// What it depends on directly.
    pub dependencies: Vec<Dependency>,
    #[serde(default)]
    pub targets: Vec<Target>,
}

/// Something that a package builds: a library, a binary, a test.
#[derive(Debug, Deserialize)]
pub struct Target {
    pub name: String,
    /// `lib`, `bin`, `test`, `bench`, …
    #[serde(default)]
    pub kind: Vec<String>,
    /// Features without which cargo leaves it out, and says nothing.
    #[serde(default, rename = "required-features")]
    pub required_features: Vec<String>,
}

/// One line of a dependency table.
#[derive(Debug, Deserialize)]
pub struct Dependency {
    /// Name of the package, whatever it is renamed to.
    pub name: String,
    /// `None` for a normal dependency, else `dev` or `build`.
    pub kind: Option<String>,
}

impl Package {
    /// Whether it lies in `crates`: what is shipped, without the tools around it.
    pub fn is_crate(&self) -> bool {
        let folder = self.manifest_path.parent().and_then(Path::parent);
        folder.is_some_and(|folder| folder.ends_with("crates"))
    }
}

impl Workspace {
    pub fn load() -> Result<Self> {
        let json = process::output(process::cargo().args(["metadata", "--format-version=1", "--no-deps"]))?;
        Self::parse(&json)
    }

    /// Reads the output of `cargo metadata --no-deps`.
    pub fn parse(json: &str) -> Result<Self> {
        serde_json::from_str(json).context("cannot read the output of cargo metadata")
    }

    /// The folder of the root manifest.
    pub fn root(&self) -> &Path {
        &self.workspace_root
    }

    /// The manifest of what computes on ciphertexts: a workspace of its own, for a licence of what it links.
    pub fn cipher_manifest(&self) -> PathBuf {
        self.root().join("cipher/Cargo.toml")
    }

    pub fn cipher_target(&self) -> PathBuf {
        self.target_directory.join("cipher")
    }

    /// Whether `name` is a member.
    pub fn has(&self, name: &str) -> bool {
        self.packages.iter().any(|package| package.name == name)
    }

    /// `package/feature` for every feature that some test needs: without them cargo leaves tests out silently. An
    /// example that needs more is built by whoever asks for it.
    pub fn required_features(&self) -> Vec<String> {
        let of_package = |package: &Package| {
            let targets = package.targets.iter().filter(|target| target.kind.iter().all(|kind| kind != "example"));
            let features = targets.flat_map(|target| &target.required_features);
            features.map(|feature| format!("{}/{feature}", package.name)).collect::<Vec<_>>()
        };
        let mut features: Vec<String> = self.packages.iter().flat_map(of_package).collect();
        features.sort();
        features.dedup();
        features
    }

    /// Where cargo puts the release build of the binary `name`.
    pub fn binary(&self, name: &str) -> PathBuf {
        self.target_directory.join("release").join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_that_tests_need_are_found_once() {
        let json = r#"{"packages": [
            {"name": "a", "dependencies": [], "targets": [
                {"name": "a"}, {"name": "t", "required-features": ["y", "x"]}, {"name": "u", "required-features": ["x"]},
                {"name": "e", "kind": ["example"], "required-features": ["z"]}]},
            {"name": "b", "dependencies": [], "targets": [{"name": "b"}]}],
            "workspace_root": "/w", "target_directory": "/w/target", "metadata": null}"#;
        assert_eq!(Workspace::parse(json).expect("it parses").required_features(), ["a/x", "a/y"]);
    }
}
