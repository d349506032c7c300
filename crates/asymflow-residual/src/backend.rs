//! The interface of everything that computes on residuals: the untrusted side as the trusted side sees it.

use std::fmt::Debug;
use std::sync::Arc;

use asymflow_privacy::{
    Released,
    payload::{PackedBits, Payload},
};
pub use asymflow_zoo::weights::{Pass, SgdStep};
use asymflow_zoo::{Network, network::Shape, ops::Easing};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::rates::ModelledBackend;

/// Index of a unit in its [`ResidualModel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UnitId(pub u32);

/// Number of a submission, unique within a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ticket(pub u64);

/// A single convolution without bias, as AsymML asks of the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConvUnit {
    /// Shape of one input sample.
    pub input: Shape,
    /// Output channels.
    pub out_channels: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Stride.
    pub stride: usize,
    /// Zero padding.
    pub padding: usize,
}

impl ConvUnit {
    /// Shape of one output sample; without pixels where the kernel does not fit.
    pub fn output(&self) -> Shape {
        let side = |side: usize| {
            let room = side.saturating_add(self.padding.saturating_mul(2)).checked_sub(self.kernel);
            room.and_then(|room| room.checked_div(self.stride)).map_or(0, |steps| steps + 1)
        };
        Shape::new(self.out_channels, side(self.input.height), side(self.input.width))
    }

    /// Number of weights, of a unit within the limits of [`session::sizes`](crate::session::sizes).
    pub const fn weights(&self) -> usize {
        let square = self.kernel.saturating_mul(self.kernel);
        square.saturating_mul(self.out_channels).saturating_mul(self.input.channels)
    }
}

/// What the worker computes in one go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Unit {
    /// One convolution; weight `out × in × k × k`, row-major.
    Conv(ConvUnit),
    /// A whole network; weights in the order of [`Network::parameters`]. The worker owns them and steps them.
    Network(Network),
}

/// The units of one session. Weights follow by [`ResidualTraining::set_weights`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ResidualModel {
    /// The units; [`UnitId`] is the index.
    pub units: Vec<Unit>,
}

/// Whether a backend can be opened here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Availability {
    /// It can.
    Ready {
        /// The device, in words; a software GPU says so.
        device: String,
    },
    /// It cannot.
    Missing {
        /// What is missing.
        what: String,
        /// How to get it.
        fix: String,
    },
}

/// What a submission of a gradient should return.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Gradient with respect to the unit's input.
    pub input: bool,
    /// Gradient with respect to the unit's weights, summed over the batch ([`Unit::Conv`] only).
    pub weights: bool,
}

/// What came back for a ticket. Everything the worker returns is public.
#[derive(Clone, Debug, PartialEq)]
pub enum Batch {
    /// Outputs of a forward pass, samples × output shape, row-major.
    Outputs(Vec<f32>),
    /// Gradients, each empty when it was not wanted.
    Gradients {
        /// Samples × input shape.
        input: Vec<f32>,
        /// The shape of the unit's weights.
        weights: Vec<f32>,
    },
}

/// Counters of a session since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerStats {
    /// Seconds the device computed.
    pub busy_seconds: f64,
    /// Bytes sent to the worker, frames included.
    pub bytes_to_worker: u64,
    /// Bytes received from the worker, frames included.
    pub bytes_from_worker: u64,
    /// Seconds spent moving bytes: round trips less the device's busy time.
    pub transfer_seconds: f64,
}

/// Why a session could not be opened.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum OpenError {
    /// The backend cannot run here.
    #[error("{what} is missing")]
    Missing {
        /// What is missing.
        what: String,
        /// How to get it.
        fix: String,
    },
    /// The worker computes nothing, and its answers would be taken for results.
    #[error("worker {address} computes nothing: {device}; only experiments of speed take such a worker")]
    Modelled {
        /// The worker.
        address: String,
        /// Its device, in words.
        device: String,
    },
    /// The model is not executable.
    #[error("unit {unit}: {reason}")]
    Model {
        /// Index of the unit.
        unit: u32,
        /// Why.
        reason: String,
    },
    /// The worker cannot be reached.
    #[error("worker {address}: {reason}")]
    Unreachable {
        /// Where it was sought.
        address: String,
        /// Why.
        reason: String,
    },
    /// The worker refused the token.
    #[error("worker {address} refused the token")]
    Token {
        /// The worker.
        address: String,
    },
    /// The worker's certificate is not the pinned one.
    #[error("worker {address} presented another certificate than the pinned one")]
    Certificate {
        /// The worker.
        address: String,
    },
}

/// Why a submission was refused. Nothing was sent.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum SubmitError {
    /// There is no such unit.
    #[error("no unit {unit}, the model has {units}")]
    Unit {
        /// The unit asked for.
        unit: u32,
        /// Units in the model.
        units: usize,
    },
    /// The length is not a positive multiple of one sample.
    #[error("unit {unit}: {got} values are not a positive multiple of {sample}")]
    Length {
        /// The unit.
        unit: u32,
        /// Values given.
        got: usize,
        /// Values of one sample.
        sample: usize,
    },
    /// A gradient was submitted without a kept forward pass of as many samples.
    #[error("unit {unit}: no kept forward pass for a gradient of {samples} samples")]
    NoForward {
        /// The unit.
        unit: u32,
        /// Samples of the gradient.
        samples: usize,
    },
    /// A value is NaN or infinite.
    #[error("unit {unit}: value {index} is not finite")]
    NonFinite {
        /// The unit.
        unit: u32,
        /// Index of the first such value.
        index: usize,
    },
    /// The operation is not defined for this kind of unit or backend.
    #[error("unit {unit}: {what}")]
    Unsupported {
        /// The unit.
        unit: u32,
        /// What is not supported, and what to do instead.
        what: &'static str,
    },
    /// The session is gone; open a new one.
    #[error("worker lost: {reason}")]
    Lost {
        /// Why.
        reason: String,
    },
}

/// Why a result could not be had.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum CollectError {
    /// No such submission, or it was collected already.
    #[error("no submission {0:?} to collect")]
    Ticket(Ticket),
    /// The worker is gone (killed, disconnected, timed out, device lost); open a new session.
    #[error("worker lost: {reason}")]
    Lost {
        /// Why.
        reason: String,
    },
    /// The worker could not compute this but lives on.
    #[error("worker failed: {reason}")]
    Failed {
        /// What it said.
        reason: String,
    },
    /// The computation left the finite numbers; the worker lives on.
    #[error("answer not finite: {reason}")]
    NonFinite {
        /// Where.
        reason: String,
    },
    /// The worker's answer has the wrong size.
    #[error("malformed answer: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
}

impl CollectError {
    /// Why, in words.
    pub fn reason(self) -> String {
        match self {
            Self::Ticket(_) => self.to_string(),
            Self::Lost { reason }
            | Self::Failed { reason }
            | Self::NonFinite { reason }
            | Self::Malformed { reason } => reason,
        }
    }
}

impl From<String> for CollectError {
    /// A computation that failed for this reason, on a device that lives on.
    fn from(reason: String) -> Self {
        Self::Failed { reason }
    }
}

/// What is wrong with setting the momentum of a unit that is not stepped.
pub(crate) const NO_MOMENTUM: &str = "it has no momentum; only networks are stepped";

/// Numbers in parts, one after the other, which are held by more than one.
pub type SharedValues = Arc<Vec<Vec<f32>>>;

/// Something that computes on residuals: a device in this process, or a worker process.
pub trait ResidualBackend: Send + Sync + Debug {
    /// Name in configuration and reports.
    fn name(&self) -> &'static str;

    /// Whether it can be opened here. Never panics.
    fn probe(&self) -> Availability;

    /// Opens a session for `model`, with all weights zero.
    ///
    /// # Errors
    /// The backend is missing or unreachable, or a unit is not executable.
    fn open(&self, model: &ResidualModel) -> Result<Box<dyn ResidualTraining>, OpenError>;

    /// As [`ResidualBackend::open`], for a caller that collects every answer before it goes on, as the worker's server does: what is submitted
    /// may be computed before the call returns.
    ///
    /// # Errors
    /// As there.
    fn open_waiting(&self, model: &ResidualModel) -> Result<Box<dyn ResidualTraining>, OpenError> {
        self.open(model)
    }

    /// Whether its answers are no results, and only how long they take is meant.
    fn is_modelled(&self) -> bool {
        self.modelled().is_some()
    }

    /// The card that it stands for, where it answers zeros and a server need look at no numbers.
    fn modelled(&self) -> Option<ModelledBackend> {
        None
    }
}

/// Submits released data and collects results, so that trusted work overlaps.
///
/// Submissions are computed in order; tickets may be collected in any order.
pub trait ResidualSession: Send {
    /// Sends one batch through `unit`: samples × input shape, row-major.
    ///
    /// # Errors
    /// Unknown unit, wrong length, or a lost session.
    fn submit(&mut self, unit: UnitId, x: Released<Payload>, pass: Pass) -> Result<Ticket, SubmitError>;

    /// Waits for the result of `ticket`. A result that is not finite is an error.
    ///
    /// # Errors
    /// Unknown ticket, lost worker, failed computation, or a malformed answer.
    fn collect(&mut self, ticket: Ticket) -> Result<Batch, CollectError>;

    /// Counters since opening.
    fn stats(&self) -> WorkerStats;
}

/// A session that also trains.
pub trait ResidualTraining: ResidualSession {
    /// Sends the gradient of the loss with respect to the output of the latest kept forward pass of
    /// `unit`, which it consumes. The ticket yields [`Batch::Gradients`].
    ///
    /// # Errors
    /// As [`ResidualSession::submit`], or no kept forward pass.
    fn submit_gradient(&mut self, unit: UnitId, dy: Released<Payload>, wanted: Wanted) -> Result<Ticket, SubmitError>;

    /// Replaces the weights of `unit`; a momentum stays.
    ///
    /// # Errors
    /// Unknown unit, wrong length, or a lost session.
    fn set_weights(&mut self, unit: UnitId, weights: &[f32]) -> Result<(), SubmitError>;

    /// As [`ResidualTraining::set_weights`], of weights in parts that the caller goes on holding: where the worker is another
    /// process, no copy of them is made.
    ///
    /// # Errors
    /// As there.
    fn share_weights(&mut self, unit: UnitId, weights: &SharedValues) -> Result<(), SubmitError> {
        self.set_weights(unit, &weights.concat())
    }

    /// As [`ResidualTraining::set_momentum`], of momentum in parts that the caller goes on holding.
    ///
    /// # Errors
    /// As there.
    fn share_momentum(&mut self, unit: UnitId, momentum: &SharedValues) -> Result<(), SubmitError> {
        self.set_momentum(unit, &momentum.concat())
    }

    /// Waits until everything was done whose answer says only whether it worked, so that nothing of it waits in memory.
    ///
    /// # Errors
    /// A lost session, of which the next call hears as well.
    fn settle(&mut self) -> Result<(), SubmitError> {
        Ok(())
    }

    /// Adds `delta` to the weights of a [`Unit::Conv`], exactly as f32 addition of the decoded values does.
    ///
    /// # Errors
    /// As [`ResidualTraining::set_weights`].
    fn add_weights(&mut self, unit: UnitId, delta: Payload) -> Result<(), SubmitError>;

    /// Steps the weights of a [`Unit::Network`] along the gradient of its latest backward pass, which it consumes.
    ///
    /// # Errors
    /// Unknown unit, no gradient ([`SubmitError::NoForward`] of 0 samples), or a lost session.
    fn step(&mut self, unit: UnitId, sgd: SgdStep) -> Result<(), SubmitError>;

    /// Eases the training passes of a [`Unit::Network`] from now on.
    ///
    /// # Errors
    /// As [`ResidualTraining::set_weights`]; [`SubmitError::Unsupported`] by a backend that eases nothing.
    fn ease(&mut self, unit: UnitId, easing: Easing) -> Result<(), SubmitError> {
        if easing == Easing::default() {
            return Ok(());
        }
        Err(SubmitError::Unsupported { unit: unit.0, what: "this backend eases no activation" })
    }

    /// The current weights of `unit`.
    ///
    /// # Errors
    /// As [`ResidualSession::collect`].
    fn weights(&mut self, unit: UnitId) -> Result<Vec<f32>, CollectError>;

    /// Keeps released bits for later passes of a [`Unit::Network`], so that they cross once: sample `i` of `bits`
    /// becomes record `first + i`, replacing an earlier one. `labels`, one a sample or none, are what
    /// [`ResidualTraining::train_stored`] trains towards.
    ///
    /// # Errors
    /// As [`ResidualSession::submit`]; labels beyond the logits or of another number; a unit or backend that keeps none.
    fn store(
        &mut self,
        unit: UnitId,
        _first: u32,
        _bits: Released<PackedBits>,
        _labels: Option<Released<Vec<u32>>>,
    ) -> Result<(), SubmitError> {
        Err(SubmitError::Unsupported { unit: unit.0, what: "this backend stores no records" })
    }

    /// Sends stored records through `unit`, as [`ResidualSession::submit`] does with samples.
    ///
    /// # Errors
    /// Unknown unit, no records, or a lost session. A record that was never stored fails on collection.
    fn submit_stored(&mut self, unit: UnitId, _records: &[u32], _pass: Pass) -> Result<Ticket, SubmitError> {
        Err(SubmitError::Unsupported { unit: unit.0, what: "this backend stores no records" })
    }

    /// One whole step of training on stored records and their labels: softmax cross-entropy, averaged over the
    /// records. The ticket yields the logits from before the step.
    ///
    /// # Errors
    /// As [`ResidualTraining::submit_stored`]. A record without a label fails on collection.
    fn train_stored(&mut self, unit: UnitId, _records: &[u32], _sgd: SgdStep) -> Result<Ticket, SubmitError> {
        Err(SubmitError::Unsupported { unit: unit.0, what: "this backend stores no records" })
    }

    /// The momentum of a [`Unit::Network`], one value for each of its weights and in their order: zero until the first
    /// step, and for weights that no step moves. With the weights it is all that a step depends on beside its gradient.
    ///
    /// # Errors
    /// As [`ResidualSession::collect`]; [`CollectError::Failed`] where nothing is stepped.
    fn momentum(&mut self, unit: UnitId) -> Result<Vec<f32>, CollectError> {
        Err(CollectError::Failed { reason: format!("unit {}: {NO_MOMENTUM}", unit.0) })
    }

    /// Replaces the momentum of a [`Unit::Network`].
    ///
    /// # Errors
    /// As [`ResidualTraining::set_weights`]; [`SubmitError::Unsupported`] where nothing is stepped.
    fn set_momentum(&mut self, unit: UnitId, momentum: &[f32]) -> Result<(), SubmitError> {
        let _ = momentum;
        Err(SubmitError::Unsupported { unit: unit.0, what: NO_MOMENTUM })
    }

    /// Drops every kept forward pass, gradient and uncollected result, so that a step can be done again.
    ///
    /// # Errors
    /// A lost session.
    fn reset(&mut self) -> Result<(), SubmitError>;
}
