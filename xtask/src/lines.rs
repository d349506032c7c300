//! `cargo xtask lines`: how much source there is.

use anyhow::Result;

use crate::source;
use crate::table::table;
use crate::workspace::Workspace;

/// Prints the lines of every package and of all, tests left out: `tests` folders and modules under `#[cfg(test)]`.
pub fn run(workspace: &Workspace) -> Result<u8> {
    let mut rows = Vec::new();
    let mut total = 0;
    for package in &workspace.packages {
        let lines = source::lines(workspace, package)?;
        total += lines;
        rows.push(vec![package.name.clone(), lines.to_string()]);
    }
    rows.push(vec!["all".to_owned(), total.to_string()]);
    print!("{}", table(&["package", "lines"], &rows));
    Ok(0)
}
