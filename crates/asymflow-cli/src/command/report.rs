//! `asymflow report`: renders results into tables and plots.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::CliError;
use crate::extensions::Extensions;
use crate::folder::Folder;
use crate::kind::{AnyKind, Files};
use crate::output::print;
use crate::page::page;

/// Flags of `asymflow report`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run folders to take results from; none renders what is there again
    runs: Vec<PathBuf>,
    /// Where results are kept
    #[arg(long, default_value = "docs/results", value_name = "DIR")]
    out: PathBuf,
    /// Write the trade-off page of all results to this file
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "trade-off.html", conflicts_with = "check")]
    html: Option<PathBuf>,
    /// Change nothing; fail where a rendered result differs from its data
    #[arg(long)]
    check: bool,
}

pub fn report(args: &Args, extensions: &Extensions) -> Result<(), CliError> {
    if args.check {
        return check(&args.out, extensions);
    }
    if args.runs.is_empty() && !args.out.is_dir() {
        let message = format!("{} is not here: there are no results to render", args.out.display());
        return Err(CliError::usage(message, "name run folders, or where the results are with --out"));
    }
    let out = Folder::create(&args.out)?;
    for run in &args.runs {
        let (summary, kind) = read(&run.join("summary.json"), extensions)?;
        let (name, published) = kind.published(&summary)?;
        out.replace(&format!("{name}.json"), published.as_bytes())?;
    }
    if let Some(file) = &args.html {
        let mut points = Vec::new();
        for path in summaries(&args.out)? {
            let (summary, kind) = read(&path, extensions)?;
            points.extend(kind.points(&summary).map_err(|e| e.within(&path))?);
        }
        let written = std::fs::write(file, page(&points)?);
        written.map_err(|e| CliError::failed(format!("cannot write {}: {e}", file.display()), ""))?;
        print(&format!("{}\n", file.display()))?;
    }
    let files = all(&args.out, extensions)?;
    if files.is_empty() {
        print(&format!("{} holds no results; name run folders to take some from\n", args.out.display()))?;
    }
    for (name, text) in files {
        out.replace(&name, text.as_bytes())?;
        print(&format!("{}\n", args.out.join(name).display()))?;
    }
    Ok(())
}

fn check(folder: &Path, extensions: &Extensions) -> Result<(), CliError> {
    for (name, text) in all(folder, extensions)? {
        let path = folder.join(name);
        if std::fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
            let message = format!("{} differs from its data", path.display());
            return Err(CliError::failed(message, "`cargo xtask report` renders it again"));
        }
    }
    Ok(())
}

/// A `summary.json`, and its kind.
fn read<'a>(path: &Path, extensions: &'a Extensions) -> Result<(String, &'a dyn AnyKind), CliError> {
    #[derive(Deserialize)]
    struct Summary {
        experiment: Heading,
    }
    #[derive(Deserialize)]
    struct Heading {
        kind: String,
    }
    let text = std::fs::read_to_string(path).map_err(|e| {
        CliError::usage(format!("cannot read {}: {e}", path.display()), "name a finished folder under runs/")
    })?;
    let summary: Summary = serde_json::from_str(&text)
        .map_err(|e| CliError::usage(format!("{}: {e}", path.display()), "this is no summary of a whole experiment"))?;
    Ok((text, extensions.kind_named(&summary.experiment.kind)?))
}

/// The published results in `folder`.
fn summaries(folder: &Path) -> Result<Vec<PathBuf>, CliError> {
    let entries =
        std::fs::read_dir(folder).map_err(|e| CliError::usage(format!("cannot read {}: {e}", folder.display()), ""))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "json"));
    paths.sort();
    Ok(paths)
}

/// Every file that is rendered of the results in `folder`.
fn all(folder: &Path, extensions: &Extensions) -> Result<Files, CliError> {
    let mut files = Files::new();
    for path in summaries(folder)? {
        let (summary, kind) = read(&path, extensions)?;
        files.extend(kind.rendered(&summary).map_err(|e| e.within(&path))?);
    }
    Ok(files)
}
