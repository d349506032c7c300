//! Prints the logits that a mode computes of an ONNX file, for `scripts/check_onnx.py` of `asymflow-zoo`.
//!
//!     cargo run --release -p asymflow --features shares --example logits -- MODEL.onnx IMAGE.f32 MODE

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use asymflow::modes::{AsymMl, AsymMlParts, GuardSpec, Mode, Registry, TrustedOnly};
use asymflow::plan::Plan;
use asymflow_engine::program::Program;
use asymflow_linalg::decompose::by_name;
use asymflow_native::NativeBackend;
use asymflow_privacy::{accountants::Relation, payload::Precision, records::RecordAccountant};
use asymflow_zoo::{Network, Weights, models::onnx};
use faer::Par;

type Failure = Box<dyn std::error::Error>;

fn asymml(network: Network, weights: Weights) -> Result<AsymMl, Failure> {
    let parts = AsymMlParts {
        plan: Plan::split_all(&Program::new(&network)?, 2),
        decomposer: by_name("gram").ok_or("no gram")?,
        gate: GuardSpec::default().gate(&Registry::default(), Relation::Remove)?,
        sized: None,
        precision: Precision::F32,
        verify: true,
        leapfrog: false,
        backend: Arc::new(NativeBackend::default()),
        accountant: RecordAccountant::new(1),
    };
    Ok(AsymMl::new(network, weights, parts, Par::rayon(0))?)
}

#[cfg(feature = "shares")]
fn on_shares(network: &Network, weights: &Weights, image: &[f32]) -> Result<Vec<f32>, Failure> {
    use asymflow_shares::{compile, in_process::InProcess, program::WeightPolicy};

    let options = compile::Options::new::<u64>(WeightPolicy::Shared);
    let model = compile::compile::<u64>(network, weights, &options)?;
    Ok(InProcess::start(model, image)?.ask(image)?.logits)
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, image, mode] = &arguments[..] else { return Err("name a model, an image and a mode".into()) };
    let (network, weights) = onnx::read(Path::new(model), "model")?;
    let bytes = std::fs::read(image)?;
    let image: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let logits = match mode.as_str() {
        "trusted-only" => TrustedOnly::new(network, &weights, Par::rayon(0))?.infer(&image, &[0])?,
        "asymml" => asymml(network, weights)?.infer(&image, &[0])?,
        #[cfg(feature = "shares")]
        "shares" => on_shares(&network, &weights, &image)?,
        other => return Err(format!("{other} is not tried here").into()),
    };
    let text: Vec<String> = logits.iter().map(ToString::to_string).collect();
    writeln!(std::io::stdout(), "{}", text.join(" "))?;
    Ok(())
}
