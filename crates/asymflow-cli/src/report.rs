//! What an experiment found: one JSON document, rendered as Markdown and plots. `docs/results/` is made of these.

use std::path::{Path, PathBuf};

use asymflow::budget_study::BudgetReport;
use asymflow::delta::SplitStudyReport;
use asymflow::speedup::SpeedupReport;
use asymflow::study::RankStudyReport;
use serde::{Deserialize, Serialize};

use crate::error::CliError;
use crate::experiment::Experiment;
use crate::folder::Folder;
use crate::machine::{self, Machine};
use crate::memory::Cell;
use crate::serve_experiment::ServeRun;
use crate::shares_experiment::SharesRun;
use crate::summary::{self, Summary};
use crate::{plot, tables};

/// Where results were measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The command.
    pub command: String,
    /// Commit that the program was built from, where known.
    pub commit: Option<String>,
    /// The machine.
    pub machine: Machine,
    /// Assurance of the trusted part.
    pub assurance: String,
    /// The worker's device; null where there was none.
    pub worker_device: Option<String>,
}

/// Test accuracy by epoch of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// Mode.
    pub mode: String,
    /// Seed.
    pub seed: u64,
    /// Epochs and test accuracies.
    pub test_accuracy: Vec<(usize, f64)>,
    /// Epochs and mean training losses.
    pub loss: Vec<(usize, f64)>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Results {
    /// Of `kind = "train"`.
    Train {
        /// One entry a mode and seed.
        runs: Vec<Summary>,
        /// How they got there.
        curves: Vec<Curve>,
    },
    /// Of `kind = "speedup"`.
    Speedup(Vec<SpeedupReport>),
    /// Of `kind = "rank-study"`.
    RankStudy(RankStudyReport),
    /// Of `kind = "rank-dct-study"`.
    SplitStudy(SplitStudyReport),
    /// Of `kind = "serve"`.
    Serve(Vec<ServeRun>),
    /// Of `kind = "memory-study"`.
    Memory(Vec<Cell>),
    /// Of `kind = "shares"`.
    Shares(Vec<SharesRun>),
    /// Of `kind = "activation-budget"`.
    Budget(BudgetReport),
}

/// `summary.json` of a whole experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// 1.
    pub schema: u32,
    /// Name of the experiment.
    pub name: String,
    /// The experiment as it ran.
    pub experiment: Experiment,
    /// Where.
    pub provenance: Provenance,
    /// What.
    pub results: Results,
}

/// Flags of `asymflow report`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run folders to take results from; none renders what is there again
    pub runs: Vec<PathBuf>,
    /// Where results are kept
    #[arg(long, default_value = "docs/results", value_name = "DIR")]
    pub out: PathBuf,
    /// Change nothing; fail where a rendered result differs from its data
    #[arg(long)]
    pub check: bool,
}

impl Report {
    /// Leaves `summary.json`, `summary.md` and `plots/` in a run folder.
    pub fn leave(&self, folder: &Folder) -> Result<(), CliError> {
        write_json(folder, "summary.json", self)?;
        folder.replace("summary.md", tables::render(self).as_bytes())?;
        for (name, svg) in plot::plots(self)? {
            folder.replace(&format!("plots/{name}.svg"), svg.as_bytes())?;
        }
        Ok(())
    }

    /// Every file that `docs/results/` holds of this report.
    fn files(&self) -> Result<Vec<(String, String)>, CliError> {
        let plots = plot::plots(self)?;
        let mut text = tables::render(self);
        for (name, _) in &plots {
            text += &format!("\n![{name}]({}-{name}.svg)\n", self.name);
        }
        let mut files = vec![(format!("{}.md", self.name), text)];
        files.extend(plots.into_iter().map(|(name, svg)| (format!("{}-{name}.svg", self.name), svg)));
        Ok(files)
    }
}

/// Provenance of what this process ran.
pub fn provenance(assurance: String, worker_device: Option<String>) -> Provenance {
    Provenance {
        command: machine::command(),
        commit: machine::commit(),
        machine: machine::machine(worker_device.as_deref()),
        assurance,
        worker_device,
    }
}

/// Reads the curve of one run from its metrics.
pub fn curve(folder: &Folder, summary: &Summary) -> Result<Curve, CliError> {
    let text = folder.read("metrics.jsonl")?.unwrap_or_default();
    let mut curve =
        Curve { mode: summary.mode.clone(), seed: summary.seed, test_accuracy: Vec::new(), loss: Vec::new() };
    for line in String::from_utf8_lossy(&text).lines() {
        if let Ok(asymflow::job::FromTrusted::Epoch(epoch)) = serde_json::from_str(line) {
            curve.loss.push((epoch.epoch, epoch.loss));
            curve.test_accuracy.extend(epoch.test_accuracy.map(|accuracy| (epoch.epoch, accuracy)));
        }
    }
    Ok(curve)
}

/// Writes a JSON document into a folder.
pub fn write_json(folder: &Folder, name: &str, value: &impl Serialize) -> Result<(), CliError> {
    let mut text =
        serde_json::to_string_pretty(value).map_err(|e| CliError::failed(format!("cannot write {name}: {e}"), ""))?;
    text.push('\n');
    folder.replace(name, text.as_bytes())
}

fn read(path: &Path) -> Result<Report, CliError> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        CliError::usage(format!("cannot read {}: {e}", path.display()), "name a finished folder under runs/")
    })?;
    serde_json::from_str(&text)
        .map_err(|e| CliError::usage(format!("{}: {e}", path.display()), "this is no summary of a whole experiment"))
}

/// `asymflow report`.
pub fn report(args: &Args) -> Result<(), CliError> {
    if args.check {
        return check(&args.out);
    }
    let out = Folder::create(&args.out)?;
    for run in &args.runs {
        let mut report = read(&run.join("summary.json"))?;
        without_machine_paths(&mut report);
        write_json(&out, &format!("{}.json", report.name), &report)?;
    }
    for report in all(&args.out)? {
        for (name, text) in report.files()? {
            out.replace(&name, text.as_bytes())?;
            crate::print(&format!("{}\n", args.out.join(name).display()));
        }
    }
    Ok(())
}

/// Keeps the last part of absolute paths: a published result says which data, not where it lay.
fn without_machine_paths(report: &mut Report) {
    let last = |path: &Path| path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let Experiment { data, model, .. } = &mut report.experiment;
    for path in data.path.iter_mut().chain(&mut model.weights).filter(|path| path.is_absolute()) {
        *path = PathBuf::from(last(path));
    }
    let shorten = |command: &mut String| {
        let words: Vec<String> = command
            .split(' ')
            .map(|word| if word.starts_with('/') { last(Path::new(word)) } else { word.to_owned() })
            .collect();
        *command = words.join(" ");
    };
    shorten(&mut report.provenance.command);
    if let Results::Train { runs, .. } = &mut report.results {
        for run in runs {
            shorten(&mut run.command);
            if let Some(teacher) = &mut run.train.teacher {
                let folder = teacher.model.parent().map_or_else(String::new, last);
                teacher.model = PathBuf::from(folder).join(last(&teacher.model));
            }
        }
    }
}

fn all(folder: &Path) -> Result<Vec<Report>, CliError> {
    let entries =
        std::fs::read_dir(folder).map_err(|e| CliError::usage(format!("cannot read {}: {e}", folder.display()), ""))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "json"));
    paths.sort();
    paths.iter().map(|path| read(path)).collect()
}

fn check(folder: &Path) -> Result<(), CliError> {
    for report in all(folder)? {
        for (name, text) in report.files()? {
            let path = folder.join(name);
            if std::fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
                let message = format!("{} differs from its data", path.display());
                return Err(CliError::failed(message, "`cargo xtask report` renders it again"));
            }
        }
    }
    Ok(())
}

/// The runs of a training experiment, compared.
pub fn training(mut runs: Vec<Summary>, curves: Vec<Curve>) -> Results {
    summary::compare(&mut runs);
    Results::Train { runs, curves }
}
