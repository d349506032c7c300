//! Nothing committed names a machine's folders or a registry other than crates.io.

use std::path::Path;

use anyhow::Result;

use super::outcome::Outcome;
use crate::process;
use crate::workspace::Workspace;

/// Top folders whose absolute paths belong to one machine.
const MACHINE_FOLDERS: [&str; 5] = ["root", "home", "work", "Users", "mnt"];

/// Where every third-party package must come from.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Reads every tracked file; in binary ones, what is text.
pub fn check(workspace: &Workspace, _fix: bool) -> Result<Outcome> {
    let mut git = std::process::Command::new("git");
    git.current_dir(workspace.root()).args(["ls-files", "-z"]);
    let Ok(listing) = process::captured(&mut git) else {
        return Ok(Outcome::Skip("git is not installed".into()));
    };
    if !listing.status.success() {
        return Ok(Outcome::Skip("this is no git checkout".into()));
    }
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    let files: Vec<&str> = listing.split('\0').filter(|file| !file.is_empty()).collect();
    let mut problems = Vec::new();
    for file in &files {
        // A file that is deleted but still tracked has nothing to look at.
        if let Ok(bytes) = std::fs::read(workspace.root().join(file)) {
            problems.extend(problems_of(Path::new(file), &String::from_utf8_lossy(&bytes)));
        }
    }
    Ok(Outcome::of_problems(problems, format!("{} tracked files", files.len())))
}

fn problems_of(file: &Path, text: &str) -> Vec<String> {
    let is_lock = file.file_name().is_some_and(|name| name == "Cargo.lock");
    let is_cargo_config = file.starts_with(".cargo");
    let is_problem = |line: &str| {
        let is_foreign_source = line.starts_with("source = ") && !line.contains(CRATES_IO);
        let is_registry = line.contains("replace-with") || line.contains("registry");
        machine_path(line) || (is_lock && is_foreign_source) || (is_cargo_config && is_registry)
    };
    let hits = text.lines().enumerate().filter(|(_, line)| is_problem(line));
    hits.map(|(index, line)| format!("{}:{}: {}", file.display(), index + 1, line.trim())).collect()
}

/// Whether `line` holds an absolute path into one of [`MACHINE_FOLDERS`].
fn machine_path(line: &str) -> bool {
    MACHINE_FOLDERS.iter().any(|folder| {
        let path = format!("/{folder}/");
        line.match_indices(&path).any(|(at, _)| {
            // `target/home/` and `https://host/home/` are no absolute paths.
            let before = line.get(..at).and_then(|before| before.chars().next_back());
            !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '}' | '~' | '$' | ')'))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_paths_of_a_machine_are_found() {
        for folder in MACHINE_FOLDERS {
            assert!(machine_path(&format!("cd /{folder}/someone")), "{folder}");
            assert!(machine_path(&format!("path = \"/{folder}/x\"")), "{folder}");
        }
    }

    #[test]
    fn relative_paths_and_addresses_are_not() {
        for line in ["a/home/b", "https://example.org/home/page", "$ROOT/work/x", "/usr/home", "../work/x"] {
            assert!(!machine_path(line), "{line}");
        }
    }

    #[test]
    fn a_foreign_registry_is_found_in_the_lock_file_and_in_the_configuration() {
        let lock = format!("source = \"{CRATES_IO}\"\nsource = \"registry+https://mirror.example/index\"\n");
        assert_eq!(
            problems_of(Path::new("Cargo.lock"), &lock),
            ["Cargo.lock:2: source = \"registry+https://mirror.example/index\""]
        );
        assert_eq!(problems_of(Path::new(".cargo/config.toml"), "[source.crates-io]\nreplace-with = \"m\"\n").len(), 1);
    }
}
