//! `cargo xtask check`: everything that can be said about the workspace without running its tests.

mod circles;
mod crate_roots;
mod empty_docs;
mod enclave_tree;
mod layers;
mod links;
mod outcome;
mod paths;
mod purity;
mod ratchet;
mod wildcards;

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Result;
use clap::Args;

use outcome::Outcome;

use crate::failure::{FAILED, INTERRUPTED};
use crate::process;
use crate::table::table;
use crate::workspace::Workspace;

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Repair what can be repaired: format, lints that have a machine fix, the enclave tree's limit, the ratchets
    #[arg(long)]
    fix: bool,
    /// Make only these checks, by their names in the table
    #[arg(value_name = "CHECK", value_parser = CHECKS.map(|(name, _)| name))]
    only: Vec<String>,
}

type Check = fn(&Workspace, bool) -> Result<Outcome>;

const CHECKS: [(&str, Check); 14] = [
    ("format", format),
    ("layers", layers::check),
    ("purity", purity::check),
    ("links", links::check),
    ("paths", paths::check),
    ("circles", circles::check),
    ("wildcards", wildcards::check),
    ("crate-roots", crate_roots::check),
    ("empty-docs", empty_docs::check),
    ("enclave-tree", enclave_tree::check),
    ("licences", deny),
    ("advisories", advisories),
    ("lints", clippy),
    ("docs", docs),
];

/// This workspace, that of the worker on PyTorch, whose format and licences can be looked at without PyTorch, and that of ciphertexts.
const MANIFESTS: [&str; 3] = ["./Cargo.toml", "./torch/Cargo.toml", "./cipher/Cargo.toml"];

const DENY: [&str; 5] = ["deny", "--log-level", "error", "check", "--hide-inclusion-graph"];

/// Makes every check, prints a table, and fails when one did not hold.
pub fn run(workspace: &Workspace, args: &CheckArgs) -> Result<u8> {
    let mut rows = Vec::new();
    let mut failed = false;
    let is_wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    for (name, check) in CHECKS.into_iter().filter(|(name, _)| is_wanted(name)) {
        eprintln!("checking {name}");
        let start = Instant::now();
        let outcome = check(workspace, args.fix).unwrap_or_else(|error| Outcome::Fail(vec![format!("{error:#}")]));
        if process::was_interrupted() {
            return Ok(INTERRUPTED);
        }
        let (result, detail) = match outcome {
            Outcome::Pass(detail) => ("ok", detail),
            Outcome::Skip(why) => ("skipped", why),
            Outcome::Fail(problems) => {
                failed = true;
                problems.iter().for_each(|problem| eprintln!("{name}: {problem}"));
                ("failed", problems.first().cloned().unwrap_or_default())
            }
        };
        let first_line = detail.lines().next().unwrap_or_default().to_owned();
        rows.push(vec![name.into(), result.into(), format!("{:.1}", start.elapsed().as_secs_f64()), first_line]);
    }
    print!("\n{}", table(&["check", "result", "seconds", "detail"], &rows));
    Ok(if failed { FAILED } else { 0 })
}

fn format(workspace: &Workspace, fix: bool) -> Result<Outcome> {
    let mut outcome = Outcome::Pass(String::new());
    for manifest in MANIFESTS {
        let mut cargo = in_root(workspace, &["fmt", "--all", "--manifest-path", manifest]);
        if !fix {
            cargo.args(["--", "--check", "-l"]);
        }
        outcome = by_exit_code(&mut cargo, "every file", "`cargo xtask check --fix` formats the files")?;
        if !matches!(outcome, Outcome::Pass(_)) {
            break;
        }
    }
    Ok(outcome)
}

fn clippy(workspace: &Workspace, fix: bool) -> Result<Outcome> {
    let features = workspace.required_features().join(",");
    let targets = ["--workspace", "--all-targets", "--release", "--features", &features];
    if fix {
        let mut repair = in_root(workspace, &["clippy", "--fix", "--allow-dirty", "--allow-staged", "--quiet"]);
        process::run(repair.args(targets))?;
    }
    let mut cargo = in_root(workspace, &["clippy", "--quiet"]);
    cargo.args(targets).args(["--", "--deny", "warnings"]);
    by_exit_code(&mut cargo, "every target, warnings denied", "clippy's messages stand above")
}

fn docs(workspace: &Workspace, _fix: bool) -> Result<Outcome> {
    let mut cargo = in_root(workspace, &["doc", "--workspace", "--no-deps", "--release", "--quiet"]);
    cargo.env("RUSTDOCFLAGS", "--deny warnings");
    by_exit_code(&mut cargo, "every crate, warnings denied", "rustdoc's messages stand above")
}

fn deny(workspace: &Workspace, _fix: bool) -> Result<Outcome> {
    if !has_cargo_deny() {
        return Ok(Outcome::Skip("cargo-deny is not installed; `cargo install --locked cargo-deny`".into()));
    }
    for manifest in MANIFESTS {
        let mut cargo = in_root(workspace, &["deny", "--manifest-path", manifest]);
        cargo.args(&DENY[1..]).args(["bans", "licenses", "sources"]);
        let outcome = by_exit_code(&mut cargo, "", "cargo-deny's messages stand above")?;
        if !matches!(outcome, Outcome::Pass(_)) {
            return Ok(outcome);
        }
    }
    // Several versions of one crate are allowed, but the list should be seen.
    let listing = process::captured(in_root(workspace, &["deny", "check", "bans"]).stderr(Stdio::piped()))?;
    let listing = String::from_utf8_lossy(&listing.stderr).into_owned();
    let duplicates = duplicates(&listing);
    let detail = format!("{} crates in several versions: {}", duplicates.len(), duplicates.join(", "));
    Ok(Outcome::Pass(detail))
}

/// The crates that cargo-deny warns of as `warning[duplicate]: found 2 duplicate entries for crate 'syn'`.
fn duplicates(listing: &str) -> Vec<&str> {
    let warnings = listing.lines().filter(|line| line.starts_with("warning[duplicate]"));
    warnings.filter_map(|line| line.split('\'').nth(1)).collect()
}

/// Advisories come from a git host that not every network reaches.
fn advisories(workspace: &Workspace, _fix: bool) -> Result<Outcome> {
    if !has_cargo_deny() {
        return Ok(Outcome::Skip("cargo-deny is not installed".into()));
    }
    let mut fetch = in_root(workspace, &["deny", "fetch", "db"]);
    if !process::captured(fetch.stderr(Stdio::null()))?.status.success() {
        return Ok(Outcome::Skip("the advisory database cannot be fetched from here".into()));
    }
    let mut cargo = in_root(workspace, &DENY);
    cargo.args(["--disable-fetch", "advisories"]);
    by_exit_code(&mut cargo, "RustSec database", "cargo-deny's messages stand above")
}

fn has_cargo_deny() -> bool {
    process::find_program("cargo-deny").is_some()
}

fn in_root(workspace: &Workspace, args: &[&str]) -> Command {
    let mut cargo = process::cargo();
    cargo.current_dir(workspace.root()).args(args);
    cargo
}

fn by_exit_code(command: &mut Command, looked_at: &str, hint: &str) -> Result<Outcome> {
    Ok(match process::run(command)? {
        0 => Outcome::Pass(looked_at.into()),
        code => Outcome::Fail(vec![format!("{} ended with exit code {code}; {hint}", process::shown(command))]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_crates_are_listed_by_name() {
        let listing = "warning[duplicate]: found 2 duplicate entries for crate 'syn'\n   note: 'x'\n\
                       warning[duplicate]: found 3 duplicate entries for crate 'rand'\nbans ok\n";
        assert_eq!(duplicates(listing), ["syn", "rand"]);
    }
}
