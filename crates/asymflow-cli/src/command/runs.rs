//! `asymflow list` and `asymflow show RUN`: what run folders hold.

use std::path::Path;

use crate::error::CliError;
use crate::folder::{Folder, STATUS};
use crate::kinds::train::{curve, finished};
use crate::text::{escaped, markdown};

/// What a run folder says of the run as a whole.
struct Kept {
    folder: Folder,
    experiment: String,
    kind: String,
    status: String,
}

impl Kept {
    /// Reads a folder; none where it is no run's.
    fn read(path: &Path) -> Result<Option<Self>, CliError> {
        let folder = Folder::existing(path)?;
        let Some(config) = folder.read("config.toml")? else { return Ok(None) };
        let config: toml::Table = String::from_utf8_lossy(&config).parse().unwrap_or_default();
        let word = |key: &str| escaped(config.get(key).and_then(toml::Value::as_str).unwrap_or("?"));
        let status = match folder.claim() {
            Err(_) => "running".to_owned(),
            Ok(_) => {
                let status = folder.read(STATUS)?.unwrap_or_else(|| b"unfinished".to_vec());
                escaped(String::from_utf8_lossy(&status).lines().next().unwrap_or_default())
            }
        };
        let (experiment, kind) = (word("name"), word("kind"));
        Ok(Some(Self { folder, experiment, kind, status }))
    }

    /// The folders of its jobs, by name.
    fn jobs(&self) -> Result<Vec<(String, Folder)>, CliError> {
        let jobs = folders(self.folder.path())?.into_iter();
        let jobs = jobs.map(|(name, path)| Ok((name, Folder::existing(&path)?)));
        let is_job = |folder: &Folder| folder.path().join("metrics.jsonl").is_file();
        Ok(jobs.collect::<Result<Vec<_>, CliError>>()?.into_iter().filter(|(_, folder)| is_job(folder)).collect())
    }
}

/// The folders in a folder, by name and in its order.
fn folders(path: &Path) -> Result<Vec<(String, std::path::PathBuf)>, CliError> {
    let entries = std::fs::read_dir(path).map_err(|e| {
        let message = format!("cannot read {}: {e}", path.display());
        CliError::usage(message, "name the folder of the runs with --runs")
    })?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir());
    let named = paths.map(|path| (escaped(&path.file_name().unwrap_or_default().to_string_lossy()), path));
    let mut named: Vec<_> = named.collect();
    named.sort();
    Ok(named)
}

/// Every run in a folder, a line each.
pub fn list(runs: &Path) -> Result<String, CliError> {
    let mut rows = vec![["run", "kind", "jobs done", "status"].map(str::to_owned)];
    for (name, path) in folders(runs)? {
        let Some(kept) = Kept::read(&path)? else { continue };
        let jobs = kept.jobs()?;
        let mut done = 0;
        for (_, folder) in &jobs {
            done += usize::from(finished(folder)?.is_some());
        }
        rows.push([name, kept.kind, format!("{done} of {}", jobs.len()), kept.status]);
    }
    Ok(markdown(&rows))
}

/// One run: how it ended, how far its jobs came, and its summary where there is one.
pub fn show(path: &Path) -> Result<String, CliError> {
    let Some(kept) = Kept::read(path)? else {
        let message = format!("{} is no run folder: it has no config.toml", path.display());
        return Err(CliError::usage(message, "name a folder under runs/, or an experiment file"));
    };
    let folder = kept.folder.path().display();
    let mut text = format!("{folder}: {} ({}), {}\n", kept.experiment, kept.kind, kept.status);
    let mut rows = vec![["job", "epochs", "loss", "accuracy %", "status"].map(str::to_owned)];
    for (name, job) in kept.jobs()? {
        let curve = curve(&job, &name, 0)?;
        let (epochs, loss) = curve.loss.last().copied().unzip();
        let accuracy = curve.test_accuracy.last().map_or_else(|| "-".to_owned(), |(_, a)| format!("{:.1}", 100.0 * a));
        let status = finished(&job)?.map_or_else(|| "unfinished".to_owned(), |summary| summary.status);
        let loss = loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.4}"));
        rows.push([name, epochs.unwrap_or_default().to_string(), loss, accuracy, status]);
    }
    if rows.len() > 1 {
        text += &format!("\n{}", markdown(&rows));
    }
    if let Some(summary) = kept.folder.read("summary.md")? {
        text += &format!("\n{}", String::from_utf8_lossy(&summary));
    }
    if !matches!(kept.status.as_str(), "done" | "claim failed" | "running") {
        text += &format!("\n`asymflow resume {folder}` goes on with it\n");
    }
    Ok(text)
}
