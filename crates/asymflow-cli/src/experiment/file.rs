//! Reading experiment files: what they extend, their `[smoke]` table, overrides.

use std::path::Path;

use toml::{Table, Value};

use super::{Experiment, Kind};
use crate::error::CliError;

/// Reads an experiment file, applies its `[smoke]` table where asked, then the overrides.
pub fn read(path: &Path, smoke: bool, overrides: &[String]) -> Result<Experiment, CliError> {
    let mut table = read_table(path)?;
    if let Some(base) = table.remove("extends") {
        let Some(name) = base.as_str() else {
            return Err(CliError::usage("extends must be the name of a file", "write extends = \"base.toml\""));
        };
        let mut merged = read_table(&path.with_file_name(name))?;
        if merged.contains_key("extends") {
            return Err(CliError::usage(format!("{name} extends another file"), "extend once only"));
        }
        merge(&mut merged, table);
        table = merged;
    }
    if let Some(Value::Table(changes)) = table.remove("smoke")
        && smoke
    {
        merge(&mut table, changes);
    }
    for item in overrides {
        set(&mut table, item)?;
    }
    check(table, path)
}

fn read_table(path: &Path) -> Result<Table, CliError> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        CliError::usage(format!("cannot read {}: {e}", path.display()), "`cargo xtask list` shows the experiments")
    })?;
    text.parse().map_err(|e| CliError::usage(format!("{}: {e}", path.display()), "mend the TOML"))
}

fn check(table: Table, path: &Path) -> Result<Experiment, CliError> {
    let experiment: Experiment =
        Value::Table(table).try_into().map_err(|e: toml::de::Error| unknown_key(path, e.message()))?;
    if experiment.schema != 1 {
        let message = format!("{}: schema {} is not known", path.display(), experiment.schema);
        return Err(CliError::usage(message, "this version reads schema = 1"));
    }
    if experiment.model.names.is_empty() || experiment.mode.run.is_empty() || experiment.train.seeds.is_empty() {
        return Err(CliError::usage(
            format!("{}: model.names, mode.run and train.seeds need at least one entry", path.display()),
            "add one",
        ));
    }
    let takes_several = matches!(experiment.kind, Kind::Train | Kind::Speedup | Kind::MemoryStudy);
    if !takes_several && experiment.model.names.len() > 1 {
        let message = format!("{}: only train, speedup and memory-study take several models", path.display());
        return Err(CliError::usage(message, "name one model"));
    }
    Ok(experiment)
}

/// Turns serde's list of expected keys into the nearest one.
fn unknown_key(path: &Path, message: &str) -> CliError {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let help = match quoted.split_first() {
        Some((unknown, known)) if message.starts_with("unknown") => known
            .iter()
            .min_by_key(|name| strsim::damerau_levenshtein(unknown, name))
            .map_or_else(String::new, |nearest| format!("did you mean `{nearest}`?")),
        _ => "see the keys in crates/asymflow-cli/README.md".to_owned(),
    };
    CliError::usage(format!("{}: {}", path.display(), message.trim()), help)
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// Applies `section.key=value`; the value is TOML, or a bare string.
fn set(table: &mut Table, item: &str) -> Result<(), CliError> {
    let usage = || CliError::usage(format!("--set {item}: not of the form key=value"), "e.g. --set train.epochs=3");
    let (key, value) = item.split_once('=').ok_or_else(usage)?;
    let parsed: Table = format!("value = {value}")
        .parse()
        .unwrap_or_else(|_| Table::from_iter([("value".to_owned(), Value::String(value.to_owned()))]));
    let value = parsed.into_iter().next().map(|(_, value)| value).ok_or_else(usage)?;
    let mut change = value;
    for part in key.trim().rsplit('.') {
        change = Value::Table(Table::from_iter([(part.to_owned(), change)]));
    }
    match change {
        Value::Table(change) => merge(table, change),
        _ => return Err(usage()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use asymflow::job::WorkerTransport;

    use super::*;

    const MINIMAL: &str =
        "schema = 1\ntitle = \"t\"\nclaim = \"c\"\nkind = \"train\"\n[model]\nnames = [\"demo-cnn\"]\n";

    fn write(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.toml");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn an_unknown_key_names_the_nearest_known_one() {
        let (_folder, path) = write(&format!("{MINIMAL}[train]\nepoch = 3\n"));
        let error = read(&path, false, &[]).unwrap_err();
        assert_eq!(error.help(), "did you mean `epochs`?");
    }

    #[test]
    fn overrides_win_over_smoke_and_smoke_over_the_file() {
        let (_folder, path) =
            write(&format!("{MINIMAL}[train]\nepochs = 9\nbatch = 7\n[smoke.train]\nepochs = 2\nbatch = 3\n"));
        assert_eq!(read(&path, false, &[]).unwrap().train.epochs, 9);
        let experiment = read(&path, true, &["train.batch=5".to_owned()]).unwrap();
        assert_eq!((experiment.train.epochs, experiment.train.batch), (2, 5));
    }

    #[test]
    fn a_file_extends_another_once() {
        let (folder, path) = write("extends = \"base.toml\"\n[train]\nbatch = 4\n");
        std::fs::write(folder.path().join("base.toml"), format!("{MINIMAL}[train]\nepochs = 6\n")).unwrap();
        let experiment = read(&path, false, &[]).unwrap();
        assert_eq!((experiment.train.epochs, experiment.train.batch), (6, 4));
    }

    #[test]
    fn shared_memory_is_for_a_worker_that_is_started_here() {
        let (_folder, path) = write(MINIMAL);
        let transport = |set: &[&str]| {
            let set: Vec<String> = set.iter().map(|&item| item.to_owned()).collect();
            read(&path, false, &set).map(|experiment| experiment.worker.transport())
        };
        assert_eq!(transport(&[]).unwrap(), WorkerTransport::Shm);
        assert_eq!(transport(&["worker.address=10.0.0.1:1"]).unwrap(), WorkerTransport::Tcp);
        assert_eq!(transport(&["worker.transport=tcp"]).unwrap(), WorkerTransport::Tcp);
        assert_eq!(transport(&["worker.address=127.0.0.1:1", "worker.transport=shm"]).unwrap(), WorkerTransport::Shm);
        assert!(transport(&["worker.transport=udp"]).is_err());
    }

    #[test]
    fn strings_may_be_set_without_quotes() {
        let (_folder, path) = write(MINIMAL);
        let experiment = read(&path, false, &["mode.rank=fixed:4".to_owned()]).unwrap();
        assert_eq!(experiment.mode.rank, "fixed:4");
        assert!(read(&path, false, &["nonsense".to_owned()]).is_err());
    }
}
