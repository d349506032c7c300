//! Backends in this process: whoever writes one says what a single unit computes, and [`open`] makes sessions of it.
//!
//! A backend of convolutions alone is less work still: it says what one convolution computes ([`Convolve`]), and
//! [`ConvolutionBackend`] is the rest.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use asymflow_privacy::payload::{PackedBits, Payload};
use asymflow_zoo::ops::Easing;

use crate::backend::{
    Availability, CollectError, ConvUnit, OpenError, Pass, ResidualBackend, ResidualModel, ResidualTraining, SgdStep,
    SharedValues, Unit, Wanted, WorkerStats,
};
use crate::session::{Answer, Executor, Expected, QueuedSession, Request, sizes};

/// Gradients of a unit's input and of its weights, each empty where it was not wanted.
pub type Gradients = (Vec<f32>, Vec<f32>);

/// What one unit computes. Lengths and values have been checked; a gradient comes only after a forward pass that was kept,
/// and for as many samples. Weights are zero at first. An error says what failed, and the unit lives on.
pub trait ComputeUnit: Send {
    /// Outputs of one batch: samples × output shape, row-major. With [`Pass::Training`] what the gradient needs is kept, in
    /// place of what was kept before; with [`Pass::Inference`] it stays.
    ///
    /// # Errors
    /// The computation failed.
    fn forward(&mut self, x: Payload, pass: Pass) -> Result<Vec<f32>, CollectError>;

    /// Gradients from that of the outputs, of the pass that was kept; it is kept no longer. A network keeps the gradient of its weights to
    /// itself, for [`TrainUnit::step`].
    ///
    /// # Errors
    /// The computation failed.
    fn gradient(&mut self, dy: Vec<f32>, wanted: Wanted) -> Result<Gradients, CollectError>;

    /// All weights: of a convolution out × in × k × k, of a network in the order of its parameters.
    ///
    /// # Errors
    /// They cannot be fetched.
    fn weights(&mut self) -> Result<Vec<f32>, CollectError>;

    /// Replaces the weights.
    ///
    /// # Errors
    /// They cannot be set.
    fn set_weights(&mut self, weights: Vec<f32>) -> Result<(), CollectError>;

    /// Adds to the weights, one number to each.
    ///
    /// # Errors
    /// They cannot be fetched or set.
    fn add_weights(&mut self, delta: &[f32]) -> Result<(), CollectError> {
        let sum = self.weights()?.iter().zip(delta).map(|(weight, delta)| weight + delta).collect();
        self.set_weights(sum)
    }

    /// Drops what was kept of a forward pass and its gradient.
    fn reset(&mut self);

    /// How it is trained, where it is a network.
    fn training(&mut self) -> Option<&mut dyn TrainUnit>;
}

/// How a network is trained where its weights live.
pub trait TrainUnit {
    /// Steps along the gradient of the latest backward pass.
    ///
    /// # Errors
    /// The computation failed.
    fn step(&mut self, sgd: SgdStep) -> Result<(), CollectError>;

    /// One number for each weight, zero before the first step.
    ///
    /// # Errors
    /// It cannot be fetched.
    fn momentum(&mut self) -> Result<Vec<f32>, CollectError>;

    /// Replaces the momentum.
    ///
    /// # Errors
    /// It cannot be set.
    fn set_momentum(&mut self, momentum: &[f32]) -> Result<(), CollectError>;

    /// Eases the training passes from now on.
    ///
    /// # Errors
    /// It is not supported.
    fn ease(&mut self, easing: Easing) -> Result<(), CollectError>;
}

/// Opens a session whose units `make` makes.
///
/// # Errors
/// As [`Units::new`]; no thread for the session.
pub fn open(
    model: &ResidualModel,
    make: impl FnMut(&Unit) -> Result<Box<dyn ComputeUnit>, CollectError>,
) -> Result<Box<dyn ResidualTraining>, OpenError> {
    let units = Units::new(model, make)?;
    let session = QueuedSession::start(sizes(model)?, units, None).map_err(|error| OpenError::Missing {
        what: format!("a thread for the session ({error})"),
        fix: "raise the limit on threads".to_owned(),
    })?;
    Ok(Box::new(session))
}

/// As [`open`], without a thread: [`ResidualBackend::open_waiting`] of a backend in this process.
///
/// # Errors
/// As [`Units::new`].
pub fn open_waiting(
    model: &ResidualModel,
    make: impl FnMut(&Unit) -> Result<Box<dyn ComputeUnit>, CollectError>,
) -> Result<Box<dyn ResidualTraining>, OpenError> {
    let units = Units::new(model, make)?;
    Ok(Box::new(QueuedSession::waiting(sizes(model)?, units)))
}

/// The text of a panic.
pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("panicked without a message").to_owned()
}

/// Runs device work; burn, for one, reports most failures by panicking.
fn guard<T>(work: impl FnOnce() -> Result<T, CollectError>) -> Result<T, CollectError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(message(panic.as_ref()).into()))
}

struct Held {
    unit: Box<dyn ComputeUnit>,
    records: Records,
}

impl Held {
    fn training(&mut self) -> Result<&mut dyn TrainUnit, String> {
        self.unit.training().ok_or_else(|| "a convolution is not stepped and has no momentum".to_owned())
    }

    /// Forward, gradient of the mean cross-entropy towards the stored labels (o − y), and step; the logits from before it.
    fn train_stored(&mut self, records: &[u32], sgd: SgdStep) -> Result<Vec<f32>, CollectError> {
        let labels = self.records.labels(records)?;
        let logits = self.unit.forward(self.records.bits(records)?, Pass::Training)?;
        let gradient = cross_entropy_gradient(&logits, &labels);
        self.unit.gradient(gradient, Wanted { input: false, weights: false })?;
        self.training()?.step(sgd)?;
        Ok(logits)
    }
}

/// Executes requests on units of this process, and keeps the records of networks.
pub struct Units(Vec<Held>);

impl fmt::Debug for Units {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Units({})", self.0.len())
    }
}

impl Units {
    /// The units of `model`, as `make` makes them. Panics in `make` and in the units are failures of that computation.
    ///
    /// # Errors
    /// A unit that is beyond the limits or that `make` refuses.
    pub fn new(
        model: &ResidualModel,
        mut make: impl FnMut(&Unit) -> Result<Box<dyn ComputeUnit>, CollectError>,
    ) -> Result<Self, OpenError> {
        sizes(model)?;
        let held = |(index, unit): (usize, &Unit)| match guard(|| make(unit)) {
            Ok(unit) => Ok(Held { unit, records: Records::default() }),
            Err(error) => Err(OpenError::Model { unit: index as u32, reason: error.reason() }),
        };
        Ok(Self(model.units.iter().enumerate().map(held).collect::<Result<_, _>>()?))
    }
}

impl Executor for Units {
    fn execute(&mut self, request: Request, _expected: Expected) -> Result<Answer, CollectError> {
        let start = Instant::now();
        let (values, weight_values) = guard(|| self.compute(request))?;
        let cost = WorkerStats { busy_seconds: start.elapsed().as_secs_f64(), ..WorkerStats::default() };
        Ok(Answer { values, weight_values, cost })
    }
}

impl Units {
    fn held(&mut self, unit: usize) -> Result<&mut Held, String> {
        self.0.get_mut(unit).ok_or_else(|| format!("no unit {unit}"))
    }

    fn compute(&mut self, request: Request) -> Result<Gradients, CollectError> {
        let done = |()| Vec::new();
        let values = match request {
            Request::Forward { unit, x, pass } => self.held(unit)?.unit.forward(x, pass),
            Request::Gradient { unit, dy, wanted } => return self.held(unit)?.unit.gradient(dy.into_f32(), wanted),
            Request::SetWeights { unit, weights } => self.held(unit)?.unit.set_weights(whole(weights)).map(done),
            Request::AddWeights { unit, delta } => self.held(unit)?.unit.add_weights(&delta.into_f32()).map(done),
            Request::Step { unit, sgd } => self.held(unit)?.training()?.step(sgd).map(done),
            Request::Ease { unit, easing } => self.held(unit)?.training()?.ease(easing).map(done),
            Request::Weights { unit } => self.held(unit)?.unit.weights(),
            Request::Momentum { unit } => self.held(unit)?.training()?.momentum(),
            Request::SetMomentum { unit, momentum } => {
                self.held(unit)?.training()?.set_momentum(&momentum.concat()).map(done)
            }
            Request::Reset => {
                self.0.iter_mut().for_each(|held| held.unit.reset());
                Ok(Vec::new())
            }
            Request::Store { unit, first, samples, bits, labels } => {
                self.held(unit)?.records.store(first, samples, &bits, &labels);
                Ok(Vec::new())
            }
            Request::ForwardStored { unit, records, pass } => {
                let Held { unit, records: stored } = self.held(unit)?;
                unit.forward(stored.bits(&records)?, pass)
            }
            Request::TrainStored { unit, records, sgd } => self.held(unit)?.train_stored(&records, sgd),
        };
        Ok((values?, Vec::new()))
    }
}

/// Numbers in one part, without a copy where nobody else holds them.
fn whole(parts: SharedValues) -> Vec<f32> {
    match Arc::try_unwrap(parts) {
        Ok(mut parts) if parts.len() == 1 => parts.pop().unwrap_or_default(),
        Ok(parts) => parts.concat(),
        Err(shared) => shared.concat(),
    }
}

/// Packed bits of one sample, the lowest first, and a label.
type Record = (Box<[u8]>, Option<u32>);

/// The records that a network keeps.
#[derive(Default)]
struct Records(HashMap<u32, Record>);

impl Records {
    /// Keeps `samples` samples of whole bytes, and their labels where there are any.
    fn store(&mut self, first: u32, samples: u32, bits: &PackedBits, labels: &[u32]) {
        let bytes = (bits.as_bytes().len() / samples.max(1) as usize).max(1);
        let one = |(i, bits): (usize, &[u8])| (first + i as u32, (bits.into(), labels.get(i).copied()));
        self.0.extend(bits.as_bytes().chunks_exact(bytes).take(samples as usize).enumerate().map(one));
    }

    fn find(&self, record: u32) -> Result<&Record, String> {
        self.0.get(&record).ok_or_else(|| format!("no record {record} is stored"))
    }

    fn bits(&self, records: &[u32]) -> Result<Payload, String> {
        let mut bytes = Vec::new();
        for &record in records {
            bytes.extend_from_slice(&self.find(record)?.0);
        }
        let bits = 8 * bytes.len();
        Ok(Payload::Bits(PackedBits::from_bytes(bytes, bits).map_err(|error| error.to_string())?))
    }

    fn labels(&self, records: &[u32]) -> Result<Vec<u32>, String> {
        let one = |&record: &u32| self.find(record)?.1.ok_or_else(|| format!("record {record} has no label"));
        records.iter().map(one).collect()
    }
}

/// (softmax(z) − y) / samples, row by row.
fn cross_entropy_gradient(logits: &[f32], labels: &[u32]) -> Vec<f32> {
    let samples = labels.len().max(1);
    let row = |(row, &label): (&[f32], &u32)| {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exponentials: Vec<f32> = row.iter().map(|z| (z - top).exp()).collect();
        let sum: f32 = exponentials.iter().sum();
        let one =
            move |(class, e): (usize, f32)| (e / sum - f32::from(u8::from(class == label as usize))) / samples as f32;
        exponentials.into_iter().enumerate().map(one).collect::<Vec<_>>()
    };
    logits.chunks_exact((logits.len() / samples).max(1)).zip(labels).flat_map(row).collect()
}

/// One of the three products of a convolution y = x ⊛ w without bias. All values are row-major: x and dx are samples × in ×
/// height × width, y and dy samples × out × height × width of the outputs, w and dw out × in × k × k.
#[derive(Clone, Copy, Debug)]
pub enum Product<'a> {
    /// y, of x and w.
    Outputs {
        /// Inputs.
        x: &'a [f32],
        /// Weights.
        w: &'a [f32],
    },
    /// dx, of dy and w.
    InputGradient {
        /// Gradient of the outputs.
        dy: &'a [f32],
        /// Weights.
        w: &'a [f32],
    },
    /// dw, of x and dy, summed over the samples.
    WeightGradient {
        /// Inputs.
        x: &'a [f32],
        /// Gradient of the outputs.
        dy: &'a [f32],
    },
}

/// The arithmetic of convolutions: all that a backend of convolutions has to say.
pub trait Convolve: Send {
    /// One product of a convolution of `samples` samples.
    ///
    /// # Errors
    /// The computation failed, in words.
    fn convolve(&mut self, conv: &ConvUnit, samples: usize, product: Product<'_>) -> Result<Vec<f32>, String>;
}

/// A convolution as a unit, on somebody's arithmetic.
#[derive(Debug)]
pub struct ConvolutionUnit<C> {
    conv: ConvUnit,
    convolve: C,
    weights: Vec<f32>,
    kept: Option<Vec<f32>>,
}

impl<C: Convolve> ConvolutionUnit<C> {
    /// The unit of `conv`, with weights that are zero.
    pub fn new(conv: &ConvUnit, convolve: C) -> Self {
        let weights = vec![0.0; conv.weights()];
        Self { conv: conv.clone(), convolve, weights, kept: None }
    }
}

impl<C: Convolve> ComputeUnit for ConvolutionUnit<C> {
    fn forward(&mut self, x: Payload, pass: Pass) -> Result<Vec<f32>, CollectError> {
        if pass == Pass::Training {
            // Should this pass fail, an earlier one must not be differentiated in its place.
            self.kept = None;
        }
        let x = x.into_f32();
        let samples = x.len() / self.conv.input.len();
        let y = self.convolve.convolve(&self.conv, samples, Product::Outputs { x: &x, w: &self.weights })?;
        if pass == Pass::Training {
            self.kept = Some(x);
        }
        Ok(y)
    }

    fn gradient(&mut self, dy: Vec<f32>, wanted: Wanted) -> Result<Gradients, CollectError> {
        let (Self { conv, convolve, weights: w, kept }, dy) = (self, &dy);
        let x = &kept.take().ok_or_else(|| "no kept forward pass".to_owned())?;
        let samples = x.len() / conv.input.len();
        let mut product = |wanted: bool, product| {
            if wanted { convolve.convolve(conv, samples, product) } else { Ok(Vec::new()) }
        };
        let input = product(wanted.input, Product::InputGradient { dy, w })?;
        Ok((input, product(wanted.weights, Product::WeightGradient { x, dy })?))
    }

    fn weights(&mut self) -> Result<Vec<f32>, CollectError> {
        Ok(self.weights.clone())
    }

    fn set_weights(&mut self, weights: Vec<f32>) -> Result<(), CollectError> {
        self.weights = weights;
        Ok(())
    }

    fn add_weights(&mut self, delta: &[f32]) -> Result<(), CollectError> {
        self.weights.iter_mut().zip(delta).for_each(|(weight, delta)| *weight += delta);
        Ok(())
    }

    fn reset(&mut self) {
        self.kept = None;
    }

    fn training(&mut self) -> Option<&mut dyn TrainUnit> {
        None
    }
}

/// A backend of convolutions alone, on somebody's arithmetic.
#[derive(Clone, Debug)]
pub struct ConvolutionBackend<C> {
    /// Its name in configuration and reports.
    pub name: &'static str,
    /// The device, in words.
    pub device: String,
    /// The arithmetic; each unit has a copy of its own.
    pub convolve: C,
}

impl<C: Convolve + Clone + Sync + fmt::Debug + 'static> ResidualBackend for ConvolutionBackend<C> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn probe(&self) -> Availability {
        Availability::Ready { device: self.device.clone() }
    }

    fn open(&self, model: &ResidualModel) -> Result<Box<dyn ResidualTraining>, OpenError> {
        open(model, |unit| match unit {
            Unit::Conv(conv) => Ok(Box::new(ConvolutionUnit::new(conv, self.convolve.clone()))),
            Unit::Network(_) => Err(format!("the backend {} computes convolutions alone", self.name).into()),
        })
    }
}
