//! What a pass over a network takes, found by walking the program as the engine does, with lengths in place of values.
//!
//! Every take and every drop stands where it stands in the engine and its convolvers, so that the pool is predicted to the
//! byte; `tests/memory.rs` compares the two.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use asymflow_engine::buffer::REUSE;
use asymflow_engine::local::conv_shape;
use asymflow_engine::program::Node;
use asymflow_engine::{ConvNode, Program};
use asymflow_linalg::{BatchShape, Decomposer, conv};
use asymflow_privacy::Precision;
use asymflow_residual::Pass;
use asymflow_zoo::Shape;
use faer::Par;
use faer::dyn_stack::StackReq;

use super::wire;
use crate::plan::Placement;

const VALUE: usize = size_of::<f32>();

/// The shadow of a `trusted::Pool`: lengths without values.
#[derive(Clone, Debug, Default)]
struct Pool(Rc<RefCell<Lengths>>);

#[derive(Debug, Default)]
struct Lengths {
    free: BTreeMap<usize, usize>,
    /// Values of all vectors, held or free, that belong to the pool.
    live: usize,
    peak: usize,
}

#[derive(Debug)]
struct Buffer {
    /// What belongs to the buffer.
    len: usize,
    /// The vector behind it.
    whole: usize,
    pool: Pool,
}

impl Pool {
    fn take(&self, len: usize) -> Buffer {
        let mut lengths = self.0.borrow_mut();
        let reused = lengths.free.range(len..=REUSE * len).find(|(_, count)| **count > 0).map(|(&whole, _)| whole);
        let whole = match reused {
            Some(whole) => {
                *lengths.free.entry(whole).or_default() -= 1;
                whole
            }
            None => {
                lengths.add(len);
                len
            }
        };
        Buffer { len, whole, pool: self.clone() }
    }

    fn adopt(&self, len: usize) -> Buffer {
        self.0.borrow_mut().add(len);
        Buffer { len, whole: len, pool: self.clone() }
    }
}

impl Lengths {
    fn add(&mut self, len: usize) {
        self.live += len;
        self.peak = self.peak.max(self.live);
    }
}

impl Buffer {
    /// The vector leaves the pool.
    fn leave(mut self) -> usize {
        self.pool.0.borrow_mut().live -= self.whole;
        std::mem::take(&mut self.whole)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.whole > 0 {
            *self.pool.0.borrow_mut().free.entry(self.whole).or_default() += 1;
        }
    }
}

#[derive(Clone, Debug)]
struct Activation {
    shape: Shape,
    data: Rc<Buffer>,
}

impl Activation {
    fn new(shape: Shape, data: Buffer) -> Self {
        Self { shape, data: Rc::new(data) }
    }

    fn into_buffer(self, pool: &Pool) -> Buffer {
        let len = self.data.len;
        Rc::try_unwrap(self.data).unwrap_or_else(|_| pool.take(len))
    }
}

/// Memory of a vector that is resized, as `Vec` does it.
#[derive(Clone, Copy, Debug, Default)]
struct Grown(usize);

impl Grown {
    fn resize(&mut self, len: usize) {
        if len > self.0 {
            self.0 = len.max(2 * self.0);
        }
    }
}

/// The factors of one decomposition.
#[derive(Clone, Copy, Debug, Default)]
struct Factors {
    coefficients: Grown,
    principal: Grown,
}

impl Factors {
    fn prepare(&mut self, shape: BatchShape, rank: usize, shared: bool) {
        self.coefficients.resize(if shared { 1 } else { shape.samples } * shape.channels * rank);
        self.principal.resize(shape.samples * rank * shape.pixels);
    }

    const fn len(&self) -> usize {
        self.coefficients.0 + self.principal.0
    }
}

/// How convolutions are split.
pub(super) struct Split<'a> {
    pub placements: &'a [Placement],
    pub decomposer: &'a dyn Decomposer,
    pub precision: Precision,
}

/// What one or more passes take, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct WalkedBytes {
    /// Vectors of the pool, all together.
    pub pool: usize,
    /// Of them and of what is beside them, what is kept for a backward pass.
    pub kept: usize,
    /// Indices of maxima, masks of dropout, the logits' gradient.
    pub beside: usize,
    /// Memory that kernels and decompositions ask for.
    pub scratch: usize,
    /// Factors of decompositions.
    pub factors: usize,
    /// Residuals and gradients on their way out.
    pub release: usize,
    /// They together with their copies for the wire; or answers, where those are more.
    pub exchange: usize,
}

/// What a layer leaves for the backward pass: vectors of the pool, and how long its input was.
#[derive(Debug, Default)]
struct Saved {
    held: Vec<Rc<Buffer>>,
    input: usize,
}

/// Walks passes over one network.
pub(super) struct Walk<'a> {
    program: &'a Program,
    input: Shape,
    split: Option<Split<'a>>,
    par: Par,
    pool: Pool,
    samples: usize,
    tape: Vec<Saved>,
    kept: HashMap<usize, Activation>,
    kept_factors: HashMap<usize, Factors>,
    spare: Vec<Factors>,
    beside: Vec<usize>,
    local_scratch: usize,
    split_scratch: usize,
    most: WalkedBytes,
}

impl<'a> Walk<'a> {
    pub fn new(program: &'a Program, input: Shape, split: Option<Split<'a>>, par: Par) -> Self {
        Self {
            program,
            input,
            split,
            par,
            pool: Pool::default(),
            samples: 0,
            tape: Vec::new(),
            kept: HashMap::new(),
            kept_factors: HashMap::new(),
            spare: Vec::new(),
            beside: Vec::new(),
            local_scratch: 0,
            split_scratch: 0,
            most: WalkedBytes::default(),
        }
    }

    /// A forward pass, and in training the backward pass. The logits' gradient comes from outside.
    pub fn pass(&mut self, samples: usize, pass: Pass) {
        self.tape.clear();
        self.beside.clear();
        self.samples = samples;
        let x = Activation::new(self.input, self.pool.take(samples * self.input.len()));
        let program = self.program;
        let y = self.run(&program.nodes, x, pass);
        let logits = y.into_buffer(&self.pool).leave();
        if pass == Pass::Training {
            self.count_kept();
            let dy = self.pool.adopt(logits);
            if let Some(dx) = self.unwind(&program.nodes, dy) {
                dx.leave();
            }
        }
        self.most.pool = self.pool.0.borrow().peak * VALUE;
        self.most.scratch = self.local_scratch + self.split_scratch;
        let factors: usize = self.spare.iter().chain(self.kept_factors.values()).map(Factors::len).sum();
        self.most.factors = self.most.factors.max(factors * VALUE);
        self.most.beside = self.most.beside.max(self.beside.iter().sum());
    }

    pub const fn most(&self) -> WalkedBytes {
        self.most
    }

    /// What is alive between the passes. Buffers of one activation are counted once.
    fn count_kept(&mut self) {
        let tape = self.tape.iter().flat_map(|saved| &saved.held);
        let mut vectors: Vec<(*const Buffer, usize)> =
            tape.chain(self.kept.values().map(|x| &x.data)).map(|data| (Rc::as_ptr(data), data.whole)).collect();
        vectors.sort_unstable();
        vectors.dedup();
        let values: usize = vectors.iter().map(|(_, len)| len).sum();
        self.most.kept = self.most.kept.max(values * VALUE + self.beside.iter().sum::<usize>());
    }

    fn keep(&mut self, pass: Pass, input: usize, held: Vec<Rc<Buffer>>) {
        if pass == Pass::Training {
            self.tape.push(Saved { held, input });
        }
    }

    fn run(&mut self, nodes: &[Node], mut x: Activation, pass: Pass) -> Activation {
        for node in nodes {
            x = match node {
                Node::Conv(conv) => self.run_conv(conv, &x, pass),
                Node::Residual { main, shortcut, relu } => {
                    let long = self.run(main, x.clone(), pass);
                    let short = self.run(shortcut, x, pass);
                    let shape = long.shape;
                    let y = Activation::new(shape, long.into_buffer(&self.pool));
                    drop(short);
                    self.keep(pass, 0, relu.then(|| Rc::clone(&y.data)).into_iter().collect());
                    y
                }
                simple => self.run_simple(simple, x, pass),
            };
        }
        x
    }

    fn run_conv(&mut self, node: &ConvNode, x: &Activation, pass: Pass) -> Activation {
        let mut y = self.forward(node, x, pass);
        if node.bias.is_some() {
            let other = self.pool.take(y.len);
            drop(std::mem::replace(&mut y, other));
        }
        Activation::new(node.output, y)
    }

    fn run_simple(&mut self, node: &Node, x: Activation, pass: Pass) -> Activation {
        let samples = self.samples;
        match node {
            Node::Norm { relu, .. } => {
                let y = Activation::new(x.shape, self.pool.take(x.data.len));
                let mut held = vec![x.data];
                held.extend(relu.then(|| Rc::clone(&y.data)));
                self.keep(pass, 0, held);
                y
            }
            Node::Relu => {
                let shape = x.shape;
                let y = Activation::new(shape, x.into_buffer(&self.pool));
                self.keep(pass, 0, vec![Rc::clone(&y.data)]);
                y
            }
            Node::PRelu { .. } | Node::Quadratic(_) => {
                let y = Activation::new(x.shape, self.pool.take(x.data.len));
                self.keep(pass, 0, vec![x.data]);
                y
            }
            Node::SharedRelu(node) => {
                let y = Activation::new(x.shape, self.pool.take(x.data.len));
                let votes = self.pool.take(samples * node.plan.votes());
                self.keep(pass, 0, vec![x.data, Rc::new(votes)]);
                y
            }
            Node::MaxPool(window) => {
                let side = |side: usize| (side + 2 * window.padding - window.kernel) / window.stride + 1;
                let output = Shape::new(x.shape.channels, side(x.shape.height), side(x.shape.width));
                let y = self.pool.take(samples * output.len());
                self.hold_beside(samples * output.len() * size_of::<u32>(), pass);
                self.keep(pass, x.data.len, Vec::new());
                Activation::new(output, y)
            }
            Node::AvgPool { out } => {
                let output = Shape::new(x.shape.channels, *out, *out);
                let y = self.pool.take(samples * output.len());
                self.keep(pass, x.data.len, Vec::new());
                Activation::new(output, y)
            }
            Node::Linear { outputs, .. } => {
                let y = self.pool.take(samples * outputs);
                self.keep(pass, x.data.len, vec![x.data]);
                Activation::new(Shape::new(*outputs, 1, 1), y)
            }
            Node::Dropout { .. } if pass == Pass::Training => {
                self.hold_beside(x.data.len, pass);
                let shape = x.shape;
                let y = x.into_buffer(&self.pool);
                self.tape.push(Saved::default());
                Activation::new(shape, y)
            }
            _ => {
                let shape = if matches!(node, Node::Flatten) { Shape::new(x.shape.len(), 1, 1) } else { x.shape };
                self.keep(pass, 0, Vec::new());
                Activation { shape, data: x.data }
            }
        }
    }

    /// Memory that is not of the pool; in inference it is freed with its layer.
    fn hold_beside(&mut self, bytes: usize, pass: Pass) {
        if pass == Pass::Training {
            self.beside.push(bytes);
        } else {
            self.most.beside = self.most.beside.max(bytes);
        }
    }

    fn forward(&mut self, node: &ConvNode, x: &Activation, pass: Pass) -> Buffer {
        let shape = conv_shape(node, self.samples);
        let Some((rank, precision)) = self.rank_of(node) else {
            let y = self.pool.take(shape.output_len());
            self.ask_local(conv::forward_scratch(shape, self.par));
            if pass == Pass::Training {
                self.kept.insert(node.index, x.clone());
            }
            return y;
        };
        let (factors, residual) = self.decompose(x, rank);
        self.release(residual, precision);
        let y = self.pool.take(shape.output_len());
        self.ask_split(conv::folded_forward_scratch(shape, rank, self.par));
        self.exchange(wire::answer_bytes(y.len, 0, precision));
        match pass {
            Pass::Training => drop(self.kept_factors.insert(node.index, factors)),
            Pass::Inference => self.spare.push(factors),
        }
        y
    }

    fn rank_of(&self, node: &ConvNode) -> Option<(usize, Precision)> {
        let split = self.split.as_ref()?;
        match split.placements.get(node.index) {
            Some(Placement::Split { rank }) => Some((*rank, split.precision)),
            _ => None,
        }
    }

    /// The factors, and how many values the residual's vector has, which leaves the pool.
    fn decompose(&mut self, x: &Activation, rank: usize) -> (Factors, usize) {
        let shape = BatchShape { samples: self.samples, channels: x.shape.channels, pixels: x.shape.pixels() };
        let mut factors = self.spare.pop().unwrap_or_default();
        let residual = self.pool.take(x.data.len);
        if let Some(split) = &self.split {
            let request = split.decomposer.scratch(shape, rank, self.par);
            factors.prepare(shape, rank, split.decomposer.name() == "shared-basis");
            self.ask_split(request);
        }
        (factors, residual.leave())
    }

    /// What leaves is copied once more for the wire.
    fn release(&mut self, values: usize, precision: Precision) {
        let released = wire::release_bytes(values, precision);
        self.most.release = self.most.release.max(released);
        self.exchange(released + values * precision.bytes());
    }

    /// What leaves, and what comes back once that is gone.
    fn exchange(&mut self, bytes: usize) {
        self.most.exchange = self.most.exchange.max(bytes);
    }

    fn ask_local(&mut self, request: StackReq) {
        self.local_scratch = self.local_scratch.max(request.unaligned_bytes_required());
    }

    fn ask_split(&mut self, request: StackReq) {
        self.split_scratch = self.split_scratch.max(request.unaligned_bytes_required());
    }

    fn unwind(&mut self, nodes: &[Node], dy: Buffer) -> Option<Buffer> {
        let mut dy = Some(dy);
        for node in nodes.iter().rev() {
            let gradient = dy?;
            dy = match node {
                Node::Conv(conv) => self.backward(conv, gradient),
                Node::Residual { main, shortcut, .. } => {
                    self.tape.pop();
                    let branch = self.pool.take(gradient.len);
                    let short = self.unwind(shortcut, branch);
                    let long = self.unwind(main, gradient);
                    match (short, long) {
                        (Some(short), Some(long)) => {
                            drop(short);
                            Some(long)
                        }
                        (short, long) => short.or(long),
                    }
                }
                simple => Some(self.unwind_simple(simple, gradient)),
            };
        }
        dy
    }

    fn unwind_simple(&mut self, node: &Node, dy: Buffer) -> Buffer {
        let saved = self.tape.pop().unwrap_or_default();
        match node {
            Node::MaxPool(_) | Node::AvgPool { .. } | Node::Linear { .. } => self.pool.take(saved.input),
            _ => dy,
        }
    }

    fn backward(&mut self, node: &ConvNode, dy: Buffer) -> Option<Buffer> {
        let shape = conv_shape(node, self.samples);
        let Some((rank, precision)) = self.rank_of(node) else {
            let _x = self.kept.remove(&node.index);
            self.ask_local(conv::weight_gradient_scratch(shape, self.par));
            if !node.input_gradient {
                return None;
            }
            let dx = self.pool.take(shape.input_len());
            self.ask_local(conv::input_gradient_scratch(shape, self.par));
            drop(dy);
            return Some(dx);
        };
        self.release(dy.len, precision);
        self.ask_split(conv::folded_weight_gradient_scratch(shape, rank, self.par));
        let input = if node.input_gradient { shape.input_len() } else { 0 };
        self.exchange(wire::answer_bytes(input, shape.weight_len(), precision));
        let factors: usize = self.spare.iter().chain(self.kept_factors.values()).map(Factors::len).sum();
        self.most.factors = self.most.factors.max(factors * VALUE);
        self.spare.extend(self.kept_factors.remove(&node.index));
        drop(dy);
        node.input_gradient.then(|| self.pool.adopt(input))
    }
}

#[cfg(test)]
mod tests {
    use asymflow_zoo::{Weights, by_name, replace_activations};

    use super::*;
    use asymflow_engine::LocalConv;
    use asymflow_engine::{Engine, ops};

    /// The engine's pool and its shadow hold the same after every pass, whatever came before.
    #[test]
    fn the_pool_is_predicted_to_the_byte() {
        let passes =
            [(3, Pass::Training), (3, Pass::Training), (1, Pass::Training), (4, Pass::Inference), (3, Pass::Training)];
        for (name, activation) in [
            ("demo-cnn", None),
            ("resnet8-cifar", None),
            ("resnet18-cifar", None),
            ("vgg11-cifar", None),
            ("pkn-resnet10", None),
            ("resnet8-cifar", Some("hermite")),
            ("resnet8-cifar", Some("shared-relu:2x2x2:learned")),
            ("vgg11-cifar", Some("shared-relu:1x4x4")),
        ] {
            let mut network = by_name(name, 10, None).unwrap();
            if let Some(activation) = activation {
                network = replace_activations(&network, &activation.parse().unwrap()).unwrap();
            }
            let weights = Weights::init(&network, 1);
            let mut engine = Engine::new(network.clone(), &weights, Par::Seq).unwrap();
            let mut convolver = LocalConv::new(engine.program.convs, engine.pool.clone(), Par::Seq);
            let program = Program::new(&network).unwrap();
            let mut walk = Walk::new(&program, network.input, None, Par::Seq);
            for (samples, pass) in passes {
                let images = vec![0.5; samples * network.input.len()];
                let logits = engine.forward(&images, samples, pass, 1, &mut convolver).unwrap();
                if pass == Pass::Training {
                    let mut gradient = vec![0.0; logits.len()];
                    ops::softmax_cross_entropy(&logits, 10, &vec![0; samples], &mut gradient);
                    engine.backward(gradient, samples, &mut convolver).unwrap();
                }
                walk.pass(samples, pass);
                assert_eq!(walk.pool.0.borrow().live * VALUE, engine.pool.free_bytes(), "{name}, {samples} {pass:?}");
            }
        }
    }

    /// Steps of one size end in as much memory as the second took: nothing creeps.
    #[test]
    fn repeated_steps_take_no_more() {
        for name in ["resnet18-cifar", "vgg16-cifar", "resnet18-imagenet", "vgg16-imagenet"] {
            let network = by_name(name, 10, None).unwrap();
            let program = Program::new(&network).unwrap();
            for pass in [Pass::Inference, Pass::Training] {
                let mut walk = Walk::new(&program, network.input, None, Par::Seq);
                (0..2).for_each(|_| walk.pass(8, pass));
                let early = walk.most();
                (0..20).for_each(|_| walk.pass(8, pass));
                assert_eq!(walk.most(), early, "{name}, {pass:?}");
            }
        }
    }
}
