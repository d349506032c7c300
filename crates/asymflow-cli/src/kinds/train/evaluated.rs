//! Test images that a program of its own classifies when training is over, where a mode names one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use asymflow::modes::{Evaluator, ModeSpec};
use asymflow_zoo::Network;
use serde::Deserialize;

use crate::error::CliError;
use crate::folder::Folder;
use crate::run::{Run, beside};
use crate::summary::{Bytes, Summary};

/// What the program says, and what it complains of.
const SAID: &str = "evaluated.jsonl";
const COMPLAINED: &str = "evaluated.log";
/// Between looks whether it has ended or the user wants to.
const PATIENCE: Duration = Duration::from_millis(50);

/// The last line of what it says.
#[derive(Debug, Deserialize)]
struct Said {
    summary: Told,
}

#[derive(Debug, Deserialize)]
struct Told {
    images: usize,
    accuracy: Shares,
    bytes: Sizes,
    cost: Cost,
}

#[derive(Debug, Deserialize)]
struct Cost {
    /// Most of a query.
    images: u64,
}

#[derive(Debug, Deserialize)]
struct Shares {
    test: f64,
    reference: f64,
}

/// Of a query and its answer, whatever number of images.
#[derive(Debug, Deserialize)]
struct Sizes {
    query: u64,
    answer: u64,
}

/// The program that `mode` names, where it names one: asked for before anything is trained.
pub(super) fn program(run: &Run, mode: &dyn ModeSpec) -> Result<Option<(PathBuf, Evaluator)>, CliError> {
    let Some(evaluator) = mode.evaluator() else { return Ok(None) };
    let (path, data) = (beside(evaluator.program), &run.experiment().data);
    if !path.is_file() {
        let what = format!(
            "mode {} needs {}, which is neither beside this program nor on PATH",
            mode.name(),
            evaluator.program
        );
        return Err(CliError::missing(what, format!("build it and copy it there: {}", evaluator.build)));
    }
    if data.reader.is_some() || data.resize.is_some() {
        let help = "leave out data.reader and data.resize";
        return Err(CliError::usage(format!("{} reads images as they lie in data.path", evaluator.program), help));
    }
    Ok(Some((path, evaluator)))
}

/// Has it classify test images by the weights in `folder`, and puts what it says into `summary`.
pub(super) fn evaluate(
    run: &Run,
    (path, evaluator): (PathBuf, Evaluator),
    network: &Network,
    folder: &Folder,
    summary: &mut Summary,
) -> Result<(), CliError> {
    folder.write_json("network.json", network)?;
    let data = run.experiment().data_spec();
    let file = |name: &str| folder.path().join(name);
    let made = |name: &str| {
        File::create(file(name))
            .map_err(|e| CliError::failed(format!("cannot write {}: {e}", file(name).display()), ""))
    };
    let mut command = Command::new(&path);
    command.arg("evaluate").arg("--network").arg(file("network.json"));
    command.arg("--weights").arg(file("weights.safetensors")).args(&evaluator.arguments);
    for (name, number) in
        [("--train", summary.data.train as u64), ("--test", summary.data.test as u64), ("--seed", data.seed)]
    {
        command.arg(name).arg(number.to_string());
    }
    command.args(data.path.iter().flat_map(|path| [Path::new("--data"), path.as_path()]));
    command.stdin(Stdio::null()).stdout(made(SAID)?).stderr(made(COMPLAINED)?);
    let failed = |e: std::io::Error| CliError::failed(format!("cannot run {}: {e}", path.display()), "");
    let mut child = command.spawn().map_err(failed)?;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if run.is_interrupted() {
            // It may have ended by itself.
            let _ = child.kill();
            child.wait().map_err(failed)?;
            "interrupted".clone_into(&mut summary.status);
            return Ok(());
        }
        std::thread::sleep(PATIENCE);
    };
    let text =
        |name: &str| Ok::<_, CliError>(String::from_utf8_lossy(&folder.read(name)?.unwrap_or_default()).into_owned());
    if !status.success() {
        let complained = text(COMPLAINED)?;
        let after =
            |start: &str| complained.lines().find_map(|line| line.strip_prefix(start)).unwrap_or_default().to_owned();
        return Err(CliError::failed(format!("{}: {}", evaluator.program, after("error: ")), after("help: ")));
    }
    let last = text(SAID)?;
    let Said { summary: Told { images, accuracy, bytes, cost } } =
        serde_json::from_str(last.lines().last().unwrap_or_default()).map_err(|e| {
            CliError::failed(format!("{} said something else than expected: {e}", evaluator.program), "")
        })?;
    summary.data.test = images;
    // The same weights in floating point.
    summary.accuracy.trusted_only = summary.accuracy.test;
    (summary.accuracy.test, summary.accuracy.reference) = (Some(accuracy.test), Some(accuracy.reference));
    let a_query = cost.images.clamp(1, images.max(1) as u64);
    summary.inference_bytes_per_sample =
        Bytes { to_worker: bytes.query / a_query, from_worker: bytes.answer / a_query };
    Ok(())
}
