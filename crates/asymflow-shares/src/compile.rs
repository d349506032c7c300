//! From a network of the zoo and its weights to a program on shares.

use asymflow_zoo::{Network, Weights};

use self::lower::Compiler;
use self::options::check_options;
use crate::program::Op;
use crate::ring::Ring;

mod activate;
mod curve;
mod decisions;
mod lower;
mod maximum;
mod names;
mod options;

pub use self::names::activations;
pub use self::options::{Activation, Comparison, CompileError, Options, Selection, Truncation};
pub use crate::float::float_logits;
pub use crate::groups::Decision;
pub use crate::model::{FixedModel, ModelError, WeightShare};
pub use crate::plaintext::{PlaintextError, Trace};

/// Compiles `network`. Batch normalisation is folded into the convolution before it.
///
/// # Errors
/// What cannot be computed on shares, and what stands in its place; settings or weights that do not fit.
pub fn compile<R: Ring>(
    network: &Network,
    weights: &Weights,
    options: &Options,
) -> Result<FixedModel<R>, CompileError> {
    network.validate()?;
    weights.validate(network)?;
    check_options::<R>(options)?;
    let known: Vec<String> = activations(network)?.into_iter().map(|(name, _)| name).collect();
    if let Some(name) = options.activations.keys().find(|name| !known.contains(name)) {
        return Err(CompileError::UnknownActivation { name: name.clone(), known });
    }
    let mut compiler = Compiler::<R>::new(network, weights, options);
    let output = compiler.layers(&network.layers, 0)?;
    let model = compiler.finish(output)?;
    check_weights(&model)?;
    Ok(model.decided_by(options.method))
}

/// Weights and biases have the integer bits that all values have: what is larger leaves the range with inputs of one.
fn check_weights<R: Ring>(model: &FixedModel<R>) -> Result<(), CompileError> {
    let program = &model.program;
    let limit = program.value_limit();
    for step in &program.steps {
        let Op::Linear { input, layer, output } = step.op else { continue };
        let (weight, bias) = &model.layers[layer];
        let [before, after] = [input, output].map(|register| program.values[register].scale);
        for (values, bits) in [(weight, after - before), (bias, after)] {
            let unit = 2_f64.powi(-(bits as i32));
            let values = values.iter().map(|value| value.to_i64() as f64 * unit);
            if let Some(value) = values.into_iter().find(|value| value.abs() >= limit) {
                return Err(CompileError::Weight { layer: step.label.clone(), value, limit });
            }
        }
    }
    Ok(())
}
