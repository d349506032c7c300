//! No doc comments that only repeat the name of what nobody outside reads about.

use anyhow::Result;
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, Item, Lit, Meta, Visibility};

use super::outcome::Outcome;
use super::ratchet::{self, Found};
use crate::source::{self, Parts, Source};
use crate::workspace::Workspace;

/// A comment of so many words says nothing that the name does not.
const FEW_WORDS: usize = 3;

/// Derives that show doc comments to the user of a command.
const SHOWN_AS_HELP: [&str; 4] = ["Parser", "Args", "Subcommand", "ValueEnum"];

/// Finds short doc comments on private items, and on all items of a binary.
pub fn check(workspace: &Workspace, fix: bool) -> Result<Outcome> {
    let mut found = Found::new();
    for package in &workspace.packages {
        let sources = source::sources(workspace, package)?;
        let has_library = sources.iter().any(|source| source.shown.ends_with("src/lib.rs"));
        for source in &sources {
            let places = empty_docs(source, has_library && !is_root_of_binary(source));
            if !places.is_empty() {
                found.insert(source.shown.clone(), places);
            }
        }
    }
    ratchet::judge(workspace, "empty-docs", &found, fix)
}

fn is_root_of_binary(source: &Source) -> bool {
    source.shown.ends_with("src/main.rs") || source.module.first().is_some_and(|name| name == "bin")
}

fn empty_docs(source: &Source, is_library: bool) -> Vec<String> {
    let mut docs = Docs { source, is_library, is_public: true, places: Vec::new() };
    source.items.iter().for_each(|item| docs.visit_item(item));
    docs.places
}

struct Docs<'a> {
    source: &'a Source,
    is_library: bool,
    /// Whether the enum or trait that is looked at is public.
    is_public: bool,
    places: Vec<String>,
}

impl Docs<'_> {
    fn judge(&mut self, attributes: &[Attribute], is_public: bool) {
        let texts: Vec<(&Attribute, String)> = attributes.iter().filter_map(|it| Some((it, text(it)?))).collect();
        let words: usize = texts.iter().map(|(_, text)| text.split_whitespace().count()).sum();
        if let Some((first, said)) = texts.first()
            && words <= FEW_WORDS
            && !(self.is_library && is_public)
        {
            self.places.push(format!("{} {}", self.source.place(first.pound_token.span), said.trim()));
        }
    }
}

/// The text of a doc comment.
fn text(attribute: &Attribute) -> Option<String> {
    match &attribute.meta {
        Meta::NameValue(meta) if meta.path.is_ident("doc") => match &meta.value {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Str(text) => Some(text.value()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

fn is_shown_as_help(attributes: &[Attribute]) -> bool {
    let derives = attributes.iter().filter(|attribute| attribute.path().is_ident("derive"));
    derives.filter_map(|derive| derive.meta.require_list().ok()).any(|list| {
        let mut names = list.tokens.clone().into_iter().map(|token| token.to_string());
        names.any(|name| SHOWN_AS_HELP.contains(&name.as_str()))
    })
}

const fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

impl<'ast> Visit<'ast> for Docs<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let parts = Parts::of(item);
        if is_shown_as_help(parts.attributes) {
            return;
        }
        // Macros and blocks of implementations have no visibility of their own.
        self.is_public = parts.visibility.is_none_or(is_public);
        self.judge(parts.attributes, self.is_public);
        visit::visit_item(self, item);
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        self.judge(&field.attrs, is_public(&field.vis));
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        self.judge(&variant.attrs, self.is_public);
        variant.fields.iter().for_each(|field| self.judge(&field.attrs, self.is_public));
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.judge(&item.attrs, self.is_public);
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.judge(&item.attrs, is_public(&item.vis));
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.judge(&item.attrs, is_public(&item.vis));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, is_library: bool) -> Vec<String> {
        empty_docs(&Source::parse("f.rs".into(), Vec::new(), text).expect("it parses"), is_library)
    }

    const TEXT: &str = "/// The one.\nstruct A {\n    /// Its name.\n    pub name: u8,\n    /// Its\n    /// size in bytes.\n    \
                        size: u8,\n}\n/// A public thing.\npub enum B {\n    /// One.\n    One,\n}\nimpl A {\n    /// Makes one.\n    \
                        fn new() {}\n    /// Takes one.\n    pub fn take() {}\n    /// Says what its name cannot.\n    fn f() {}\n}\n";

    #[test]
    fn short_comments_on_private_items_are_found() {
        assert_eq!(lines(TEXT, true), ["f.rs:1 The one.", "f.rs:15 Makes one."]);
    }

    #[test]
    fn everything_of_a_binary_is_private() {
        let found = lines(TEXT, false);
        let numbers: Vec<&str> = found.iter().filter_map(|place| place.split([':', ' ']).nth(1)).collect();
        assert_eq!(numbers, ["1", "3", "9", "11", "15", "17"]);
    }

    #[test]
    fn help_of_a_command_is_no_comment() {
        assert_eq!(
            lines("#[derive(Debug, Args)]\nstruct A {\n    /// Server address\n    server: u8,\n}\n", false),
            [""; 0]
        );
    }
}
