//! Kinds of experiments: each is one value that says everything about itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::CliError;
use crate::experiment::{Experiment, KindFacts, Limit};
use crate::page::{Point, page};
use crate::plot::Plot;
use crate::report::{Provenance, Report};
use crate::run::Run;

/// How a run of an experiment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Everything was done.
    Whole,
    /// The user asked to stop.
    Interrupted,
}

/// Whether an experiment's claim holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it does.
    pub holds: bool,
    /// What was found and what is allowed, in one line.
    pub text: String,
}

/// A kind of experiments: what stands in the `kind` of an experiment file, its section, how it is run, and what is shown of what
/// it found.
///
/// ```
/// use asymflow_cli::experiment::Experiment;
/// use asymflow_cli::{CliError, Ended, ExperimentKind, Run};
///
/// struct CountLayers;
///
/// impl ExperimentKind for CountLayers {
///     type Settings = ();
///     type Results = usize;
///
///     fn name(&self) -> &'static str {
///         "count-layers"
///     }
///
///     fn run(&self, run: &Run, (): &()) -> Result<(Ended, Option<usize>), CliError> {
///         let experiment = run.experiment();
///         let network = experiment.network(&experiment.model.names[0])?;
///         Ok((Ended::Whole, Some(network.layers.len())))
///     }
///
///     fn table(&self, _: &Experiment, (): &(), layers: &usize) -> String {
///         format!("{layers} layers at the top\n")
///     }
/// }
///
/// let extensions = asymflow_cli::Extensions::default().kind(CountLayers);
/// // In `main`: asymflow_cli::main_with(extensions)
/// # let _ = extensions;
/// ```
pub trait ExperimentKind: Send + Sync + 'static {
    /// The key of `results` in `summary.json`.
    fn results_name(&self) -> &'static str {
        ExperimentKind::name(self)
    }

    /// The section of this kind; `()` for a kind without one. An unknown key is refused where the type denies unknown fields.
    type Settings: Default + Serialize + DeserializeOwned;

    /// What a run finds: the `results` of `summary.json`.
    type Results: Serialize + DeserializeOwned;

    /// What stands in `kind`.
    fn name(&self) -> &'static str;

    /// Name of the section that holds the settings; kinds may share one that they read alike.
    fn section(&self) -> Option<&'static str> {
        None
    }

    /// The least and the most that numbers of the section may be.
    fn limits(&self) -> &'static [Limit] {
        &[]
    }

    /// Whether `model.names` may name more than one network.
    fn takes_several_networks(&self) -> bool {
        false
    }

    /// Samples in a batch, for what is printed before a run.
    fn batch(&self, experiment: &Experiment, _settings: &Self::Settings) -> usize {
        experiment.train.batch
    }

    /// What a run would cost for the network called `name`, in Markdown.
    ///
    /// # Errors
    /// A network that cannot be run so.
    fn estimate(&self, experiment: &Experiment, settings: &Self::Settings, name: &str) -> Result<String, CliError> {
        crate::tables::split(experiment, name, self.batch(experiment, settings))
    }

    /// What is said before a run of who sees what.
    ///
    /// # Errors
    /// A mode that its settings do not make.
    fn notice(&self, run: &Run) -> Result<Vec<String>, CliError> {
        run.assurances()
    }

    /// Runs the experiment. What was found by then is kept when the user asks to stop, where there is anything to keep.
    ///
    /// # Errors
    /// Whatever stops it.
    fn run(&self, run: &Run, settings: &Self::Settings) -> Result<(Ended, Option<Self::Results>), CliError>;

    /// What was found, in Markdown.
    fn table(&self, experiment: &Experiment, settings: &Self::Settings, results: &Self::Results) -> String;

    /// The same for the terminal, where that is to be shorter.
    fn screen(&self, _experiment: &Experiment, _settings: &Self::Settings, _results: &Self::Results) -> Option<String> {
        None
    }

    /// Plots of what was found, by name.
    fn plots(&self, _results: &Self::Results) -> Vec<(&'static str, Plot)> {
        Vec::new()
    }

    /// Modes with their settings as points of the trade-off page.
    fn points(&self, _experiment: &Experiment, _results: &Self::Results) -> Vec<Point> {
        Vec::new()
    }

    /// Whether the claim holds; `None` where there is nothing to check.
    fn verdict(
        &self,
        _experiment: &Experiment,
        _settings: &Self::Settings,
        _results: &Self::Results,
    ) -> Option<Verdict> {
        None
    }

    /// Removes from results, before they are published, where something lay; `last` is the last part of a path.
    fn without_machine_paths(&self, _results: &mut Self::Results, _last: &dyn Fn(&Path) -> String) {}
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All done; the claim holds or there is none to check.
    Done,
    /// The claim does not hold.
    ClaimFailed,
    /// Stopped by the user.
    Interrupted,
}

pub(crate) type Files = Vec<(String, String)>;

/// [`ExperimentKind`] without its types, for the list of kinds.
pub(crate) trait AnyKind: KindFacts + Send + Sync {
    /// What a run would cost for one network.
    fn estimate(&self, experiment: &Experiment, name: &str) -> Result<String, CliError>;
    /// Runs the experiment, and leaves its results in the run folder and on stdout.
    fn run(&self, run: &Run) -> Result<Outcome, CliError>;
    /// A `summary.json` as it is published, with the name of its experiment.
    fn published(&self, summary: &str) -> Result<(String, String), CliError>;
    /// Points of the trade-off page.
    fn points(&self, summary: &str) -> Result<Vec<Point>, CliError>;
    /// What `docs/results/` holds beside a published `summary.json`.
    fn rendered(&self, summary: &str) -> Result<Files, CliError>;
}

impl<K: ExperimentKind> KindFacts for K {
    fn name(&self) -> &'static str {
        ExperimentKind::name(self)
    }

    fn section(&self) -> Option<&'static str> {
        ExperimentKind::section(self)
    }

    fn limits(&self) -> &'static [Limit] {
        ExperimentKind::limits(self)
    }

    fn takes_several_networks(&self) -> bool {
        ExperimentKind::takes_several_networks(self)
    }

    fn resolve(&self, section: serde_json::Value) -> Result<serde_json::Value, serde_json::Error> {
        let settings: K::Settings = serde_json::from_value(section)?;
        // By way of text: a 32-bit float is to stay as it was written. TOML has no null.
        let mut resolved = serde_json::from_str(&serde_json::to_string(&settings)?)?;
        remove_nulls(&mut resolved);
        Ok(resolved)
    }
}

impl<K: ExperimentKind> AnyKind for K {
    fn estimate(&self, experiment: &Experiment, name: &str) -> Result<String, CliError> {
        ExperimentKind::estimate(self, experiment, &settings::<K>(self, experiment)?, name)
    }

    fn run(&self, run: &Run) -> Result<Outcome, CliError> {
        let experiment = run.experiment();
        let settings = settings::<K>(self, experiment)?;
        run.say(&format!("{}: {}", run.name(), experiment.title));
        run.say(&format!("claim: {}", experiment.claim));
        self.notice(run)?.iter().for_each(|line| run.say(line));
        let (ended, results) = ExperimentKind::run(self, run, &settings)?;
        let mut verdict = None;
        if let Some(results) = results {
            verdict = self.verdict(experiment, &settings, &results).filter(|_| ended == Ended::Whole);
            let screen = self.screen(experiment, &settings, &results);
            leave(self, run, results, screen)?;
        }
        if let Some(verdict) = &verdict {
            run.say(&verdict.text);
        }
        Ok(match (ended, verdict) {
            (Ended::Interrupted, _) => Outcome::Interrupted,
            (Ended::Whole, Some(Verdict { holds: false, .. })) => Outcome::ClaimFailed,
            (Ended::Whole, Some(Verdict { holds: true, .. }) | None) => Outcome::Done,
        })
    }

    fn published(&self, summary: &str) -> Result<(String, String), CliError> {
        let mut report: Report<K::Results> = read(summary)?;
        let last = |path: &Path| path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        for path in report.experiment.paths_mut().filter(|path| path.is_absolute()) {
            *path = PathBuf::from(last(path));
        }
        report.provenance.command = without_paths(&report.provenance.command);
        report.results.values_mut().for_each(|results| self.without_machine_paths(results, &last));
        Ok((report.name.clone(), json(&report)?))
    }

    fn points(&self, summary: &str) -> Result<Vec<Point>, CliError> {
        Ok(points(self, &read(summary)?))
    }

    fn rendered(&self, summary: &str) -> Result<Files, CliError> {
        let report: Report<K::Results> = read(summary)?;
        let (mut text, mut files) = (render(self, &report)?, Vec::new());
        for (name, plot) in plots(self, &report)? {
            let file = format!("{}-{name}.svg", report.name);
            text += &format!("\n![{name}]({file})\n");
            files.push((file, plot));
        }
        files.insert(0, (format!("{}.md", report.name), text));
        Ok(files)
    }
}

fn settings<K: ExperimentKind>(kind: &K, experiment: &Experiment) -> Result<K::Settings, CliError> {
    experiment.section(ExperimentKind::section(kind))
}

fn read<R: DeserializeOwned>(summary: &str) -> Result<Report<R>, CliError> {
    serde_json::from_str(summary)
        .map_err(|e| CliError::usage(e.to_string(), "this is no summary of a whole experiment"))
}

fn json(value: &impl Serialize) -> Result<String, CliError> {
    let text = serde_json::to_string_pretty(value);
    Ok(text.map_err(|e| CliError::failed(format!("cannot write the results: {e}"), ""))? + "\n")
}

fn render<K: ExperimentKind>(kind: &K, report: &Report<K::Results>) -> Result<String, CliError> {
    let e = &report.experiment;
    let mut text = format!("# {}\n\nClaim: {}.\n\n{}\n", e.title, e.claim, report.provenance.words());
    for results in report.results.values() {
        text += &kind.table(e, &settings(kind, e)?, results);
    }
    Ok(text)
}

fn plots<K: ExperimentKind>(kind: &K, report: &Report<K::Results>) -> Result<Files, CliError> {
    let plots = report.results.values().flat_map(|results| kind.plots(results));
    plots.map(|(name, plot)| Ok((name.to_owned(), plot.draw(&report.experiment.title)?))).collect()
}

fn points<K: ExperimentKind>(kind: &K, report: &Report<K::Results>) -> Vec<Point> {
    let points = report.results.values().flat_map(|results| kind.points(&report.experiment, results));
    points.map(|point| point.measured(&report.provenance)).collect()
}

/// Leaves the results of a run in its folder and on stdout.
fn leave<K: ExperimentKind>(kind: &K, run: &Run, results: K::Results, screen: Option<String>) -> Result<(), CliError> {
    let worker_device = run.worker.get().map(|worker| worker.device.clone());
    let report = Report {
        schema: 1,
        name: run.name.clone(),
        experiment: run.experiment.clone(),
        provenance: Provenance::of(run.runtime.assurance().to_string(), worker_device),
        results: BTreeMap::from([(kind.results_name().to_owned(), results)]),
    };
    run.folder.replace("summary.json", json(&report)?.as_bytes())?;
    let text = render(kind, &report)?;
    run.folder.replace("summary.md", text.as_bytes())?;
    for (name, svg) in plots(kind, &report)? {
        run.folder.replace(&format!("plots/{name}.svg"), svg.as_bytes())?;
    }
    let points = points(kind, &report);
    if !points.is_empty() {
        run.folder.replace("trade-off.html", page(&points)?.as_bytes())?;
    }
    if run.output.json {
        let line = serde_json::to_string(&report);
        let line = line.map_err(|e| CliError::failed(format!("cannot print the results: {e}"), ""))?;
        crate::output::print(&format!("{line}\n"))?;
    } else {
        crate::output::print(&format!("\n{}\n", screen.unwrap_or(text)))?;
    }
    run.say(&format!("run folder: {}", run.folder.path().display()));
    Ok(())
}

/// A command with the last parts of absolute paths.
pub(crate) fn without_paths(command: &str) -> String {
    let shorten = |word: &str| match word.rsplit_once('/') {
        Some((_, last)) if word.starts_with('/') => last.to_owned(),
        _ => word.to_owned(),
    };
    command.split(' ').map(shorten).collect::<Vec<_>>().join(" ")
}

fn remove_nulls(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(remove_nulls);
        }
        serde_json::Value::Array(values) => values.iter_mut().for_each(remove_nulls),
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => {}
    }
}
