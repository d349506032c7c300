//! What the enclave links: no accelerator, HTTP or cluster crate, and never more crates without review.

use std::collections::BTreeSet;

use anyhow::{Context, Result};

use super::outcome::Outcome;
use crate::binaries::{ENCLAVED, WORKER};
use crate::process;
use crate::workspace::Workspace;

/// Crates that must not be trusted, by their name or the family before a dash. tokio, without HTTP, carries the sessions of
/// clients.
const FORBIDDEN: [&str; 23] = [
    "actix",
    "axum",
    "burn",
    "cubecl",
    "cudarc",
    "curl",
    "h2",
    "hyper",
    "iroh",
    "libp2p",
    "native-tls",
    "openssl",
    "quinn",
    "reqwest",
    "rocket",
    "tonic",
    "tungstenite",
    "ureq",
    "wgpu",
    "vulkano",
    "ash",
    "warp",
    "zmq",
];

/// Holds the largest number of crates the enclave may link.
const LIMIT_FILE: &str = "xtask/enclave-tree-limit";

/// Reads `cargo tree` of the enclave's process, and of the worker's as a positive control.
pub fn check(workspace: &Workspace, fix: bool) -> Result<Outcome> {
    if !workspace.has(ENCLAVED) || !workspace.has(WORKER) {
        return Ok(Outcome::Skip(format!("{ENCLAVED} or {WORKER} does not exist")));
    }
    let enclave = tree(workspace, ENCLAVED, &[])?;
    let mut problems: Vec<String> =
        forbidden(&enclave).map(|name| format!("{ENCLAVED} links {name}, which must not be trusted")).collect();
    if forbidden(&tree(workspace, WORKER, &["--features", "burn"])?).next().is_none() {
        problems.push(format!("the control failed: nothing forbidden was found in {WORKER} with burn"));
    }
    let path = workspace.root().join(LIMIT_FILE);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {LIMIT_FILE}"))?;
    let limit: usize = text.trim().parse().with_context(|| format!("{LIMIT_FILE} holds no number"))?;
    let count = enclave.len();
    if count > limit {
        problems.push(format!("{ENCLAVED} links {count} crates, {LIMIT_FILE} allows {limit}; raise it with a reason"));
    } else if count < limit && fix {
        std::fs::write(&path, format!("{count}\n")).with_context(|| format!("cannot write {LIMIT_FILE}"))?;
    } else if count < limit {
        problems.push(format!("{ENCLAVED} links {count} crates and {LIMIT_FILE} says {limit}; lower it with --fix"));
    }
    Ok(Outcome::of_problems(problems, format!("{count} crates, none of them forbidden")))
}

/// The distinct `name version` of everything `package` links, itself included.
fn tree(workspace: &Workspace, package: &str, features: &[&str]) -> Result<BTreeSet<String>> {
    let mut cargo = process::cargo();
    cargo.current_dir(workspace.root());
    cargo.args(["tree", "--quiet", "--package", package, "--edges", "normal", "--prefix", "none"]);
    cargo.args(features);
    Ok(parse(&process::output(&mut cargo)?))
}

fn parse(tree: &str) -> BTreeSet<String> {
    let name_and_version = |line: &str| {
        let mut words = line.split_whitespace();
        Some(format!("{} {}", words.next()?, words.next()?))
    };
    tree.lines().filter_map(name_and_version).collect()
}

fn forbidden(tree: &BTreeSet<String>) -> impl Iterator<Item = &str> {
    let is_forbidden = |name: &str| {
        FORBIDDEN
            .iter()
            .any(|family| name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')))
    };
    tree.iter().filter_map(|line| line.split(' ').next()).filter(move |name| is_forbidden(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_and_marked_lines_count_once() {
        let tree = parse("a v0.1.0 (/w/a)\nb v1.0.0\nb v1.0.0 (*)\nb v2.0.0\nm v1.0.0 (proc-macro)\n\n");
        assert_eq!(tree.into_iter().collect::<Vec<_>>(), ["a v0.1.0", "b v1.0.0", "b v2.0.0", "m v1.0.0"]);
    }

    #[test]
    fn families_are_forbidden_and_names_that_only_begin_alike_are_not() {
        let tree =
            parse("burn v0.22.1\nburn-flex v0.22.1\nhyper v1.0.0\nhyperloglog v1.0.0\nash v0.38.0\nashpd v1.0.0\n");
        assert_eq!(forbidden(&tree).collect::<Vec<_>>(), ["ash", "burn", "burn-flex", "hyper"]);
    }
}
