//! Quadratics and shared decisions.

use asymflow_zoo::{Coefficients, Easing, Pass, RangePenalty};

use super::{Engine, Moments, Saved};
use crate::buffer::Activation;
use crate::ops::{self, NormSaved};
use crate::quadratic::{self, QuadraticNode, QuadraticSaved};
use crate::shared_relu::{self, SharedNode, SharedSaved};

impl Engine {
    pub(super) fn run_quadratic(&mut self, node: &QuadraticNode, x: Activation, pass: Pass) -> Activation {
        let mut y = self.pool.take(x.data.len());
        let (samples, shape) = (x.samples, x.shape);
        let is_batch = pass == Pass::Training && node.layer.form.bases().is_some();
        let batch = is_batch.then(|| quadratic::basis_moments(&x.data, shape));
        let tensors = &self.params.values[node.first..node.first + node.layer.tensors()];
        let mut values: Vec<&[f32]> = tensors.iter().map(Vec::as_slice).collect();
        if let (Some([first, second]), [_, _, running @ ..]) = (&batch, values.as_mut_slice()) {
            running.copy_from_slice(&[&first.0, &first.1, &second.0, &second.1]);
        }
        quadratic::forward(&x.data, &mut y, shape, &node.layer.coefficients(&values));
        if pass == Pass::Training {
            let count = (x.data.len() / shape.channels) as f32;
            let moments = batch.map(|bases| self.note_bases(node, bases, count));
            let share = (samples * self.program.quadratics) as f32;
            let range = self.easing.range.map(|range| RangePenalty { weight: range.weight / share, ..range });
            self.tape.push(Saved::Quadratic(QuadraticSaved { x, moments, range }));
        }
        Activation::new(samples, shape, y)
    }

    /// Leaves the statistics of the bases of `count` values a channel to be committed; returns what they normalise by.
    fn note_bases(&mut self, node: &QuadraticNode, bases: [(Vec<f32>, Vec<f32>); 2], count: f32) -> [NormSaved; 2] {
        let unbiased = count / (count - 1.0).max(1.0);
        let [first, second] = bases;
        // Scale and shift come once, mean and variance for each basis.
        [(first, node.first), (second, node.first + 2)].map(|((mean, variance), first)| {
            let unbiased_variance = variance.iter().map(|v| v * unbiased).collect();
            self.moments.push(Moments { first, mean: mean.clone(), unbiased_variance });
            let inverse_std = variance.iter().map(|v| 1.0 / (v + ops::NORM_EPSILON).sqrt()).collect();
            NormSaved { mean, inverse_std }
        })
    }

    pub(super) fn unwind_quadratic(&mut self, node: &QuadraticNode, saved: &QuadraticSaved, dy: &mut [f32]) {
        let QuadraticSaved { x, moments, range } = saved;
        let weight = &self.params.values[node.first];
        if let (Some(moments), Some(bases)) = (moments, node.layer.form.bases()) {
            let (d_scale, d_shift) = quadratic::hermite_backward(&x.data, dy, x.shape, weight, (bases, moments));
            self.params.gradients[node.first] = d_scale;
            self.params.gradients[node.first + 1] = d_shift;
        } else {
            let coefficients = node.layer.coefficients(&[weight]);
            let coefficients = coefficients.first().copied().unwrap_or(Coefficients { a: 0.0, b: 0.0, c: 0.0 });
            let gradient = quadratic::backward(node.layer.form, coefficients, weight, &x.data, dy);
            self.params.gradients[node.first] = gradient;
        }
        if let Some(range) = range {
            quadratic::add_penalty(*range, &x.data, dy);
        }
    }

    pub(super) fn run_shared_relu(&mut self, node: &SharedNode, x: Activation, pass: Pass) -> Activation {
        let easing = if pass == Pass::Training { self.easing } else { Easing::default() };
        let (samples, shape) = (x.samples, x.shape);
        let mut y = self.pool.take(x.data.len());
        let mut votes = self.pool.take(samples * node.plan.votes());
        let trained = node.trained(&self.params.values);
        shared_relu::forward(&node.plan, trained, &x.data, &mut y, &mut votes, easing.sharing);
        self.keep(pass, || Saved::SharedRelu(SharedSaved { x, votes, easing }));
        Activation::new(samples, shape, y)
    }

    pub(super) fn unwind_shared_relu(&mut self, node: &SharedNode, saved: SharedSaved, dy: &mut [f32]) {
        let trained = node.trained(&self.params.values);
        let (d_vote, d_coefficients) = shared_relu::backward(&node.plan, trained, saved, dy);
        for (index, gradient) in [(node.vote, d_vote), (node.coefficients, d_coefficients)] {
            if let Some(index) = index {
                self.params.gradients[index] = gradient;
            }
        }
    }
}
