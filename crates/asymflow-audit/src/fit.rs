//! Networks of the attacker's own, trained on the trusted engine's kernels.

use asymflow_engine::local::LocalConv;
use asymflow_engine::{Engine, EngineError};
use asymflow_zoo::weights::{Pass, SgdStep};
use asymflow_zoo::{Network, Weights};
use faer::Par;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// How a network is trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// Passes over the data.
    pub epochs: usize,
    /// Samples in a step.
    pub batch: usize,
    /// Learning rate at the start of half a cosine.
    pub learning_rate: f32,
    /// l2 penalty.
    pub weight_decay: f32,
    /// Seed of weights and order.
    pub seed: u64,
}

/// The gradient of a loss, from outputs and the numbers of their samples.
pub type Gradient<'a> = &'a mut dyn FnMut(&[f32], &[usize]) -> Result<Vec<f32>, EngineError>;

/// A network that computes here.
#[derive(Debug)]
pub struct Own {
    engine: Engine,
    convolver: LocalConv,
}

/// Samples of one inference.
const PIECE: usize = 64;

impl Own {
    /// A network with weights.
    ///
    /// # Errors
    /// A network or weights that do not fit.
    pub fn new(network: &Network, weights: &Weights) -> Result<Self, EngineError> {
        let engine = Engine::new(network.clone(), weights, Par::rayon(0))?;
        let convolver = LocalConv::new(engine.program().convs(), engine.pool().clone(), Par::rayon(0));
        Ok(Self { engine, convolver })
    }

    /// Trains a network on `inputs`.
    ///
    /// # Errors
    /// A network that cannot be computed.
    pub fn fitted(network: &Network, inputs: &[f32], fit: Fit, gradient: Gradient<'_>) -> Result<Self, EngineError> {
        let mut own = Self::new(network, &Weights::init(network, fit.seed))?;
        let len = network.input.len();
        let mut order: Vec<usize> = (0..inputs.len() / len).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(fit.seed);
        let steps = fit.epochs * order.len().div_ceil(fit.batch.max(1));
        let mut step = 0;
        for _ in 0..fit.epochs {
            order.shuffle(&mut rng);
            for numbers in order.chunks(fit.batch.max(1)).filter(|numbers| numbers.len() > 1) {
                let batch: Vec<f32> = numbers.iter().flat_map(|&i| &inputs[i * len..(i + 1) * len]).copied().collect();
                let outputs =
                    own.engine.forward(&batch, numbers.len(), Pass::Training, step as u64, &mut own.convolver)?;
                let d_outputs = gradient(&outputs, numbers)?;
                own.engine.backward(d_outputs, numbers.len(), &mut own.convolver)?;
                own.engine.commit_moments();
                let progress = step as f32 / steps.max(1) as f32;
                let rate = fit.learning_rate * 0.5 * (1.0 + (std::f32::consts::PI * progress).cos());
                let plain = SgdStep::plain(rate, 0.9, fit.weight_decay);
                own.engine.params_mut().step(SgdStep { clip_norm: 1.0, ..plain });
                step += 1;
            }
        }
        Ok(own)
    }

    /// What it makes of `inputs`.
    ///
    /// # Errors
    /// Inputs of another shape.
    pub fn outputs(&mut self, inputs: &[f32]) -> Result<Vec<f32>, EngineError> {
        let len = self.engine.network().input.len();
        let mut outputs = Vec::new();
        for piece in inputs.chunks(PIECE * len) {
            let samples = piece.len() / len;
            outputs.extend(self.engine.forward(piece, samples, Pass::Inference, 0, &mut self.convolver)?);
        }
        Ok(outputs)
    }
}
