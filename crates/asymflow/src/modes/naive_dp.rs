//! A control: noise on the images themselves, once, and then everything on the accelerator.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use asymflow_engine::timing::Seconds;
use asymflow_privacy::{
    Door, Private, Released,
    accountants::{Relation, Sensitivity},
    calibration::calibrate_losses,
    door::{Gate, Source},
    mechanisms::{DiscreteGaussian, Mechanism},
    payload::{Payload, Precision},
    records::Flow,
};
use asymflow_residual::backend::{Pass, SgdStep, WorkerStats};
use asymflow_zoo::data::{Augment, Batch, DataError, Loader, Normalization};
use asymflow_zoo::{Network, data::Dataset};
use serde::{Deserialize, Serialize};

use super::mode::{held, loss, open_door};
use super::remote::Remote;
use super::{
    Asked, Charge, ExecError, Facts, Guard, Losses, Macs, Mode, ModeError, ModeFamily, ModeSpec, Parts, Purpose,
    Records, Recovered, Serving, StepReport, TrainBatch, TrainState,
};
use crate::memory::{MemoryError, MemoryPlan, Work};

#[derive(Debug)]
pub(super) struct Family;

/// The part of section `[delta]` that this control shares with what it is a control of.
#[derive(Deserialize)]
#[serde(default)]
struct Section {
    epsilon: Option<f64>,
    clip: f64,
}

impl Default for Section {
    fn default() -> Self {
        Self { epsilon: Some(9.0), clip: 1.0 }
    }
}

impl ModeFamily for Family {
    fn names(&self) -> &'static [&'static str] {
        &["naive-dp"]
    }

    fn takes_epsilon(&self, _name: &str) -> Option<bool> {
        Some(false)
    }

    fn spec(&self, asked: &Asked<'_>) -> Result<Arc<dyn ModeSpec>, ModeError> {
        let Section { epsilon, clip } = asked.sections.get("delta")?;
        let epsilon = asked.epsilon.or(epsilon).filter(|epsilon| epsilon.is_finite());
        let missing = ModeError::Settings { mode: "naive-dp", what: "a finite epsilon: without noise it is clear" };
        let own_epsilon = asked.epsilon.is_some();
        Ok(Arc::new(NaiveDpSpec { epsilon: epsilon.ok_or(missing)?, own_epsilon, clip }))
    }

    fn decode(&self, settings: &str) -> Result<Arc<dyn ModeSpec>, serde_json::Error> {
        serde_json::from_str::<NaiveDpSpec>(settings).map(|spec| Arc::new(spec) as Arc<dyn ModeSpec>)
    }
}

/// What guards the images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NaiveDpSpec {
    /// ε of one record, whose image is released once.
    pub epsilon: f64,
    /// Whether that ε stands in the entry's name.
    pub own_epsilon: bool,
    /// l2 norm to which a normalised image is clipped.
    pub clip: f64,
}

impl NaiveDpSpec {
    fn sigma(&self, relation: Relation, delta: f64) -> Result<f64, ModeError> {
        let sensitivity = Sensitivity::of_clipped(self.clip, relation);
        Ok(calibrate_losses(self.epsilon, delta, |sigma| Ok(vec![DiscreteGaussian::fine(sigma)?.loss(sensitivity)?]))?)
    }

    fn gate(&self, relation: Relation, delta: f64) -> Result<Gate<Vec<f32>>, ModeError> {
        let mechanism = DiscreteGaussian::fine(self.sigma(relation, delta)?)?;
        Ok(Gate::new(Box::new(mechanism), Some(self.clip), relation)?)
    }
}

impl ModeSpec for NaiveDpSpec {
    fn name(&self) -> &'static str {
        "naive-dp"
    }

    fn label(&self) -> String {
        if self.own_epsilon { format!("naive-dp@{}", self.epsilon) } else { "naive-dp".to_owned() }
    }

    fn encode(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    fn needs_worker(&self) -> bool {
        true
    }

    fn is_whole(&self) -> bool {
        true
    }

    fn losses(&self, facts: &Facts<'_>) -> Result<Losses, ModeError> {
        let loss = self.gate(facts.terms.relation, facts.terms.delta)?.loss()?;
        let relation = facts.terms.relation;
        let image = |times| vec![Charge { what: "image".to_owned(), flow: Flow::Residual, loss, times, relation }];
        Ok(Losses { train: image(u64::from(facts.epochs > 0)), test: image(u64::from(facts.evaluations > 0)) })
    }

    fn guard(&self, facts: &Facts<'_>) -> Result<Option<Guard>, ModeError> {
        Ok(Some(Guard {
            mechanism: "discrete_gaussian".to_owned(),
            sigma: Some(self.sigma(facts.terms.relation, facts.terms.delta)?),
            clip: Some(self.clip),
            labels: "public".to_owned(),
            split: None,
        }))
    }

    fn promised_epsilon(&self) -> Option<f64> {
        // Room for the rounding of sums.
        Some(self.epsilon * (1.0 + 1e-9))
    }

    fn condition(&self) -> &'static str {
        "given normalisation, made of the same records without noise"
    }

    fn insecure(&self, _purpose: Purpose) -> Vec<String> {
        vec!["public_labels".to_owned()]
    }

    fn serving(&self, _facts: &Facts<'_>) -> Result<Serving, ModeError> {
        let why = "clients would send their images to the worker";
        Ok(Serving::Refused { what: "mode naive-dp".to_owned(), why })
    }

    fn macs(&self, network: &Network, _batch: usize) -> Result<Macs, ModeError> {
        Ok(Macs { trusted: 0, worker: Macs::of(network) })
    }

    fn memory(&self, work: &Work<'_>) -> Result<MemoryPlan, MemoryError> {
        let mut plan = work.remote();
        if let Some((train, test)) = work.records {
            // The noised images, and in a checkpoint, as bytes and in the file.
            let kept = ((train + test) * work.network.input.len()) as u64;
            plan.state_bytes += kept;
            plan.checkpoint_bytes += 3 * kept;
        }
        Ok(plan)
    }

    fn build(&self, parts: Parts<'_>) -> Result<Box<dyn Mode>, ModeError> {
        let backend = parts.worker(self.name())?;
        let gate = self.gate(parts.terms.relation, parts.terms.delta)?;
        let values = parts.network.input.len() as f64;
        let sigma = self.sigma(parts.terms.relation, parts.terms.delta)?;
        let spread = SPAN * (sigma * sigma + self.clip * self.clip / values).sqrt();
        let remote = Remote::open(parts.network, &held(parts.weights)?, backend)?;
        let (door, kept, augment) = (open_door(parts.accountant)?, Kept::default(), (Augment::NONE, 0));
        Ok(Box::new(NaiveDp { remote, door, gate, spread, kept, noised: None, augment }))
    }
}

/// Bytes span so many standard deviations of what is released on either side of zero.
const SPAN: f64 = 4.0;

/// Noised images as bytes: all that is ever sent of them.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    /// Of the training records, in order.
    train: Vec<u8>,
    /// Of records that were asked about, by number.
    asked: BTreeMap<usize, Vec<u8>>,
}

/// Noised training images, ready for batches.
#[derive(Debug)]
struct Noised {
    data: Dataset,
    normalization: Normalization,
}

/// See the module.
#[derive(Debug)]
pub struct NaiveDp {
    remote: Remote,
    door: Door,
    gate: Gate<Vec<f32>>,
    /// Half the range of what a byte stands for.
    spread: f64,
    kept: Kept,
    /// Made of what is kept.
    noised: Option<Noised>,
    /// How training images are cropped and flipped, after the noise.
    augment: (Augment, u64),
}

impl NaiveDp {
    /// Noises one normalised image.
    fn noise(&mut self, image: &[f32], record: usize) -> Result<Vec<u8>, ExecError> {
        let source = Source { layer: "image", flow: Flow::Residual };
        let noised = self.door.release(&self.gate, source, &[record], Private::new(image.to_vec()));
        let noised = noised.map_err(ExecError::release("image"))?;
        let byte = |&value: &f32| (127.5 + 127.5 * f64::from(value) / self.spread) as u8;
        Ok(noised.get().iter().map(byte).collect())
    }

    /// Noises the images of records that were not noised before. True where there were any.
    fn ask(&mut self, images: &[f32], records: &[usize]) -> Result<bool, ExecError> {
        let mut has_drawn = false;
        for (image, &record) in images.chunks_exact(self.remote.network.input.len()).zip(records) {
            if !self.kept.asked.contains_key(&record) {
                let noised = self.noise(image, record)?;
                self.kept.asked.insert(record, noised);
                has_drawn = true;
            }
        }
        Ok(has_drawn)
    }

    /// Makes the data set of what is kept.
    fn load(&mut self) -> Result<(), ExecError> {
        let shape = self.remote.network.input;
        let unusable = |e: DataError| ExecError::Kept(e.to_string());
        if !self.kept.train.is_empty() {
            let labels = vec![0; self.kept.train.len() / shape.len()];
            let names = vec!["noised".to_owned()];
            let data = Dataset::new(self.kept.train.clone(), labels, shape, names).map_err(unusable)?;
            self.noised = Some(Noised { normalization: Normalization::of(&data), data });
        }
        Ok(())
    }

    /// Lets out again what was released of `records`.
    fn again(&self, records: &[usize], images: Vec<f32>) -> Result<Released<Payload>, ExecError> {
        Ok(self.door.again(records, images).map_err(ExecError::release("image"))?.encode(Precision::F32))
    }
}

impl Mode for NaiveDp {
    fn draw(&mut self, _epoch: usize, records: &Records<'_>) -> Result<bool, ExecError> {
        self.augment = (records.loader.augment(), records.loader.seed());
        if self.noised.is_some() {
            return Ok(false);
        }
        let (mut batch, values) = (Batch::default(), self.remote.network.input.len());
        let mut train = Vec::with_capacity(records.count * values);
        for record in 0..records.count {
            records.loader.gather(None, &[record as u32], &mut batch);
            train.extend(self.noise(&batch.images, record)?);
        }
        self.kept.train = train;
        self.load()?;
        Ok(true)
    }

    fn draw_queries(&mut self, images: &[f32], records: &[usize]) -> Result<bool, ExecError> {
        self.ask(images, records)
    }

    fn released(&mut self) -> Result<Vec<u8>, ExecError> {
        postcard::to_stdvec(&self.kept).map_err(|e| ExecError::Kept(e.to_string()))
    }

    fn infer(&mut self, images: &[f32], records: &[usize]) -> Result<Vec<f32>, ExecError> {
        self.ask(images, records)?;
        let shape = self.remote.network.input;
        let normalization = self.noised.as_ref().map(|noised| noised.normalization.clone()).unwrap_or_default();
        let values = normalization.values(shape.channels);
        let kept = records.iter().filter_map(|record| self.kept.asked.get(record));
        let planes = kept.flat_map(|image| image.chunks_exact(shape.pixels()).zip(&values));
        let images = planes.flat_map(|(plane, values)| plane.iter().map(|&pixel| values[usize::from(pixel)])).collect();
        let images = self.again(records, images)?;
        self.remote.forward(images, records.len(), Pass::Inference)
    }

    fn step(&mut self, batch: TrainBatch<'_>, sgd: SgdStep) -> Result<StepReport, ExecError> {
        let undrawn = || ExecError::Kept("training images were not drawn".to_owned());
        let Noised { data, normalization } = self.noised.as_ref().ok_or_else(undrawn)?;
        let (augment, seed) = self.augment;
        let numbers: Vec<u32> = batch.records().iter().map(|&record| record as u32).collect();
        let mut noised = Batch::default();
        Loader::new(data, normalization, augment, seed).gather(Some(batch.view), &numbers, &mut noised);
        let images = self.again(batch.records(), noised.images)?;
        self.remote.ease(batch.easing)?;
        let logits = self.remote.forward(images, batch.samples(), Pass::Training)?;
        let (report, d_logits) = loss(&self.remote.network, &logits, &batch)?;
        // A function of noised images and of labels, which are public.
        let gradient = self.again(batch.records(), d_logits)?;
        self.remote.step(gradient, sgd)?;
        Ok(report)
    }

    fn recover(&mut self, patience: Duration) -> Result<Recovered, ExecError> {
        self.remote.recover(patience)
    }

    fn state(&mut self) -> Result<TrainState, ExecError> {
        let released = self.released()?;
        Ok(TrainState { released, ..self.remote.state()? })
    }

    fn restore(&mut self, state: &TrainState) -> Result<(), ExecError> {
        // What cannot be read is no empty one: new noise would be drawn for what was released before.
        if !state.released.is_empty() {
            self.kept = postcard::from_bytes(&state.released).map_err(|e| ExecError::Kept(e.to_string()))?;
            self.load()?;
        }
        self.remote.restore(state)
    }

    fn door(&mut self) -> Option<&mut Door> {
        Some(&mut self.door)
    }

    fn worker(&self) -> Option<WorkerStats> {
        Some(self.remote.stats())
    }

    fn seconds(&self) -> &[Seconds] {
        std::slice::from_ref(&self.remote.seconds)
    }
}
