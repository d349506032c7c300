//! What the code does not keep to yet: allowed by number, and the numbers may only fall.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};

use super::outcome::Outcome;
use crate::workspace::Workspace;

/// Holds, for each check, how many offences each crate or file may have.
const FILE: &str = "xtask/ratchets.toml";

const HEADER: &str = "# What `cargo xtask check` still allows, by check and place. Sums may only fall: `cargo xtask check --fix` writes\n\
                      # down what has become less, or has moved.\n";

/// The places of the offences that a check found, by crate or file.
pub type Found = BTreeMap<String, Vec<String>>;

/// Number of offences allowed, by check and by crate or file.
type Allowed = BTreeMap<String, BTreeMap<String, usize>>;

/// Compares what `check` found with what is allowed. With `fix`, allows what there is, where code has only moved or become
/// better: where the sum does not rise.
pub fn judge(workspace: &Workspace, check: &str, found: &Found, fix: bool) -> Result<Outcome> {
    let path = workspace.root().join(FILE);
    let text = if path.is_file() { std::fs::read_to_string(&path)? } else { String::new() };
    let mut all: Allowed = toml::from_str(&text).with_context(|| format!("cannot read {FILE}"))?;
    let allowed = all.remove(check).unwrap_or_default();
    let counts: BTreeMap<String, usize> = found.iter().map(|(key, places)| (key.clone(), places.len())).collect();
    let total: usize = counts.values().sum();
    let mut problems = Vec::new();
    if fix && counts != allowed && total <= allowed.values().sum() {
        all.insert(check.to_owned(), counts);
        all.retain(|_, counts| !counts.is_empty());
        let text = format!("{HEADER}\n{}", toml::to_string(&all)?);
        std::fs::write(&path, text).with_context(|| format!("cannot write {FILE}"))?;
    } else {
        problems = differences(&allowed, found);
    }
    Ok(Outcome::of_problems(problems, format!("{total} left, in {} places", found.len())))
}

fn differences(allowed: &BTreeMap<String, usize>, found: &Found) -> Vec<String> {
    let keys: BTreeSet<&String> = allowed.keys().chain(found.keys()).collect();
    let difference = |key: &String| {
        let places = found.get(key).map(Vec::as_slice).unwrap_or_default();
        let limit = allowed.get(key).copied().unwrap_or(0);
        match places.len().cmp(&limit) {
            Ordering::Equal => None,
            Ordering::Less => {
                Some(format!("{key}: {} found, {FILE} allows {limit}; lower it with --fix", places.len()))
            }
            Ordering::Greater => {
                Some(format!("{key}: {} found, {limit} allowed\n  {}", places.len(), places.join("\n  ")))
            }
        }
    };
    keys.into_iter().filter_map(difference).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(counts: &[(&str, usize)]) -> Found {
        counts.iter().map(|(key, count)| ((*key).to_owned(), vec!["place".to_owned(); *count])).collect()
    }

    /// A workspace in a temporary folder whose ratchet file is `text`.
    fn judged(text: &str, counts: &[(&str, usize)], fix: bool) -> (Outcome, String) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(dir.path().join("xtask")).expect("a folder can be made");
        std::fs::write(dir.path().join(FILE), text).expect("it can be written");
        let json = serde_json::json!({"packages": [], "workspace_root": dir.path(), "target_directory": "/t"});
        let workspace = Workspace::parse(&json.to_string()).expect("the made-up metadata parses");
        let outcome = judge(&workspace, "rule", &found(counts), fix).expect("the file is good");
        (outcome, std::fs::read_to_string(dir.path().join(FILE)).expect("it is still there"))
    }

    #[test]
    fn as_many_as_allowed_pass_and_more_or_new_ones_fail() {
        let text = "[rule]\na = 2\n";
        assert!(matches!(judged(text, &[("a", 2)], false).0, Outcome::Pass(_)));
        for counts in [&[("a", 3)][..], &[("a", 2), ("b", 1)], &[("b", 3)]] {
            for fix in [false, true] {
                let (outcome, after) = judged(text, counts, fix);
                assert!(matches!(outcome, Outcome::Fail(_)), "{counts:?}");
                assert_eq!(after, text, "a fix never raises the sum");
            }
        }
    }

    #[test]
    fn fewer_fail_until_they_are_written_down() {
        let text = "[other]\nx = 1\n\n[rule]\na = 2\nb = 1\nc = 4\n";
        let counts = [("a", 1), ("c", 4)];
        let (outcome, _) = judged(text, &counts, false);
        assert!(matches!(outcome, Outcome::Fail(problems) if problems.len() == 2));
        let (outcome, after) = judged(text, &counts, true);
        assert!(matches!(outcome, Outcome::Pass(_)));
        assert_eq!(after, format!("{HEADER}\n[other]\nx = 1\n\n[rule]\na = 1\nc = 4\n"));
        assert!(matches!(judged(&after, &counts, false).0, Outcome::Pass(_)));
        assert_eq!(judged("[rule]\na = 1\n", &[], true).1, format!("{HEADER}\n"));
    }

    #[test]
    fn what_moves_is_written_down_where_it_is_now() {
        let counts = [("a", 1), ("b", 1)];
        assert!(matches!(judged("[rule]\na = 2\n", &counts, false).0, Outcome::Fail(_)));
        let (outcome, after) = judged("[rule]\na = 2\n", &counts, true);
        assert!(matches!(outcome, Outcome::Pass(_)));
        assert_eq!(after, format!("{HEADER}\n[rule]\na = 1\nb = 1\n"));
    }
}
