//! From a network to affine maps with squares in between.
//!
//! Whatever lies between two quadratics is affine in evaluation: convolutions, normalisations, average pooling, fully connected layers, residual
//! sums of these. Its matrix is read off the zoo's reference by what it makes of zero and of every basis vector, so that no layer needs code
//! of its own here. a x² + b x + c = ±(αx + β)² + γ with α = √|a|, β = ±b / 2α and γ = c ∓ β²: α and β go into the map before, ± and γ into
//! the one after.

use asymflow_zoo::graph::reference::{Reference, ReferenceError};
use asymflow_zoo::network::{Layer, NetworkError, Shape};
use asymflow_zoo::ops::{Op, Quadratic};
use asymflow_zoo::{Network, Weights, weights::WeightsError};
use thiserror::Error;

/// Why a network cannot be computed on ciphertexts.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum CompileError {
    /// A layer that is neither affine nor a square.
    #[error(
        "{layer} after {after} quadratic(s) cannot be computed on ciphertexts: {reason}; use {replacement} instead"
    )]
    Unsupported {
        /// The layer.
        layer: String,
        /// Quadratics before it.
        after: usize,
        /// Why not.
        reason: &'static str,
        /// What would do.
        replacement: &'static str,
    },
    /// A quadratic without a square.
    #[error("{layer}: the coefficient of x² of channel {channel} is {value}, and must be finite and not zero")]
    Coefficient {
        /// The layer.
        layer: String,
        /// The channel.
        channel: usize,
        /// Its coefficient.
        value: f64,
    },
    /// More squares than there is room for.
    #[error("{squares} squares one after the other need depth {squares}, and {most} fit: {hint}")]
    Depth {
        /// Of the network.
        squares: usize,
        /// That fit.
        most: usize,
        /// What would do.
        hint: &'static str,
    },
    /// A layer that does not fit the slots.
    #[error("map {map} has {got} outputs, and {most} fit the slots with one image a query: {hint}")]
    Size {
        /// Index of the affine map.
        map: usize,
        /// Its outputs.
        got: usize,
        /// That fit.
        most: usize,
        /// What would do.
        hint: &'static str,
    },
    /// A program from outside that is none.
    #[error("not a program: {0}")]
    Program(&'static str),
    /// Numbers beyond exact integers, or no calibration image.
    #[error("{0}")]
    Range(String),
    /// The network is not executable.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The weights do not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The reference refuses a part.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
}

/// matrix · x + offset.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Affine {
    /// Row by row.
    pub(crate) matrix: Vec<Vec<f64>>,
    pub(crate) offset: Vec<f64>,
    /// Of what it computes.
    pub(crate) shape: Shape,
}

/// ±(αx + β)² + γ of each value: what goes before, and what goes after.
struct Square {
    before: (f64, f64),
    after: (f64, f64),
}

/// The maps of `network`: x is mapped, squared, mapped, and so on; the last map gives the logits.
pub(crate) fn maps(network: &Network, weights: &Weights) -> Result<Vec<Affine>, CompileError> {
    network.validate()?;
    weights.validate(network)?;
    let (mut maps, mut shape, mut squares): (Vec<Affine>, Shape, Vec<Square>) = (Vec::new(), network.input, Vec::new());
    let mut rest = network.layers.as_slice();
    loop {
        let until = rest.iter().position(|layer| matches!(layer, Layer::Quadratic(_))).unwrap_or(rest.len());
        let (segment, after) = rest.split_at(until);
        segment.iter().try_for_each(|layer| is_affine(layer, maps.len()))?;
        let mut map = probed(segment, shape, weights)?;
        for (row, offset) in map.matrix.iter_mut().zip(&mut map.offset) {
            for (value, square) in row.iter_mut().zip(&squares) {
                let (sign, constant) = square.after;
                *offset += *value * constant;
                *value *= sign;
            }
        }
        shape = map.shape;
        let Some((Layer::Quadratic(quadratic), following)) = after.split_first() else {
            maps.push(map);
            return Ok(maps);
        };
        squares = completed(quadratic, shape, weights)?;
        for ((row, offset), square) in map.matrix.iter_mut().zip(&mut map.offset).zip(&squares) {
            let (alpha, beta) = square.before;
            row.iter_mut().for_each(|value| *value *= alpha);
            *offset = alpha * *offset + beta;
        }
        maps.push(map);
        rest = following;
    }
}

fn is_affine(layer: &Layer, after: usize) -> Result<(), CompileError> {
    let refuse = |reason, replacement| {
        let layer = layer.label().to_owned();
        Err(CompileError::Unsupported { layer, after, reason, replacement })
    };
    match layer {
        Layer::Conv(_)
        | Layer::BatchNorm { .. }
        | Layer::AdaptiveAvgPool { .. }
        | Layer::Flatten
        | Layer::Linear(_)
        | Layer::Dropout { .. } => Ok(()),
        Layer::Residual { main, shortcut } => main.iter().chain(shortcut).try_for_each(|layer| is_affine(layer, after)),
        Layer::Quadratic(_) => refuse("a quadratic within a residual block is not followed", "blocks without shortcut"),
        Layer::MaxPool { .. } => refuse("a maximum compares", "average pooling"),
        Layer::GroupNorm(_) => refuse("it divides by what is encrypted", "batch normalisation"),
        Layer::Relu | Layer::PRelu { .. } | Layer::SharedRelu(_) | Layer::Pointwise(_) => refuse(
            "sums and products are all that a ciphertext computes",
            "a quadratic (`react`, `hermite`, a kervolution)",
        ),
    }
}

/// The map that layers compute.
fn probed(layers: &[Layer], input: Shape, weights: &Weights) -> Result<Affine, CompileError> {
    let mut layers = layers.to_vec();
    layers.push(Layer::Flatten);
    let graph = asymflow_zoo::graph::Graph::of(&layers, input)?;
    let outputs = graph.shape(graph.output()).len();
    layers.pop();
    let shape = asymflow_zoo::graph::Graph::of(&layers, input).map(|graph| graph.shape(graph.output()))?;
    layers.push(Layer::Flatten);
    let network = Network { name: "segment".to_owned(), input, classes: outputs, layers };
    let tensors = network.parameters().into_iter();
    let tensors = tensors.filter_map(|spec| Some((spec.name.clone(), weights.tensors.get(&spec.name)?.clone())));
    let part = Weights { tensors: tensors.collect() };
    let reference = Reference::new(&network, &part.flatten(&network)?)?;
    let inputs = input.len();
    let offset = reference.logits(&vec![0.0; inputs])?;
    let mut matrix = vec![vec![0.0; inputs]; outputs];
    for input in 0..inputs {
        let mut unit = vec![0.0; inputs];
        unit[input] = 1.0;
        for ((row, value), offset) in matrix.iter_mut().zip(reference.logits(&unit)?).zip(&offset) {
            row[input] = value - offset;
        }
    }
    Ok(Affine { matrix, offset, shape })
}

fn completed(quadratic: &Quadratic, shape: Shape, weights: &Weights) -> Result<Vec<Square>, CompileError> {
    let specs = Op::Quadratic(quadratic.clone()).parameters();
    let tensors: Vec<&[f32]> =
        specs.iter().map(|spec| weights.tensors.get(&spec.name).map_or(&[][..], |tensor| &tensor.data)).collect();
    let curves = quadratic.coefficients(&tensors);
    let mut squares = Vec::with_capacity(shape.len());
    for channel in 0..shape.channels {
        let [a, b, c] = curves.get(channel % curves.len().max(1)).map_or([0.0; 3], |q| [q.a, q.b, q.c].map(f64::from));
        if !(a.is_finite() && b.is_finite() && c.is_finite() && a.abs() > 1e-9) {
            return Err(CompileError::Coefficient { layer: quadratic.name.clone(), channel, value: a });
        }
        let (sign, alpha) = (a.signum(), a.abs().sqrt());
        let beta = sign * b / (2.0 * alpha);
        let after = (sign, c - sign * beta * beta);
        squares.extend((0..shape.pixels()).map(|_| Square { before: (alpha, beta), after }));
    }
    Ok(squares)
}
