//! Convolutions computed entirely inside the trusted part.

use std::collections::HashMap;

use asymflow_linalg::conv::{self, ConvShape};
use asymflow_zoo::Pass;
use faer::Par;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};

use crate::buffer::{Activation, Buffer, Pool};
use crate::engine::Convolver;
use crate::error::EngineError;
use crate::program::ConvNode;
use crate::timing::{Seconds, timed};

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
    /// A stack that satisfies `request`.
    pub fn stack(&mut self, request: StackReq) -> &mut MemStack {
        let bytes = request.unaligned_bytes_required();
        if bytes > self.bytes || self.buffer.is_none() {
            self.buffer = None;
            self.bytes = bytes;
        }
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
    /// Seconds by convolution index.
    pub seconds: Vec<Seconds>,
}

impl LocalConv {
    /// A convolver for a network of `convs` convolutions, on the threads of `par`.
    pub fn new(convs: usize, pool: Pool, par: Par) -> Self {
        let seconds = vec![Seconds::default(); convs];
        Self { pool, par, scratch: Scratch::default(), kept: HashMap::new(), seconds }
    }

    /// Drops everything kept of a step that failed.
    pub fn forget(&mut self) {
        self.kept.clear();
    }
}

fn conv_error(node: &ConvNode) -> impl Fn(conv::ConvError) -> EngineError + '_ {
    |error| EngineError::Conv { layer: node.conv.name.clone(), error }
}

impl Convolver for LocalConv {
    type Error = EngineError;

    fn forward(&mut self, node: &ConvNode, x: &Activation, weight: &[f32], pass: Pass) -> Result<Buffer, EngineError> {
        let shape = conv_shape(node, x.samples);
        let mut y = self.pool.take(shape.output_len());
        let stack = self.scratch.stack(conv::forward_scratch(shape, self.par));
        timed(&mut self.seconds[node.index].trusted, || conv::forward(shape, &x.data, weight, &mut y, self.par, stack))
            .map_err(conv_error(node))?;
        if pass == Pass::Training {
            self.kept.insert(node.index, x.clone());
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
        let x = self
            .kept
            .remove(&node.index)
            .filter(|x| x.samples == samples)
            .ok_or_else(|| EngineError::NoForward { layer: node.conv.name.clone() })?;
        let shape = conv_shape(node, samples);
        let seconds = &mut self.seconds[node.index].trusted;
        let stack = self.scratch.stack(conv::weight_gradient_scratch(shape, self.par));
        timed(seconds, || conv::weight_gradient(shape, &x.data, &dy, d_weight, self.par, stack))
            .map_err(conv_error(node))?;
        if !node.input_gradient {
            return Ok(None);
        }
        let mut dx = self.pool.take(shape.input_len());
        let stack = self.scratch.stack(conv::input_gradient_scratch(shape, self.par));
        timed(seconds, || conv::input_gradient(shape, &dy, weight, &mut dx, self.par, stack))
            .map_err(conv_error(node))?;
        Ok(Some(dx))
    }
}
