//! Relative links in our markdown lead somewhere.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::outcome::Outcome;
use crate::source::read_dir;
use crate::workspace::Workspace;

/// Follows the relative links of the README files, the changelog and everything below `docs/`.
pub fn check(workspace: &Workspace, _fix: bool) -> Result<Outcome> {
    let files = markdown_files(workspace.root())?;
    let mut problems = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let shown = file.strip_prefix(workspace.root()).unwrap_or(file).display();
        problems.extend(dead_links(file, &text).into_iter().map(|link| format!("{shown}: {link} leads nowhere")));
    }
    Ok(Outcome::of_problems(problems, format!("{} markdown files", files.len())))
}

fn markdown_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut dirs = vec![root.join("docs")];
    for entry in read_dir(root)?.into_iter().filter(|path| is_markdown(path)) {
        files.push(entry);
    }
    for crate_dir in read_dir(&root.join("crates"))?
        .into_iter()
        .chain(["xtask", "benches", "torch", "cipher"].map(|folder| root.join(folder)))
    {
        files.extend(Some(crate_dir.join("README.md")).filter(|path| path.is_file()));
    }
    while let Some(dir) = dirs.pop() {
        for path in read_dir(&dir)? {
            if path.is_dir() {
                dirs.push(path);
            } else if is_markdown(&path) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn is_markdown(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "md")
}

/// The relative links of `text`, as it stands in `file`, whose file or heading does not exist.
fn dead_links(file: &Path, text: &str) -> Vec<String> {
    links(text).into_iter().filter(|link| !leads_somewhere(file, text, link)).collect()
}

fn leads_somewhere(file: &Path, text: &str, link: &str) -> bool {
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = if path.is_empty() { file.to_owned() } else { file.parent().unwrap_or(file).join(path) };
    if path.is_empty() {
        return anchor.is_empty() || has_heading(text, anchor);
    }
    if anchor.is_empty() || !is_markdown(&target) {
        return target.exists();
    }
    std::fs::read_to_string(&target).is_ok_and(|text| has_heading(&text, anchor))
}

/// Link targets outside code, without those that leave the repository or name a Rust item.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    for line in prose(text) {
        let inline = line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
        let reference = line.strip_prefix('[').and_then(|rest| rest.split_once("]: ")).map(|(_, target)| target.trim());
        links.extend(inline.chain(reference).filter(|link| is_relative(link)).map(str::to_owned));
    }
    links
}

fn is_relative(link: &str) -> bool {
    !link.is_empty() && !link.contains("://") && !link.starts_with("mailto:") && !link.contains("::")
}

/// The lines of `text` outside fenced code, without inline code.
fn prose(text: &str) -> impl Iterator<Item = String> {
    let mut in_fence = false;
    text.lines().filter_map(move |line| {
        if line.trim_start().starts_with("```") {
            in_fence = !in_fence;
            return None;
        }
        (!in_fence).then(|| line.split('`').step_by(2).collect::<Vec<_>>().join("`"))
    })
}

fn has_heading(text: &str, anchor: &str) -> bool {
    let mut in_fence = false;
    text.lines().any(|line| {
        in_fence ^= line.trim_start().starts_with("```");
        !in_fence && line.starts_with('#') && slug(line.trim_start_matches('#')) == anchor
    })
}

/// The anchor that code hosts give a heading.
fn slug(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_')).collect::<String>().replace(' ', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_inline_and_reference_links_outside_code() {
        let text = "See [a](a.md), ![b](img/b.svg \"title\") and [c](https://x.org).\n[d]: d.md\n\
                    ```\n[no](code.md)\n```\n`[no](inline.md)` [item](crate::Item) [`e`](e.md#part)\n";
        assert_eq!(links(text), ["a.md", "img/b.svg", "d.md", "e.md#part"]);
    }

    #[test]
    fn tells_dead_links_from_live_ones() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(dir.path().join("there.md"), "# A heading, here\n").expect("it can be written");
        let text =
            "[1](there.md) [2](there.md#a-heading-here) [3](there.md#gone) [4](gone.md) [5](#top) [6](#own)\n# Own\n";
        let dead = dead_links(&dir.path().join("page.md"), text);
        assert_eq!(dead, ["there.md#gone", "gone.md", "#top"]);
    }

    #[test]
    fn slugs_are_those_of_code_hosts() {
        assert_eq!(slug(" What the worker sees: bits & bytes"), "what-the-worker-sees-bits--bytes");
        assert_eq!(slug(" `cargo xtask` run"), "cargo-xtask-run");
    }
}
