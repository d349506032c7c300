//! `asymflow import`: a network and its weights out of an ONNX file.

use std::path::PathBuf;

use asymflow_zoo::{models::onnx, weights::files};

use crate::error::CliError;
use crate::output::print;
use crate::text::escaped;

/// What to import.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The ONNX file, opsets 13 to 21
    file: PathBuf,
    /// A new folder for network.json and weights.safetensors
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

/// Writes the network for `model.file`, and the weights for `model.weights`.
pub fn import(args: &Args) -> Result<(), CliError> {
    let file = escaped(&args.file.display().to_string());
    let unusable =
        |e: &dyn std::fmt::Display| CliError::usage(format!("{file}: {e}"), "export a classifier in evaluation");
    let name = args.file.file_stem().unwrap_or_default().to_string_lossy().replace('+', "-");
    let (network, weights) = onnx::read(&args.file, &name).map_err(|e| unusable(&e))?;
    let json = serde_json::to_string_pretty(&network).map_err(|e| unusable(&e))?;
    let failed =
        |e: &dyn std::fmt::Display| CliError::failed(format!("{}: {e}", args.output.display()), "give a new folder");
    std::fs::create_dir(&args.output).map_err(|e| failed(&e))?;
    let (model, values) = (args.output.join("network.json"), args.output.join("weights.safetensors"));
    std::fs::write(&model, json).map_err(|e| failed(&e))?;
    files::write(&values, &network, &weights).map_err(|e| failed(&e))?;
    print(&format!(
        "{}: images of {}, {} classes, {} parameters\nmodel.file = \"{}\"\nmodel.weights = \"{}\"\n",
        escaped(&name),
        network.input,
        network.classes,
        weights.tensors.values().map(|tensor| tensor.data.len()).sum::<usize>(),
        model.display(),
        values.display(),
    ))
}
