//! Every number of every key, with values that nobody means.

use std::collections::BTreeSet;
use std::ops::RangeBounds;
use std::path::{Path, PathBuf};

use super::limits::COMMON;
use super::{Experiment, Limit};
use crate::error::{CliError, Exit};
use crate::extensions::Extensions;

const VALUES: [&str; 22] = [
    "-1",
    "0",
    "1",
    "-0.0",
    "0.5",
    "1.5",
    "5e-324",
    "1e38",
    "3.5e38",
    "1e308",
    "-1e308",
    "nan",
    "-nan",
    "inf",
    "-inf",
    "65536",
    "4294967296",
    "9007199254740993",
    "3074457345618258603",
    "9223372036854775807",
    "-9223372036854775808",
    "340282366920938463463374607431768211456",
];

/// What is no number by itself, but has some in it.
const TEXTS: [(&str, &[&str]); 6] = [
    (
        "mode.rank",
        &[
            "fixed:0",
            "fixed:18446744073709551616",
            "energy:nan",
            "energy:-1",
            "cost:inf",
            "doubling:1:0",
            "fixed:",
            ":",
        ],
    ),
    ("mode.run", &["delta@-1", "delta@nan", "delta@0", "delta@", "asymml+shared-relu:0x0x0", "shares+hermite:1e400"]),
    (
        "model.names",
        &["demo-cnn+hermite:nan", "demo-cnn+kervolution:-inf", "demo-cnn+shared-relu:1x0x4", "demo-cnn+", "demo-cnn++"],
    ),
    ("trusted.memory_limit", &["18446744073709551615GiB", "-1GiB", "nanGiB", "1e300MiB", "GiB", ""]),
    ("data.resize", &["0", "-1", "nan", "224x", "{ height = 0 }", "{ filter = \"lanczos\" }", "{ widht = 3 }"]),
    ("model.input", &["0", "{ channels = 0, height = 1, width = 1 }", "{ channels = 3 }"]),
];

fn experiment(folder: &Path, kind: &str) -> PathBuf {
    let path = folder.join("e.toml");
    let text =
        format!("schema = 1\ntitle = \"t\"\nclaim = \"c\"\nkind = \"{kind}\"\n[model]\nnames = [\"demo-cnn\"]\n");
    std::fs::write(&path, text).unwrap();
    path
}

fn read(path: &Path, item: &str) -> Result<Experiment, CliError> {
    Extensions::default().with_registered(|known| super::read(path, false, &[item.to_owned()], known))
}

/// Reads an experiment with one key changed and, where it is taken, computes what can be without data.
fn tried(path: &Path, item: &str) -> Result<(), CliError> {
    let experiment = read(path, item)?;
    for (name, &entry) in
        experiment.model.names.iter().flat_map(|name| experiment.entries.iter().map(move |e| (name, e)))
    {
        let network = experiment.network(&entry.model(name))?;
        let (mode, terms) = (experiment.mode_spec(entry, name)?, experiment.terms());
        let facts = experiment.facts(&network, &terms, usize::MAX);
        mode.check(&facts).map_err(|e| CliError::usage(e.to_string(), ""))?;
    }
    let _ = (experiment.train_spec(u64::MAX), experiment.data_spec(), experiment.terms());
    if let Some(limit) = &experiment.trusted.memory_limit {
        super::size("trusted.memory_limit", limit)?;
    }
    Ok(())
}

/// The keys of a section, as the message about an unknown one lists them.
fn keys(path: &Path, section: &str) -> Vec<String> {
    let error = read(path, &format!("{section}.no_such_key=1")).unwrap_err().to_string();
    let line = error.lines().find(|line| line.contains("expected")).unwrap_or_default();
    let names = line.split('`').skip(1).step_by(2).filter(|name| *name != "no_such_key");
    names.map(|name| format!("{section}.{name}")).collect()
}

/// How a key takes a number: `key=NUMBER`, `key=[NUMBER]` or not at all.
fn form(path: &Path, key: &str) -> Option<fn(&str, &str) -> String> {
    let forms: [fn(&str, &str) -> String; 2] = [|k, v| format!("{k}={v}"), |k, v| format!("{k}=[{v}]")];
    let is_taken = |form: &fn(&str, &str) -> String| {
        ["1", "0.5"].iter().any(|value| match read(path, &form(key, value)) {
            Ok(_) => true,
            Err(error) => error.to_string().contains("out of range"),
        })
    };
    forms.into_iter().find(is_taken)
}

#[test]
fn every_number_has_limits_and_no_value_does_harm() {
    let folder = tempfile::tempdir().unwrap();
    let (mut sections, mut limits): (Vec<(&str, &str)>, Vec<Limit>) = (Vec::new(), COMMON.to_vec());
    let common =
        ["data", "data.resize", "model", "mode", "privacy", "delta", "trusted", "worker", "train", "train.easing"];
    sections.extend(common.into_iter().chain(["shares", "report"]).map(|section| ("train", section)));
    Extensions::default().with_registered(|known| {
        sections.extend(known.kinds.iter().filter_map(|kind| Some((kind.name(), kind.section()?))));
        limits.extend(known.kinds.iter().flat_map(|kind| kind.limits()));
    });
    let (mut tries, mut refused, mut numbers, mut wrong) = (0, 0, BTreeSet::new(), Vec::new());
    let names: Vec<&str> = sections.iter().map(|(_, section)| *section).collect();
    for &(kind, section) in &sections {
        let path = experiment(folder.path(), kind);
        for key in keys(&path, section) {
            // A section may be written as a list of its keys.
            let Some(form) = form(&path, &key).filter(|_| !names.contains(&key.as_str())) else { continue };
            numbers.insert(key.clone());
            let Some(limit) = limits.iter().find(|limit| limit.key == key) else {
                wrong.push(format!("{key} is a number without limits"));
                continue;
            };
            for value in VALUES {
                let item = form(&key, value);
                tries += 1;
                let is_within =
                    |number: f64| limit.range.contains(&number) && (!limit.is_whole || number.fract() == 0.0);
                let within = value.parse().is_ok_and(is_within);
                match tried(&path, &item) {
                    Ok(()) if !within => wrong.push(format!("{item} is out of {:?} and was taken", limit.range)),
                    Ok(()) => {}
                    Err(error) => {
                        refused += 1;
                        let named = error.to_string().contains(&key) && error.help().starts_with("it must be");
                        // The largest is more than a file can say.
                        if error.exit() as u8 != Exit::Usage as u8 || !within && !named && value.len() < 25 {
                            wrong.push(format!("{item}: {error}"));
                        }
                    }
                }
            }
        }
    }
    let path = experiment(folder.path(), "train");
    for (key, text) in TEXTS.into_iter().flat_map(|(key, texts)| texts.iter().map(move |text| (key, text))) {
        let item = match key {
            "mode.run" | "model.names" => format!("{key}=[{text:?}]"),
            _ => format!("{key}={text}"),
        };
        tries += 1;
        match tried(&path, &item) {
            Err(error) if error.exit() as u8 == Exit::Usage as u8 => refused += 1,
            Err(error) => wrong.push(format!("{item}: {error}")),
            Ok(()) => wrong.push(format!("{item} was taken")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    println!("{} keys, {tries} values, {refused} refused", numbers.len());
    assert!(numbers.len() > 50 && tries > 1000, "{} keys, {tries} values", numbers.len());
}
