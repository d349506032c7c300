//! AsymML: every split convolution is computed as Y = conv(X_main) + conv(M(X_res)), the low-rank part
//! here and the residual on the worker (thesis eq 2.6 and 2.7).

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use asymflow_engine::local::{Scratch, conv_shape};
use asymflow_engine::timing::{Seconds, timed, timed_folding};
use asymflow_engine::{
    Engine, EngineError, Params,
    buffer::{Activation, Buffer, Pool, add_assign, combine},
    convolver::{Convolver, Turns},
    local::LocalConv,
    program::ConvNode,
};
use asymflow_linalg::conv::{self, ConvShape, Folding};
use asymflow_linalg::{
    Decomposer, LowRank,
    decompose::{self, BatchShape},
};
use asymflow_privacy::{
    Door, Loss, Private, Released,
    accountants::Relation,
    door::{Gate, ReleaseError, Source},
    mechanisms::{InsecureNone, MechanismError},
    payload::{Payload, Precision},
    records::{Flow, RecordAccountant},
};
use asymflow_residual::backend::{Batch, OpenError, Pass, SgdStep, Ticket, UnitId, Wanted};
use faer::Par;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::sized::SizedNoise;
use super::verify::{Sketch, Verifier, VerifyError};
use crate::link::Link;
use crate::modes::{ExecError, ModeError};
use crate::plan::Placement;

/// Gradients of a mean loss are far below the smallest f16; they are scaled by this times the batch size
/// before they are encoded. A constant, so that the scale says nothing about the data.
const GRADIENT_GAIN_F16: f32 = 256.0;
/// Name of what the weights leave by: they are functions of exact gradients.
pub(super) const EXACT_WEIGHTS: &str = "insecure_exact_weights";

/// A basis that serves for more than one batch.
#[derive(Debug)]
struct Basis {
    coefficients: Vec<f32>,
    /// Training steps that it has served for.
    steps: usize,
    /// The kernels folded by it, for inference; none once the weights have changed.
    folded: Vec<f32>,
}

/// A convolution, computed here, or as far as it can be while an answer is under way.
#[derive(Debug)]
pub struct Begun {
    y: Buffer,
    waits: Option<Waits>,
}

/// What is known of an answer to come.
#[derive(Debug)]
struct Waits {
    ticket: Ticket,
    sketch: Option<Sketch>,
    low_rank: LowRank,
    samples: usize,
}

/// AsymML's convolver: splits each convolution as its placement says, and keeps only the low-rank factors
/// between the passes.
#[derive(Debug)]
pub struct SplitConv {
    local: LocalConv,
    placements: Vec<Placement>,
    decomposer: Box<dyn Decomposer>,
    /// How everything leaves.
    pub door: Door,
    gate: Gate<Vec<f32>>,
    /// In place of the gate, where noise is a multiple of what it hides.
    sized: Option<SizedNoise>,
    precision: Precision,
    /// The worker.
    pub link: Link,
    /// Whose data is being convolved.
    records: Vec<usize>,
    /// Checks every answer, where that is asked for.
    verifier: Option<Verifier>,
    /// Units whose answers to public numbers were right in this session, and whether in training.
    proven: HashSet<(usize, bool)>,
    kept: HashMap<usize, (LowRank, usize)>,
    bases: HashMap<usize, Basis>,
    spare: Vec<LowRank>,
    pool: Pool,
    par: Par,
    scratch: Scratch,
}

impl SplitConv {
    /// A convolver that splits as `placements` say. The link's model must have one unit for every split
    /// convolution, in order.
    pub fn new(
        placements: Vec<Placement>,
        decomposer: Box<dyn Decomposer>,
        (door, gate): (Door, Gate<Vec<f32>>),
        precision: Precision,
        link: Link,
        pool: Pool,
        par: Par,
    ) -> Self {
        let local = LocalConv::new(placements.len(), pool.clone(), par);
        Self {
            local,
            placements,
            decomposer,
            door,
            gate,
            sized: None,
            precision,
            link,
            records: Vec::new(),
            verifier: None,
            proven: HashSet::new(),
            kept: HashMap::new(),
            bases: HashMap::new(),
            spare: Vec::new(),
            pool,
            par,
            scratch: Scratch::default(),
        }
    }

    /// Every answer is held to what it is to be.
    ///
    /// # Errors
    /// No randomness.
    pub fn verified(self) -> Result<Self, ModeError> {
        let verifier = Some(Verifier::new(self.precision, self.par)?);
        Ok(Self { verifier, ..self })
    }

    /// With noise that is a multiple of what it hides.
    pub fn sized(self, sized: Option<SizedNoise>) -> Self {
        Self { sized, ..self }
    }

    /// Measures what such noise is a multiple of.
    ///
    /// # Errors
    /// A network that cannot be computed.
    pub fn measure_sizes(&mut self, engine: &Engine) -> Result<(), ExecError> {
        let on = (&self.placements[..], &*self.decomposer);
        self.sized.as_mut().map_or(Ok(()), |sized| sized.measure(engine, on, self.par))
    }

    /// Seconds by convolution.
    pub fn seconds(&self) -> &[Seconds] {
        self.local.seconds()
    }

    /// Declares the records whose data the following passes carry.
    pub fn begin(&mut self, records: &[usize]) {
        self.records.clear();
        self.records.extend_from_slice(records);
    }

    /// What a record loses in one forward pass: a release for every split convolution.
    ///
    /// # Errors
    /// A mechanism that is not defined for its sensitivity.
    pub fn forward_losses(&self) -> Result<Vec<Loss>, MechanismError> {
        let split = self.placements.iter().filter(|placement| placement.is_split()).count();
        Ok(vec![self.gate.loss()?; split])
    }

    /// Charges the records of a step for the exact weights that follow from it.
    ///
    /// # Errors
    /// A budget that they would exceed.
    pub fn charge_weights(&mut self) -> Result<(), ExecError> {
        let source = Source { layer: "weights", flow: Flow::Weights };
        let charged = self.door.charge(EXACT_WEIGHTS, source, &self.records, Loss::Infinite);
        charged.map_err(ExecError::release("weights"))
    }

    /// Where a convolution is computed.
    fn placement(&self, node: &ConvNode) -> Result<Placement, EngineError> {
        let (got, expected) = (self.placements.len(), node.index + 1);
        let placement = self.placements.get(node.index).copied();
        placement.ok_or(EngineError::Length { what: "plan of a network's convolutions", got, expected })
    }

    /// The worker's unit of a split convolution.
    fn unit(&self, index: usize) -> UnitId {
        UnitId(self.placements.iter().take(index).filter(|p| p.is_split()).count() as u32)
    }

    fn layers<'a>(&self, nodes: &[&'a ConvNode]) -> Vec<(UnitId, &'a ConvNode)> {
        nodes
            .iter()
            .filter(|n| self.placements.get(n.index).is_some_and(|placement| placement.is_split()))
            .map(|n| (self.unit(n.index), *n))
            .collect()
    }

    /// Sends all weights, as a new session needs, one after the other: no more than one copy waits to be sent.
    ///
    /// # Errors
    /// The worker refused or is lost.
    pub fn send_weights(&mut self, nodes: &[&ConvNode], params: &Params) -> Result<(), ExecError> {
        self.bases.values_mut().for_each(|basis| basis.folded.clear());
        for (unit, node) in self.layers(nodes) {
            self.queue_weight(unit, node, params)?;
            self.link.session().settle().map_err(ExecError::submit(&node.conv.name))?;
        }
        Ok(())
    }

    fn queue_weight(&mut self, unit: UnitId, node: &ConvNode, params: &Params) -> Result<(), ExecError> {
        let weight = params.values(node.weight);
        self.link.session().set_weights(unit, weight).map_err(ExecError::submit(&node.conv.name))
    }

    /// One step of SGD here and at the worker.
    ///
    /// In f16 only the rounded step travels, and the trusted weights take exactly the step that the worker takes, so both
    /// sides hold the same numbers.
    ///
    /// # Errors
    /// The worker refused or is lost; the step is done here.
    pub fn step(&mut self, nodes: &[&ConvNode], params: &mut Params, sgd: SgdStep) -> Result<(), ExecError> {
        self.bases.values_mut().for_each(|basis| basis.folded.clear());
        let layers = self.layers(nodes);
        if self.precision == Precision::F32 {
            params.step(sgd);
            // Without waiting: they travel while the next step begins.
            return layers.into_iter().try_for_each(|(unit, node)| self.queue_weight(unit, node, params));
        }
        let weights: Vec<usize> = layers.iter().map(|(_, node)| node.weight).collect();
        let steps = params.step_in_f16(sgd, &weights);
        layers.into_iter().zip(steps).try_for_each(|((unit, node), step)| {
            let step = Payload::F16(step);
            self.link.session().add_weights(unit, step).map_err(ExecError::submit(&node.conv.name))
        })
    }

    /// Drops the bases that serve for more than one batch.
    pub fn forget_bases(&mut self) {
        self.bases.clear();
    }

    /// Drops everything kept of a step that failed.
    pub fn forget(&mut self) {
        self.kept.clear();
        self.proven.clear();
        if let Some(verifier) = &mut self.verifier {
            verifier.forget();
        }
        self.local.forget();
    }

    fn release(
        &mut self,
        node: &ConvNode,
        batch: Vec<f32>,
        (samples, of): (usize, Range<usize>),
        flow: Flow,
    ) -> Result<Released<Payload>, ExecError> {
        let layer = &node.conv.name;
        let factor = match flow {
            // Gradients are of a mean over samples, enlarged for binary16.
            Flow::Gradient => f64::from(self.gain(samples)) / samples.max(1) as f64,
            Flow::Residual | Flow::Label | Flow::Weights => 1.0,
        };
        let sized = self.sized.as_ref().map(|sized| sized.gate(node.index, flow, factor)).transpose()?;
        let (door, gate, count) = (&mut self.door, sized.as_ref().unwrap_or(&self.gate), of.len());
        let Some(records) = self.records.get(of).filter(|records| records.len() == samples) else {
            let error = ReleaseError::Batch { values: batch.len(), records: count };
            return Err(ExecError::Release { layer: layer.clone(), error });
        };
        let released = timed(&mut self.local.seconds_of(node).release, || {
            let source = Source { layer, flow };
            let released = door.release(gate, source, records, Private::new(batch))?;
            Ok(released.encode_with(self.precision, |spent| drop(self.pool.adopt(spent))))
        });
        released.map_err(ExecError::release(layer))
    }

    /// What gradients are multiplied by before they are encoded.
    fn gain(&self, samples: usize) -> f32 {
        match self.precision {
            Precision::F32 => 1.0,
            Precision::F16 => GRADIENT_GAIN_F16 * samples as f32,
        }
    }

    /// Waits for a result, and books the worker's busy and transfer time of this round trip to the layer.
    fn collect(&mut self, node: &ConvNode, ticket: Ticket) -> Result<Batch, ExecError> {
        let before = self.link.stats();
        let link = &mut self.link;
        let batch = timed(&mut self.local.seconds_of(node).wait, || link.session().collect(ticket))
            .map_err(ExecError::collect(&node.conv.name))?;
        let after = self.link.stats();
        let seconds = self.local.seconds_of(node);
        seconds.worker += after.busy_seconds - before.busy_seconds;
        seconds.transfer += after.transfer_seconds - before.transfer_seconds;
        Ok(batch)
    }

    /// What an answer is to be, where answers are verified.
    fn sketch(
        &mut self,
        node: &ConvNode,
        make: impl FnOnce(&mut Verifier) -> Result<Option<Sketch>, VerifyError>,
    ) -> Result<Option<Sketch>, ExecError> {
        let Some(verifier) = &mut self.verifier else { return Ok(None) };
        make(verifier).map_err(ExecError::verify(&node.conv.name))
    }

    fn check(&mut self, node: &ConvNode, sketch: Option<&Sketch>, answer: &[f32]) -> Result<(), ExecError> {
        let (Some(verifier), Some(sketch)) = (&mut self.verifier, sketch) else { return Ok(()) };
        verifier.check(sketch, answer).map_err(ExecError::verify(&node.conv.name))
    }

    /// Before the first residual is sent to a unit in a session, it has to answer rightly for random numbers that hold nothing private.
    fn prove(&mut self, node: &ConvNode, weight: &[f32], pass: Pass) -> Result<(), ExecError> {
        let Some(verifier) =
            self.verifier.as_mut().filter(|_| self.proven.insert((node.index, pass == Pass::Training)))
        else {
            return Ok(());
        };
        let (name, shape) = (&node.conv.name, conv_shape(node, 1));
        let (x, dy) = (verifier.secret(shape.input_len()), verifier.secret(shape.output_len()));
        let unit = self.unit(node.index);
        let keep = (pass == Pass::Training).then_some(node.index);
        let public = |values| public_numbers(values, self.precision).map_err(ExecError::release(name));
        let (x, dy) = (public(x)?, public(dy)?);
        let (sent, sent_back) = (numbers(x.get()), numbers(dy.get()));
        let ticket = self.link.session().submit(unit, x, pass).map_err(ExecError::submit(name))?;
        let sketch = self.sketch(node, |v| v.outputs(shape, (&sent, weight), keep).map(Some))?;
        let Batch::Outputs(outputs) = self.collect(node, ticket)? else { return Err(unexpected(node, "outputs")) };
        self.check(node, sketch.as_ref(), &outputs)?;
        if pass == Pass::Inference {
            return Ok(());
        }
        let wanted = Wanted { input: true, weights: true };
        let ticket = self.link.session().submit_gradient(unit, dy, wanted).map_err(ExecError::submit(name))?;
        let of_input = self.sketch(node, |v| v.input_gradient(shape, &sent_back, weight).map(Some))?;
        let of_weights = self.sketch(node, |v| v.weight_gradient(shape, &sent_back, node.index).map(Some))?;
        let Batch::Gradients { input, weights } = self.collect(node, ticket)? else {
            return Err(unexpected(node, "gradients"));
        };
        self.check(node, of_input.as_ref(), &input)?;
        self.check(node, of_weights.as_ref(), &weights)
    }

    fn decompose(
        &mut self,
        node: &ConvNode,
        x: &Activation,
        rank: usize,
        pass: Pass,
    ) -> Result<(LowRank, Vec<f32>), ExecError> {
        let shape = BatchShape { samples: x.samples, channels: x.shape.channels, pixels: x.shape.pixels() };
        let mut low_rank = self.spare.pop().unwrap_or_default();
        let mut residual = self.pool.take(x.data.len());
        let stack = self.scratch.stack(self.decomposer.scratch(shape, rank, self.par));
        let serves = self.decomposer.serves();
        let basis = self.bases.get_mut(&node.index).filter(|b| pass == Pass::Inference || b.steps < serves);
        let is_new = basis.is_none() && serves > 1;
        timed(&mut self.local.seconds_of(node).decompose, || match basis {
            Some(Basis { coefficients, steps, .. }) => {
                *steps += usize::from(pass == Pass::Training);
                decompose::project(coefficients, &x.data, shape, &mut low_rank, &mut residual, self.par)
            }
            None => self.decomposer.decompose(&x.data, shape, rank, &mut low_rank, &mut residual, self.par, stack),
        })
        .map_err(|error| ExecError::Decompose { layer: node.conv.name.clone(), error })?;
        if is_new {
            let coefficients = low_rank.coefficients.clone();
            self.bases.insert(node.index, Basis { coefficients, steps: 1, folded: Vec::new() });
        }
        Ok((low_rank, residual.into_vec()))
    }

    /// Everything of a split convolution that needs no answer; all of one that is not split. `of` are the records of the samples.
    fn begin_forward(
        &mut self,
        node: &ConvNode,
        x: &Activation,
        weight: &[f32],
        (pass, of): (Pass, Range<usize>),
    ) -> Result<Begun, ExecError> {
        let Placement::Split { rank } = self.placement(node)? else {
            return Ok(Begun { y: self.local.forward(node, x, weight, pass)?, waits: None });
        };
        let (low_rank, residual) = self.decompose(node, x, rank, pass)?;
        let released = self.release(node, residual, (x.samples, of), Flow::Residual)?;
        self.prove(node, weight, pass)?;
        let unit = self.unit(node.index);
        let sent = self.verifier.is_some().then(|| numbers(released.get()));
        let ticket = self.link.session().submit(unit, released, pass).map_err(ExecError::submit(&node.conv.name))?;

        let shape = conv_shape(node, x.samples);
        let keep = (pass == Pass::Training).then_some(node.index);
        let sketch =
            self.sketch(node, |verifier| sent.map(|sent| verifier.outputs(shape, (&sent, weight), keep)).transpose())?;
        let mut y = self.pool.take(shape.output_len());
        self.forward_main((node, shape), &low_rank, weight, &mut y, pass)?;
        Ok(Begun { y, waits: Some(Waits { ticket, sketch, low_rank, samples: x.samples }) })
    }

    fn finish_forward(&mut self, node: &ConvNode, begun: Begun, pass: Pass) -> Result<Buffer, ExecError> {
        let Begun { mut y, waits } = begun;
        let Some(Waits { ticket, sketch, low_rank, samples }) = waits else { return Ok(y) };
        let Batch::Outputs(from_worker) = self.collect(node, ticket)? else {
            return Err(unexpected(node, "outputs"));
        };
        if from_worker.len() != y.len() {
            return Err(unexpected(node, &format!("{} outputs, got {}", y.len(), from_worker.len())));
        }
        self.check(node, sketch.as_ref(), &from_worker)?;
        add_assign(&mut y, &from_worker);
        match pass {
            Pass::Training => drop(self.kept.insert(node.index, (low_rank, samples))),
            Pass::Inference => self.spare.push(low_rank),
        }
        Ok(y)
    }

    /// Whether halves of a batch are computed on as the whole is: not where their basis depends on the other samples, or is still to be
    /// learned from them.
    pub fn can_halve(&self) -> bool {
        if self.decomposer.serves() == 1 {
            return !self.decomposer.shares_basis();
        }
        let mut placements = self.placements.iter().enumerate();
        placements.all(|(index, placement)| !placement.is_split() || self.bases.contains_key(&index))
    }

    /// The convolution of the low-rank part: Y_main.
    fn forward_main(
        &mut self,
        (node, shape): (&ConvNode, ConvShape),
        low_rank: &LowRank,
        weight: &[f32],
        y: &mut [f32],
        pass: Pass,
    ) -> Result<(), EngineError> {
        let (par, scratch, seconds) = (self.par, &mut self.scratch, self.local.seconds_of(node));
        let basis = self.bases.get_mut(&node.index).filter(|_| pass == Pass::Inference);
        let done = timed_folding(seconds, |mark| {
            let Some(Basis { coefficients, folded, .. }) = basis else {
                let stack = scratch.stack(conv::folded_forward_scratch(shape, low_rank.rank, par));
                return conv::folded_forward(shape, low_rank, weight, y, par, stack, mark);
            };
            let low = ConvShape { in_channels: low_rank.rank, ..shape };
            mark(Folding::Begins);
            if folded.is_empty() {
                folded.resize(low.weight_len(), 0.0);
                let stack = scratch.stack(conv::fold_scratch(shape, low_rank.rank));
                conv::fold(shape, coefficients, weight, folded, par, stack)?;
            }
            mark(Folding::Ends);
            let stack = scratch.stack(conv::forward_scratch(low, par));
            conv::forward(low, &low_rank.principal, folded, y, par, stack)
        });
        done.map_err(|error| EngineError::Conv { layer: node.conv.name.clone(), error })
    }
}

fn unexpected(node: &ConvNode, what: &str) -> ExecError {
    ExecError::malformed(&node.conv.name, &format!("expected {what}"))
}

impl Convolver for SplitConv {
    type Error = ExecError;

    fn forward(&mut self, node: &ConvNode, x: &Activation, weight: &[f32], pass: Pass) -> Result<Buffer, ExecError> {
        let begun = self.begin_forward(node, x, weight, (pass, 0..self.records.len()))?;
        self.finish_forward(node, begun, pass)
    }

    fn backward(
        &mut self,
        node: &ConvNode,
        dy: Buffer,
        samples: usize,
        weight: &[f32],
        d_weight: &mut [f32],
    ) -> Result<Option<Buffer>, ExecError> {
        if !self.placement(node)?.is_split() {
            return Ok(self.local.backward(node, dy, samples, weight, d_weight)?);
        }
        let (low_rank, kept) = self
            .kept
            .remove(&node.index)
            .filter(|(_, kept)| *kept == samples)
            .ok_or_else(|| EngineError::NoForward { layer: node.conv.name.clone() })?;
        debug_assert_eq!(kept, samples);
        let gain = self.gain(samples);
        let mut scaled = self.pool.take(dy.len());
        combine(&mut scaled, &dy, |_, dy| dy * gain);
        let of = (samples, 0..self.records.len());
        let released = self.release(node, scaled.into_vec(), of, Flow::Gradient)?;
        let unit = self.unit(node.index);
        let wanted = Wanted { input: node.input_gradient, weights: true };
        let sent = self.verifier.is_some().then(|| numbers(released.get()));
        let ticket =
            self.link.session().submit_gradient(unit, released, wanted).map_err(ExecError::submit(&node.conv.name))?;

        let shape = conv_shape(node, samples);
        let of_input = self.sketch(node, |verifier| {
            let sent = sent.as_ref().filter(|_| wanted.input);
            sent.map(|sent| verifier.input_gradient(shape, sent, weight)).transpose()
        })?;
        let of_weights = self
            .sketch(node, |verifier| sent.map(|sent| verifier.weight_gradient(shape, &sent, node.index)).transpose())?;
        let stack = self.scratch.stack(conv::folded_weight_gradient_scratch(shape, low_rank.rank, self.par));
        timed_folding(self.local.seconds_of(node), |mark| {
            conv::folded_weight_gradient(shape, &low_rank, &dy, d_weight, self.par, stack, mark)
        })
        .map_err(|error| EngineError::Conv { layer: node.conv.name.clone(), error })?;
        self.spare.push(low_rank);

        let Batch::Gradients { input, weights } = self.collect(node, ticket)? else {
            return Err(unexpected(node, "gradients"));
        };
        let input_len = if wanted.input { shape.input_len() } else { 0 };
        if weights.len() != d_weight.len() || input.len() != input_len {
            return Err(unexpected(node, "gradients of the shape of the layer"));
        }
        self.check(node, of_input.as_ref(), &input)?;
        self.check(node, of_weights.as_ref(), &weights)?;
        combine(d_weight, &weights, |total, from_worker| total + from_worker / gain);
        // Into a buffer of the pool, which would keep the worker's beside those that it has.
        Ok(wanted.input.then(|| {
            let mut dx = self.pool.take(input_len);
            combine(&mut dx, &input, |_, from_worker| from_worker / gain);
            dx
        }))
    }
}

impl Turns for SplitConv {
    type Begun = Begun;

    fn begin(&mut self, node: &ConvNode, x: &Activation, weight: &[f32], first: usize) -> Result<Begun, ExecError> {
        self.begin_forward(node, x, weight, (Pass::Inference, first..first + x.samples))
    }

    fn finish(&mut self, node: &ConvNode, begun: Begun) -> Result<Buffer, ExecError> {
        self.finish_forward(node, begun, Pass::Inference)
    }
}

/// The numbers that the worker computes on.
fn numbers(payload: &Payload) -> Vec<f32> {
    match payload {
        Payload::F32(values) => values.clone(),
        other => other.clone().into_f32(),
    }
}

/// Random numbers as what sessions take. They are no record's, so their door has an accountant of its own.
fn public_numbers(values: Vec<f32>, precision: Precision) -> Result<Released<Payload>, ReleaseError> {
    let mut door = Door::new(RecordAccountant::new(1), StdRng::seed_from_u64(0));
    let gate = Gate::new(Box::new(InsecureNone), None, Relation::Remove)?;
    let source = Source { layer: "self-check", flow: Flow::Residual };
    Ok(door.release(&gate, source, &[0], Private::new(values))?.encode(precision))
}

/// The model that a worker needs for these placements.
pub fn residual_model(nodes: &[&ConvNode], placements: &[Placement]) -> asymflow_residual::backend::ResidualModel {
    let units = nodes
        .iter()
        .zip(placements)
        .filter(|(_, placement)| placement.is_split())
        .map(|(node, _)| {
            asymflow_residual::backend::Unit::Conv(asymflow_residual::backend::ConvUnit {
                input: node.input,
                out_channels: node.output.channels,
                kernel: node.conv.kernel,
                stride: node.conv.stride,
                padding: node.conv.padding,
            })
        })
        .collect();
    asymflow_residual::backend::ResidualModel { units }
}

/// Opens the link a split needs, and a fresh session after a loss.
///
/// # Errors
/// As [`ResidualBackend::open`](asymflow_residual::ResidualBackend::open).
pub fn open_link(
    backend: std::sync::Arc<dyn asymflow_residual::ResidualBackend>,
    nodes: &[&ConvNode],
    placements: &[Placement],
) -> Result<Link, OpenError> {
    Link::open(backend, residual_model(nodes, placements))
}
