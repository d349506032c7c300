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

use super::{Moments, Saved, Work, check_finite};
use crate::buffer::{self, Activation, Buffer};
use crate::convolver::{Convolver, Turns};
use crate::error::EngineError;
use crate::ops::{self, LinearShape, NormSaved};
use crate::program::{ConvNode, Kind, Node, Program};
use crate::quadratic::{self, QuadraticNode, QuadraticSaved};
use crate::shared_relu::{self, SharedNode, SharedSaved};
use crate::{group_norm, max_pool};

/// How far a batch has come.
struct Lane {
    values: Vec<Option<Activation>>,
    /// The node to be computed next.
    next: usize,
    /// Samples of the convolution that it stands before.
    samples: usize,
    pass: Pass,
}

impl Lane {
    fn new(program: &Program, x: Activation, pass: Pass) -> Self {
        let mut values: Vec<Option<Activation>> = Vec::new();
        values.resize_with(program.output + 1, || None);
        let samples = x.samples;
        values[0] = Some(x);
        Self { values, next: 0, samples, pass }
    }

    /// What a node reads, which it keeps no longer where that node is the last to read it.
    fn inputs(&mut self, node: &Node) -> Result<(Activation, Option<Activation>), EngineError> {
        let values = &mut self.values;
        let mut inputs = node
            .inputs
            .iter()
            .filter_map(|&(value, is_last)| if is_last { values[value].take() } else { values[value].clone() });
        let x = inputs.next().ok_or_else(|| EngineError::NoForward { layer: node.name.clone() })?;
        Ok((x, inputs.next()))
    }

    fn output(mut self, program: &Program) -> Result<Activation, EngineError> {
        let output = self.values.swap_remove(program.output);
        output.ok_or_else(|| EngineError::NoForward { layer: "logits".to_owned() })
    }
}

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
        let mut lane = Lane::new(program, x, pass);
        while let Some((node, x)) = self.advance(program, &mut lane)? {
            let y = convolver.forward(node, &x, self.params.values(node.weight), pass)?;
            self.supply(program, &mut lane, y)?;
        }
        if pass == Pass::Training {
            self.kept = Some(samples);
        }
        Ok(lane.output(program)?)
    }

    /// Inference of several parts of a batch, each of them a number of its first sample and its samples: while an answer to one is
    /// under way, another goes on to its next convolution.
    pub(super) fn run_in_turns<C: Turns>(
        &mut self,
        program: &Program,
        parts: Vec<(usize, Activation)>,
        convolver: &mut C,
    ) -> Result<Vec<Activation>, C::Error> {
        let mut lanes: Vec<_> = parts
            .into_iter()
            .map(|(first, x)| (first, Lane::new(program, x, Pass::Inference), None::<(&ConvNode, C::Begun)>))
            .collect();
        let mut go = || -> Result<(), C::Error> {
            loop {
                for (first, lane, begun) in &mut lanes {
                    if let Some((node, begun)) = begun.take() {
                        let y = convolver.finish(node, begun)?;
                        self.supply(program, lane, y)?;
                    }
                    if let Some((node, x)) = self.advance(program, lane)? {
                        let weight = self.params.values(node.weight);
                        *begun = Some((node, convolver.begin(node, &x, weight, *first)?));
                    }
                }
                if lanes.iter().all(|(_, _, begun)| begun.is_none()) {
                    return Ok(());
                }
            }
        };
        let done = go();
        // After an error, so that no answer is left to come.
        let left = lanes.iter_mut().filter_map(|(_, _, begun)| begun.take());
        left.for_each(|(node, begun)| drop(convolver.finish(node, begun)));
        done?;
        lanes.into_iter().map(|(_, lane, _)| Ok(lane.output(program)?)).collect()
    }

    /// Computes until the next convolution, and returns it with its input; none at the end.
    fn advance<'a>(
        &mut self,
        program: &'a Program,
        lane: &mut Lane,
    ) -> Result<Option<(&'a ConvNode, Activation)>, EngineError> {
        while let Some(node) = program.nodes.get(lane.next) {
            let (x, other) = lane.inputs(node)?;
            let fetched = self.fetch(node)?;
            if let Kind::Conv(conv) = &node.kind {
                lane.samples = x.samples;
                return Ok(Some((conv, x)));
            }
            let made = self.run_node(node, x, other, program, lane.pass)?;
            if let Some(index) = fetched {
                self.params.let_go(index);
            }
            self.file(node, lane, made)?;
        }
        Ok(None)
    }

    /// Takes the output of the convolution that a lane stands before, without bias.
    fn supply(&mut self, program: &Program, lane: &mut Lane, mut y: Buffer) -> Result<(), EngineError> {
        let Some((node, Kind::Conv(conv))) = program.nodes.get(lane.next).map(|node| (node, &node.kind)) else {
            return Err(EngineError::NoForward { layer: "a convolution".to_owned() });
        };
        let (got, expected) = (self.values_of(&y), lane.samples * conv.output.len());
        if got != expected {
            return Err(EngineError::Length { what: "output of a convolution", got, expected });
        }
        if let Some(bias) = conv.bias {
            ops::add_bias(&mut y, conv.output, self.params.values(bias), conv.relu);
        }
        if self.stream.is_some() {
            self.params.let_go(conv.weight);
        }
        let y = Activation::new(lane.samples, conv.output, y);
        let saved = conv.relu.then(|| Saved::Relu { y: Arc::clone(&y.data) });
        self.file(node, lane, (y, saved))
    }

    /// Keeps what a node made.
    fn file(&mut self, node: &Node, lane: &mut Lane, made: (Activation, Option<Saved>)) -> Result<(), EngineError> {
        let (y, saved) = made;
        if self.checks {
            check_finite(&node.name, &y.data)?;
        }
        if lane.pass == Pass::Training {
            self.saved[lane.next] = saved;
        }
        lane.values[node.value] = Some(y);
        lane.next += 1;
        Ok(())
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
        max_pool::forward(&x.data, x.shape, &mut y, output, pool, &mut argmax.values);
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
