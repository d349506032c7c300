//! Prints the logits that the trusted engine computes of an ONNX file, for `scripts/check_onnx.py` of `asymflow-zoo`.
//!
//!     cargo run --release -p asymflow-engine --example logits -- MODEL.onnx IMAGE.f32

use std::io::Write;
use std::path::Path;

use asymflow_engine::{Engine, local::LocalConv};
use asymflow_zoo::{models::onnx, weights::Pass};
use faer::Par;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(model), Some(image)) = (arguments.next(), arguments.next()) else {
        return Err("name a model and an image".into());
    };
    let (network, weights) = onnx::read(Path::new(&model), "model")?;
    let bytes = std::fs::read(image)?;
    let image: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let mut engine = Engine::new(network, &weights, Par::rayon(0))?;
    let mut convolver = LocalConv::new(engine.program().convs(), engine.pool().clone(), Par::rayon(0));
    let logits = engine.forward(&image, 1, Pass::Inference, 0, &mut convolver)?;
    let text: Vec<String> = logits.iter().map(ToString::to_string).collect();
    writeln!(std::io::stdout(), "{}", text.join(" "))?;
    Ok(())
}
