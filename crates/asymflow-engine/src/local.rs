//! Convolutions computed entirely inside the trusted part.

use std::collections::HashMap;
use std::time::Instant;

use asymflow_linalg::conv::{self, ConvError, ConvShape};
use asymflow_zoo::weights::Pass;
use faer::Par;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};

use crate::buffer::{Activation, Buffer, Pool};
use crate::convolver::Convolver;
use crate::error::EngineError;
use crate::program::ConvNode;
use crate::timing::Seconds;

/// Scratch memory that grows to the largest request.
#[derive(Default)]
pub struct Scratch {
    buffer: Option<MemBuffer>,
    bytes: usize,
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scratch").field("bytes", &self.bytes).finish()
    }
}

impl Scratch {
    /// Asks for what satisfies `request`, which is made when it is used.
    pub fn ask(&mut self, request: StackReq) {
        let bytes = request.unaligned_bytes_required();
        if bytes > self.bytes {
            self.buffer = None;
            self.bytes = bytes;
        }
    }

    /// The most bytes that were asked for.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// A stack that satisfies `request`.
    pub fn stack(&mut self, request: StackReq) -> &mut MemStack {
        self.ask(request);
        MemStack::new(self.buffer.get_or_insert_with(|| MemBuffer::new(request)))
    }
}

/// The shape of a convolution over a batch.
pub fn conv_shape(node: &ConvNode, samples: usize) -> ConvShape {
    ConvShape {
        samples,
        in_channels: node.input.channels,
        height: node.input.height,
        width: node.input.width,
        out_channels: node.output.channels,
        kernel: node.conv.kernel,
        stride: node.conv.stride,
        padding: node.conv.padding,
    }
}

/// Every convolution trusted, on the kernels of `asymflow-linalg`.
#[derive(Debug)]
pub struct LocalConv {
    pool: Pool,
    par: Par,
    scratch: Scratch,
    kept: HashMap<usize, Activation>,
    seconds: Vec<Seconds>,
}

impl LocalConv {
    /// A convolver for a network of `convs` convolutions, on the threads of `par` and with the pool of its engine.
    pub fn new(convs: usize, pool: Pool, par: Par) -> Self {
        let seconds = vec![Seconds::default(); convs];
        Self { pool, par, scratch: Scratch::default(), kept: HashMap::new(), seconds }
    }

    /// Drops everything kept of a step that failed.
    pub fn forget(&mut self) {
        self.kept.clear();
    }

    /// Seconds by convolution index.
    pub fn seconds(&self) -> &[Seconds] {
        &self.seconds
    }

    /// Seconds of one convolution.
    pub fn seconds_of(&mut self, node: &ConvNode) -> &mut Seconds {
        if node.index >= self.seconds.len() {
            self.seconds.resize(node.index + 1, Seconds::default());
        }
        &mut self.seconds[node.index]
    }

    /// Bytes of scratch that its kernels asked for.
    pub const fn scratch_bytes(&self) -> usize {
        self.scratch.bytes()
    }

    /// Keeps the input of a training pass for the backward pass.
    pub(crate) fn keep(&mut self, node: &ConvNode, x: &Activation) {
        self.kept.insert(node.index, x.clone());
    }

    /// The input of a training pass, which is kept no longer.
    pub(crate) fn kept(&mut self, node: &ConvNode, samples: usize) -> Result<Activation, EngineError> {
        let kept = self.kept.remove(&node.index).filter(|x| x.samples == samples);
        kept.ok_or_else(|| EngineError::NoForward { layer: node.conv.name.clone() })
    }

    /// ∂x, where somebody needs it.
    pub(crate) fn input_gradient(
        &mut self,
        node: &ConvNode,
        dy: &[f32],
        samples: usize,
        weight: &[f32],
    ) -> Result<Option<Buffer>, EngineError> {
        if !node.input_gradient {
            return Ok(None);
        }
        let shape = conv_shape(node, samples);
        let mut dx = self.pool.take(shape.input_len());
        self.kernel(node, conv::input_gradient_scratch(shape, self.par), |par, stack| {
            conv::input_gradient(shape, dy, weight, &mut dx, par, stack)
        })?;
        Ok(Some(dx))
    }

    /// Runs a kernel, unless only its scratch is to be counted.
    fn kernel(
        &mut self,
        node: &ConvNode,
        request: StackReq,
        kernel: impl FnOnce(Par, &mut MemStack) -> Result<(), ConvError>,
    ) -> Result<(), EngineError> {
        self.scratch.ask(request);
        if self.pool.is_measuring() {
            return Ok(());
        }
        let start = Instant::now();
        let done = kernel(self.par, self.scratch.stack(request));
        self.seconds_of(node).trusted += start.elapsed().as_secs_f64();
        done.map_err(|error| EngineError::Conv { layer: node.conv.name.clone(), error })
    }
}

impl Convolver for LocalConv {
    type Error = EngineError;

    fn forward(&mut self, node: &ConvNode, x: &Activation, weight: &[f32], pass: Pass) -> Result<Buffer, EngineError> {
        let shape = conv_shape(node, x.samples);
        let mut y = self.pool.take(shape.output_len());
        self.kernel(node, conv::forward_scratch(shape, self.par), |par, stack| {
            conv::forward(shape, &x.data, weight, &mut y, par, stack)
        })?;
        if pass == Pass::Training {
            self.keep(node, x);
        }
        Ok(y)
    }

    fn backward(
        &mut self,
        node: &ConvNode,
        dy: Buffer,
        samples: usize,
        weight: &[f32],
        d_weight: &mut [f32],
    ) -> Result<Option<Buffer>, EngineError> {
        let x = self.kept(node, samples)?;
        let shape = conv_shape(node, samples);
        self.kernel(node, conv::weight_gradient_scratch(shape, self.par), |par, stack| {
            conv::weight_gradient(shape, &x.data, &dy, d_weight, par, stack)
        })?;
        self.input_gradient(node, &dy, samples, weight)
    }

    fn is_repeatable(&self) -> bool {
        true
    }
}
