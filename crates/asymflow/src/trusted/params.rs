//! The parameters of a network inside the trusted part, with their gradients and momentum.

use asymflow_residual::SgdStep;
use asymflow_zoo::{Network, ParamSpec, Weights, WeightsError};
use rayon::prelude::*;

/// Values, gradients and optimiser state, indexed as [`Network::parameters`].
#[derive(Clone, Debug)]
pub struct Params {
    /// Names, shapes and kinds.
    pub specs: Vec<ParamSpec>,
    /// Values, row-major.
    pub values: Vec<Vec<f32>>,
    /// Gradients of the latest backward pass.
    pub gradients: Vec<Vec<f32>>,
    /// Momentum of the optimiser.
    pub momentum: Vec<Vec<f32>>,
}

impl Params {
    /// Parameters with the given weights, zero gradients and zero momentum.
    ///
    /// # Errors
    /// Weights that do not fit the network.
    pub fn new(network: &Network, weights: &Weights) -> Result<Self, WeightsError> {
        weights.validate(network)?;
        let specs = network.parameters();
        let values: Vec<_> = specs.iter().map(|spec| weights.tensors[&spec.name].data.clone()).collect();
        let zeros: Vec<_> = values.iter().map(|v| vec![0.0; v.len()]).collect();
        Ok(Self { specs, values, gradients: zeros.clone(), momentum: zeros })
    }

    /// All values in the order of [`Network::parameters`].
    pub fn flat_values(&self) -> Vec<f32> {
        self.values.concat()
    }

    /// One step of SGD as [`SgdStep`] defines it, over every trained tensor.
    pub fn step(&mut self, sgd: SgdStep) {
        let tensors = self.specs.iter().zip(&mut self.values).zip(&self.gradients).zip(&mut self.momentum);
        for (((spec, values), gradients), momentum) in tensors {
            if spec.kind.is_trained() {
                let chunks = values.par_chunks_mut(1 << 14).zip(gradients.par_chunks(1 << 14));
                chunks.zip(momentum.par_chunks_mut(1 << 14)).for_each(|((w, g), m)| {
                    for ((w, &g), m) in w.iter_mut().zip(g).zip(m) {
                        *m = sgd.momentum * *m + (g + sgd.weight_decay * *w);
                        *w -= sgd.learning_rate * *m;
                    }
                });
            }
        }
    }
}
