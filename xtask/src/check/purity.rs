//! Layer 0 does no IO, reads no clock or environment, and owns no random generator: they are passed in.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::outcome::Outcome;
use crate::source::read_dir;
use crate::workspace::Workspace;

/// What layer 0 must not name. `std::io` stays: readers and writers are passed in.
const FORBIDDEN: [&str; 14] = [
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::time",
    "std::thread",
    "println!",
    "eprintln!",
    "print!(",
    "rand::rng()",
    "thread_rng",
    "OsRng",
    "SysRng",
    "from_os_rng",
];

/// Reads the sources of every crate in layer 0, without their tests.
pub fn check(workspace: &Workspace, _fix: bool) -> Result<Outcome> {
    let layers = workspace.metadata.as_ref().map(|metadata| &metadata.layers);
    let is_layer_0 = |name: &str| layers.is_some_and(|layers| layers.get(name) == Some(&0));
    let mut problems = Vec::new();
    let mut count = 0;
    for package in workspace.packages.iter().filter(|package| is_layer_0(&package.name)) {
        let Some(folder) = package.manifest_path.parent() else { continue };
        for file in sources(&folder.join("src"))? {
            let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let shown = file.strip_prefix(workspace.root()).unwrap_or(&file).display();
            problems.extend(impurities(&text).into_iter().map(|hit| format!("{shown}:{hit}")));
            count += 1;
        }
    }
    Ok(Outcome::of_problems(problems, format!("{count} files of layer 0")))
}

/// The Rust files below `dir` that are no tests.
fn sources(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in read_dir(dir)? {
        if path.is_dir() {
            files.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// `line: what` for everything forbidden in `text` before its test module, outside comments.
fn impurities(text: &str) -> Vec<String> {
    let code = text.lines().take_while(|line| line.trim() != "#[cfg(test)]").enumerate();
    let code = code.filter(|(_, line)| !line.trim_start().starts_with("//"));
    code.filter_map(|(index, line)| {
        let what = FORBIDDEN.iter().find(|what| line.contains(*what))?;
        Some(format!("{}: {what} does not belong in layer 0", index + 1))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_and_clocks_are_found_with_their_line() {
        let found = impurities("use std::io::Read;\nuse std::fs;\n\nlet t = std::time::Instant::now();\n");
        assert_eq!(found, ["2: std::fs does not belong in layer 0", "4: std::time does not belong in layer 0"]);
    }

    #[test]
    fn comments_and_tests_may_say_anything() {
        let text = "/// Unlike std::fs.\nfn f() {}\n\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n";
        assert_eq!(impurities(text), [""; 0]);
    }
}
