//! The forward pass. Where the pool measures, buffers are taken and dropped all the same, and kernels are left out.

use std::sync::Arc;

use asymflow_zoo::ops::{MaxPool, NORM_EPSILON};
use asymflow_zoo::{
    network::Shape,
    ops::{Easing, RangePenalty},
    weights::Pass,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Convolver, Moments, Saved, Work, check_finite};
use crate::buffer::{self, Activation, Buffer};
use crate::error::EngineError;
use crate::group_norm;
use crate::ops::{self, LinearShape, NormSaved};
use crate::program::{ConvNode, Kind, Node, Program};
use crate::quadratic::{self, QuadraticNode, QuadraticSaved};
use crate::shared_relu::{self, SharedNode, SharedSaved};

impl Work {
    /// Takes a buffer for a batch. An inference between a training pass and its gradient leaves what was kept.
    pub(super) fn begin(&mut self, program: &Program, samples: usize, pass: Pass) -> Buffer {
        // An inference between a training pass and its gradient leaves what was kept.
        if pass == Pass::Training {
            self.params.train();
            self.saved.clear();
            self.saved.resize_with(program.nodes.len(), || None);
            self.moments.clear();
            self.kept = None;
        }
        self.pool.take(samples * program.input.len())
    }

    pub(super) fn run<C: Convolver>(
        &mut self,
        program: &Program,
        x: Activation,
        pass: Pass,
        convolver: &mut C,
    ) -> Result<Activation, C::Error> {
        let samples = x.samples;
        let mut values: Vec<Option<Activation>> = Vec::new();
        values.resize_with(program.output + 1, || None);
        values[0] = Some(x);
        for (index, node) in program.nodes.iter().enumerate() {
            let mut inputs = node
                .inputs
                .iter()
                .filter_map(|&(value, is_last)| if is_last { values[value].take() } else { values[value].clone() });
            let (x, other) = (inputs.next(), inputs.next());
            let x = x.ok_or_else(|| EngineError::NoForward { layer: node.name.clone() })?;
            let fetched = self.fetch(node)?;
            let (y, saved) = if let Kind::Conv(conv) = &node.kind {
                self.run_conv(conv, &x, pass, convolver)?
            } else {
                self.run_node(node, x, other, program, pass)?
            };
            if let Some(index) = fetched {
                self.params.let_go(index);
            }
            if self.checks {
                check_finite(&node.name, &y.data)?;
            }
            if pass == Pass::Training {
                self.saved[index] = saved;
            }
            values[node.value] = Some(y);
        }
        if pass == Pass::Training {
            self.kept = Some(samples);
        }
        let output = values.swap_remove(program.output);
        Ok(output.ok_or_else(|| EngineError::NoForward { layer: "logits".to_owned() })?)
    }

    /// Values that a convolver's buffer has: one that was only measured has none to compute with.
    pub(super) fn values_of(&self, buffer: &Buffer) -> usize {
        if self.pool.is_measuring() { buffer.len() } else { buffer[..].len() }
    }

    /// Brings in the weights of a node where they are streamed; returns where they are, to be let go after it.
    fn fetch(&mut self, node: &Node) -> Result<Option<usize>, EngineError> {
        let index = match &node.kind {
            Kind::Conv(conv) => conv.weight,
            Kind::Linear { weight } => *weight,
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
            | Kind::Dropout { .. }
            | Kind::Add { .. } => return Ok(None),
        };
        let Some(stream) = &mut self.stream else { return Ok(None) };
        self.params.bring_in(index, stream.take(index)?)?;
        Ok(Some(index))
    }

    fn run_conv<C: Convolver>(
        &mut self,
        node: &ConvNode,
        x: &Activation,
        pass: Pass,
        convolver: &mut C,
    ) -> Result<(Activation, Option<Saved>), C::Error> {
        let mut y = convolver.forward(node, x, self.params.values(node.weight), pass)?;
        let (got, expected) = (self.values_of(&y), x.samples * node.output.len());
        if got != expected {
            return Err(EngineError::Length { what: "output of a convolution", got, expected }.into());
        }
        if let Some(bias) = node.bias {
            ops::add_bias(&mut y, node.output, self.params.values(bias), node.relu);
        }
        let y = Activation::new(x.samples, node.output, y);
        let saved = node.relu.then(|| Saved::Relu { y: Arc::clone(&y.data) });
        Ok((y, saved.filter(|_| pass == Pass::Training)))
    }

    fn run_norm(&mut self, first: usize, relu: bool, x: Activation, pass: Pass) -> (Activation, Option<Saved>) {
        let (samples, shape) = (x.samples, x.shape);
        let affine = [self.params.values(first), self.params.values(first + 1)];
        if pass == Pass::Inference {
            let running = [self.params.values(first + 2), self.params.values(first + 3)];
            let mut y = x.into_buffer(&self.pool);
            ops::norm_by(&mut y, shape, affine, running, relu);
            return (Activation::new(samples, shape, y), None);
        }
        let mut y = self.pool.take(x.data.len());
        let (mean, variance) = ops::norm(&x.data, &mut y, shape, affine, relu);
        let y = Activation::new(samples, shape, y);
        let inverse_std = variance.iter().map(|&v| ops::inverse_std(v)).collect();
        let count = (x.data.len() / shape.channels) as f32;
        self.moments.push(Moments::of(first, &mean, &variance, count));
        let kept = relu.then(|| Arc::clone(&y.data));
        (y, Some(Saved::Norm { x, y: kept, moments: NormSaved { mean, inverse_std } }))
    }

    /// Everything but a convolution.
    fn run_node(
        &mut self,
        node: &Node,
        x: Activation,
        other: Option<Activation>,
        program: &Program,
        pass: Pass,
    ) -> Result<(Activation, Option<Saved>), EngineError> {
        let (samples, shape) = (x.samples, x.shape);
        let of = |data: Buffer| Activation::new(samples, node.output, data);
        Ok(match &node.kind {
            Kind::Conv(conv) => return Err(EngineError::NoForward { layer: conv.conv.name.clone() }),
            Kind::Norm { first, relu } => self.run_norm(*first, *relu, x, pass),
            Kind::GroupNorm { first, groups } => {
                let mut y = self.pool.take(x.data.len());
                let (scale, shift) = (self.params.values(*first), self.params.values(first + 1));
                group_norm::forward(&x.data, &mut y, shape, *groups, (scale, shift));
                (of(y), Some(Saved::Input { x }))
            }
            Kind::Relu => {
                let mut y = x.into_buffer(&self.pool);
                ops::relu(&mut y);
                let y = of(y);
                let saved = Saved::Relu { y: Arc::clone(&y.data) };
                (y, Some(saved))
            }
            Kind::PRelu { slopes } => {
                let mut y = self.pool.take(x.data.len());
                ops::prelu(&x.data, &mut y, shape, self.params.values(*slopes));
                (of(y), Some(Saved::Input { x }))
            }
            Kind::Pointwise(function) => {
                let mut y = self.pool.take(x.data.len());
                ops::pointwise(*function, &x.data, &mut y);
                (of(y), Some(Saved::Input { x }))
            }
            Kind::Quadratic(quadratic) => self.run_quadratic(quadratic, x, program.quadratics, pass),
            Kind::SharedRelu(shared) => self.run_shared_relu(shared, x, pass),
            Kind::MaxPool(pool) => self.run_max_pool(*pool, x, node.output),
            Kind::AvgPool(pool) => {
                let mut y = self.pool.take(samples * node.output.len());
                ops::avg_pool(&x.data, shape, &mut y, *pool);
                (of(y), Some(Saved::AvgPool { x: shape }))
            }
            Kind::Linear { weight } => {
                let s = LinearShape { samples, inputs: shape.len(), outputs: node.output.channels };
                let mut y = self.pool.take(samples * node.output.len());
                if !self.pool.is_measuring() {
                    let (weight, bias) = (self.params.values(*weight), self.params.values(weight + 1));
                    ops::linear(s, &x.data, weight, bias, &mut y, self.par);
                }
                (of(y), Some(Saved::Input { x }))
            }
            Kind::Dropout { p, index } if pass == Pass::Training => {
                let mut rng = ChaCha8Rng::seed_from_u64(self.dropout_seed);
                rng.set_stream(*index as u64);
                let mut keep = self.pool.beside(x.data.len());
                keep.values.iter_mut().for_each(|keep| *keep = rng.random::<f32>() >= *p);
                let mut y = x.into_buffer(&self.pool);
                ops::drop_out(&mut y, &keep.values, *p);
                (of(y), Some(Saved::Dropout { keep }))
            }
            // Flattening keeps the memory and changes the shape; dropout in evaluation keeps both.
            Kind::Flatten | Kind::Dropout { .. } => (Activation { shape: node.output, ..x }, None),
            Kind::Add { relu } => {
                let other = other.ok_or_else(|| EngineError::NoForward { layer: node.name.clone() })?;
                let mut sum = x.into_buffer(&self.pool);
                buffer::add_assign(&mut sum, &other.data);
                if *relu {
                    ops::relu(&mut sum);
                }
                let y = of(sum);
                let saved = Saved::Add { y: relu.then(|| Arc::clone(&y.data)) };
                (y, Some(saved))
            }
        })
    }

    fn run_max_pool(&self, pool: MaxPool, x: Activation, output: Shape) -> (Activation, Option<Saved>) {
        let mut y = self.pool.take(x.samples * output.len());
        let mut argmax = self.pool.beside(x.samples * output.len());
        ops::max_pool(&x.data, x.shape, &mut y, output, pool, &mut argmax.values);
        (Activation::new(x.samples, output, y), Some(Saved::MaxPool { argmax, x: x.shape }))
    }

    fn run_quadratic(
        &mut self,
        node: &QuadraticNode,
        x: Activation,
        quadratics: usize,
        pass: Pass,
    ) -> (Activation, Option<Saved>) {
        let mut y = self.pool.take(x.data.len());
        let (samples, shape) = (x.samples, x.shape);
        let is_batch = pass == Pass::Training && node.layer.form.bases().is_some();
        let batch = is_batch.then(|| quadratic::basis_moments(&x.data, shape));
        if !self.pool.is_measuring() {
            let mut values: Vec<&[f32]> =
                (0..node.layer.tensors()).map(|i| self.params.values(node.first + i)).collect();
            if let (Some([first, second]), [_, _, running @ ..]) = (&batch, values.as_mut_slice()) {
                running.copy_from_slice(&[&first.0, &first.1, &second.0, &second.1]);
            }
            quadratic::forward(&x.data, &mut y, shape, &node.layer.coefficients(&values));
        }
        let y = Activation::new(samples, shape, y);
        if pass == Pass::Inference {
            return (y, None);
        }
        let count = (x.data.len() / shape.channels) as f32;
        // Scale and shift come once, mean and variance for each basis.
        let moments = batch.map(|[first, second]| {
            [(first, node.first), (second, node.first + 2)].map(|((mean, variance), first)| {
                self.moments.push(Moments::of(first, &mean, &variance, count));
                let inverse_std = variance.iter().map(|v| 1.0 / (v + NORM_EPSILON).sqrt()).collect();
                NormSaved { mean, inverse_std }
            })
        });
        let share = (samples * quadratics) as f32;
        let range = self.easing.range.map(|range| RangePenalty { weight: range.weight / share, ..range });
        (y, Some(Saved::Quadratic(QuadraticSaved { x, moments, range })))
    }

    fn run_shared_relu(&self, node: &SharedNode, x: Activation, pass: Pass) -> (Activation, Option<Saved>) {
        let easing = if pass == Pass::Training { self.easing } else { Easing::default() };
        let (samples, shape) = (x.samples, x.shape);
        let mut y = self.pool.take(x.data.len());
        let mut votes = self.pool.take(samples * node.plan.votes());
        let trained = node.trained(&self.params);
        shared_relu::forward(&node.plan, trained, &x.data, &mut y, &mut votes, easing.sharing);
        (Activation::new(samples, shape, y), Some(Saved::SharedRelu(SharedSaved { x, votes, easing })))
    }
}

impl Moments {
    /// Of batch statistics of `count` values a channel, that belong to the parameters from `first` on.
    fn of(first: usize, mean: &[f32], variance: &[f32], count: f32) -> Self {
        let unbiased = count / (count - 1.0).max(1.0);
        let unbiased_variance = variance.iter().map(|v| v * unbiased).collect();
        Self { first, mean: mean.to_vec(), unbiased_variance }
    }
}
