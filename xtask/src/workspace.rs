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
    /// The `[workspace.metadata]` table.
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
    /// Its name.
    pub name: String,
    /// What it depends on directly.
    pub dependencies: Vec<Dependency>,
}

/// One line of a dependency table.
#[derive(Debug, Deserialize)]
pub struct Dependency {
    /// Name of the package, whatever it is renamed to.
    pub name: String,
    /// `None` for a normal dependency, else `dev` or `build`.
    pub kind: Option<String>,
}

impl Workspace {
    /// Asks cargo.
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

    /// Whether `name` is a member.
    pub fn has(&self, name: &str) -> bool {
        self.packages.iter().any(|package| package.name == name)
    }

    /// Where cargo puts the release build of the binary `name`.
    pub fn binary(&self, name: &str) -> PathBuf {
        self.target_directory.join("release").join(name)
    }
}
