//! Where the convolutions of a network are computed.

use asymflow_zoo::weights::Pass;

use crate::buffer::{Activation, Buffer};
use crate::error::EngineError;
use crate::program::ConvNode;

/// Computes the convolutions of a network, wherever that happens.
pub trait Convolver: Send {
    /// Why a convolution could not be computed; what the engine itself refuses is told through it.
    type Error: From<EngineError>;

    /// y = conv(x, W) without bias. With [`Pass::Training`], keeps what [`Convolver::backward`] needs. Of a batch of a measuring
    /// [`Pool`](crate::buffer::Pool) only lengths are to be made.
    ///
    /// # Errors
    /// Whatever the place of computation reports.
    fn forward(&mut self, node: &ConvNode, x: &Activation, weight: &[f32], pass: Pass) -> Result<Buffer, Self::Error>;

    /// Writes ∂W into `d_weight` and returns ∂x where the node needs it.
    ///
    /// # Errors
    /// No kept forward pass, or whatever the place of computation reports.
    fn backward(
        &mut self,
        node: &ConvNode,
        dy: Buffer,
        samples: usize,
        weight: &[f32],
        d_weight: &mut [f32],
    ) -> Result<Option<Buffer>, Self::Error>;

    /// Whether a pass may be done again, to find where a number stopped being finite. It may not where something leaves.
    fn is_repeatable(&self) -> bool {
        false
    }
}

/// A convolver that waits for answers, so that in inference each convolution is begun and finished apart.
pub trait Turns: Convolver {
    /// A convolution that was begun.
    type Begun;

    /// Does what needs no answer, for samples of which the first is number `first` of the batch.
    ///
    /// # Errors
    /// As [`Convolver::forward`].
    fn begin(
        &mut self,
        node: &ConvNode,
        x: &Activation,
        weight: &[f32],
        first: usize,
    ) -> Result<Self::Begun, Self::Error>;

    /// Waits for the answer to what was begun, and returns what [`Convolver::forward`] would have.
    ///
    /// # Errors
    /// As [`Convolver::forward`].
    fn finish(&mut self, node: &ConvNode, begun: Self::Begun) -> Result<Buffer, Self::Error>;
}
