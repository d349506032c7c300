//! The worker's half of Delta: M_res, fed once with released bits.

mod queries;

use std::sync::Arc;
use std::time::Duration;

use asymflow_engine::timing::{Seconds, timed};
use asymflow_engine::{EngineError, buffer::add_assign, loss::softmax_cross_entropy};
use asymflow_privacy::{
    Door, Loss, Private, Released,
    accountants::Relation,
    door::{Gate, ReleaseError, Source},
    mechanisms::{InsecureNone, RandomisedResponse},
    payload::{PackedBits, Precision},
    records::Flow,
};
use asymflow_residual::{
    ResidualBackend,
    backend::{Batch, Pass, ResidualModel, SgdStep, SharedValues, Ticket, Unit, UnitId, Wanted, WorkerStats},
};
use asymflow_zoo::Weights;
use asymflow_zoo::models::delta::DeltaNetworks;

use super::cache::ReleasedCache;
use super::gates::{Noise, gate_as_in_code};
use super::spec::{DeltaSpec, Feed, Labels, Variant};
use crate::link::Link;
use crate::modes::{ExecError, ModeError, PrivacyTerms, Sampling, TrainBatch, TrainState};

const M_RES: UnitId = UnitId(0);
/// What its errors name.
const RESIDUAL: &str = "residual";
const FEATURES: Source<'_> = Source { layer: "features", flow: Flow::Residual };
const LOGITS: Source<'_> = Source { layer: "logits", flow: Flow::Gradient };

/// Weights and momentum of M_res, in parts; no momentum before there was a step.
#[derive(Debug, Default)]
struct Latest {
    weights: SharedValues,
    momentum: SharedValues,
}

impl Latest {
    fn of(weights: Vec<f32>, momentum: Vec<f32>) -> Self {
        Self { weights: Arc::new(vec![weights]), momentum: Arc::new(vec![momentum]) }
    }
}

/// M_res on the worker, and everything that has been released to it.
#[derive(Debug)]
pub struct Crossing {
    link: Link,
    gate: Gate<PackedBits>,
    noise: Noise,
    cache: ReleasedCache,
    spec: DeltaSpec,
    classes: usize,
    /// Values of a record that the mechanism is given.
    record_values: usize,
    /// Bytes of one record's bits.
    record_bytes: usize,
    /// Channels of a residual.
    channels: usize,
    sampling: Sampling,
    /// M_res as it was last fetched: what a new worker starts from.
    latest: Latest,
    latest_ahead: Option<(Vec<u32>, Vec<f32>)>,
    has_stepped: bool,
    /// Whether this session of the worker has every view that was drawn.
    is_sent: bool,
    /// The step the worker is at, and the records it trains on.
    asked: Option<(Vec<u32>, Ticket)>,
}

impl Crossing {
    /// Opens the worker and sends it the weights of M_res, which it takes out of `weights`.
    ///
    /// # Errors
    /// Settings that do not fit, or a worker that cannot be opened.
    pub fn open(
        networks: &DeltaNetworks,
        weights: &mut Weights,
        spec: &DeltaSpec,
        terms: &PrivacyTerms,
        (sampling, stage2_epochs): (Sampling, usize),
        backend: Arc<dyn ResidualBackend>,
    ) -> Result<Self, ModeError> {
        let values = networks.residual.input.len();
        if !values.is_multiple_of(8) {
            return Err(ModeError::Settings { mode: "delta", what: "features that fill whole bytes, one bit a value" });
        }
        let noise = Noise::of(spec, terms, sampling, stage2_epochs)?;
        let model = ResidualModel { units: vec![Unit::Network(networks.residual.clone())] };
        let latest = Arc::new(weights.take(&networks.residual).map_err(ExecError::from)?);
        let mut crossing = Self {
            gate: noise.bit_gate()?,
            link: Link::open(backend, model)?,
            noise,
            cache: ReleasedCache::default(),
            spec: spec.clone(),
            classes: networks.residual.classes,
            record_values: spec.shape.compact.map_or(values, |compact| compact.values),
            record_bytes: values / 8,
            channels: networks.features.channels,
            sampling,
            latest: Latest { weights: latest, ..Latest::default() },
            latest_ahead: None,
            has_stepped: false,
            is_sent: false,
            asked: None,
        };
        crossing.send_weights()?;
        Ok(crossing)
    }

    /// Counters of the worker.
    pub fn stats(&self) -> WorkerStats {
        self.link.stats()
    }

    fn send_weights(&mut self) -> Result<(), ExecError> {
        let session = self.link.session();
        session.share_weights(M_RES, &self.latest.weights).map_err(ExecError::submit(RESIDUAL))?;
        if count(&self.latest.momentum) == count(&self.latest.weights) {
            session.share_momentum(M_RES, &self.latest.momentum).map_err(ExecError::submit(RESIDUAL))?;
        }
        Ok(())
    }

    /// How many records of a view have been released: the first ones.
    pub fn released(&self, view: usize) -> usize {
        self.cache.views.get(view).map_or(0, |bits| bits.len() / self.record_bytes)
    }

    /// Number under which the worker knows a view of a record.
    fn number(&self, view: usize, record: usize) -> u32 {
        (view * self.sampling.records + record) as u32
    }

    /// Draws the bits of one view of `records`, which follow those drawn before, and their labels, and keeps them to be sent.
    ///
    /// # Errors
    /// A refused release or a spent budget.
    pub fn draw_view(
        &mut self,
        view: usize,
        records: &[usize],
        residual: Vec<f32>,
        labels: &[u32],
        door: &mut Door,
    ) -> Result<(), ExecError> {
        let bits = self.release_bits(residual, records, door)?;
        if self.cache.views.len() <= view {
            self.cache.views.push(Vec::new());
        }
        if let Some(kept) = self.cache.views.get_mut(view) {
            kept.extend_from_slice(bits.get().as_bytes());
        }
        self.is_sent = false;
        self.draw_labels(records, labels, door).map_err(ExecError::release("labels"))
    }

    fn release_bits(
        &mut self,
        mut residual: Vec<f32>,
        records: &[usize],
        door: &mut Door,
    ) -> Result<Released<PackedBits>, ExecError> {
        if self.spec.feed == Feed::Null {
            // A fair coin a value: Φ(0) = ½. It is accounted as the residual would be, which is more than it costs.
            residual.fill(0.0);
        }
        door.release(&self.gate, FEATURES, records, Private::new(residual)).map_err(ExecError::release("features"))
    }

    /// Draws the labels of records, which follow those drawn before: each only once, whatever the views.
    fn draw_labels(&mut self, records: &[usize], labels: &[u32], door: &mut Door) -> Result<(), ReleaseError> {
        let first = records.first().copied().unwrap_or_default();
        if self.cache.labels.len() >= first + labels.len() {
            return Ok(());
        }
        let released = match self.spec.labels {
            Labels::Public => door.disclose_labels(records, labels.to_vec())?,
            Labels::RandomisedResponse { epsilon } => {
                let response = RandomisedResponse::new(self.classes as u32, epsilon)?;
                door.release_labels(&response, records, &Private::new(labels.to_vec()))?
            }
            Labels::NoisyGradient { .. } => return Ok(()),
        };
        self.cache.labels.extend(released.get());
        Ok(())
    }

    /// Asks for the logits of a step's records, unless they are asked for already.
    ///
    /// # Errors
    /// A lost worker.
    pub fn ask(&mut self, records: &[usize], view: u64, sgd: SgdStep) -> Result<(), ExecError> {
        let numbers: Vec<u32> = records.iter().map(|&record| self.number(view_number(view), record)).collect();
        let known = self.cache.ahead.as_ref().is_some_and(|(ahead, _)| *ahead == numbers);
        if known || self.asked.as_ref().is_some_and(|(asked, _)| *asked == numbers) {
            return Ok(());
        }
        let session = self.link.session();
        let ticket = if self.noise.gradient.is_some() {
            session.submit_stored(M_RES, &numbers, Pass::Training)
        } else {
            session.train_stored(M_RES, &numbers, sgd)
        };
        self.asked = Some((numbers, ticket.map_err(ExecError::submit(RESIDUAL))?));
        self.has_stepped = true;
        Ok(())
    }

    /// Logits of M_res for the step that was asked for. The worker goes on to the next step, where it needs nothing of
    /// this one; under noisy gradients it is sent this step's gradient.
    ///
    /// # Errors
    /// A lost worker or a malformed answer.
    pub fn answer(
        &mut self,
        batch: &TrainBatch<'_>,
        sgd: SgdStep,
        door: &mut Door,
        seconds: &mut Seconds,
    ) -> Result<Vec<f32>, ExecError> {
        let samples = batch.samples();
        let current = self.asked.take();
        if let (Some((records, sgd)), true) = (batch.next, self.noise.gradient.is_none()) {
            let view = batch.view;
            self.ask(records, view, sgd)?;
        }
        let logits = match (self.cache.ahead.take(), current) {
            (Some((_, logits)), _) => logits,
            (None, Some((_, ticket))) => self.collect(ticket, samples, seconds)?,
            (None, None) => return Err(ExecError::malformed(RESIDUAL, "an answer that was not asked for")),
        };
        if self.noise.gradient.is_some() {
            self.send_gradient(&logits, batch, sgd, door, seconds)?;
        }
        Ok(logits)
    }

    /// g_res = softmax(z_res) − y with noise, and the step along it.
    fn send_gradient(
        &mut self,
        logits: &[f32],
        batch: &TrainBatch<'_>,
        sgd: SgdStep,
        door: &mut Door,
        seconds: &mut Seconds,
    ) -> Result<(), ExecError> {
        let gradient = self.gradient(logits, batch)?;
        let released = timed(&mut seconds.release, || {
            let gate = self.noise.gradient_gate(batch.samples())?;
            door.release(&gate, LOGITS, batch.records(), Private::new(gradient))
        });
        self.step_along(released.map_err(ExecError::release("logits"))?, sgd, seconds)
    }

    /// The gradient of the mean cross-entropy of a batch.
    fn gradient(&self, logits: &[f32], batch: &TrainBatch<'_>) -> Result<Vec<f32>, EngineError> {
        let mut gradient = vec![0.0; logits.len()];
        softmax_cross_entropy(logits, self.classes, batch.labels(), &mut gradient)?;
        Ok(gradient)
    }

    fn step_along(
        &mut self,
        gradient: Released<Vec<f32>>,
        sgd: SgdStep,
        seconds: &mut Seconds,
    ) -> Result<(), ExecError> {
        let wanted = Wanted { input: false, weights: false };
        let gradient = gradient.encode(Precision::F32);
        let ticket =
            self.link.session().submit_gradient(M_RES, gradient, wanted).map_err(ExecError::submit(RESIDUAL))?;
        timed(&mut seconds.wait, || self.link.session().collect(ticket)).map_err(ExecError::collect(RESIDUAL))?;
        self.link.session().step(M_RES, sgd).map_err(ExecError::submit(RESIDUAL))
    }

    /// A step as the authors' code does it: bits drawn for this step, the gradient o_res − y as it is.
    ///
    /// # Errors
    /// A refused release, or a lost worker.
    pub fn exchange_as_in_code(
        &mut self,
        residual: &[f32],
        batch: &TrainBatch<'_>,
        sgd: SgdStep,
        door: &mut Door,
        seconds: &mut Seconds,
    ) -> Result<Vec<f32>, ExecError> {
        let samples = batch.samples();
        let bits = self.release_as_in_code(residual, batch.records(), door)?;
        self.has_stepped = true;
        let submitted = self.link.session().submit(M_RES, bits.into_payload(), Pass::Training);
        let logits = self.collect(submitted.map_err(ExecError::submit(RESIDUAL))?, samples, seconds)?;
        let gradient = Private::new(self.gradient(&logits, batch)?);
        let released = Gate::new(Box::new(InsecureNone), None, Relation::Remove)
            .map_err(ReleaseError::from)
            .and_then(|gate| door.release(&gate, LOGITS, batch.records(), gradient));
        self.step_along(released.map_err(ExecError::release("logits"))?, sgd, seconds)?;
        Ok(logits)
    }

    fn release_as_in_code(
        &mut self,
        residual: &[f32],
        records: &[usize],
        door: &mut Door,
    ) -> Result<Released<PackedBits>, ExecError> {
        let pixels = 8 * self.record_bytes;
        let mean = |record: &[f32]| {
            let mut mean = vec![0.0; pixels];
            record.chunks_exact(pixels).for_each(|plane| add_assign(&mut mean, plane));
            mean.iter_mut().for_each(|v| *v /= self.channels as f32);
            mean
        };
        let means: Vec<f32> = residual.chunks_exact(pixels * self.channels).flat_map(mean).collect();
        let p = self.sampling.batch as f64 / self.sampling.records.max(1) as f64;
        let gate = gate_as_in_code(&means, records.len(), self.spec.epsilon, p)?;
        door.release(&gate, FEATURES, records, Private::new(means)).map_err(ExecError::release("features"))
    }

    /// What a step of stage 2 costs its records beyond the bits that are kept.
    ///
    /// # Errors
    /// A mechanism that is not defined for its sensitivity.
    pub fn step_losses(&self) -> Result<Vec<Loss>, ExecError> {
        if self.spec.variant == Variant::ReleasedCode {
            return Ok(vec![Loss::Infinite]);
        }
        let gate = self.noise.gradient.map(|_| self.noise.gradient_gate(1)).transpose()?;
        Ok(gate.iter().map(Gate::loss).collect::<Result<_, _>>()?)
    }

    /// Waits for the logits of `samples` records.
    ///
    /// # Errors
    /// A lost worker or a malformed answer.
    pub fn collect(&mut self, ticket: Ticket, samples: usize, seconds: &mut Seconds) -> Result<Vec<f32>, ExecError> {
        match timed(&mut seconds.wait, || self.link.session().collect(ticket)).map_err(ExecError::collect(RESIDUAL))? {
            Batch::Outputs(logits) if logits.len() == samples * self.classes => Ok(logits),
            Batch::Outputs(_) | Batch::Gradients { .. } => {
                Err(ExecError::malformed(RESIDUAL, "expected one logit a class"))
            }
        }
    }

    /// Whether M_res has moved since its state was fetched or set.
    pub const fn has_stepped(&self) -> bool {
        self.has_stepped
    }

    /// Opens the worker again, and sends it M_res as of the latest state and everything that was released before.
    ///
    /// # Errors
    /// The worker stayed away for longer than `patience`.
    pub fn reopen(&mut self, patience: Duration, door: &Door) -> Result<(), ExecError> {
        (self.asked, self.has_stepped) = (None, false);
        self.cache.ahead.clone_from(&self.latest_ahead);
        self.link.reopen(patience)?;
        self.is_sent = false;
        self.send_weights()?;
        self.send_released(door)
    }

    /// Sends every view that was drawn, unless this session of the worker has them.
    ///
    /// # Errors
    /// A lost worker.
    pub fn send_released(&mut self, door: &Door) -> Result<(), ExecError> {
        /// Records of one message.
        const SOME: usize = 256;
        if self.is_sent {
            return Ok(());
        }
        for (view, bytes) in self.cache.views.iter().enumerate() {
            for (chunk, bits) in bytes.chunks(SOME * self.record_bytes).enumerate() {
                let first = chunk * SOME;
                let records: Vec<usize> = (first..first + bits.len() / self.record_bytes).collect();
                let labels = self.cache.labels.get(first..first + records.len()).map(<[u32]>::to_vec);
                let labels = labels.map(|labels| door.again(&records, labels)).transpose();
                let labels = labels.map_err(ExecError::release("labels"))?;
                let bits = released_before(bits.to_vec(), &records, door)?;
                let number = (view * self.sampling.records + first) as u32;
                self.link.session().store(M_RES, number, bits, labels).map_err(ExecError::submit(RESIDUAL))?;
            }
        }
        self.is_sent = true;
        Ok(())
    }

    /// Adds M_res and what was released to a state.
    ///
    /// # Errors
    /// A lost worker.
    pub fn append_state(&mut self, state: &mut TrainState) -> Result<(), ExecError> {
        if let Some((numbers, ticket)) = self.asked.take() {
            // The worker is a step ahead: what it found belongs to the state of that step.
            let samples = numbers.len();
            let logits = self.collect(ticket, samples, &mut Seconds::default())?;
            self.cache.ahead = Some((numbers, logits));
        }
        if self.has_stepped {
            let session = self.link.session();
            let weights = session.weights(M_RES).map_err(ExecError::collect(RESIDUAL))?;
            let momentum = session.momentum(M_RES).map_err(ExecError::collect(RESIDUAL))?;
            self.latest = Latest::of(weights, momentum);
            self.has_stepped = false;
        }
        let values = count(&self.latest.weights);
        if count(&self.latest.momentum) != values {
            self.latest.momentum = Arc::new(vec![vec![0.0; values]]);
        }
        self.latest_ahead.clone_from(&self.cache.ahead);
        state.weights.extend(self.latest.weights.iter().flatten());
        state.momentum.extend(self.latest.momentum.iter().flatten());
        state.released = self.encode_released()?;
        Ok(())
    }

    /// What has been released, for a state.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn encode_released(&self) -> Result<Vec<u8>, ExecError> {
        self.cache.encode().map_err(|e| ExecError::Kept(e.to_string()))
    }

    /// Goes on from a state.
    ///
    /// # Errors
    /// Weights of another network, or a lost worker.
    pub fn restore(&mut self, state: TrainState, cache: ReleasedCache, door: &Door) -> Result<(), ExecError> {
        self.latest_ahead.clone_from(&cache.ahead);
        self.latest = Latest::of(state.weights, state.momentum);
        (self.cache, self.asked, self.has_stepped) = (cache, None, false);
        self.is_sent = false;
        self.send_weights()?;
        self.send_released(door)
    }
}

fn count(values: &SharedValues) -> usize {
    values.iter().map(Vec::len).sum()
}

/// Which of a record's views an augmentation pass of stage 2 is.
fn view_number(pass: u64) -> usize {
    pass.saturating_sub(super::mode::FIRST_VIEW) as usize
}

/// Bits that were released before and are kept with the state, whose losses count them.
fn released_before(bytes: Vec<u8>, records: &[usize], door: &Door) -> Result<Released<PackedBits>, ExecError> {
    let values = 8 * bytes.len();
    let bits = PackedBits::from_bytes(bytes, values).map_err(|e| ExecError::Kept(e.to_string()))?;
    door.again(records, bits).map_err(ExecError::release("features"))
}
