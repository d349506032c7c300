//! Reading experiment files: what they extend, their `[smoke]` table, overrides; and what a run folder keeps of them.

use std::path::Path;
use std::sync::Arc;

use asymflow::modes::Registry;
use asymflow_zoo::Network;
use toml::{Table, Value};

use super::limits::{self, COMMON};
use super::{Experiment, Limit, Networks};
use crate::entry::Entry;
use crate::error::CliError;

/// What reading an experiment has to know of its kind.
pub trait KindFacts {
    fn name(&self) -> &'static str;
    fn section(&self) -> Option<&'static str>;
    fn limits(&self) -> &'static [Limit];
    fn takes_several_networks(&self) -> bool;
    /// The settings with everything that was left out.
    fn resolve(&self, section: serde_json::Value) -> Result<serde_json::Value, serde_json::Error>;
}

/// What there is by name.
#[derive(Clone, Copy)]
pub struct Registered<'a> {
    /// Kinds of experiments.
    pub kinds: &'a [&'a dyn KindFacts],
    /// Networks beside those of the zoo.
    pub networks: &'a Networks,
    /// Modes, mechanisms and decompositions.
    pub registry: &'a Arc<Registry>,
}

/// Keys that may change while a run is resumed: none of them can change a result.
const RESUMABLE: [&str; 8] = [
    "worker.address",
    "worker.fingerprint",
    "worker.token_file",
    "worker.device",
    "worker.program",
    "worker.transport",
    "worker.timeout_seconds",
    "worker.patience_seconds",
];

/// Reads an experiment file, applies its `[smoke]` table where asked, then the overrides.
pub fn read(
    path: &Path,
    smoke: bool,
    overrides: &[String],
    registered: Registered<'_>,
) -> Result<Experiment, CliError> {
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
        merge(&mut table, change(item)?.0);
    }
    resolve(table, path, registered)
}

/// Reads what a run folder keeps: the name of its experiment, and the experiment as it was told at the start. Only what cannot
/// change a result may be overridden.
pub fn read_run(
    folder: &Path,
    overrides: &[String],
    registered: Registered<'_>,
) -> Result<(String, Experiment), CliError> {
    let path = folder.join("config.toml");
    if !path.is_file() {
        let message = format!("{} is no run folder: it has no config.toml", folder.display());
        return Err(CliError::usage(message, "name a folder under runs/"));
    }
    let mut table = read_table(&path)?;
    let Some(Value::String(name)) = table.remove("name") else {
        let message = format!("{}: no name of an experiment", path.display());
        return Err(CliError::usage(message, "it was left by an older version: start the run again"));
    };
    for item in overrides {
        let (change, key) = change(item)?;
        if !RESUMABLE.contains(&key.as_str()) {
            let message = format!("--set {item}: a resumed run goes on as it was told at its start");
            return Err(CliError::usage(message, format!("what may change is {}", RESUMABLE.join(", "))));
        }
        merge(&mut table, change);
    }
    Ok((name, resolve(table, &path, registered)?))
}

fn read_table(path: &Path) -> Result<Table, CliError> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        CliError::usage(
            format!("cannot read {}: {e}", path.display()),
            "name an experiment file, as those under xtask/experiments",
        )
    })?;
    text.parse().map_err(|e| CliError::usage(format!("{}: {e}", path.display()), "mend the TOML"))
}

/// Checks a table and fills in what it leaves out.
fn resolve(table: Table, path: &Path, registered: Registered<'_>) -> Result<Experiment, CliError> {
    let usage = |message: String, help: &str| CliError::usage(format!("{}: {message}", path.display()), help);
    let all = COMMON.iter().chain(registered.kinds.iter().flat_map(|kind| kind.limits()));
    limits::check(&table, &all.collect::<Vec<_>>())?;
    let mut experiment: Experiment =
        Value::Table(table.clone()).try_into().map_err(|e: toml::de::Error| unknown_key(path, e.message()))?;
    experiment.registered = registered.networks.clone();
    experiment.registry = Arc::clone(registered.registry);
    let parsed = experiment.mode.run.iter().map(|entry| Entry::parse(entry, registered.registry));
    experiment.entries = parsed.collect::<Result<_, _>>().map_err(|e| {
        CliError::usage(format!("{}: mode.run: {e}", path.display()), "`asymflow modes` lists what there is")
    })?;
    if experiment.schema != 1 {
        return Err(usage(format!("schema {} is not known", experiment.schema), "this version reads schema = 1"));
    }
    let kind = kind(&experiment.kind, path, registered)?;
    resolve_sections(&mut experiment, kind, path, registered)?;
    if let Some(file) = experiment.model.file.clone() {
        let given = table.get("model").and_then(|model| model.get("classes")).is_some();
        take_network(&mut experiment, &file, given)?;
    }
    if experiment.model.names.is_empty() || experiment.mode.run.is_empty() || experiment.train.seeds.is_empty() {
        return Err(usage("model.names, mode.run and train.seeds need at least one entry".to_owned(), "add one"));
    }
    if !kind.takes_several_networks() && experiment.model.names.len() > 1 {
        return Err(usage(format!("kind {} takes one network", kind.name()), "name one in model.names"));
    }
    Ok(experiment)
}

fn kind<'a>(name: &str, path: &Path, registered: Registered<'a>) -> Result<&'a dyn KindFacts, CliError> {
    registered.kinds.iter().find(|kind| kind.name() == name).copied().ok_or_else(|| {
        let help = nearest(name, registered.kinds.iter().map(|kind| kind.name()));
        CliError::usage(format!("{}: unknown kind {name:?}", path.display()), help)
    })
}

/// Checks every section that is not of all kinds, and keeps that of `kind`.
fn resolve_sections(
    experiment: &mut Experiment,
    kind: &dyn KindFacts,
    path: &Path,
    registered: Registered<'_>,
) -> Result<(), CliError> {
    let given = std::mem::take(&mut experiment.sections);
    let of_kinds = || registered.kinds.iter().filter_map(|kind| kind.section());
    let of_modes = || registered.registry.sections();
    for (name, section) in given {
        // The mode checks it when it is made.
        if of_modes().any(|known| known == name) {
            experiment.sections.insert(name, section);
            continue;
        }
        let Some(owner) = registered.kinds.iter().find(|kind| kind.section() == Some(&name)) else {
            let common = serde_json::to_value(&*experiment).unwrap_or_default();
            let common = common.as_object().into_iter().flat_map(serde_json::Map::keys).map(String::as_str);
            let help = nearest(&name, common.chain(of_kinds()).chain(of_modes().map(|name| -> &str { name })));
            return Err(CliError::usage(format!("{}: unknown section or key `{name}`", path.display()), help));
        };
        let section = owner.resolve(section).map_err(|e| unknown_key(path, &format!("{e}")))?;
        if kind.section() == Some(&name) {
            experiment.sections.insert(name, section);
        }
    }
    if let Some(name) = kind.section().filter(|&name| !experiment.sections.contains_key(name)) {
        let defaults = kind.resolve(serde_json::json!({})).map_err(|e| unknown_key(path, &format!("{e}")))?;
        experiment.sections.insert(name.to_owned(), defaults);
    }
    Ok(())
}

/// Reads the network that `model.file` names.
fn take_network(experiment: &mut Experiment, file: &Path, classes_given: bool) -> Result<(), CliError> {
    let unusable = |e: String| {
        let help = "a network is written as `asymflow_zoo::Network` serialises, in JSON or TOML; `asymflow import` makes one of ONNX";
        CliError::usage(format!("model.file {}: {e}", file.display()), help)
    };
    let text = std::fs::read_to_string(file).map_err(|e| unusable(e.to_string()))?;
    let network: Network = if file.extension().is_some_and(|extension| extension == "toml") {
        toml::from_str(&text).map_err(|e| unusable(e.to_string()))?
    } else {
        serde_json::from_str(&text).map_err(|e| unusable(e.to_string()))?
    };
    network.validate().map_err(|e| unusable(e.to_string()))?;
    let model = &mut experiment.model;
    if classes_given && model.classes != network.classes {
        return Err(unusable(format!("it has {} classes, model.classes says {}", network.classes, model.classes)));
    }
    model.classes = network.classes;
    if model.names.is_empty() {
        model.names.push(network.name.clone());
    }
    experiment.from_file = Some(network);
    Ok(())
}

/// The known name closest to `unknown`, as a question.
fn nearest<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> String {
    let nearest = known.min_by_key(|name| strsim::damerau_levenshtein(unknown, name));
    nearest.map_or_else(String::new, |nearest| format!("did you mean `{nearest}`?"))
}

/// Turns serde's list of expected keys into the nearest one.
fn unknown_key(path: &Path, message: &str) -> CliError {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let help = match quoted.split_first() {
        Some((unknown, known)) if message.starts_with("unknown") => nearest(unknown, known.iter().copied()),
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

/// What `section.key=value` changes, and the key; the value is TOML, or a bare string.
fn change(item: &str) -> Result<(Table, String), CliError> {
    let usage = || CliError::usage(format!("--set {item}: not of the form key=value"), "e.g. --set train.epochs=3");
    let (key, value) = item.split_once('=').ok_or_else(usage)?;
    let key = key.trim().to_owned();
    let mut parsed: Table = format!("value = {value}")
        .parse()
        .unwrap_or_else(|_| Table::from_iter([("value".to_owned(), Value::String(value.to_owned()))]));
    let value = parsed.remove("value").ok_or_else(usage)?;
    let change =
        key.rsplit('.').fold(value, |change, part| Value::Table(Table::from_iter([(part.to_owned(), change)])));
    match change {
        Value::Table(change) => Ok((change, key)),
        _ => Err(usage()),
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Bound;
    use std::path::PathBuf;

    use asymflow::job::WorkerTransport;

    use super::*;
    use crate::extensions::Extensions;

    fn read(path: &Path, smoke: bool, overrides: &[String]) -> Result<Experiment, CliError> {
        Extensions::default().with_registered(|known| super::read(path, smoke, overrides, known))
    }

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
            read(&path, false, &set).map(|experiment| experiment.worker.transport("sim"))
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

    #[test]
    fn a_section_of_another_kind_is_checked_and_one_of_no_kind_refused() {
        for (more, help) in [
            ("[speedup]\nrepeat = 3\n", "did you mean `repeats`?"),
            ("[speed]\nrepeats = 3\n", "did you mean `speedup`?"),
            ("[tarin]\nepochs = 3\n", "did you mean `train`?"),
        ] {
            let (_folder, path) = write(&format!("{MINIMAL}{more}"));
            assert_eq!(read(&path, false, &[]).unwrap_err().help(), help);
        }
        let (_folder, path) = write(&format!("{MINIMAL}[speedup]\nrepeats = 3\n"));
        assert!(read(&path, false, &[]).is_ok());
        let (_folder, path) = write(&MINIMAL.replace("train", "trian"));
        assert_eq!(read(&path, false, &[]).unwrap_err().help(), "did you mean `train`?");
    }

    #[test]
    fn what_is_kept_of_an_experiment_is_read_alike() {
        for kind in
            ["train", "speedup", "rank-study", "rank-dct-study", "serve", "memory-study", "shares", "activation-budget"]
        {
            let (_folder, path) = write(&MINIMAL.replace("\"train\"", &format!("\"{kind}\"")));
            let experiment = read(&path, false, &[]).unwrap();
            let kept = toml::to_string(&experiment).unwrap();
            std::fs::write(&path, &kept).unwrap();
            assert_eq!(toml::to_string(&read(&path, false, &[]).unwrap()).unwrap(), kept, "{kind}");
        }
    }

    #[test]
    fn a_network_is_read_from_its_file() {
        let (folder, path) = write(&MINIMAL.replace("names = [\"demo-cnn\"]", "file = \"FILE\""));
        let mut network = asymflow_zoo::by_name("resnet8-cifar", 7, None).unwrap();
        network.name = "mine".to_owned();
        let (json, toml) = (serde_json::to_string(&network).unwrap(), toml::to_string(&network).unwrap());
        for (name, text) in [("net.json", json.clone()), ("net.toml", toml)] {
            let file = folder.path().join(name);
            std::fs::write(&file, text).unwrap();
            let set = format!("model.file={}", file.display());
            let experiment = read(&path, false, std::slice::from_ref(&set)).unwrap();
            assert_eq!((experiment.model.names.as_slice(), experiment.model.classes), (&["mine".to_owned()][..], 7));
            assert_eq!(experiment.network("mine").unwrap(), network);
            assert_ne!(experiment.network("mine+hermite").unwrap().layers, network.layers);
            assert!(read(&path, false, &[set, "model.classes=10".to_owned()]).is_err());
        }
        let file = folder.path().join("net.json");
        std::fs::write(&file, json.replacen("\"kernel\":3", "\"kernel\":99", 1)).unwrap();
        assert!(read(&path, false, &[format!("model.file={}", file.display())]).is_err());
    }

    /// Every number that a file may hold, by its key.
    fn numbers(key: &str, value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => {
                let inside = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
                map.iter().for_each(|(name, value)| numbers(&inside(name), value, found));
            }
            serde_json::Value::Array(values) => values.iter().for_each(|value| numbers(key, value, found)),
            serde_json::Value::Number(_) => found.push(key.to_owned()),
            _ => {}
        }
    }

    #[test]
    fn every_number_has_its_limits_and_is_refused_beyond_them() {
        Extensions::default().with_registered(|known| {
            let limits: Vec<&Limit> = COMMON.iter().chain(known.kinds.iter().flat_map(|kind| kind.limits())).collect();
            let (_folder, path) = write(MINIMAL);
            let mut all = serde_json::to_value(read(&path, false, &[]).unwrap()).unwrap();
            for kind in known.kinds {
                let Some(section) = kind.section() else { continue };
                all[section] = kind.resolve(serde_json::json!({})).unwrap();
            }
            let mut found = Vec::new();
            numbers("", &all, &mut found);
            assert!(found.len() > 30, "{found:?}");
            for key in found {
                assert!(limits.iter().any(|limit| limit.key == key), "{key} has no limits");
            }
            for limit in limits.iter().filter(|limit| limit.key != "schema") {
                let refused = |number: f64| {
                    let number = match number {
                        number if number.is_nan() => "nan".to_owned(),
                        number if number.is_infinite() => "inf".to_owned(),
                        number if number.fract() == 0.0 && number.abs() < 1e15 => format!("{number:.0}"),
                        number => format!("{number:e}"),
                    };
                    let table: Table = format!("{} = {number}", limit.key).parse().unwrap();
                    limits::check(&table, &limits).is_err()
                };
                let (Bound::Included(least) | Bound::Excluded(least), Bound::Included(most) | Bound::Excluded(most)) =
                    limit.range
                else {
                    panic!("{} has no end", limit.key);
                };
                assert!(refused(least - 1.0) && refused(f64::NAN), "{}", limit.key);
                assert!(most.is_infinite() || refused(2.0 * most + 1.0), "{}", limit.key);
                assert_eq!(refused(least), matches!(limit.range.0, Bound::Excluded(_)), "{}", limit.key);
                assert_eq!(refused(most), matches!(limit.range.1, Bound::Excluded(_)), "{}", limit.key);
            }
        });
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_name() {
        let (_folder, path) = write(MINIMAL);
        for (item, help) in [
            ("data.train=0", "it must be a whole number, at least 1 and at most 1000000000"),
            ("train.epochs=-1", "it must be a whole number, at least 1"),
            ("train.epochs=1.5", "it must be a whole number, at least 1"),
            ("train.learning_rate=-0.1", "it must be above 0 and at most 340282346638528860000000000000000000000"),
            ("train.momentum=2", "it must be at least 0 and below 1"),
            ("train.weight_decay=-1", "it must be at least 0"),
            ("train.teacher_temperature=0", "it must be above 0"),
            ("train.learning_rate=nan", "it must be above 0"),
            ("study.ranks=[0,1]", "it must be a whole number, at least 1"),
            ("delta.views=9223372036854775807", "it must be a whole number, at least 1 and at most 10000"),
            ("budget.tune_rate=inf", "it must be above 0"),
        ] {
            let error = read(&path, false, &[item.to_owned()]).unwrap_err();
            assert!(error.help().starts_with(help), "{item}: {error}");
            assert!(error.to_string().contains(item.split('=').next().unwrap()), "{item}: {error}");
        }
    }
}
