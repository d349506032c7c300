//! The Rust sources of the workspace, parsed, with their tests left out.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use syn::spanned::Spanned;
use syn::{Attribute, Ident, Item, Visibility};

use crate::workspace::{Package, Workspace};

pub struct Source {
    /// Path from the workspace's root, with forward slashes.
    pub shown: String,
    /// Names of the modules that lead to it; none for the crate's root.
    pub module: Vec<String>,
    /// Its items, without those under `#[cfg(test)]`.
    pub items: Vec<Item>,
    /// Its lines, without those under `#[cfg(test)]`.
    pub lines: usize,
    /// Modules that are declared under `#[cfg(test)]` and lie in files of their own.
    test_modules: Vec<Vec<String>>,
}

impl Source {
    fn read(root: &Path, path: &Path, module: Vec<String>) -> Result<Self> {
        let shown = path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        Self::parse(shown, module, &text)
    }

    /// Parses `text` as the file `shown`.
    pub fn parse(shown: String, module: Vec<String>, text: &str) -> Result<Self> {
        let mut items = syn::parse_file(text).with_context(|| format!("cannot parse {shown}"))?.items;
        let mut source =
            Self { shown, module, items: Vec::new(), lines: text.lines().count(), test_modules: Vec::new() };
        source.leave_tests_out(&mut items, &source.module.clone());
        source.items = items;
        Ok(source)
    }

    fn leave_tests_out(&mut self, items: &mut Vec<Item>, module: &[String]) {
        items.retain_mut(|item| {
            let is_test = Parts::of(item).attributes.iter().any(is_cfg_test);
            let name = match item {
                Item::Mod(item) => [module, &[item.ident.to_string()]].concat(),
                _ => Vec::new(),
            };
            match item {
                _ if is_test => {
                    self.lines -= item.span().end().line + 1 - item.span().start().line;
                    self.test_modules.push(name);
                }
                Item::Mod(item) => {
                    if let Some((_, items)) = &mut item.content {
                        self.leave_tests_out(items, &name);
                    }
                }
                _ => {}
            }
            !is_test
        });
    }

    /// `file:line` of something in it.
    pub fn place(&self, at: proc_macro2::Span) -> String {
        format!("{}:{}", self.shown, at.start().line)
    }
}

fn is_cfg_test(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg") && attribute.parse_args::<Ident>().is_ok_and(|cfg| cfg == "test")
}

/// What nearly every kind of item has.
pub struct Parts<'a> {
    /// Its attributes, documentation included.
    pub attributes: &'a [Attribute],
    /// Who may name it; `None` where the language has no such word.
    pub visibility: Option<&'a Visibility>,
    pub name: Option<&'a Ident>,
}

impl<'a> Parts<'a> {
    /// The parts of `item`.
    pub fn of(item: &'a Item) -> Self {
        let (attributes, visibility, name) = match item {
            Item::Const(item) => (&item.attrs, Some(&item.vis), Some(&item.ident)),
            Item::Enum(item) => (&item.attrs, Some(&item.vis), Some(&item.ident)),
            Item::Fn(item) => (&item.attrs, Some(&item.vis), Some(&item.sig.ident)),
            Item::Mod(item) => (&item.attrs, Some(&item.vis), Some(&item.ident)),
            Item::Static(item) => (&item.attrs, Some(&item.vis), Some(&item.ident)),
            Item::Struct(item) => (&item.attrs, Some(&item.vis), Some(&item.ident)),
            Item::Trait(item) => (&item.attrs, Some(&item.vis), Some(&item.ident)),
            Item::Type(item) => (&item.attrs, Some(&item.vis), Some(&item.ident)),
            Item::Union(item) => (&item.attrs, Some(&item.vis), Some(&item.ident)),
            Item::Use(item) => (&item.attrs, Some(&item.vis), None),
            Item::Macro(item) => (&item.attrs, None, item.ident.as_ref()),
            Item::Impl(item) => (&item.attrs, None, None),
            Item::ExternCrate(item) => (&item.attrs, Some(&item.vis), Some(&item.ident)),
            Item::ForeignMod(item) => (&item.attrs, None, None),
            _ => return Self { attributes: &[], visibility: None, name: None },
        };
        Self { attributes, visibility, name }
    }
}

/// The sources below `src` of `package` that are no tests.
pub fn sources(workspace: &Workspace, package: &Package) -> Result<Vec<Source>> {
    let Some(folder) = package.manifest_path.parent() else { return Ok(Vec::new()) };
    let folder = folder.join("src");
    let read = |path: PathBuf| {
        let module = module_of(path.strip_prefix(&folder).unwrap_or(&path));
        Source::read(workspace.root(), &path, module)
    };
    let all: Vec<Source> = rust_files(&folder)?.into_iter().map(read).collect::<Result<_>>()?;
    Ok(without_test_files(all))
}

/// The number of lines in Rust files of `package`, benches and examples included, tests left out.
pub fn lines(workspace: &Workspace, package: &Package) -> Result<usize> {
    let Some(folder) = package.manifest_path.parent() else { return Ok(0) };
    let is_test = |path: &PathBuf| path.strip_prefix(folder).is_ok_and(|path| path.iter().any(|part| part == "tests"));
    let files = rust_files(folder)?.into_iter().filter(|path| !is_test(path));
    let read = |path: PathBuf| {
        let inside = path.strip_prefix(folder).unwrap_or(&path);
        let module = inside.strip_prefix("src").map_or_else(|_| vec![inside.display().to_string()], module_of);
        Source::read(workspace.root(), &path, module)
    };
    let all: Vec<Source> = files.map(read).collect::<Result<_>>()?;
    Ok(without_test_files(all).iter().map(|source| source.lines).sum())
}

fn without_test_files(mut all: Vec<Source>) -> Vec<Source> {
    let tests: Vec<Vec<String>> = all.iter().flat_map(|source| source.test_modules.clone()).collect();
    let is_test = |module: &[String]| tests.iter().any(|test| !test.is_empty() && module.starts_with(test));
    all.retain(|source| !is_test(&source.module));
    all
}

/// The module that the file `path` below `src` holds.
fn module_of(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        path.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let is_root = names.len() == 1 && matches!(names[0].as_str(), "lib" | "main");
    if is_root || names.last().is_some_and(|name| name == "mod") {
        names.pop();
    }
    names
}

/// The Rust files below `folder`, in order, without those that cargo has built or that belong to another package.
fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in read_dir(folder)? {
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") && !path.join("Cargo.toml").is_file() {
                files.extend(rust_files(&path)?);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// What lies in `folder`; nothing when it does not exist.
pub fn read_dir(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source::parse(path.into(), module_of(Path::new(path)), text).expect("the made-up file parses")
    }

    #[test]
    fn tests_are_no_items_and_no_lines() {
        let text = "//! A.\nfn f() {}\n\n#[cfg(test)]\nmod tests {\n    fn g() {}\n}\nmod inner {\n    \
                    #[cfg(test)]\n    fn h() {}\n    #[cfg(unix)]\n    fn i() {}\n}\n";
        let source = source("a.rs", text);
        assert_eq!(source.lines, 13 - 4 - 2);
        let [Item::Fn(_), Item::Mod(inner)] = &source.items[..] else { panic!("{:?}", source.items.len()) };
        assert_eq!(inner.content.as_ref().expect("it is inline").1.len(), 1);
    }

    #[test]
    fn files_of_test_modules_are_left_out_with_what_is_below_them() {
        let all = vec![
            source("lib.rs", "mod a;\n#[cfg(test)]\nmod tests;\n"),
            source("a/mod.rs", "#[cfg(test)]\nmod more;"),
            source("a/more.rs", ""),
            source("tests.rs", "mod deep;"),
            source("tests/deep.rs", ""),
            source("testsuite.rs", ""),
        ];
        let shown: Vec<String> = without_test_files(all).into_iter().map(|source| source.shown).collect();
        assert_eq!(shown, ["lib.rs", "a/mod.rs", "testsuite.rs"]);
    }

    #[test]
    fn files_are_the_modules_that_rust_says() {
        let modules =
            ["lib.rs", "main.rs", "a.rs", "a/mod.rs", "a/b.rs", "a/main.rs"].map(|path| module_of(Path::new(path)));
        assert_eq!(modules.map(|names| names.join("::")), ["", "", "a", "a", "a::b", "a::main"]);
    }
}
