//! What the root of a library shows fits one screen.

use anyhow::Result;
use syn::{Item, UseTree, Visibility};

use super::outcome::Outcome;
use super::ratchet::{self, Found};
use crate::source::{self, Parts};
use crate::workspace::Workspace;

/// Most public items and modules of a crate root.
const MOST: usize = 10;

/// Counts what `lib.rs` of every library shows.
pub fn check(workspace: &Workspace, fix: bool) -> Result<Outcome> {
    let mut found = Found::new();
    for package in &workspace.packages {
        let sources = source::sources(workspace, package)?;
        let root = sources.iter().find(|source| source.shown.ends_with("src/lib.rs"));
        let shown: Vec<String> = root.map(|root| root.items.iter().flat_map(shown).collect()).unwrap_or_default();
        if shown.len() > MOST {
            found.insert(package.name.clone(), shown);
        }
    }
    ratchet::judge(workspace, "crate-roots", &found, fix)
}

/// The names that `item` shows to other crates; everything of a glob is one.
fn shown(item: &Item) -> Vec<String> {
    let parts = Parts::of(item);
    match (parts.visibility, item) {
        (Some(Visibility::Public(_)), Item::Use(item)) => names(&item.tree),
        (Some(Visibility::Public(_)), _) => parts.name.into_iter().map(ToString::to_string).collect(),
        _ => Vec::new(),
    }
}

fn names(tree: &UseTree) -> Vec<String> {
    match tree {
        UseTree::Path(path) if matches!(&*path.tree, UseTree::Name(name) if name.ident == "self") => {
            vec![path.ident.to_string()]
        }
        UseTree::Path(path) => names(&path.tree),
        UseTree::Group(group) => group.items.iter().flat_map(names).collect(),
        UseTree::Name(name) => vec![name.ident.to_string()],
        UseTree::Rename(rename) => vec![rename.rename.to_string()],
        UseTree::Glob(_) => vec!["*".to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_public_name_counts_once_and_private_ones_do_not() {
        let text = "pub mod prelude { pub use a::*; pub struct Z; }\nmod hidden;\npub(crate) fn f() {}\n\
                    pub use hidden::{A, b::{B as C, self}, *};\npub struct S;\npub fn g() {}\nuse std::fmt;\nimpl S {}\n";
        let file = syn::parse_file(text).expect("it parses");
        let shown: Vec<String> = file.items.iter().flat_map(shown).collect();
        assert_eq!(shown, ["prelude", "A", "C", "self", "*", "S", "g"]);
    }
}
