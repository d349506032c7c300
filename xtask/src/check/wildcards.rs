//! No `_ =>` over our own enums: a new variant has to be a compile error where something is computed, served or charged.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use syn::visit::{self, Visit};
use syn::{Pat, Type};

use super::outcome::Outcome;
use super::ratchet::{self, Found};
use crate::source::{self, Source};
use crate::workspace::Workspace;

/// Finds `match` expressions with a wildcard arm whose other arms name a variant of an enum of ours.
pub fn check(workspace: &Workspace, fix: bool) -> Result<Outcome> {
    let mut all = Vec::new();
    for package in workspace.packages.iter().filter(|package| package.is_crate()) {
        all.extend(source::sources(workspace, package)?);
    }
    ratchet::judge(workspace, "wildcards", &wildcards(&all), fix)
}

/// Variants by the name of their enum.
type Enums = BTreeMap<String, BTreeSet<String>>;

fn wildcards(sources: &[Source]) -> Found {
    let mut ours = Ours::default();
    sources.iter().flat_map(|source| &source.items).for_each(|item| ours.visit_item(item));
    let mut found = Found::new();
    for source in sources {
        let mut matches = Matches { enums: &ours.enums, of: None, spans: Vec::new() };
        source.items.iter().for_each(|item| matches.visit_item(item));
        if !matches.spans.is_empty() {
            let places = matches.spans.into_iter().map(|span| source.place(span)).collect();
            found.insert(source.shown.clone(), places);
        }
    }
    found
}

#[derive(Default)]
struct Ours {
    enums: Enums,
}

impl<'ast> Visit<'ast> for Ours {
    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        let variants = item.variants.iter().map(|variant| variant.ident.to_string());
        self.enums.entry(item.ident.to_string()).or_default().extend(variants);
    }
}

/// The wildcard arms over [`Ours`].
struct Matches<'a> {
    enums: &'a Enums,
    of: Option<String>,
    spans: Vec<proc_macro2::Span>,
}

impl<'ast> Visit<'ast> for Matches<'_> {
    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let of = match &*item.self_ty {
            Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
            _ => None,
        };
        let outer = std::mem::replace(&mut self.of, of);
        visit::visit_item_impl(self, item);
        self.of = outer;
    }

    fn visit_expr_match(&mut self, item: &'ast syn::ExprMatch) {
        let mut variants = Variants { enums: self.enums, of: self.of.as_deref(), named: false };
        item.arms.iter().for_each(|arm| variants.visit_pat(&arm.pat));
        if variants.named {
            let wildcard = item.arms.iter().find(|arm| is_wildcard(&arm.pat));
            self.spans.extend(wildcard.map(|arm| arm.fat_arrow_token.spans[0]));
        }
        visit::visit_expr_match(self, item);
    }
}

/// Whether a pattern names a variant of an enum of ours.
struct Variants<'a> {
    enums: &'a Enums,
    of: Option<&'a str>,
    named: bool,
}

impl<'ast> Visit<'ast> for Variants<'_> {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        let mut names = path.segments.iter().rev().map(|segment| segment.ident.to_string());
        if let (Some(variant), Some(of)) = (names.next(), names.next()) {
            let of = if of == "Self" { self.of.unwrap_or_default() } else { &of };
            self.named |= self.enums.get(of).is_some_and(|variants| variants.contains(&variant));
        }
    }

    fn visit_expr(&mut self, _: &'ast syn::Expr) {
        // A guard compares and decides nothing about variants that are not named.
    }
}

/// `_`, or a tuple of nothing else.
fn is_wildcard(pat: &Pat) -> bool {
    match pat {
        Pat::Wild(_) | Pat::Rest(_) => true,
        Pat::Tuple(tuple) => tuple.elems.iter().all(is_wildcard),
        Pat::Paren(paren) => is_wildcard(&paren.pat),
        Pat::Reference(reference) => is_wildcard(&reference.pat),
        Pat::Or(or) => or.cases.iter().any(is_wildcard),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENUMS: &str = "pub enum Mode { Clear, Delta(u8), Split { rank: u8 } } enum Kind { A, B }";

    fn lines(text: &str) -> Vec<String> {
        let source = |name: &str, text: &str| Source::parse(name.into(), Vec::new(), text).expect("it parses");
        wildcards(&[source("enums.rs", ENUMS), source("f.rs", text)]).into_values().flatten().collect()
    }

    #[test]
    fn wildcards_over_our_variants_are_found_with_their_line() {
        for arms in [
            "Mode::Clear => 1,\n_ => 2",
            "crate::Mode::Delta(_) => 1,\n_ => 2",
            "Mode::Split { .. } | Mode::Clear => 1,\n_ => 2",
            "(Mode::Clear, 1) => 1,\n_ => 2",
            "(Kind::A, _) => 1,\n(_, _) => 2",
            "Some(&Mode::Clear) => 1,\n_ => 2",
            "Mode::Clear if x => 1,\n_ => 2",
            "Mode::Clear => 1,\nKind::B | _ => 2",
        ] {
            assert_eq!(lines(&format!("fn f() {{ match x {{\n{arms} }}; }}")), ["f.rs:3"], "{arms}");
        }
        let inside = "impl Mode { fn f(&self) -> u8 { match self {\nSelf::Clear => 1,\n_ => match 1 { _ => 2 } } } }";
        assert_eq!(lines(inside), ["f.rs:3"]);
    }

    #[test]
    fn complete_matches_foreign_enums_and_tests_are_not() {
        for text in [
            "fn f() { match x { Mode::Clear => 1, Mode::Delta(_) | Mode::Split { .. } => 2 } }",
            "fn f() { match x { Ordering::Less => 1, _ => 2 } }",
            "fn f() { match x { Mode::MAX => 1, Mode::of::<u8> => 3, 7 => 1, _ => 2 } }",
            "fn f() { match x { Mode::Clear => 1, y => y.into() } }",
            "fn f() { match x { 1 if y == Mode::Clear => 1, _ => 2 } }",
            "fn f() { match x { Mode::Clear => 1, _ if y => 2, Mode::Delta(_) | Mode::Split { .. } => 3 } }",
            "impl Other { fn f(&self) { match self { Self::Clear => 1, _ => 2 } } }",
            "#[cfg(test)] mod tests { fn f() { match x { Mode::Clear => 1, _ => 2 } } }",
        ] {
            assert_eq!(lines(text), [""; 0], "{text}");
        }
    }
}
