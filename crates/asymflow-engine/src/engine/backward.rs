//! The backward pass.

use std::sync::Arc;

use super::{Saved, Work};
use crate::buffer::{self, Buffer};
use crate::convolver::Convolver;
use crate::error::EngineError;
use crate::ops::{self, LinearShape};
use crate::program::{ConvNode, Kind, Node, Program};
use crate::quadratic::{self, QuadraticNode, QuadraticSaved};
use crate::shared_relu::{self, SharedNode, SharedSaved};
use crate::{group_norm, max_pool};

/// Gradients of values, by value.
struct Gradients(Vec<Option<Buffer>>);

impl Gradients {
    /// Adds to the gradient of a value.
    fn add(&mut self, value: usize, mut gradient: Buffer) {
        if let Some(earlier) = self.0[value].take() {
            buffer::add_assign(&mut gradient, &earlier);
        }
        self.0[value] = Some(gradient);
    }
}

impl Work {
    /// The gradient of the input, where somebody needs it. A pass for norms of samples leaves what it used for another.
    pub(super) fn unwind<C: Convolver>(
        &mut self,
        program: &Program,
        dy: Buffer,
        samples: usize,
        convolver: &mut C,
    ) -> Result<Option<Buffer>, C::Error> {
        let is_last = self.squares.is_none();
        self.kept = self.kept.filter(|_| !is_last);
        let mut gradients = Gradients(Vec::new());
        gradients.0.resize_with(program.output + 1, || None);
        gradients.0[program.output] = Some(dy);
        for (index, node) in program.nodes.iter().enumerate().rev() {
            // Nobody needs that of what comes before the first convolution.
            let Some(mut dy) = gradients.0[node.value].take() else { continue };
            let mut saved = self.saved[index].take();
            match &node.kind {
                Kind::Conv(conv) => {
                    let y = if let Some(Saved::Relu { y }) = saved.take() { Some(y) } else { None };
                    if !is_last {
                        saved = y.clone().map(|y| Saved::Relu { y });
                    }
                    if let Some(dx) = self.unwind_conv(conv, y, dy, samples, convolver)? {
                        gradients.add(node.inputs[0].0, dx);
                    }
                }
                Kind::Add { .. } => {
                    if let Some(Saved::Add { y: Some(y) }) = &saved {
                        ops::relu_backward(y, &mut dy);
                    }
                    let mut branch = self.pool.take(dy.len());
                    branch.copy_from_slice(&dy);
                    // The shortcut ran last.
                    gradients.add(node.inputs[1].0, branch);
                    gradients.add(node.inputs[0].0, dy);
                }
                Kind::Norm { .. }
                | Kind::GroupNorm { .. }
                | Kind::Relu
                | Kind::PRelu { .. }
                | Kind::Pointwise(_)
                | Kind::Quadratic(_)
                | Kind::SharedRelu(_)
                | Kind::MaxPool(_)
                | Kind::AvgPool(_)
                | Kind::Flatten
                | Kind::Linear { .. }
                | Kind::Dropout { .. } => {
                    let dx = self.unwind_node(node, saved.as_mut(), dy, samples)?;
                    gradients.add(node.inputs[0].0, dx);
                }
            }
            if !is_last {
                self.saved[index] = saved;
            }
        }
        Ok(gradients.0.swap_remove(0))
    }

    fn unwind_conv<C: Convolver>(
        &mut self,
        node: &ConvNode,
        y: Option<Arc<Buffer>>,
        mut dy: Buffer,
        samples: usize,
        convolver: &mut C,
    ) -> Result<Option<Buffer>, C::Error> {
        if let Some(bias) = node.bias {
            let gradient = ops::bias_backward(y.as_ref().map(|y| &y[..]), &mut dy, node.output);
            self.add_squares(|sample| {
                let (len, pixels) = (node.output.len(), node.output.pixels());
                let planes = dy[sample * len..][..len].chunks_exact(pixels);
                planes.map(|plane| ops::sum_lanes(pixels, |i| plane[i]).powi(2)).sum()
            });
            self.params.set_gradients(bias, [gradient]);
        }
        drop(y);
        let (weight, d_weight) = self.params.pair(node.weight);
        let dx = convolver.backward(node, dy, samples, weight, d_weight)?;
        let expected = samples * node.input.len();
        match dx.as_ref().map_or(expected, |dx| self.values_of(dx)) {
            got if got == expected => Ok(dx),
            got => Err(EngineError::Length { what: "gradient of a convolution's input", got, expected }.into()),
        }
    }

    /// Everything with one input but a convolution.
    fn unwind_node(
        &mut self,
        node: &Node,
        saved: Option<&mut Saved>,
        mut dy: Buffer,
        samples: usize,
    ) -> Result<Buffer, EngineError> {
        match (&node.kind, saved) {
            (Kind::Norm { first, .. }, Some(Saved::Norm { x, y, moments })) => {
                let y = y.as_ref().map(|y| &y[..]);
                let scale = self.params.values(*first);
                let (d_scale, d_shift) = ops::norm_backward(&x.data, y, &mut dy, x.shape, scale, moments);
                self.params.set_gradients(*first, [d_scale, d_shift]);
            }
            (Kind::GroupNorm { first, groups }, Some(Saved::Input { x })) => {
                let scale = self.params.values(*first);
                let sums = group_norm::backward(&x.data, &mut dy, x.shape, *groups, scale);
                self.add_squares(|sample| {
                    sums[sample * x.shape.channels..][..x.shape.channels].iter().map(|[a, b]| a * a + b * b).sum()
                });
                self.params.set_gradients(*first, group_norm::totals(&sums, x.shape.channels));
            }
            (Kind::Relu, Some(Saved::Relu { y })) => ops::relu_backward(y, &mut dy),
            (Kind::PRelu { slopes }, Some(Saved::Input { x })) => {
                self.add_squares(|sample| {
                    let (len, pixels) = (x.shape.len(), x.shape.pixels());
                    let maps = |values: &[f32]| values[sample * len..][..len].to_vec();
                    let (x, dy) = (maps(&x.data), maps(&dy));
                    let planes = x.chunks_exact(pixels).zip(dy.chunks_exact(pixels));
                    planes.map(|(x, dy)| ops::sum_lanes(pixels, |i| x[i].min(0.0) * dy[i]).powi(2)).sum()
                });
                let d_slopes = ops::prelu_backward(&x.data, &mut dy, x.shape, self.params.values(*slopes));
                self.params.set_gradients(*slopes, [d_slopes]);
            }
            (Kind::Pointwise(function), Some(Saved::Input { x })) => {
                ops::pointwise_backward(*function, &x.data, &mut dy);
            }
            (Kind::Quadratic(node), Some(Saved::Quadratic(saved))) => self.unwind_quadratic(node, saved, &mut dy),
            (Kind::SharedRelu(node), Some(Saved::SharedRelu(saved))) => self.unwind_shared_relu(node, saved, &mut dy),
            (Kind::MaxPool(_), Some(Saved::MaxPool { argmax, x })) => {
                let mut dx = self.pool.take(samples * x.len());
                max_pool::backward(&dy, node.output, &argmax.values, &mut dx, *x);
                return Ok(dx);
            }
            (Kind::AvgPool(pool), Some(Saved::AvgPool { x })) => {
                let mut dx = self.pool.take(samples * x.len());
                ops::avg_pool_backward(&dy, *pool, &mut dx, *x);
                return Ok(dx);
            }
            (Kind::Linear { weight }, Some(Saved::Input { x })) => {
                let s = LinearShape { samples, inputs: x.shape.len(), outputs: node.output.channels };
                self.add_squares(|sample| {
                    let square = |values: &[f32], len: usize| {
                        let values = &values[sample * len..][..len];
                        values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>()
                    };
                    (square(&x.data, s.inputs) + 1.0) * square(&dy, s.outputs)
                });
                let mut dx = self.pool.take(x.data.len());
                if !self.pool.is_measuring() {
                    let (values, [d_weight, d_bias]) = self.params.layer(*weight);
                    ops::linear_backward(s, &x.data, values, &dy, d_weight, d_bias, &mut dx, self.par);
                }
                return Ok(dx);
            }
            (Kind::Dropout { p, .. }, Some(Saved::Dropout { keep })) => ops::drop_out(&mut dy, &keep.values, *p),
            (Kind::Flatten, _) => {}
            (
                Kind::Conv(_)
                | Kind::Norm { .. }
                | Kind::GroupNorm { .. }
                | Kind::Relu
                | Kind::PRelu { .. }
                | Kind::Pointwise(_)
                | Kind::Quadratic(_)
                | Kind::SharedRelu(_)
                | Kind::MaxPool(_)
                | Kind::AvgPool(_)
                | Kind::Linear { .. }
                | Kind::Dropout { .. }
                | Kind::Add { .. },
                _,
            ) => return Err(EngineError::NoForward { layer: node.name.clone() }),
        }
        Ok(dy)
    }

    /// Adds to the squared norm of each sample's gradient, where these are asked for.
    fn add_squares(&mut self, square: impl Fn(usize) -> f64) {
        if let Some(squares) = &mut self.squares {
            squares.iter_mut().enumerate().for_each(|(sample, sum)| *sum += square(sample));
        }
    }

    fn unwind_quadratic(&mut self, node: &QuadraticNode, saved: &QuadraticSaved, dy: &mut [f32]) {
        let QuadraticSaved { x, moments, range } = saved;
        let weight = self.params.values(node.first);
        match (moments, node.layer.form.bases()) {
            (Some(moments), Some(bases)) => {
                let (d_scale, d_shift) = quadratic::hermite_backward(&x.data, dy, x.shape, weight, (bases, moments));
                self.params.set_gradients(node.first, [d_scale, d_shift]);
            }
            _ => {
                let coefficients = node.layer.coefficients(&[weight]).first().copied().unwrap_or_default();
                let gradient = quadratic::backward(node.layer.form, coefficients, weight, &x.data, dy);
                self.params.set_gradients(node.first, [gradient]);
            }
        }
        if let Some(range) = range {
            quadratic::add_penalty(*range, &x.data, dy);
        }
    }

    fn unwind_shared_relu(&mut self, node: &SharedNode, saved: &mut SharedSaved, dy: &mut [f32]) {
        let trained = node.trained(&self.params);
        let (d_vote, d_coefficients) = shared_relu::backward(&node.plan, trained, saved, dy);
        for (index, gradient) in [(node.vote, d_vote), (node.coefficients, d_coefficients)] {
            if let Some(index) = index {
                self.params.set_gradients(index, [gradient]);
            }
        }
    }
}
