//! `asymflow export`: the weights of a run in another program's form.

use std::path::PathBuf;

use asymflow::modes::Registry;
use asymflow::service::ServedModel;
use asymflow_zoo::{Weights, models::onnx, weights::files};

use crate::error::CliError;

/// What to export.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model, as a run leaves it (model.asymflow)
    model: PathBuf,
    /// The file to write: .onnx, .pth or .pt for PyTorch, else safetensors
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

pub fn export(args: &Args, registry: &Registry) -> Result<(), CliError> {
    let unusable = |e: &dyn std::fmt::Display| {
        CliError::usage(format!("{}: {e}", args.model.display()), "name the model.asymflow of a run")
    };
    let bytes = std::fs::read(&args.model).map_err(|e| unusable(&e))?;
    let (model, weights) = ServedModel::decode(&bytes, registry).map_err(|e| unusable(&e))?;
    let network = model.stored_network(registry).map_err(|e| unusable(&e))?;
    let weights = Weights::unflatten(&network, &weights).map_err(|e| unusable(&e))?;
    let failed = |e: &dyn std::fmt::Display| CliError::failed(format!("{}: {e}", args.output.display()), "");
    if args.output.extension().is_some_and(|extension| extension == "onnx") {
        let file = onnx::encode(&network, &weights).map_err(|e| unusable(&e))?;
        return std::fs::write(&args.output, file).map_err(|e| failed(&e));
    }
    files::write(&args.output, &network, &weights).map_err(|e| CliError::failed(e.to_string(), ""))
}
