//! The rank study: how low the rank of activations is, by layer, rank and method, on a trained network.

use asymflow_engine::local::Scratch;
use asymflow_engine::{
    Engine, EngineError,
    buffer::{Activation, Buffer},
    convolver::Convolver,
    local::LocalConv,
    program::ConvNode,
};
use asymflow_linalg::spectrum::{self, SpectrumError};
use asymflow_linalg::{
    LowRank,
    decompose::{BatchShape, DecomposeError, by_name},
};
use asymflow_residual::backend::Pass;
use asymflow_zoo::{Network, Weights};
use faer::Par;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::study::{Bench, Study, Trained};
use crate::job::{JobSpec, TrainSpec};
use crate::memory::{MemoryError, MemoryPlan};
use crate::modes::{ExecError, ModeError, Registry};
use crate::run::RunError;

/// Trains the network, and decomposes the inputs of its convolutions by every method at every rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankStudy {
    /// How the network is trained.
    pub train: TrainSpec,
    /// Test images whose activations are measured.
    pub samples: usize,
    /// Ranks at which the residual is measured.
    pub ranks: Vec<usize>,
    /// Decompositions compared.
    pub methods: Vec<String>,
}

impl Study for RankStudy {
    type Report = RankStudyReport;
    const NAME: &'static str = "rank";

    fn batch(&self) -> usize {
        self.train.batch
    }

    fn memory(&self, job: &JobSpec, registry: &Registry) -> Result<MemoryPlan, MemoryError> {
        MemoryPlan::of_training(job, &self.train, registry)
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<RankStudyReport, RunError> {
        let Trained { weights, images, samples, test_accuracy, .. } = (bench.train)(&self.train, self.samples)?;
        let network = &bench.job.network;
        let layers = self.layers(network, &weights, &images, samples, bench.par)?;
        Ok(RankStudyReport { network: network.name.clone(), samples, test_accuracy, layers })
    }
}

/// Residual energy of one method at one rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResidualEnergy {
    /// Name of the decomposition.
    pub method: String,
    /// Rank.
    pub rank: usize,
    /// ‖X_res‖² / ‖X‖² over all samples.
    pub energy: f64,
}

/// What was measured at the input of one convolution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerStudy {
    /// Name of the convolution.
    pub layer: String,
    /// Channels of its input.
    pub channels: usize,
    /// Pixels of its input.
    pub pixels: usize,
    /// Mean SVD-channel entropy μ (thesis definition 1), in bits.
    pub entropy: f64,
    /// Residual energies.
    pub residuals: Vec<ResidualEnergy>,
}

/// What the study measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankStudyReport {
    /// Name of the network.
    pub network: String,
    /// Test images measured.
    pub samples: usize,
    /// Accuracy of the network on the test images, so that the reader knows how trained it is.
    pub test_accuracy: f64,
    /// One entry a convolution.
    pub layers: Vec<LayerStudy>,
}

/// Computes convolutions locally and keeps their inputs.
struct Recorder {
    local: LocalConv,
    inputs: Vec<(String, Activation)>,
}

impl Convolver for Recorder {
    type Error = EngineError;

    fn forward(&mut self, node: &ConvNode, x: &Activation, weight: &[f32], pass: Pass) -> Result<Buffer, EngineError> {
        self.inputs.push((node.conv.name.clone(), x.clone()));
        self.local.forward(node, x, weight, pass)
    }

    fn backward(
        &mut self,
        node: &ConvNode,
        dy: Buffer,
        samples: usize,
        weight: &[f32],
        d_weight: &mut [f32],
    ) -> Result<Option<Buffer>, EngineError> {
        self.local.backward(node, dy, samples, weight, d_weight)
    }
}

/// The inputs of all convolutions of a pass, with their layers' names.
pub(super) fn conv_inputs(
    network: &Network,
    weights: &Weights,
    (images, samples, pass): (&[f32], usize, Pass),
    par: Par,
) -> Result<Vec<(String, Activation)>, EngineError> {
    let mut engine = Engine::new(network.clone(), weights, par)?;
    let local = LocalConv::new(engine.program().convs(), engine.pool().clone(), par);
    let mut recorder = Recorder { local, inputs: Vec::new() };
    engine.forward(images, samples, pass, 0, &mut recorder)?;
    Ok(recorder.inputs)
}

impl RankStudy {
    /// Measures every convolution's input on `images`.
    fn layers(
        &self,
        network: &Network,
        weights: &Weights,
        images: &[f32],
        samples: usize,
        par: Par,
    ) -> Result<Vec<LayerStudy>, RunError> {
        let inputs = conv_inputs(network, weights, (images, samples, Pass::Inference), par)?;
        inputs.iter().map(|(layer, x)| study_layer(layer, x, self, par)).collect()
    }
}

fn study_layer(layer: &str, x: &Activation, spec: &RankStudy, par: Par) -> Result<LayerStudy, RunError> {
    let shape = BatchShape { samples: x.samples, channels: x.shape.channels, pixels: x.shape.pixels() };
    let failed = |error: DecomposeError| ExecError::Decompose { layer: layer.to_owned(), error };
    let total = energy(&x.data);
    let mut residuals = Vec::new();
    let mut scratch = Scratch::default();
    for method in &spec.methods {
        let decomposer = by_name(method).ok_or_else(|| ModeError::Decomposition(method.clone()))?;
        let ranks = spec.ranks.iter().copied().filter(|&r| r <= shape.channels.min(shape.pixels));
        for rank in ranks {
            let mut low_rank = LowRank::default();
            let mut residual = vec![0.0; x.data.len()];
            let stack = scratch.stack(decomposer.scratch(shape, rank, par));
            decomposer.decompose(&x.data, shape, rank, &mut low_rank, &mut residual, par, stack).map_err(failed)?;
            let energy = if total > 0.0 { energy(&residual) / total } else { 0.0 };
            residuals.push(ResidualEnergy { method: method.clone(), rank, energy });
        }
    }
    let entropies: Vec<f64> = x
        .data
        .par_chunks_exact(x.shape.len())
        .map(|sample| {
            let values = spectrum::singular_values(sample, shape.channels, shape.pixels)?;
            Ok(spectrum::svd_channel_entropy(&values))
        })
        .collect::<Result<_, SpectrumError>>()
        .map_err(|error| RunError::Spectrum { layer: layer.to_owned(), error })?;
    let entropy = entropies.iter().sum::<f64>() / entropies.len().max(1) as f64;
    Ok(LayerStudy { layer: layer.to_owned(), channels: shape.channels, pixels: shape.pixels, entropy, residuals })
}

fn energy(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
}
