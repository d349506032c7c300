//! Norms of the gradients that single samples have, without those gradients: ghost norms (Li et al. 2022; Bu et al. 2022).

use asymflow_linalg::conv;
use asymflow_zoo::graph::Graph;
use asymflow_zoo::{Network, ops::Op, weights::Pass};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::buffer::{Activation, Buffer};
use crate::convolver::Convolver;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::local::{LocalConv, conv_shape};
use crate::program::ConvNode;

impl Engine {
    /// Refuses networks whose samples have no gradient of their own, or one of which no norm is known here.
    ///
    /// # Errors
    /// The first such layer, and what to use in its place.
    pub fn check_per_sample(network: &Network) -> Result<(), EngineError> {
        let graph = Graph::new(network)?;
        for node in &graph.nodes {
            let (why, replacement) = match &node.op {
                Op::Norm(_) => ("batch normalisation makes the gradient of a sample depend on others", "+group-norm:8"),
                Op::Quadratic(_) | Op::SharedRelu(_) => ("no norm of a sample's gradient is known", "a ReLU"),
                Op::Dropout(_) => ("its randomness is not that of a repeated pass", "no dropout"),
                Op::Conv(_)
                | Op::GroupNorm(_)
                | Op::Relu
                | Op::PRelu(_)
                | Op::Pointwise(_)
                | Op::MaxPool(_)
                | Op::AvgPool(_)
                | Op::Linear(_)
                | Op::Flatten
                | Op::Add => continue,
            };
            return Err(EngineError::PerSample { layer: node.name.clone(), why, replacement });
        }
        Ok(())
    }

    /// The l2 norm of every sample's gradient of all trained parameters together, from the gradients `d_logits` of each sample's own
    /// loss: a backward pass of the training pass just done, which is left for [`Engine::backward`]. No gradient of parameters is kept.
    /// Beside the norms, one a sample: the gradient of the input, samples × input, where [`Engine::backward`] would return it.
    ///
    /// # Errors
    /// Those of [`Engine::backward`], and those of [`Engine::check_per_sample`].
    pub fn sample_norms(
        &mut self,
        d_logits: Vec<f32>,
        samples: usize,
        convolver: &mut LocalConv,
    ) -> Result<(Vec<f64>, Option<Buffer>), EngineError> {
        Self::check_per_sample(self.network())?;
        let mut ghost = Ghost { inner: convolver, squares: vec![0.0; samples] };
        let (squares, d_input) = self.unwind_per_sample(d_logits, samples, &mut ghost)?;
        let norms = squares.iter().zip(&ghost.squares).map(|(engine, convs)| (engine + convs).sqrt()).collect();
        Ok((norms, d_input))
    }
}

/// A convolver that takes norms in place of gradients of weights.
struct Ghost<'a> {
    inner: &'a mut LocalConv,
    squares: Vec<f64>,
}

impl Convolver for Ghost<'_> {
    type Error = EngineError;

    fn forward(&mut self, node: &ConvNode, x: &Activation, weight: &[f32], pass: Pass) -> Result<Buffer, EngineError> {
        self.inner.forward(node, x, weight, pass)
    }

    fn backward(
        &mut self,
        node: &ConvNode,
        dy: Buffer,
        samples: usize,
        weight: &[f32],
        _d_weight: &mut [f32],
    ) -> Result<Option<Buffer>, EngineError> {
        let x = self.inner.kept(node, samples)?;
        self.inner.keep(node, &x);
        let one = |(x, dy): (&[f32], &[f32])| square(node, x, dy);
        let pairs = x.data.par_chunks_exact(node.input.len()).zip(dy.par_chunks_exact(node.output.len()));
        let squares = pairs.map(one).collect::<Result<Vec<f64>, EngineError>>()?;
        self.squares.iter_mut().zip(squares).for_each(|(sum, square)| *sum += square);
        self.inner.input_gradient(node, &dy, samples, weight)
    }
}

/// The squared norm of one sample's gradient of the weights: of the gradient itself, or of the products of all pairs of pixels where
/// these are fewer.
fn square(node: &ConvNode, x: &[f32], dy: &[f32]) -> Result<f64, EngineError> {
    let shape = conv_shape(node, 1);
    let (pixels, outputs) = (node.output.pixels(), node.output.channels);
    let inputs = node.input.channels * node.conv.kernel * node.conv.kernel;
    if pixels * (inputs + outputs) < inputs * outputs {
        let patches = patches(node, x);
        let dy = MatRef::from_row_major_slice(dy, outputs, pixels);
        let patches = MatRef::from_row_major_slice(&patches, inputs, pixels);
        let mut products = [vec![0.0_f32; pixels * pixels], vec![0.0_f32; pixels * pixels]];
        for (product, of) in products.iter_mut().zip([dy, patches]) {
            let product = MatMut::from_row_major_slice_mut(product, pixels, pixels);
            matmul(product, Accum::Replace, of.transpose(), of, 1.0, Par::Seq);
        }
        let [first, second] = products;
        return Ok(first.iter().zip(&second).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>().max(0.0));
    }
    let mut gradient = vec![0.0; inputs * outputs];
    let mut memory = MemBuffer::new(conv::weight_gradient_scratch(shape, Par::Seq));
    conv::weight_gradient(shape, x, dy, &mut gradient, Par::Seq, MemStack::new(&mut memory))
        .map_err(|error| EngineError::Conv { layer: node.conv.name.clone(), error })?;
    Ok(gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum())
}

/// What each output pixel reads, one row a weight of a kernel.
fn patches(node: &ConvNode, x: &[f32]) -> Vec<f32> {
    let (input, output, conv) = (node.input, node.output, &node.conv);
    let mut patches = Vec::with_capacity(input.channels * conv.kernel * conv.kernel * output.pixels());
    for map in x.chunks_exact(input.pixels()) {
        for (ky, kx) in (0..conv.kernel).flat_map(|ky| (0..conv.kernel).map(move |kx| (ky, kx))) {
            for (y, x) in (0..output.height).flat_map(|y| (0..output.width).map(move |x| (y, x))) {
                let at = |position: usize, offset: usize, side: usize| {
                    (position * conv.stride + offset).checked_sub(conv.padding).filter(|&at| at < side)
                };
                let pixel = at(y, ky, input.height).zip(at(x, kx, input.width));
                patches.push(pixel.map_or(0.0, |(row, column)| map[row * input.width + column]));
            }
        }
    }
    patches
}
