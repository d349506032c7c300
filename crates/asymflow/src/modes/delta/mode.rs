//! Delta as a [`Mode`]: stage 1 trains M_bb and M_main alone, stage 2 trains M_main beside M_res.

mod noised;

use std::sync::Arc;
use std::time::Duration;

use asymflow_engine::timing::{Seconds, timed};
use asymflow_engine::{Engine, EngineError, local::LocalConv};
use asymflow_linalg::Decomposer;
use asymflow_privacy::{Door, records::RecordAccountant};
use asymflow_residual::{
    ResidualBackend,
    backend::{Pass, SgdStep, WorkerStats},
};
use asymflow_zoo::models::delta::DeltaNetworks;
use asymflow_zoo::{Network, Weights};
use faer::Par;

use super::cache::ReleasedCache;
use super::compact::{Compact, add_gated};
use super::crossing::Crossing;
use super::orthogonality;
use super::spec::{DeltaSpec, Variant};
use super::split::FeatureSplit;
use crate::modes::mode::{engine_restore, engine_state, loss, open_door};
use crate::modes::sampled::NoisedSteps;
use crate::modes::{
    Answering, ExecError, Mode, ModeError, Phase, PrivacyTerms, Records, Recovered, Sampling, StepReport, TrainBatch,
    TrainState, Unkept,
};

/// Augmentation passes of stage 2 are numbered from here, so that none equals an epoch of stage 1.
pub(super) const FIRST_VIEW: u64 = 1 << 32;

/// What [`Delta`] needs beside the networks.
#[derive(Debug)]
pub struct DeltaParts {
    /// How the network is run.
    pub spec: DeltaSpec,
    /// How features are decomposed.
    pub decomposer: Box<dyn Decomposer>,
    /// What every ε in the settings is said of.
    pub terms: PrivacyTerms,
    /// Size of a batch and of the training set.
    pub sampling: Sampling,
    /// All epochs of training.
    pub epochs: usize,
    /// The worker; absent where M_main is alone.
    pub backend: Option<Arc<dyn ResidualBackend>>,
    /// Who has lost how much so far.
    pub accountant: RecordAccountant,
    /// How M_bb and M_main are trained by DP-SGD, where they are.
    pub noised: Option<NoisedSteps>,
}

/// See the module.
#[derive(Debug)]
pub struct Delta {
    backbone: Trusted,
    main: Trusted,
    split: FeatureSplit,
    crossing: Option<Crossing>,
    door: Door,
    spec: DeltaSpec,
    /// Of a compact release.
    compact: Option<Compact>,
    /// Where M_bb and M_main are trained by DP-SGD.
    noised: Option<NoisedSteps>,
    low_len: usize,
    /// Whether M_bb is frozen, running statistics included: stage 2.
    frozen: bool,
    /// M_bb and M_main as of the latest state.
    latest: TrainState,
    par: Par,
    seconds: Seconds,
}

/// A network inside the trusted part, with all its convolutions.
#[derive(Debug)]
struct Trusted {
    engine: Engine,
    convolver: LocalConv,
}

impl Trusted {
    fn new(engine: Engine, par: Par) -> Self {
        let convolver = LocalConv::new(engine.program().convs(), engine.pool().clone(), par);
        Self { engine, convolver }
    }

    fn forward(&mut self, x: &[f32], samples: usize, pass: Pass, dropout_seed: u64) -> Result<Vec<f32>, EngineError> {
        self.engine.forward(x, samples, pass, dropout_seed, &mut self.convolver)
    }

    fn step(&mut self, sgd: SgdStep) {
        self.engine.commit_moments();
        self.engine.params_mut().step(sgd);
    }
}

impl Delta {
    /// Opens the worker, where one takes part, and sends it M_res.
    ///
    /// # Errors
    /// Networks, weights or settings that do not fit, or a worker that cannot be opened.
    pub fn new(networks: DeltaNetworks, mut weights: Weights, parts: DeltaParts, par: Par) -> Result<Self, ModeError> {
        let DeltaParts { spec, decomposer, terms, sampling, epochs, backend, accountant, noised } = parts;
        let split = FeatureSplit::new(&networks, &spec.shape, decomposer, par).map_err(ExecError::from)?;
        let low_len = networks.low.len();
        let compact = Compact::new(&spec.shape, networks.features, spec.codebook, &weights);
        let compact = compact.filter(|_| backend.is_some());
        let crossing = backend
            .map(|backend| {
                let stage2_epochs = epochs.saturating_sub(spec.stage1_epochs);
                Crossing::open(&networks, &mut weights, &spec, &terms, (sampling, stage2_epochs), backend)
            })
            .transpose()?;
        let backbone = Trusted::new(Engine::new(networks.backbone, &weights, par)?, par);
        let main = Trusted::new(Engine::with_input_gradient(networks.main, &weights, par)?, par);
        drop(weights);
        let door = open_door(accountant)?;
        let (latest, seconds) = (TrainState::default(), Seconds::default());
        let mut delta = Self {
            backbone,
            main,
            split,
            crossing,
            door,
            spec,
            compact,
            noised,
            low_len,
            frozen: false,
            latest,
            par,
            seconds,
        };
        delta.latest = delta.trusted_state();
        Ok(delta)
    }

    /// The crossing to the worker, for inspection.
    pub const fn crossing(&self) -> Option<&Crossing> {
        self.crossing.as_ref()
    }

    /// Weights and momentum of M_bb and M_main.
    fn trusted_state(&self) -> TrainState {
        let mut state = engine_state(&self.backbone.engine);
        let main = engine_state(&self.main.engine);
        state.weights.extend(main.weights);
        state.momentum.extend(main.momentum);
        if let Some(compact) = &self.compact {
            state.weights.extend(compact.flat());
            // It has none; but a state has as much momentum as weights, or none at all.
            let has_momentum = !state.momentum.is_empty();
            state.momentum.extend(compact.flat().iter().filter(|_| has_momentum).map(|_| 0.0));
        }
        state
    }

    /// What crosses of a batch's residuals.
    fn crossing_values(&self, residual: Vec<f32>) -> Vec<f32> {
        match &self.compact {
            Some(compact) => compact.project(&residual),
            None => residual,
        }
    }

    /// What M_res' logits count for in the sum.
    fn gate(&self) -> f32 {
        self.compact.as_ref().map_or(1.0, Compact::gate)
    }

    /// Fits the projection of a compact release to the frozen backbone's residuals, unless any of them was released before.
    fn fit_compact(&mut self, records: &Records<'_>) -> Result<(), ExecError> {
        let is_fitted = self.crossing.as_ref().is_none_or(|crossing| crossing.released(0) > 0);
        let classes = self.main.engine.network().classes;
        let Some(mut scatter) = self.compact.as_ref().filter(|_| !is_fitted).map(|compact| compact.scatter(classes))
        else {
            return Ok(());
        };
        let mut batch = asymflow_zoo::data::Batch::default();
        let all: Vec<u32> = (0..records.count).map(|record| record as u32).collect();
        for indices in all.chunks(records.batch.max(1)) {
            records.loader.gather(Some(FIRST_VIEW), indices, &mut batch);
            let (_, residual) = self.split(&batch.images, indices.len(), Pass::Inference)?;
            if let Some(compact) = &self.compact {
                scatter.add(&compact.pool(&residual), &batch.labels);
            }
        }
        self.compact.as_mut().map_or(Ok(()), |compact| compact.fit(&scatter))
    }

    /// Features of a batch in their two parts.
    fn split(&mut self, images: &[f32], samples: usize, pass: Pass) -> Result<(Vec<f32>, Vec<f32>), ExecError> {
        let Self { backbone, split, seconds, low_len, .. } = self;
        let features = timed(&mut seconds.trusted, || backbone.forward(images, samples, pass, 0))?;
        let (mut main, mut residual) = (vec![0.0; samples * *low_len], vec![0.0; features.len()]);
        timed(&mut seconds.decompose, || split.split(&features, &mut main, &mut residual))?;
        Ok((main, residual))
    }

    /// Stage 1: the residual is thrown away, nothing leaves.
    fn step_alone(&mut self, batch: TrainBatch<'_>, sgd: SgdStep) -> Result<StepReport, ExecError> {
        let samples = batch.samples();
        let (low, residual) = self.split(batch.images(), samples, Pass::Training)?;
        let Self { backbone, main, split, seconds, .. } = self;
        let report = timed(&mut seconds.trusted, || -> Result<StepReport, ExecError> {
            let logits = main.forward(&low, samples, Pass::Training, batch.dropout_seed)?;
            let (report, d_logits) = loss(main.engine.network(), &logits, &batch)?;
            let d_low = main.engine.backward(d_logits, samples, &mut main.convolver)?;
            let d_low = d_low.ok_or_else(|| EngineError::NoForward { layer: "main".to_owned() })?;
            let mut d_features = residual;
            split.adjoint(d_low.into_vec(), &mut d_features)?;
            backbone.engine.backward(d_features, samples, &mut backbone.convolver)?;
            Ok(report)
        })?;
        self.backbone.step(sgd);
        self.step_main(sgd);
        Ok(report)
    }

    /// Stage 2: M_bb is frozen; M_main descends along softmax(z_main + z_res) − y (thesis §3.4.4), unless it was trained by DP-SGD:
    /// then it is frozen too.
    fn step_beside(&mut self, batch: TrainBatch<'_>, sgd: SgdStep) -> Result<StepReport, ExecError> {
        let samples = batch.samples();
        let is_cached = self.spec.variant != Variant::ReleasedCode;
        if let Some(crossing) = self.crossing.as_mut().filter(|_| is_cached) {
            crossing.ask(batch.records(), batch.view, sgd)?;
        }
        let (low, residual) = self.split(batch.images(), samples, Pass::Inference)?;
        let pass = if self.noised.is_some() { Pass::Inference } else { Pass::Training };
        let Self { main, seconds, .. } = self;
        let mut logits = timed(&mut seconds.trusted, || main.forward(&low, samples, pass, batch.dropout_seed))?;
        let mut from_worker = Vec::new();
        let gate = self.gate();
        if let Some(crossing) = &mut self.crossing {
            let (door, seconds) = (&mut self.door, &mut self.seconds);
            from_worker = if is_cached {
                crossing.answer(&batch, sgd, door, seconds)?
            } else {
                crossing.exchange_as_in_code(&residual, &batch, sgd, door, seconds)?
            };
            add_gated(&mut logits, &from_worker, gate);
        }
        let Self { main, compact, seconds, .. } = self;
        let report = timed(&mut seconds.trusted, || -> Result<StepReport, ExecError> {
            let (report, d_logits) = loss(main.engine.network(), &logits, &batch)?;
            if pass == Pass::Inference {
                return Ok(report);
            }
            if let Some(compact) = compact {
                compact.step_gate(&d_logits, &from_worker, sgd.learning_rate);
            }
            main.engine.backward(d_logits, samples, &mut main.convolver)?;
            Ok(report)
        })?;
        if pass == Pass::Training {
            self.step_main(sgd);
        }
        Ok(report)
    }

    fn step_main(&mut self, sgd: SgdStep) {
        let params = self.main.engine.params_mut();
        let penalty = self.spec.orthogonality;
        orthogonality::add_gradient(penalty, params.gradients_mut(), self.par);
        self.main.step(sgd);
    }

    /// Draws what has not been drawn of every view of every record: each once in the life of a run. True where anything was.
    fn draw_views(&mut self, records: &Records<'_>) -> Result<bool, ExecError> {
        let mut batch = asymflow_zoo::data::Batch::default();
        let mut has_drawn = false;
        for view in 0..self.spec.views {
            let done = self.crossing.as_ref().map_or(records.count, |crossing| crossing.released(view));
            let rest: Vec<u32> = (done..records.count).map(|record| record as u32).collect();
            for indices in rest.chunks(records.batch.max(1)) {
                records.loader.gather(Some(FIRST_VIEW + view as u64), indices, &mut batch);
                let (_, residual) = self.split(&batch.images, indices.len(), Pass::Inference)?;
                let residual = self.crossing_values(residual);
                let Self { crossing: Some(crossing), door, seconds, .. } = self else { return Ok(has_drawn) };
                let numbers: Vec<usize> = indices.iter().map(|&i| i as usize).collect();
                timed(&mut seconds.release, || crossing.draw_view(view, &numbers, residual, &batch.labels, door))?;
                has_drawn = true;
            }
        }
        Ok(has_drawn)
    }

    /// Takes M_bb and M_main out of a state; returns how many values they have.
    fn restore_trusted(&mut self, state: &TrainState) -> Result<usize, ExecError> {
        let count =
            |network: &Network| network.parameters().iter().map(asymflow_zoo::ops::ParamSpec::len).sum::<usize>();
        let (first, second) = (count(self.backbone.engine.network()), count(self.main.engine.network()));
        engine_restore(&mut self.backbone.engine, &slice(state, 0, first))?;
        engine_restore(&mut self.main.engine, &slice(state, first, second))?;
        let third = self.compact.as_ref().map_or(0, |compact| compact.flat().len());
        if let Some(compact) = &mut self.compact {
            compact.set_flat(&slice(state, first + second, third).weights);
        }
        Ok(first + second + third)
    }
}

/// Part of a state's weights and momentum.
fn slice(state: &TrainState, from: usize, len: usize) -> TrainState {
    let part = |values: &[f32]| values.get(from..from + len).unwrap_or_default().to_vec();
    TrainState { weights: part(&state.weights), momentum: part(&state.momentum), released: Vec::new() }
}

impl Mode for Delta {
    fn phase(&self, epoch: usize, epochs: usize) -> Phase {
        let stage1 = self.spec.stage1_epochs.min(epochs);
        if epoch < stage1 {
            return Phase { epochs: 0..stage1, view: epoch as u64 };
        }
        if self.spec.variant == Variant::ReleasedCode {
            return Phase { epochs: stage1..epochs, view: epoch as u64 };
        }
        let view = (epoch - stage1) % self.spec.views.max(1);
        Phase { epochs: stage1..epochs, view: FIRST_VIEW + view as u64 }
    }

    fn sampling_rate(&self, epoch: usize) -> Option<f64> {
        self.noised.as_ref().filter(|_| epoch < self.spec.stage1_epochs).map(NoisedSteps::q)
    }

    fn draw(&mut self, epoch: usize, records: &Records<'_>) -> Result<bool, ExecError> {
        self.frozen = epoch >= self.spec.stage1_epochs;
        let is_cached = self.spec.variant != Variant::ReleasedCode;
        if !self.frozen || !is_cached {
            return Ok(false);
        }
        // Once, to the records that M_res will be trained on: whoever goes on with trained weights keeps what they were trained with.
        if epoch == self.spec.stage1_epochs {
            self.fit_compact(records)?;
        }
        self.draw_views(records)
    }

    fn draw_queries(&mut self, images: &[f32], records: &[usize]) -> Result<bool, ExecError> {
        if !self.frozen || self.crossing.as_ref().is_none_or(|crossing| crossing.has_queries(records)) {
            return Ok(false);
        }
        let (_, residual) = self.split(images, records.len(), Pass::Inference)?;
        let residual = self.crossing_values(residual);
        let Self { crossing: Some(crossing), door, seconds, .. } = self else { return Ok(false) };
        timed(&mut seconds.release, || crossing.draw_query(&residual, records, door))?;
        Ok(true)
    }

    fn unkept_losses(&self) -> Result<Unkept, ExecError> {
        let train = self.crossing.as_ref().map_or_else(|| Ok(Vec::new()), Crossing::step_losses)?;
        Ok(Unkept { train, test: Vec::new() })
    }

    fn released(&mut self) -> Result<Vec<u8>, ExecError> {
        self.crossing.as_ref().map_or_else(|| Ok(Vec::new()), Crossing::encode_released)
    }

    fn begin_epoch(&mut self, _epoch: usize) -> Result<(), ExecError> {
        let Self { crossing, door, .. } = self;
        crossing.as_mut().map_or(Ok(()), |crossing| crossing.send_released(door))
    }

    fn infer(&mut self, images: &[f32], records: &[usize]) -> Result<Vec<f32>, ExecError> {
        let samples = records.len();
        let (low, residual) = self.split(images, samples, Pass::Inference)?;
        let (residual, gate) = (self.crossing_values(residual), self.gate());
        let asked = match &mut self.crossing {
            Some(crossing) if self.frozen => {
                let Self { door, seconds, .. } = self;
                Some(timed(&mut seconds.release, || crossing.query(residual, records, door))?)
            }
            _ => None,
        };
        let Self { main, seconds, .. } = self;
        let mut logits = timed(&mut seconds.trusted, || main.forward(&low, samples, Pass::Inference, 0))?;
        if let (Some(ticket), Some(crossing)) = (asked, &mut self.crossing) {
            let from_worker = crossing.collect(ticket, samples, &mut self.seconds)?;
            add_gated(&mut logits, &from_worker, gate);
        }
        Ok(logits)
    }

    fn step(&mut self, batch: TrainBatch<'_>, sgd: SgdStep) -> Result<StepReport, ExecError> {
        if self.frozen {
            return self.step_beside(batch, sgd);
        }
        match self.noised.take() {
            None => self.step_alone(batch, sgd),
            Some(steps) => {
                let done = self.step_noised(&steps, &batch, sgd);
                self.noised = Some(steps);
                done
            }
        }
    }

    /// M_res is lost with the worker, and so are its steps since the latest state; M_main goes back with it.
    fn recover(&mut self, patience: Duration) -> Result<Recovered, ExecError> {
        self.backbone.convolver.forget();
        self.main.convolver.forget();
        let Some(crossing) = &mut self.crossing else { return Ok(Recovered::Here) };
        let has_stepped = crossing.has_stepped();
        crossing.reopen(patience, &self.door)?;
        if !has_stepped {
            return Ok(Recovered::Here);
        }
        let latest = std::mem::take(&mut self.latest);
        self.restore_trusted(&latest)?;
        self.latest = latest;
        Ok(Recovered::AtState)
    }

    fn state(&mut self) -> Result<TrainState, ExecError> {
        let mut state = self.trusted_state();
        let trusted = state.clone();
        if let Some(crossing) = &mut self.crossing {
            crossing.append_state(&mut state)?;
        }
        // Only now: both parts go back to one and the same state.
        self.latest = trusted;
        Ok(state)
    }

    fn restore(&mut self, state: &TrainState) -> Result<(), ExecError> {
        let trusted = self.restore_trusted(state)?;
        self.latest = slice(state, 0, trusted);
        match &mut self.crossing {
            Some(crossing) => {
                let rest = state.weights.len().saturating_sub(trusted);
                // A cache that cannot be read is no empty one: new noise would be drawn for what was released before.
                let cache = match state.released.as_slice() {
                    [] => ReleasedCache::default(),
                    bytes => ReleasedCache::decode(bytes)?,
                };
                crossing.restore(slice(state, trusted, rest), cache, &self.door)
            }
            None => Ok(()),
        }
    }

    fn door(&mut self) -> Option<&mut Door> {
        (self.crossing.is_some() || self.noised.is_some()).then_some(&mut self.door)
    }

    fn worker(&self) -> Option<WorkerStats> {
        self.crossing.as_ref().map(Crossing::stats)
    }

    fn seconds(&self) -> &[Seconds] {
        std::slice::from_ref(&self.seconds)
    }

    fn answering(&mut self) -> Option<&mut dyn Answering> {
        Some(self)
    }
}

impl Answering for Delta {
    fn answer(
        &mut self,
        images: &[f32],
        samples: usize,
        padded: usize,
        patience: Duration,
    ) -> Result<Vec<f32>, ExecError> {
        let (low, residual) = self.split(images, samples, Pass::Inference)?;
        let (residual, gate) = (self.crossing_values(residual), self.gate());
        let Self { main, crossing, door, seconds, .. } = self;
        let Some(crossing) = crossing else {
            return Ok(timed(&mut seconds.trusted, || main.forward(&low, samples, Pass::Inference, 0))?);
        };
        let bits = timed(&mut seconds.release, || crossing.release_for_clients(residual, padded, door))?;
        let asked = crossing.submit_released(&bits, door);
        let mut logits = timed(&mut seconds.trusted, || main.forward(&low, samples, Pass::Inference, 0))?;
        let from_worker = crossing.collect_released(asked, &bits, patience, (door, seconds))?;
        add_gated(&mut logits, &from_worker, gate);
        Ok(logits)
    }
}
