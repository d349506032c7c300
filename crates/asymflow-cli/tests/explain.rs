//! `asymflow explain epsilon` says what the run will say, in every mode.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers as well")]

use std::path::Path;
use std::process::{Command, Output};

/// Every mode, on images that are counted where they lie.
const EXPERIMENT: &str = r#"
schema = 1
title = "explained"
claim = "none"
kind = "train"
[data]
train = 48
test = 16
[model]
names = ["demo-cnn"]
[mode]
run = [RUN]
rank = "fixed:2"
[privacy]
clip = 1.0
[train]
epochs = 3
batch = 16
learning_rate = 0.01
"#;

const ENTRIES: [&str; 10] = [
    "clear",
    "trusted-only",
    "dp-sgd+group-norm:4",
    "asymml",
    "delta@9",
    "delta@inf",
    "residual-null@9",
    "main-only",
    "naive-dp@9",
    "shares+average-pool+hermite",
];

fn asymflow(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_asymflow")).current_dir(folder).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// ε as it is printed; nothing released, or no guarantee.
fn number(cell: &str) -> f64 {
    if cell == "∞" { f64::INFINITY } else { cell.parse().unwrap() }
}

/// ε of the record that loses most, and the same by replacement, as explained for one entry.
fn explained(text: &str, entry: &str) -> [f64; 2] {
    let section = text.split("## ").find(|section| section.starts_with(&format!("{entry}\n"))).unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| training") || line.starts_with("| test"));
    rows.fold([0.0; 2], |most, row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        [most[0].max(number(cells[2])), most[1].max(number(cells[cells.len() - 1]))]
    })
}

#[test]
fn what_is_explained_is_what_the_run_says() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let quoted = ENTRIES.map(|entry| format!("{entry:?}")).join(", ");
    std::fs::write(at.join("e.toml"), EXPERIMENT.replace("RUN", &quoted)).unwrap();
    let names = text(&asymflow(at, &["modes"]).stdout);
    // Mode `cipher` releases nothing, and runs where a program of another workspace was built.
    for name in names.lines().filter(|name| *name != "cipher") {
        assert!(ENTRIES.iter().any(|entry| entry.split(['@', '+']).next() == Some(name)), "{name} is not asked about");
    }
    for set in [
        &[][..],
        &["--set", "delta.labels=public", "--set", "delta.views=2"],
        &["--set", "delta.labels=noisy-gradient"],
        // DP-SGD is said of a record removed, and refuses to be said of another.
        &["--set", "privacy.relation=replace", "--set", "mode.run=[\"asymml\", \"delta@9\", \"naive-dp@9\"]"],
    ] {
        let output = asymflow(at, &[&["explain", "epsilon", "e.toml"], set].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let table = text(&output.stdout);
        assert!(table.contains("n·δ = 6.4e-4 over 64 records"), "{table}");
        let output = asymflow(at, &[&["run", "e.toml", "--json"], set].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        for run in report["results"]["train"]["runs"].as_array().unwrap() {
            let entry = run["mode"].as_str().unwrap();
            // One promise in every place: the same condition, and the same ε in the table of all that is told.
            let section = table.split("## ").find(|section| section.starts_with(&format!("{entry}\n"))).unwrap();
            let condition = run["privacy"]["condition"].as_str().unwrap();
            let promised = section.lines().filter(|line| line.contains("record | worker"));
            for line in promised.filter(|line| !line.starts_with("| label")) {
                assert!(line.contains(condition), "{entry} {set:?}: {line}, the run says {condition}");
            }
            let membership =
                section.lines().find(|line| line.starts_with("| membership of a training record")).unwrap();
            assert_eq!(membership.contains('∞'), !entry.starts_with("dp-sgd"), "{membership}");
            let said = ["epsilon", "epsilon_replaced"].map(|key| run["privacy"][key].as_f64().unwrap_or(f64::INFINITY));
            for (explained, said) in explained(&table, entry).into_iter().zip(said) {
                // Four decimals, rounded up.
                let is_same = explained == said || (said - 1e-6..said + 1.1e-4).contains(&explained);
                assert!(is_same, "{entry} {set:?}: explained {explained}, the run says {said}");
            }
        }
    }
}

#[test]
fn more_epochs_never_cost_less() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("e.toml"), EXPERIMENT.replace("RUN", "\"delta@9\", \"asymml\"")).unwrap();
    let noisy = [
        "--set",
        "delta.labels=noisy-gradient",
        "--set",
        "privacy.mechanism=discrete_gaussian",
        "--set",
        "privacy.sigma=5",
    ];
    let mut before = [0.0; 2];
    for epochs in ["1", "3", "1000", "1000000"] {
        let epochs = format!("train.epochs={epochs}");
        let output = asymflow(at, &[&["explain", "epsilon", "e.toml", "--set", &epochs], &noisy[..]].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let now = ["delta@9", "asymml"].map(|entry| explained(&text(&output.stdout), entry)[0]);
        assert!(now[0] >= before[0] - 1e-3 && now[1] >= before[1], "{epochs}: {before:?}, then {now:?}");
        before = now;
    }
    let output = asymflow(at, &["explain", "epsilon", "e.toml", "--set", "train.epochs=3074457345618258603"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("train.epochs = 3074457345618258"), "{}", text(&output.stderr));
}
