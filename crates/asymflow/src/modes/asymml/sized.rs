//! Noise that is a multiple of the size of what leaves, by layer and direction.
//!
//! The size is a public constant: the root mean square that residuals and gradients have on built-in images with the weights of the
//! moment, which the worker has too. It is measured anew before every epoch, and says nothing of a record that the weights do not say.

use std::collections::HashMap;

use asymflow_engine::{
    Engine,
    buffer::{Activation, Buffer},
    convolver::Convolver,
    local::LocalConv,
    program::ConvNode,
};
use asymflow_linalg::{Decomposer, decompose::BatchShape};
use asymflow_privacy::{accountants::Relation, door::Gate, mechanisms::MechanismError, records::Flow};
use asymflow_residual::backend::Pass;
use asymflow_zoo::data::{self, Augment, Batch, DataSource, Loader, Normalization};
use asymflow_zoo::{Network, Weights, network::Shape};
use faer::Par;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::modes::{ExecError, MakeMechanism};
use crate::plan::Placement;

/// Built-in images that sizes are measured on, and their seed.
const IMAGES: (usize, u64) = (32, 0x5126);

/// Makes gates whose σ is κ times the size of what passes.
#[derive(Debug)]
pub struct SizedNoise {
    kappa: f64,
    make: MakeMechanism,
    relation: Relation,
    /// Root mean square by convolution: of its residual, and of its output's gradient for one sample.
    sizes: HashMap<usize, (f64, f64)>,
}

impl SizedNoise {
    /// Of nothing yet.
    pub fn new(kappa: f64, make: MakeMechanism, relation: Relation) -> Self {
        Self { kappa, make, relation, sizes: HashMap::new() }
    }

    /// The gate of what leaves of a convolution, where it is `factor` times as large as in one sample.
    ///
    /// # Errors
    /// A mechanism that takes no such noise.
    pub fn gate(&self, index: usize, flow: Flow, factor: f64) -> Result<Gate<Vec<f32>>, MechanismError> {
        let (residual, gradient) = self.sizes.get(&index).copied().unwrap_or((1.0, 1.0));
        let size = match flow {
            Flow::Residual => residual,
            Flow::Gradient | Flow::Label | Flow::Weights => gradient,
        };
        Gate::new((self.make)(Some((self.kappa * factor * size).max(1e-12)))?, None, self.relation)
    }

    /// Measures sizes with the weights of `engine`, which is not touched.
    ///
    /// # Errors
    /// A network that cannot be computed.
    pub fn measure(
        &mut self,
        engine: &Engine,
        (placements, decomposer): (&[Placement], &dyn Decomposer),
        par: Par,
    ) -> Result<(), ExecError> {
        let network = engine.network();
        let weights = Weights::unflatten(network, &engine.params().flat_values())?;
        let mut own = Engine::new(network.clone(), &weights, par)?;
        let local = LocalConv::new(own.program().convs(), own.pool().clone(), par);
        let mut sizes = Sizes { local, placements, decomposer, sizes: HashMap::new() };
        let (images, samples) = (images(network)?, IMAGES.0);
        let logits = own.forward(&images, samples, Pass::Training, 0, &mut sizes)?;
        own.backward(drawn_gradient(&logits, network.classes), samples, &mut sizes)?;
        self.sizes = sizes.sizes;
        Ok(())
    }
}

/// Built-in images of the network's shape, normalised; each pixel the nearest one where the shape is another.
fn images(network: &Network) -> Result<Vec<f32>, ExecError> {
    let (count, seed) = IMAGES;
    let unread = |error: data::DataError| ExecError::Kept(error.to_string());
    let data =
        data::load_described(&DataSource::Synthetic { train: count, test: 1, seed }).map_err(unread)?.split.train;
    let mut batch = Batch::default();
    let numbers: Vec<u32> = (0..count as u32).collect();
    Loader::new(&data, &Normalization::of(&data), Augment::NONE, seed).gather(None, &numbers, &mut batch);
    let (from, to) = (data.shape(), network.input);
    let at = |image: &[f32], i: usize| {
        let (channel, row, column) = (i / to.pixels(), i % to.pixels() / to.width, i % to.width);
        let Shape { channels, height, width } = from;
        image[(channel % channels * height + row * height / to.height) * width + column * width / to.width]
    };
    let images = batch.images.chunks_exact(from.len());
    Ok(images.flat_map(|image| (0..to.len()).map(move |i| at(image, i))).collect())
}

/// softmax − y of every sample, with labels y that the network itself draws: of the size that gradients have where it is right about how
/// sure it is.
fn drawn_gradient(logits: &[f32], classes: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(IMAGES.1);
    let mut gradient = Vec::with_capacity(logits.len());
    for row in logits.chunks_exact(classes) {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = row.iter().map(|z| (z - most).exp()).sum();
        let first = gradient.len();
        gradient.extend(row.iter().map(|z| (z - most).exp() / sum));
        let mut left: f32 = rng.random();
        let drawn = (first..gradient.len()).find(|&i| {
            left -= gradient[i];
            left <= 0.0
        });
        gradient[drawn.unwrap_or(first)] -= 1.0;
    }
    gradient
}

/// Computes convolutions here and notes how large what would leave is.
struct Sizes<'a> {
    local: LocalConv,
    placements: &'a [Placement],
    decomposer: &'a dyn Decomposer,
    sizes: HashMap<usize, (f64, f64)>,
}

impl Sizes<'_> {
    fn rank(&self, node: &ConvNode) -> Option<usize> {
        match self.placements.get(node.index) {
            Some(Placement::Split { rank }) => Some(*rank),
            Some(Placement::Trusted) | None => None,
        }
    }
}

fn root_mean_square(values: &[f32]) -> f64 {
    (values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / values.len().max(1) as f64).sqrt()
}

impl Convolver for Sizes<'_> {
    type Error = ExecError;

    fn forward(&mut self, node: &ConvNode, x: &Activation, weight: &[f32], pass: Pass) -> Result<Buffer, ExecError> {
        if let Some(rank) = self.rank(node) {
            let shape = BatchShape { samples: x.samples, channels: x.shape.channels, pixels: x.shape.pixels() };
            let failed = |error| ExecError::Decompose { layer: node.conv.name.clone(), error };
            let (_, residual) = self.decomposer.split(&x.data, shape, rank).map_err(failed)?;
            self.sizes.entry(node.index).or_default().0 = root_mean_square(&residual);
        }
        Ok(self.local.forward(node, x, weight, pass)?)
    }

    fn backward(
        &mut self,
        node: &ConvNode,
        dy: Buffer,
        samples: usize,
        weight: &[f32],
        d_weight: &mut [f32],
    ) -> Result<Option<Buffer>, ExecError> {
        if self.rank(node).is_some() {
            self.sizes.entry(node.index).or_default().1 = root_mean_square(&dy);
        }
        Ok(self.local.backward(node, dy, samples, weight, d_weight)?)
    }
}
