//! ReLUs whose decisions are shared by groups of activations, forward and backward.
//!
//! Parallel over samples, and every sum has a fixed order. What a group decides is in its vote: positive keeps.

use asymflow_zoo::{
    network::Shape,
    ops::{Decision, Easing, SharedRelu},
};
use rayon::prelude::*;

use crate::buffer::{Activation, Buffer};
use crate::ops::{planes, rectified, sum_lanes};
use crate::params::Params;

mod plan;
mod votes;

pub use plan::GroupPlan;
use plan::Plane;

/// A layer of shared decisions and where its parameters lie.
#[derive(Clone, Debug)]
pub struct SharedNode {
    /// The groups of one sample.
    pub plan: GroupPlan,
    /// Index of the weights of a learned decision.
    pub vote: Option<usize>,
    /// Index of the coefficients of quadratic channels.
    pub coefficients: Option<usize>,
}

/// The trained tensors of a layer; empty where it has none.
#[derive(Clone, Copy, Debug)]
pub struct Trained<'a> {
    /// Weights of a learned decision, one for each place of a block.
    pub vote: &'a [f32],
    /// a, b and c of each quadratic channel.
    pub coefficients: &'a [f32],
}

/// What the backward pass needs.
#[derive(Debug)]
pub struct SharedSaved {
    /// The input.
    pub x: Activation,
    /// The vote of every group: samples × [`GroupPlan::votes`].
    pub votes: Buffer,
    /// What eased the pass.
    pub easing: Easing,
}

impl SharedNode {
    /// A layer that has been checked against `input`, with parameters from `first` on.
    pub fn new(layer: &SharedRelu, input: Shape, first: usize) -> Self {
        let is_learned = layer.decision == Decision::Learned;
        Self {
            plan: GroupPlan::new(layer, input),
            vote: is_learned.then_some(first),
            coefficients: (layer.quadratics() > 0).then_some(first + usize::from(is_learned)),
        }
    }

    /// The layer's tensors among all parameters.
    pub fn trained<'a>(&self, params: &'a Params) -> Trained<'a> {
        let of = |index: Option<usize>| index.map_or::<&[f32], _>(&[], |index| params.values(index));
        Trained { vote: of(self.vote), coefficients: of(self.coefficients) }
    }
}

/// y = λ·(the layer) + (1 − λ)·ReLU with λ = `sharing`, into `y`; `votes` receives samples × [`GroupPlan::votes`].
pub fn forward(plan: &GroupPlan, trained: Trained<'_>, x: &[f32], y: &mut [f32], votes: &mut [f32], sharing: f32) {
    let weights = plan.widen(trained.vote);
    let len = plan.shape.len();
    y.par_chunks_exact_mut(len)
        .zip(x.par_chunks_exact(len))
        .zip(votes.par_chunks_exact_mut(plan.votes()))
        .for_each_init(
            || vec![0.0; plan.row()],
            |row, ((y, x), votes)| {
                plan.vote(x, &weights, votes, row);
                keep(plan, trained.coefficients, x, y, votes, sharing, row);
            },
        );
}

/// The activations of one sample that its votes keep.
fn keep(
    plan: &GroupPlan,
    coefficients: &[f32],
    x: &[f32],
    y: &mut [f32],
    votes: &[f32],
    sharing: f32,
    row: &mut [f32],
) {
    let pixels = plan.shape.pixels();
    let rest = 1.0 - sharing;
    for ((plane, x), y) in plan.planes.iter().zip(x.chunks_exact(pixels)).zip(y.chunks_exact_mut(pixels)) {
        let all = |y: &mut [f32], x: &[f32], gain: f32| {
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = gain * x + rest * rectified(x));
        };
        match plane {
            Plane::Blocks(blocks) => {
                let width = blocks.map.1;
                for (first, band) in blocks.bands() {
                    blocks.spread(&votes[first..], row, |vote| if vote > 0.0 { sharing } else { 0.0 });
                    let band = band.start * width..band.end * width;
                    for (y, x) in y[band.clone()].chunks_exact_mut(width).zip(x[band].chunks_exact(width)) {
                        for ((y, &x), &gain) in y.iter_mut().zip(x).zip(&*row) {
                            *y = gain * x + rest * rectified(x);
                        }
                    }
                }
            }
            Plane::Keep => all(y, x, sharing),
            Plane::Drop => all(y, x, 0.0),
            Plane::Quadratic(at) => {
                let [a, b, c] = triple(coefficients, *at).map(|value| sharing * value);
                y.iter_mut().zip(x).for_each(|(y, &x)| *y = (a * x + b) * x + c + rest * rectified(x));
            }
        }
    }
}

fn triple(coefficients: &[f32], at: usize) -> [f32; 3] {
    std::array::from_fn(|i| coefficients[3 * at + i])
}

/// Backward of [`forward`]: turns `dy` into dx in place and returns the gradients of both trained tensors. Decisions are
/// constants unless they are learned or the pass was eased by a straight-through gradient.
pub fn backward(
    plan: &GroupPlan,
    trained: Trained<'_>,
    saved: &mut SharedSaved,
    dy: &mut [f32],
) -> (Vec<f32>, Vec<f32>) {
    let SharedSaved { x, votes, easing } = saved;
    let x: &[f32] = &x.data;
    let sharing = easing.sharing;
    let is_learned = plan.decision == Decision::Learned;
    let passes_gradient = is_learned || easing.straight_through;
    let d_coefficients = coefficient_gradients(plan, x, dy, sharing);
    let weights = plan.widen(trained.vote);
    let (len, groups) = (plan.shape.len(), plan.votes());
    dy.par_chunks_exact_mut(len).zip(x.par_chunks_exact(len)).zip(votes.par_chunks_exact_mut(groups)).for_each_init(
        || (vec![0.0; plan.row()], vec![0.0; if passes_gradient { groups } else { 0 }]),
        |(row, d_votes), ((dy, x), votes)| {
            if passes_gradient {
                plan.vote_gradients(x, dy, votes, sharing, d_votes, row);
            }
            keep_backward(plan, trained.coefficients, x, dy, votes, sharing, row);
            if passes_gradient {
                plan.to_voters(x, &weights, votes, d_votes, dy, row);
                // The votes have been read; their gradients are needed once more.
                votes.copy_from_slice(d_votes);
            }
        },
    );
    let d_vote = if is_learned { plan.learned_gradient(x, votes, trained.vote.len()) } else { Vec::new() };
    (d_vote, d_coefficients)
}

/// Σ x²·dy, Σ x·dy and Σ dy of each quadratic channel, times λ.
fn coefficient_gradients(plan: &GroupPlan, x: &[f32], dy: &[f32], sharing: f32) -> Vec<f32> {
    let quadratics: Vec<usize> =
        (0..plan.planes.len()).filter(|&c| matches!(plan.planes[c], Plane::Quadratic(_))).collect();
    let gradients = quadratics.into_par_iter().flat_map_iter(|c| {
        let mut sums = [0.0; 3];
        for (x, dy) in planes(x, plan.shape, c).zip(planes(dy, plan.shape, c)) {
            sums[0] += sum_lanes(x.len(), |i| x[i] * x[i] * dy[i]);
            sums[1] += sum_lanes(x.len(), |i| x[i] * dy[i]);
            sums[2] += sum_lanes(x.len(), |i| dy[i]);
        }
        sums.map(|sum| sharing * sum as f32)
    });
    gradients.collect()
}

/// Backward of [`keep`] with the votes held constant.
fn keep_backward(
    plan: &GroupPlan,
    coefficients: &[f32],
    x: &[f32],
    dy: &mut [f32],
    votes: &[f32],
    sharing: f32,
    row: &mut [f32],
) {
    let pixels = plan.shape.pixels();
    let rest = 1.0 - sharing;
    let relu = |x: f32| if x > 0.0 { rest } else { 0.0 };
    for ((plane, x), dy) in plan.planes.iter().zip(x.chunks_exact(pixels)).zip(dy.chunks_exact_mut(pixels)) {
        let all = |dy: &mut [f32], gain: f32| dy.iter_mut().zip(x).for_each(|(dy, &x)| *dy *= gain + relu(x));
        match plane {
            Plane::Blocks(blocks) => {
                let width = blocks.map.1;
                for (first, band) in blocks.bands() {
                    blocks.spread(&votes[first..], row, |vote| if vote > 0.0 { sharing } else { 0.0 });
                    let band = band.start * width..band.end * width;
                    for (dy, x) in dy[band.clone()].chunks_exact_mut(width).zip(x[band].chunks_exact(width)) {
                        for ((dy, &x), &gain) in dy.iter_mut().zip(x).zip(&*row) {
                            *dy *= gain + relu(x);
                        }
                    }
                }
            }
            Plane::Keep => all(dy, sharing),
            Plane::Drop => all(dy, 0.0),
            Plane::Quadratic(at) => {
                let [a, b, _] = triple(coefficients, *at).map(|value| sharing * value);
                dy.iter_mut().zip(x).for_each(|(dy, &x)| *dy *= 2.0 * a * x + b + relu(x));
            }
        }
    }
}
