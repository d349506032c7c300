//! Modules of a crate do not import each other in circles.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Ident, UseTree, Visibility};

use super::outcome::Outcome;
use super::ratchet::{self, Found};
use crate::source::{self, Source};
use crate::workspace::Workspace;

/// Most modules of a circle: two or three that are one thing in several files.
const LARGEST: usize = 3;

/// Most re-exports followed to where something is defined.
const MOST_RE_EXPORTS: usize = 8;

type Path = Vec<String>;

/// Finds the circles of every crate. A re-export is no import of its own: what goes through it is followed to the file that
/// defines it.
pub fn check(workspace: &Workspace, fix: bool) -> Result<Outcome> {
    let mut found = Found::new();
    for package in &workspace.packages {
        let modules = source::sources(workspace, package)?;
        let edges = edges(&modules);
        let large = circles(&edges).into_iter().filter(|circle| circle.len() > LARGEST);
        let shown: Vec<String> = large.flat_map(|circle| shown(&circle, &edges)).collect();
        if !shown.is_empty() {
            found.insert(package.name.clone(), shown);
        }
    }
    ratchet::judge(workspace, "circles", &found, fix)
}

/// The modules of `circle`, each with what it uses of the others.
fn shown(circle: &BTreeSet<Path>, edges: &BTreeMap<Path, BTreeSet<Path>>) -> Vec<String> {
    let name = |path: &Path| if path.is_empty() { "crate".to_owned() } else { path.join("::") };
    let line = |module: &Path| {
        let used: Vec<String> = edges[module].intersection(circle).map(name).collect();
        format!("circle of {}: {} uses {}", circle.len(), name(module), used.join(", "))
    };
    circle.iter().map(line).collect()
}

/// What one file imports and names.
#[derive(Default)]
struct Module {
    /// (module of the import, path, the name it gets, whether others may import it from here)
    imports: Vec<(Path, Path, String, bool)>,
    /// Paths of two names and more outside of imports, each with the module it stands in.
    paths: Vec<(Path, Path)>,
    /// Every first name of a path.
    names: BTreeSet<String>,
}

struct Reader {
    module: Module,
    /// The file's module, and inline modules inside.
    inside: Path,
}

impl Reader {
    fn import(&mut self, tree: &UseTree, mut path: Path, is_public: bool) {
        let mut add = |path: Path, name: String| self.module.imports.push((self.inside.clone(), path, name, is_public));
        match tree {
            UseTree::Path(tree) => {
                path.push(tree.ident.to_string());
                self.import(&tree.tree, path, is_public);
            }
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.import(tree, path.clone(), is_public));
            }
            UseTree::Glob(_) => add(path, "*".to_owned()),
            UseTree::Name(name) if name.ident == "self" => {
                let last = path.last().cloned().unwrap_or_default();
                add(path, last);
            }
            UseTree::Name(name) => {
                path.push(name.ident.to_string());
                add(path, name.ident.to_string());
            }
            UseTree::Rename(rename) => {
                if rename.ident != "self" {
                    path.push(rename.ident.to_string());
                }
                add(path, rename.rename.to_string());
            }
        }
    }

    fn path(&mut self, path: Path) {
        self.module.names.extend(path.first().cloned());
        if path.len() > 1 {
            self.module.paths.push((self.inside.clone(), path));
        }
    }

    /// Finds `a::b::c` among the tokens of a macro, whose syntax is its own.
    fn tokens(&mut self, tokens: TokenStream) {
        let (mut path, mut colons): (Path, usize) = (Vec::new(), 0);
        for token in tokens {
            match &token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Ident(ident) if colons == 2 && !path.is_empty() => {
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Ident(ident) => {
                    self.path(std::mem::replace(&mut path, vec![ident.to_string()]));
                    colons = 0;
                }
                TokenTree::Group(group) => {
                    self.path(std::mem::take(&mut path));
                    self.tokens(group.stream());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => self.path(std::mem::take(&mut path)),
            }
        }
        self.path(path);
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.inside.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.inside.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.import(&item.tree, Vec::new(), !matches!(item.vis, Visibility::Inherited));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.path(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        visit::visit_macro(self, item);
        self.tokens(item.tokens.clone());
    }

    fn visit_visibility(&mut self, _: &'ast Visibility) {
        // `pub(in crate::a)` imports nothing.
    }

    fn visit_ident(&mut self, _: &'ast Ident) {}
}

/// The modules of one crate.
struct Crate {
    modules: BTreeMap<Path, Module>,
}

impl Crate {
    fn of(sources: &[Source]) -> Self {
        let read = |source: &Source| {
            let mut reader = Reader { module: Module::default(), inside: source.module.clone() };
            source.items.iter().for_each(|item| reader.visit_item(item));
            (source.module.clone(), reader.module)
        };
        Self { modules: sources.iter().map(read).collect() }
    }

    /// `path`, which stands in module `inside` of file `file`, from the crate's root on; `None` when it leads out of the
    /// crate, or to something of the file's own.
    fn absolute(&self, file: &Path, inside: &Path, path: &Path) -> Option<Path> {
        let mut base = inside.clone();
        let mut rest = path.as_slice();
        match path.first()?.as_str() {
            "crate" => (base, rest) = (Vec::new(), &path[1..]),
            "self" => rest = &path[1..],
            "super" => {
                while rest.first().is_some_and(|name| name == "super") {
                    base.pop()?;
                    rest = &rest[1..];
                }
            }
            first => {
                let child = [base.clone(), vec![first.to_owned()]].concat();
                if !self.modules.contains_key(&child) {
                    let is_it = |(_, target, name, _): &&(Path, Path, String, bool)| name == first && target != path;
                    let (inside, target, ..) = self.modules.get(file)?.imports.iter().find(is_it)?;
                    // An import that begins with its own name is one of another crate.
                    (target.first()? != first).then_some(())?;
                    base = self.absolute(file, inside, target)?;
                    rest = &path[1..];
                }
            }
        }
        Some([base, rest.to_vec()].concat())
    }

    /// The module of the file that `path` leads into, and what is left of the path.
    fn split<'a>(&self, path: &'a Path) -> (&'a [String], &'a [String]) {
        let longest = (0..=path.len()).rev().find(|&len| self.modules.contains_key(&path[..len])).unwrap_or(0);
        path.split_at(longest)
    }

    /// The file that defines what `path` names, through re-exports.
    fn defines(&self, path: &Path, left: usize) -> Path {
        let (module, rest) = self.split(path);
        let (module, Some(name)) = (module.to_vec(), rest.first()) else { return module.to_vec() };
        let Some(left) = left.checked_sub(1) else { return module };
        let imports = self.modules.get(&module).map(|module| module.imports.as_slice()).unwrap_or_default();
        let named = imports.iter().find(|(.., import, _)| import == name);
        if let Some(target) = named.and_then(|(inside, target, ..)| self.absolute(&module, inside, target)) {
            return self.defines(&[&target, &rest[1..]].concat(), left);
        }
        module
    }

    /// The modules that the file `path` uses.
    fn used(&self, path: &Path) -> BTreeSet<Path> {
        let Some(module) = self.modules.get(path) else { return BTreeSet::new() };
        let mut used = BTreeSet::new();
        for (inside, target, name, is_public) in &module.imports {
            let Some(target) = self.absolute(path, inside, target) else { continue };
            // A module that is only named is used by the paths that begin with its name.
            let is_module = self.modules.contains_key(&target) && name != "*";
            let is_only_passed_on = *is_public && !module.names.contains(name);
            if !is_module && !is_only_passed_on {
                used.insert(self.defines(&target, MOST_RE_EXPORTS));
            }
        }
        for (inside, target) in &module.paths {
            if let Some(target) =
                self.absolute(path, inside, target).filter(|target| !self.modules.contains_key(target))
            {
                used.insert(self.defines(&target, MOST_RE_EXPORTS));
            }
        }
        used.remove(path);
        used
    }
}

/// For each module the modules that it uses.
fn edges(sources: &[Source]) -> BTreeMap<Path, BTreeSet<Path>> {
    let all = Crate::of(sources);
    all.modules.keys().map(|path| (path.clone(), all.used(path))).collect()
}

/// The strongly connected components of more than one module.
fn circles(edges: &BTreeMap<Path, BTreeSet<Path>>) -> Vec<BTreeSet<Path>> {
    let reached: BTreeMap<&Path, BTreeSet<&Path>> = edges.keys().map(|from| (from, reached(edges, from))).collect();
    let reaches = |from: &Path, to: &Path| reached.get(from).is_some_and(|reached| reached.contains(to));
    let mut circles: Vec<BTreeSet<Path>> = Vec::new();
    for module in edges.keys().filter(|module| reaches(module, module)) {
        if !circles.iter().any(|circle| circle.contains(module)) {
            let circle = edges.keys().filter(|other| reaches(module, other) && reaches(other, module));
            circles.push(circle.cloned().collect());
        }
    }
    circles
}

fn reached<'a>(edges: &'a BTreeMap<Path, BTreeSet<Path>>, from: &Path) -> BTreeSet<&'a Path> {
    let mut reached = BTreeSet::new();
    let mut waiting: Vec<&Path> = edges.get(from).into_iter().flatten().collect();
    while let Some(module) = waiting.pop() {
        if reached.insert(module) {
            waiting.extend(edges.get(module).into_iter().flatten());
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a -> b c` for each module of made-up files that uses others.
    fn uses(files: &[(&str, &str)]) -> Vec<String> {
        let source = |(module, text): &(&str, &str)| {
            let module = module.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect();
            Source::parse("x.rs".into(), module, text).expect("the made-up file parses")
        };
        let sources: Vec<Source> = files.iter().map(source).collect();
        let shown = |(from, to): (Path, BTreeSet<Path>)| {
            let to: Vec<String> = to.into_iter().map(|path| format!(" {}", path.join("::"))).collect();
            (!to.is_empty()).then(|| format!("{} ->{}", from.join("::"), to.concat()))
        };
        edges(&sources).into_iter().filter_map(shown).collect()
    }

    #[test]
    fn imports_and_paths_of_every_form_are_edges() {
        for text in [
            "use crate::b::B;",
            "use super::b::{B, C};",
            "use crate::b::*;",
            "use crate::b; fn f() { b::g() }",
            "use crate::b as c; fn f() { let _ = vec![1, c::B::new()]; }",
            "fn f(x: crate::b::B<u8>) {}",
            "fn f() { matches!(x, crate::b::B::C { .. }); }",
            "fn f() { use super::b::B; }",
            "mod inner { use super::super::b::B; }",
            "impl crate::b::T for X {}",
        ] {
            assert_eq!(uses(&[("", ""), ("a", text), ("b", "")]), ["a -> b"], "{text}");
        }
    }

    #[test]
    fn names_of_other_crates_and_of_the_file_itself_are_none() {
        for text in ["use b::B;", "use std::b;", "use self::inner::X;", "use b; fn f() { b::c() }", "fn f() { x::b() }"]
        {
            assert_eq!(uses(&[("", ""), ("a", text), ("b", "")]), [""; 0], "{text}");
        }
    }

    #[test]
    fn a_re_export_leads_to_the_definition_and_is_no_import() {
        let files =
            [("", "mod a; mod b; pub use a::A; pub use b::{B, C};"), ("a", "use crate::B;"), ("b", "use super::A;")];
        assert_eq!(uses(&files), ["a -> b", "b -> a"]);
        let used_itself = ("", "mod a; mod b; pub use a::A; pub use b::B; fn f(a: A) {}");
        assert_eq!(uses(&[used_itself, files[1], ("b", "")]), [" -> a", "a -> b"]);
    }

    #[test]
    fn a_parent_counts_when_something_of_its_own_file_is_used() {
        let parent = ("p", "mod c; mod d; use c::C; pub struct P;");
        assert_eq!(
            uses(&[("", "mod p;"), parent, ("p::c", "use super::d::D;"), ("p::d", "")]),
            ["p -> p::c", "p::c -> p::d"]
        );
        assert_eq!(
            uses(&[("", "mod p;"), parent, ("p::c", "use super::P;"), ("p::d", "")]),
            ["p -> p::c", "p::c -> p"]
        );
    }

    #[test]
    fn circles_are_strongly_connected_and_tests_are_left_out() {
        let files = [
            ("a", "use crate::b::B;"),
            ("b", "use crate::c::C;"),
            ("c", "use crate::a::A; use crate::d::D;"),
            ("d", "#[cfg(test)] mod tests { use crate::a::A; }"),
        ];
        let sources: Vec<Source> = files
            .iter()
            .map(|(name, text)| Source::parse("x.rs".into(), vec![(*name).to_owned()], text).expect("it parses"))
            .collect();
        let found: Vec<String> =
            circles(&edges(&sources)).into_iter().map(|circle| circle.into_iter().flatten().collect()).collect();
        assert_eq!(found, ["abc"]);
    }
}
