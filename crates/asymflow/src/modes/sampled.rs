//! DP-SGD, whichever networks a mode trains by it (Abadi et al. 2016): noise for an ε, what steps cost, and the noised sum of a step.

use std::sync::{Arc, Mutex};

use asymflow_engine::{Engine, buffer::add_assign};
use asymflow_privacy::accountants::{Accountant, Event, PldAccountant, Relation};
use asymflow_privacy::calibration::calibrate_sigma;
use asymflow_privacy::door::{Source, SumGate};
use asymflow_privacy::records::{Flow, RecordLedger};
use asymflow_privacy::{Door, Private};
use asymflow_residual::backend::Pass;
use serde::{Deserialize, Serialize};

use super::{Charge, ExecError, Facts, Guard, Losses, ModeError, Sampling, StepReport, TrainBatch};

const WEIGHTS: Source<'_> = Source { layer: "weights", flow: Flow::Weights };
/// Norms are computed in f32: gradients are clipped to so much less.
const NORM_MARGIN: f64 = 1.0 - 1e-4;
/// What no ε counts where weights are trained by it.
pub(super) const CONDITION: &str =
    "given normalisation; losses and accuracies, which the host hears, and rounding of sums are not counted";

/// `[dp]`: noise and clip of steps of which each record takes part in secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DpTerms {
    /// ε of all weights that are ever shown, at `privacy.delta`; sets the noise where no multiplier is given.
    pub epsilon: Option<f64>,
    /// Noise multiplier σ/C, in place of an ε.
    pub noise_multiplier: Option<f64>,
    /// l2 norm C to which each record's gradient is clipped.
    pub clip: f64,
    #[serde(skip)]
    found: Found,
}

impl Default for DpTerms {
    fn default() -> Self {
        Self { epsilon: Some(8.0), noise_multiplier: None, clip: 1.0, found: Found::default() }
    }
}

impl PartialEq for DpTerms {
    fn eq(&self, other: &Self) -> bool {
        (self.epsilon, self.noise_multiplier, self.clip) == (other.epsilon, other.noise_multiplier, other.clip)
    }
}

/// The multiplier that was found last, for so many records, batches and steps: finding it takes seconds.
#[derive(Clone, Debug, Default)]
struct Found(Arc<Mutex<Option<(Sampling, u64, f64)>>>);

/// Probability with which a record takes part in a step, and the steps of so many epochs.
fn sampled(sampling: Sampling, epochs: usize) -> (f64, u64) {
    let Sampling { batch, records } = sampling;
    let steps = records.div_ceil(batch.max(1)).max(1);
    (1.0 / steps as f64, steps as u64 * epochs as u64)
}

impl DpTerms {
    /// σ/C: as given, or the least at which the steps of `epochs` epochs cost ε.
    ///
    /// # Errors
    /// Neither is given, or no noise reaches the ε.
    pub fn noise_multiplier(&self, facts: &Facts<'_>, epochs: usize) -> Result<f64, ModeError> {
        // A service takes no step, and its gate lets nothing out.
        let (q, steps) = sampled(facts.sampling, epochs.max(1));
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

    fn gate(&self, facts: &Facts<'_>, epochs: usize) -> Result<SumGate, ModeError> {
        let (q, _) = sampled(facts.sampling, epochs);
        Ok(SumGate::new(self.noise_multiplier(facts, epochs)?, self.clip, q)?)
    }

    /// Refuses what no noise can be found for, and neighbours that sampling is not said of.
    ///
    /// # Errors
    /// Settings out of range, or an ε by replacement.
    pub(super) fn check(&self, facts: &Facts<'_>, epochs: usize) -> Result<(), ModeError> {
        if facts.terms.relation != Relation::Remove {
            return Err(ModeError::Settings {
                mode: "dp-sgd",
                what: "privacy.relation = \"remove\", which sampling is said of",
            });
        }
        self.gate(facts, epochs).map(drop)
    }

    /// What the steps of `epochs` epochs cost a record; nothing where there are none.
    ///
    /// # Errors
    /// As [`DpTerms::noise_multiplier`].
    pub(super) fn charges(&self, facts: &Facts<'_>, epochs: usize) -> Result<Vec<Charge>, ModeError> {
        let (_, times) = sampled(facts.sampling, epochs);
        if times == 0 {
            return Ok(Vec::new());
        }
        let (what, loss) = ("sampled gradient".to_owned(), self.gate(facts, epochs)?.loss());
        Ok(vec![Charge { what, flow: Flow::Weights, loss, times, relation: Relation::Remove }])
    }

    /// What guards weights that are trained in `epochs` epochs.
    ///
    /// # Errors
    /// As [`DpTerms::noise_multiplier`].
    pub(super) fn guard(&self, facts: &Facts<'_>, epochs: usize) -> Result<Guard, ModeError> {
        // A service does not know by how many steps its weights were trained.
        let is_trained_here = facts.pass() == Pass::Training;
        let multiplier = is_trained_here.then(|| self.noise_multiplier(facts, epochs)).transpose()?;
        Ok(Guard {
            mechanism: "dp_sgd".to_owned(),
            sigma: multiplier.map(|multiplier| multiplier * self.clip),
            clip: Some(self.clip),
            labels: "in the gradients".to_owned(),
            split: None,
        })
    }

    /// The ε that is promised of weights; none where the noise is given.
    pub(super) fn promised_epsilon(&self) -> Option<f64> {
        self.epsilon.filter(|_| self.noise_multiplier.is_none())
    }

    /// The steps of `epochs` epochs.
    ///
    /// # Errors
    /// As [`DpTerms::noise_multiplier`].
    pub(super) fn steps(&self, facts: &Facts<'_>, epochs: usize) -> Result<NoisedSteps, ModeError> {
        Ok(NoisedSteps::new(self.gate(facts, epochs)?, facts.sampling))
    }
}

/// All that a run will cost a training record, to be admitted at once.
pub(super) fn plan_of(losses: &Losses) -> RecordLedger {
    let mut plan = RecordLedger::default();
    losses.train.iter().for_each(|charge| plan.add_times(charge.loss, charge.times));
    plan
}

/// Steps of which every record takes part in secret.
#[derive(Debug)]
pub struct NoisedSteps {
    gate: SumGate,
    /// Most records in one pass.
    batch: usize,
    /// Numbers of all records.
    all: Vec<usize>,
}

impl NoisedSteps {
    pub(super) fn new(gate: SumGate, sampling: Sampling) -> Self {
        Self { gate, batch: sampling.batch.max(1), all: (0..sampling.records).collect() }
    }

    /// Probability with which a record takes part in a step.
    pub(super) const fn q(&self) -> f64 {
        self.gate.q()
    }

    /// What each record's gradient of its logits is multiplied by, such that its gradient of `trained` values, of norm `norms`, is
    /// at most as long as the gate allows.
    pub(super) fn clip(&self, d_logits: &mut [f32], norms: &[f64], trained: usize) {
        let limit = NORM_MARGIN * self.gate.norm_limit(trained);
        let classes = d_logits.len() / norms.len().max(1);
        for (row, norm) in d_logits.chunks_exact_mut(classes.max(1)).zip(norms) {
            let factor = (limit / norm).min(1.0) as f32;
            row.iter_mut().for_each(|d| *d *= factor);
        }
    }

    /// Goes through a batch of any size in pieces, `add` adding up their clipped gradients. The report is of the whole batch.
    pub(super) fn in_pieces(
        &self,
        batch: &TrainBatch<'_>,
        mut add: impl FnMut(TrainBatch<'_>) -> Result<StepReport, ExecError>,
    ) -> Result<StepReport, ExecError> {
        let mut total = StepReport::default();
        let image = batch.images().len() / batch.samples().max(1);
        for (piece, records) in batch.records().chunks(self.batch).enumerate() {
            let first = piece * self.batch;
            let images = batch.images().get(first * image..(first + records.len()) * image).unwrap_or_default();
            let labels = batch.labels().get(first..first + records.len()).unwrap_or_default();
            let report = add(TrainBatch::new(images, labels, records)?)?;
            total.loss += report.loss * records.len() as f64 / batch.samples() as f64;
            total.correct += report.correct;
        }
        Ok(total)
    }

    /// The mean gradient with noise: the sum over the records that took part, divided by as many as are expected.
    ///
    /// # Errors
    /// A sum that is not finite, or a spent budget.
    pub(super) fn release(&self, sums: Vec<f32>, door: &mut Door) -> Result<Vec<f32>, ExecError> {
        let released = door.release_sum(&self.gate, WEIGHTS, &self.all, Private::new(sums));
        let mut mean = released.map_err(ExecError::release("weights"))?.into_inner();
        let expected = (self.gate.q() * self.all.len() as f64) as f32;
        mean.iter_mut().for_each(|value| *value /= expected);
        Ok(mean)
    }
}

/// How many values of `engine` are trained.
pub(super) fn trained(engine: &Engine) -> usize {
    engine.network().parameters().iter().filter(|spec| spec.kind.is_trained()).map(|spec| spec.len()).sum()
}

/// Adds the gradients of `engine` to as many `sums`.
pub(super) fn add_gradients(engine: &mut Engine, mut sums: &mut [f32]) {
    for (_, _, gradient) in engine.params_mut().gradients_mut().filter(|(spec, ..)| spec.kind.is_trained()) {
        if let Some(sums) = sums.split_off_mut(..gradient.len()) {
            add_assign(sums, gradient);
        }
    }
}

/// Takes as many gradients of `engine` from `mean`.
pub(super) fn set_gradients(engine: &mut Engine, mut mean: &[f32]) {
    for (_, _, gradient) in engine.params_mut().gradients_mut().filter(|(spec, ..)| spec.kind.is_trained()) {
        if let Some(values) = mean.split_off(..gradient.len()) {
            gradient.copy_from_slice(values);
        }
    }
}
