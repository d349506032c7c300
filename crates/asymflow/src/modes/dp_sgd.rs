//! Everything in the trusted part, trained by DP-SGD: whoever reads the weights learns little of any record (Abadi et al. 2016).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use asymflow_engine::timing::Seconds;
use asymflow_engine::{Engine, buffer::add_assign, program::Program};
use asymflow_privacy::accountants::{Accountant, Event, PldAccountant, Relation};
use asymflow_privacy::calibration::calibrate_sigma;
use asymflow_privacy::door::{Source, SumGate};
use asymflow_privacy::records::{Flow, RecordLedger};
use asymflow_privacy::{Door, Private};
use asymflow_residual::backend::{Pass, SgdStep, WorkerStats};
use asymflow_zoo::Network;
use serde::{Deserialize, Serialize};

use super::mode::{engine_restore, engine_state, held, loss, open_door};
use super::trusted_only::TrustedOnly;
use super::{
    Answering, Asked, Charge, ExecError, Facts, Guard, Losses, Macs, Mode, ModeError, ModeFamily, ModeSpec, Parts,
    Purpose, Recovered, Sampling, Serving, StepReport, TrainBatch, TrainState,
};
use crate::memory::{MemoryError, MemoryPlan, Work};
use crate::plan::Plan;

const WEIGHTS: Source<'_> = Source { layer: "weights", flow: Flow::Weights };
/// Norms are computed in f32: gradients are clipped to so much less.
const NORM_MARGIN: f64 = 1.0 - 1e-4;

#[derive(Debug)]
pub(super) struct Family;

impl ModeFamily for Family {
    fn names(&self) -> &'static [&'static str] {
        &["dp-sgd"]
    }

    fn section(&self) -> Option<&'static str> {
        Some("dp")
    }

    fn takes_epsilon(&self, _name: &str) -> Option<bool> {
        Some(false)
    }

    fn spec(&self, asked: &Asked<'_>) -> Result<Arc<dyn ModeSpec>, ModeError> {
        let section: DpSection = asked.sections.get("dp")?;
        let epsilon = asked.epsilon.or(section.epsilon);
        let own_epsilon = asked.epsilon.is_some();
        let DpSection { noise_multiplier, clip, .. } = section;
        Ok(Arc::new(DpSgdSpec { epsilon, own_epsilon, noise_multiplier, clip, found: Found::default() }))
    }

    fn decode(&self, settings: &str) -> Result<Arc<dyn ModeSpec>, serde_json::Error> {
        serde_json::from_str::<DpSgdSpec>(settings).map(|spec| Arc::new(spec) as Arc<dyn ModeSpec>)
    }
}

/// What an experiment's `[dp]` says of noise and clip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DpSection {
    /// ε of all weights that are ever shown, at `privacy.delta`; sets the noise where no multiplier is given.
    epsilon: Option<f64>,
    /// Noise multiplier σ/C, in place of an ε.
    noise_multiplier: Option<f64>,
    /// l2 norm C to which each record's gradient is clipped.
    clip: f64,
}

impl Default for DpSection {
    fn default() -> Self {
        Self { epsilon: Some(8.0), noise_multiplier: None, clip: 1.0 }
    }
}

/// The multiplier that was found last, for so many records, batches and steps: finding it takes seconds.
#[derive(Clone, Debug, Default)]
struct Found(Arc<Mutex<Option<(Sampling, u64, f64)>>>);

/// Its settings.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpSgdSpec {
    /// ε of the weights.
    pub epsilon: Option<f64>,
    /// Whether that ε stands in the entry's name.
    pub own_epsilon: bool,
    /// σ/C, in place of an ε.
    pub noise_multiplier: Option<f64>,
    /// C.
    pub clip: f64,
    #[serde(skip)]
    found: Found,
}

/// Probability with which a record takes part in a step, and the steps of a run.
fn sampled(sampling: Sampling, epochs: usize) -> (f64, u64) {
    let Sampling { batch, records } = sampling;
    let steps = records.div_ceil(batch.max(1)).max(1);
    (1.0 / steps as f64, steps as u64 * epochs as u64)
}

impl DpSgdSpec {
    /// σ/C: as given, or the least at which all steps cost ε.
    ///
    /// # Errors
    /// Neither is given, or no noise reaches the ε.
    pub fn noise_multiplier(&self, facts: &Facts<'_>) -> Result<f64, ModeError> {
        // A service takes no step, and its gate lets nothing out.
        let (q, steps) = sampled(facts.sampling, facts.epochs.max(1));
        if let Some(given) = self.noise_multiplier {
            return Ok(given);
        }
        let Some(epsilon) = self.epsilon else {
            return Err(ModeError::Settings { mode: "dp-sgd", what: "an epsilon or a noise_multiplier" });
        };
        let mut found = self.found.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, _, sigma)) = found.filter(|&(sampling, taken, _)| (sampling, taken) == (facts.sampling, steps))
        {
            return Ok(sigma);
        }
        let sigma = calibrate_sigma(epsilon, |noise_multiplier| {
            let mut accountant = PldAccountant::default();
            accountant.compose(Event::PoissonSampled { q, noise_multiplier }, steps)?;
            accountant.epsilon(facts.terms.delta)
        })?;
        // What the loss says is less by the rounding of the noise.
        let sigma = sigma * (1.0 + 1e-6);
        *found = Some((facts.sampling, steps, sigma));
        Ok(sigma)
    }

    fn gate(&self, facts: &Facts<'_>) -> Result<SumGate, ModeError> {
        let (q, _) = sampled(facts.sampling, facts.epochs);
        Ok(SumGate::new(self.noise_multiplier(facts)?, self.clip, q)?)
    }
}

impl ModeSpec for DpSgdSpec {
    fn name(&self) -> &'static str {
        "dp-sgd"
    }

    fn label(&self) -> String {
        match self.epsilon.filter(|_| self.own_epsilon) {
            Some(epsilon) => format!("dp-sgd@{epsilon}"),
            None => "dp-sgd".to_owned(),
        }
    }

    fn encode(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    fn needs_worker(&self) -> bool {
        false
    }

    fn check(&self, facts: &Facts<'_>) -> Result<(), ModeError> {
        Engine::check_per_sample(facts.network)?;
        if facts.terms.relation != Relation::Remove {
            return Err(ModeError::Settings {
                mode: "dp-sgd",
                what: "privacy.relation = \"remove\", which sampling is said of",
            });
        }
        self.gate(facts).map(drop)
    }

    fn takes_lessons(&self) -> bool {
        false
    }

    fn losses(&self, facts: &Facts<'_>) -> Result<Losses, ModeError> {
        let (_, times) = sampled(facts.sampling, facts.epochs);
        if times == 0 {
            return Ok(Losses::default());
        }
        let (what, loss) = ("sampled gradient".to_owned(), self.gate(facts)?.loss());
        let charge = Charge { what, flow: Flow::Weights, loss, times, relation: Relation::Remove };
        Ok(Losses { train: vec![charge], test: Vec::new() })
    }

    fn guard(&self, facts: &Facts<'_>) -> Result<Option<Guard>, ModeError> {
        // A service does not know by how many steps its weights were trained.
        let is_trained_here = facts.pass() == Pass::Training;
        let sigma = if is_trained_here { Some(self.noise_multiplier(facts)? * self.clip) } else { None };
        let labels = "in the gradients".to_owned();
        Ok(Some(Guard { mechanism: "dp_sgd".to_owned(), sigma, clip: Some(self.clip), labels, split: None }))
    }

    fn promised_epsilon(&self) -> Option<f64> {
        self.epsilon.filter(|_| self.noise_multiplier.is_none())
    }

    fn insecure(&self, _purpose: Purpose) -> Vec<String> {
        Vec::new()
    }

    fn condition(&self) -> &'static str {
        "given normalisation; losses and accuracies, which the host hears, and rounding of sums are not counted"
    }

    fn serving(&self, _facts: &Facts<'_>) -> Result<Serving, ModeError> {
        Ok(Serving::Served { losses: Vec::new(), guard: None, can_stream: false })
    }

    fn plan(&self, network: &Network, _batch: usize, _pass: Pass) -> Result<Option<Plan>, ModeError> {
        Ok(Some(Plan::trusted_only(&Program::new(network)?)))
    }

    fn macs(&self, network: &Network, _batch: usize) -> Result<Macs, ModeError> {
        Ok(Macs { trusted: Macs::of(network), worker: 0 })
    }

    fn memory(&self, work: &Work<'_>) -> Result<MemoryPlan, MemoryError> {
        work.whole_network()
    }

    fn build(&self, parts: Parts<'_>) -> Result<Box<dyn Mode>, ModeError> {
        let facts = parts.facts();
        self.check(&facts)?;
        let (gate, losses) = (self.gate(&facts)?, self.losses(&facts)?);
        let mut plan = RecordLedger::default();
        losses.train.iter().for_each(|charge| plan.add_times(charge.loss, charge.times));
        let sampling = parts.sampling;
        let door = open_door(parts.accountant.with_plan(plan))?;
        let inner = TrustedOnly::new(parts.network, &held(parts.weights)?, parts.par)?;
        let all: Vec<usize> = (0..sampling.records).collect();
        Ok(Box::new(DpSgd { inner, door, gate, batch: sampling.batch.max(1), all }))
    }
}

/// See the module.
#[derive(Debug)]
pub struct DpSgd {
    inner: TrustedOnly,
    door: Door,
    gate: SumGate,
    /// Most records in one pass.
    batch: usize,
    /// Numbers of all records.
    all: Vec<usize>,
}

impl DpSgd {
    /// Adds the clipped gradients of some records to `sums`.
    fn add_piece(&mut self, piece: TrainBatch<'_>, sums: &mut [f32]) -> Result<StepReport, ExecError> {
        let samples = piece.samples();
        let (engine, convolver) = self.inner.parts_mut();
        let logits = engine.forward(piece.images(), samples, Pass::Training, 0, convolver)?;
        let (report, mut d_logits) = loss(engine.network(), &logits, &piece)?;
        // Of each record's own loss, not of the mean.
        d_logits.iter_mut().for_each(|d| *d *= samples as f32);
        let norms = engine.sample_norms(d_logits.clone(), samples, convolver)?;
        let (classes, limit) = (engine.network().classes, NORM_MARGIN * self.gate.norm_limit(sums.len()));
        for (row, norm) in d_logits.chunks_exact_mut(classes).zip(&norms) {
            let factor = (limit / norm).min(1.0) as f32;
            row.iter_mut().for_each(|d| *d *= factor);
        }
        engine.backward(d_logits, samples, convolver)?;
        let mut rest = sums;
        let trained = engine.params_mut().gradients_mut().filter(|(spec, ..)| spec.kind.is_trained());
        for (_, _, gradient) in trained {
            if let Some(sums) = rest.split_off_mut(..gradient.len()) {
                add_assign(sums, gradient);
            }
        }
        Ok(report)
    }
}

impl Mode for DpSgd {
    fn sampling_rate(&self) -> Option<f64> {
        Some(self.gate.q())
    }

    fn infer(&mut self, images: &[f32], records: &[usize]) -> Result<Vec<f32>, ExecError> {
        self.inner.infer(images, records)
    }

    /// Pieces of the batch are added up, and noise once.
    fn step(&mut self, batch: TrainBatch<'_>, sgd: SgdStep) -> Result<StepReport, ExecError> {
        let (engine, _) = self.inner.parts_mut();
        engine.params_mut().train();
        let specs = engine.network().parameters();
        let trained = specs.iter().filter(|spec| spec.kind.is_trained()).map(|spec| spec.len()).sum();
        let (mut sums, mut total) = (vec![0.0; trained], StepReport::default());
        let image = engine.network().input.len();
        for (piece, records) in batch.records().chunks(self.batch).enumerate() {
            let first = piece * self.batch;
            let (images, labels) = (batch.images(), batch.labels());
            let images = images.get(first * image..(first + records.len()) * image).unwrap_or_default();
            let labels = labels.get(first..first + records.len()).unwrap_or_default();
            let report = self.add_piece(TrainBatch::new(images, labels, records)?, &mut sums)?;
            total.loss += report.loss * records.len() as f64 / batch.samples() as f64;
            total.correct += report.correct;
        }
        let released = self.door.release_sum(&self.gate, WEIGHTS, &self.all, Private::new(sums));
        let noised = released.map_err(ExecError::release("weights"))?.into_inner();
        let (engine, _) = self.inner.parts_mut();
        let mut rest = noised.into_iter();
        let expected = (self.gate.q() * self.all.len() as f64) as f32;
        for (spec, _, gradient) in engine.params_mut().gradients_mut() {
            if spec.kind.is_trained() {
                let scaled = rest.by_ref().map(|value| value / expected);
                gradient.iter_mut().zip(scaled).for_each(|(gradient, value)| *gradient = value);
            }
        }
        engine.params_mut().step(sgd);
        Ok(total)
    }

    fn recover(&mut self, _patience: Duration) -> Result<Recovered, ExecError> {
        Ok(Recovered::Here)
    }

    fn state(&mut self) -> Result<TrainState, ExecError> {
        Ok(engine_state(self.inner.engine()))
    }

    fn restore(&mut self, state: &TrainState) -> Result<(), ExecError> {
        engine_restore(self.inner.parts_mut().0, state)
    }

    fn door(&mut self) -> Option<&mut Door> {
        Some(&mut self.door)
    }

    fn worker(&self) -> Option<WorkerStats> {
        None
    }

    fn seconds(&self) -> &[Seconds] {
        self.inner.seconds()
    }

    fn answering(&mut self) -> Option<&mut dyn Answering> {
        self.inner.answering()
    }
}

#[cfg(test)]
mod tests {
    use asymflow_engine::local::LocalConv;
    use asymflow_privacy::records::RecordAccountant;
    use asymflow_zoo::{Weights, by_name, models::replace::replace_activations};
    use faer::Par;

    use super::*;

    const RECORDS: usize = 5;

    fn network() -> Network {
        let network = by_name("demo-cnn", 10, None).unwrap();
        replace_activations(&network, &"group-norm:4".parse().unwrap()).unwrap()
    }

    fn mode(noise_multiplier: f64, clip: f64, batch: usize) -> DpSgd {
        let network = network();
        let inner = TrustedOnly::new(network.clone(), &Weights::init(&network, 1), Par::Seq).unwrap();
        let gate = SumGate::new(noise_multiplier, clip, 0.4).unwrap();
        let door = open_door(RecordAccountant::new(RECORDS)).unwrap();
        DpSgd { inner, door, gate, batch, all: (0..RECORDS).collect() }
    }

    fn images() -> Vec<f32> {
        (0..RECORDS * network().input.len()).map(|i| ((i * 7919 % 1000) as f32 / 500.0) - 1.0).collect()
    }

    const LABELS: [u32; RECORDS] = [0, 3, 9, 3, 1];

    /// Clipped one by one, added up, and divided by the batch that is expected: without noise to speak of, that is the step. A batch
    /// larger than is expected is taken in pieces.
    #[test]
    fn a_step_is_the_sum_of_clipped_gradients() {
        let (network, images) = (network(), images());
        let image = network.input.len();
        for clip in [0.05, 1e3] {
            let mut expected = vec![0.0; network.parameters().iter().map(|spec| spec.len()).sum()];
            for record in 0..RECORDS {
                let mut engine = Engine::new(network.clone(), &Weights::init(&network, 1), Par::Seq).unwrap();
                let mut convolver = LocalConv::new(engine.program().convs(), engine.pool().clone(), Par::Seq);
                let x = &images[record * image..][..image];
                let logits = engine.forward(x, 1, Pass::Training, 0, &mut convolver).unwrap();
                let batch = TrainBatch::new(x, &LABELS[record..=record], &[0]).unwrap();
                let (_, d_logits) = loss(&network, &logits, &batch).unwrap();
                engine.backward(d_logits, 1, &mut convolver).unwrap();
                let gradient: Vec<f32> =
                    (0..network.parameters().len()).flat_map(|i| engine.params().gradient(i).to_vec()).collect();
                let norm = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
                let factor = (clip / norm).min(1.0);
                expected.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += factor * f64::from(g));
            }
            let mut mode = mode(1e-8, clip, 2);
            let before = mode.inner.engine().params().flat_values();
            let batch = TrainBatch::new(&images, &LABELS, &[0, 1, 2, 3, 4]).unwrap();
            mode.step(batch, SgdStep::plain(1.0, 0.0, 0.0)).unwrap();
            let after = mode.inner.engine().params().flat_values();
            let largest = expected.iter().fold(0.0_f64, |most, v| most.max(v.abs()));
            for ((before, after), expected) in before.iter().zip(&after).zip(&expected) {
                let moved = f64::from(before - after);
                assert!((moved - expected / 2.0).abs() < 1e-3 * largest + 1e-6, "clip {clip}: {moved} {expected}");
            }
        }
    }

    #[test]
    fn an_empty_batch_is_noise_of_the_stated_deviation_and_costs_as_much() {
        let mut mode = mode(3.0, 0.5, 2);
        let before = mode.inner.engine().params().flat_values();
        mode.step(TrainBatch::sampled(&[], &[], &[]).unwrap(), SgdStep::plain(1.0, 0.0, 0.0)).unwrap();
        let after = mode.inner.engine().params().flat_values();
        let moved: Vec<f64> = before.iter().zip(&after).map(|(a, b)| f64::from(a - b)).collect();
        let count = moved.len() as f64;
        let variance = moved.iter().map(|v| v * v).sum::<f64>() / count;
        // 3·0.5/2, and the estimate of a variance is off by a share of √(2/n).
        assert!((variance / 0.5625 - 1.0).abs() < 5.0 * (2.0 / count).sqrt(), "{variance}");
        assert!(mode.door.accountant().spent().iter().all(|spent| spent.epsilon(1e-5).unwrap() > 0.0));
    }
}
