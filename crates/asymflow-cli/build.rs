//! Names the commit that the program is built from, for the provenance of results.

use std::path::Path;
use std::process::Command;

/// What the program is made of, from the workspace's root; a change elsewhere is no change of the program.
const SOURCES: [&str; 4] = ["crates", "Cargo.toml", "Cargo.lock", "rust-toolchain.toml"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let root = Path::new("../..");
    for source in SOURCES.map(|source| root.join(source)) {
        watch(&source);
    }
    if let Some(commit) = commit(root) {
        println!("cargo::rustc-env=ASYMFLOW_COMMIT={commit}");
    }
}

/// Runs this script again when `path` has changed. Cargo takes a missing path for changed on every build.
fn watch(path: &Path) {
    if path.exists() {
        println!("cargo::rerun-if-changed={}", path.display());
    }
}

/// The commit checked out in `root`, with `+dirty` where the sources differ from it; none without git, and none where
/// the sources are not git's.
fn commit(root: &Path) -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    // A copy of the sources inside another checkout belongs to no commit of that.
    git(&["ls-files", "--error-unmatch", "crates/asymflow-cli/build.rs"])?;
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]).unwrap_or_default();
    for moved_by_commits in ["HEAD", "packed-refs", &branch].into_iter().filter(|name| !name.is_empty()) {
        watch(&root.join(git(&["rev-parse", "--git-path", moved_by_commits])?));
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changes = git(&[&["status", "--porcelain", "--"][..], &SOURCES].concat())?;
    Some(if changes.is_empty() { commit } else { commit + "+dirty" })
}
