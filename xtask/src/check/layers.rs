//! The layer table: dependencies between our crates point strictly downward.

use std::collections::BTreeMap;

use anyhow::Result;

use super::outcome::Outcome;
use crate::workspace::{Package, Workspace};

/// Depends on none of our crates, so that it compiles in seconds.
const XTASK: &str = "xtask";

/// What layer 0 must not depend on: accelerators, IO and runtimes belong above it.
const FORBIDDEN_IN_LAYER_0: [&str; 8] = ["burn", "cubecl", "wgpu", "tokio", "rustls", "getrandom", "clap", "tempfile"];

/// Compares the dependencies between members with `workspace.metadata.layers` of the root manifest.
pub fn check(workspace: &Workspace, _fix: bool) -> Result<Outcome> {
    let layers = workspace.metadata.as_ref().map(|metadata| &metadata.layers);
    let problems = violations(&workspace.packages, layers.unwrap_or(&BTreeMap::new()));
    Ok(Outcome::of_problems(problems, format!("{} crates", workspace.packages.len())))
}

fn violations(packages: &[Package], layers: &BTreeMap<String, u32>) -> Vec<String> {
    let mut problems = Vec::new();
    for name in layers.keys().filter(|name| !packages.iter().any(|package| package.name == **name)) {
        problems.push(format!("the layer table names {name}, which is no crate of the workspace"));
    }
    for package in packages {
        match layers.get(&package.name) {
            Some(&layer) => problems.extend(violations_of(package, layer, layers)),
            None => problems.push(format!("{} is missing in workspace.metadata.layers", package.name)),
        }
    }
    problems
}

fn violations_of(package: &Package, layer: u32, layers: &BTreeMap<String, u32>) -> Vec<String> {
    let name = &package.name;
    let shipped = package.dependencies.iter().filter(|dependency| dependency.kind.as_deref() != Some("dev"));
    let mut problems = Vec::new();
    for dependency in shipped {
        let on = &dependency.name;
        match layers.get(on) {
            Some(_) if name == XTASK => problems.push(format!("xtask depends on {on}; it may use none of our crates")),
            Some(&lower) if lower >= layer => {
                problems.push(format!("{name} (layer {layer}) depends on {on} (layer {lower}), which is not below it"));
            }
            None if layer == 0 && is_forbidden_in_layer_0(on) => {
                problems.push(format!("{name} (layer 0) depends on {on}; layer 0 knows no accelerator and no IO"));
            }
            _ => {}
        }
    }
    problems
}

fn is_forbidden_in_layer_0(name: &str) -> bool {
    FORBIDDEN_IN_LAYER_0
        .iter()
        .any(|forbidden| name.strip_prefix(forbidden).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A made-up workspace: `metadata` is the layer table, `dependencies` are (from, kind, to).
    fn problems(layers: &[(&str, u32)], dependencies: &[(&str, &str, &str)]) -> Vec<String> {
        let packages: Vec<String> = layers
            .iter()
            .map(|(name, _)| {
                let of_this = dependencies.iter().filter(|(from, ..)| from == name);
                let lines: Vec<String> = of_this
                    .map(|(_, kind, to)| match *kind {
                        "normal" => format!(r#"{{"name": "{to}", "kind": null, "req": "*"}}"#),
                        kind => format!(r#"{{"name": "{to}", "kind": "{kind}", "req": "*"}}"#),
                    })
                    .collect();
                format!(r#"{{"name": "{name}", "version": "0.1.0", "dependencies": [{}]}}"#, lines.join(","))
            })
            .collect();
        let table: Vec<String> = layers.iter().map(|(name, layer)| format!(r#""{name}": {layer}"#)).collect();
        let json = format!(
            r#"{{"packages": [{}], "workspace_root": "/w", "target_directory": "/w/target",
                "metadata": {{"layers": {{{}}}}}}}"#,
            packages.join(","),
            table.join(",")
        );
        let workspace = Workspace::parse(&json).expect("the made-up metadata parses");
        violations(&workspace.packages, &workspace.metadata.expect("it has a table").layers)
    }

    #[test]
    fn downward_edges_pass() {
        let layers = [("low", 0), ("mid", 1), ("top", 5)];
        assert_eq!(
            problems(&layers, &[("mid", "normal", "low"), ("top", "build", "mid"), ("low", "normal", "rand")]),
            [""; 0]
        );
    }

    #[test]
    fn an_upward_edge_fails_and_names_both_ends() {
        let found = problems(&[("low", 0), ("top", 2)], &[("low", "normal", "top")]);
        assert_eq!(found, ["low (layer 0) depends on top (layer 2), which is not below it"]);
    }

    #[test]
    fn an_edge_within_a_layer_fails() {
        assert_eq!(problems(&[("a", 1), ("b", 1)], &[("a", "normal", "b")]).len(), 1);
    }

    #[test]
    fn build_dependencies_count_and_dev_dependencies_do_not() {
        let layers = [("low", 0), ("top", 2)];
        assert_eq!(problems(&layers, &[("low", "build", "top")]).len(), 1);
        assert_eq!(problems(&layers, &[("low", "dev", "top")]).len(), 0);
    }

    #[test]
    fn xtask_uses_none_of_ours() {
        let found = problems(&[("low", 0), ("xtask", 6)], &[("xtask", "normal", "low"), ("xtask", "normal", "clap")]);
        assert_eq!(found, ["xtask depends on low; it may use none of our crates"]);
    }

    #[test]
    fn layer_0_knows_no_accelerator() {
        let found = problems(&[("low", 0), ("mid", 1)], &[("low", "normal", "burn-flex"), ("mid", "normal", "burn")]);
        assert_eq!(found, ["low (layer 0) depends on burn-flex; layer 0 knows no accelerator and no IO"]);
    }

    #[test]
    fn crates_and_table_name_each_other() {
        let json = r#"{"packages": [{"name": "new", "dependencies": []}], "workspace_root": "/w",
            "target_directory": "/w/target", "metadata": {"layers": {"gone": 1}}}"#;
        let workspace = Workspace::parse(json).expect("the made-up metadata parses");
        assert_eq!(
            violations(&workspace.packages, &workspace.metadata.expect("it has a table").layers),
            [
                "the layer table names gone, which is no crate of the workspace",
                "new is missing in workspace.metadata.layers"
            ]
        );
    }
}
