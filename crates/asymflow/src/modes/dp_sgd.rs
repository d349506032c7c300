//! Everything in the trusted part, trained by DP-SGD: whoever reads the weights learns little of any record (Abadi et al. 2016).

use std::sync::Arc;
use std::time::Duration;

use asymflow_engine::Engine;
use asymflow_engine::program::Program;
use asymflow_engine::timing::Seconds;
use asymflow_privacy::Door;
use asymflow_residual::backend::{Pass, SgdStep, WorkerStats};
use asymflow_zoo::Network;
use serde::{Deserialize, Serialize};

use super::mode::{engine_restore, engine_state, held, loss, open_door};
use super::sampled::{self, DpTerms, NoisedSteps, add_gradients, set_gradients, trained};
use super::trusted_only::TrustedOnly;
use super::{
    Answering, Asked, ExecError, Facts, Guard, Losses, Macs, Mode, ModeError, ModeFamily, ModeSpec, Parts, Purpose,
    Recovered, Serving, StepReport, TrainBatch, TrainState,
};
use crate::memory::{MemoryError, MemoryPlan, Work};
use crate::plan::Plan;

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
        let mut terms: DpTerms = asked.sections.get("dp")?;
        terms.epsilon = asked.epsilon.or(terms.epsilon);
        Ok(Arc::new(DpSgdSpec { terms, own_epsilon: asked.epsilon.is_some() }))
    }

    fn decode(&self, settings: &str) -> Result<Arc<dyn ModeSpec>, serde_json::Error> {
        serde_json::from_str::<DpSgdSpec>(settings).map(|spec| Arc::new(spec) as Arc<dyn ModeSpec>)
    }
}

/// Its settings.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpSgdSpec {
    /// Noise and clip.
    pub terms: DpTerms,
    /// Whether its ε stands in the entry's name.
    pub own_epsilon: bool,
}

impl ModeSpec for DpSgdSpec {
    fn name(&self) -> &'static str {
        "dp-sgd"
    }

    fn label(&self) -> String {
        match self.terms.epsilon.filter(|_| self.own_epsilon) {
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
        self.terms.check(facts, facts.epochs)
    }

    fn takes_lessons(&self) -> bool {
        false
    }

    fn losses(&self, facts: &Facts<'_>) -> Result<Losses, ModeError> {
        Ok(Losses { train: self.terms.charges(facts, facts.epochs)?, test: Vec::new() })
    }

    fn guard(&self, facts: &Facts<'_>) -> Result<Option<Guard>, ModeError> {
        self.terms.guard(facts, facts.epochs).map(Some)
    }

    fn promised_epsilon(&self) -> Option<f64> {
        self.terms.promised_epsilon()
    }

    fn insecure(&self, _purpose: Purpose) -> Vec<String> {
        Vec::new()
    }

    fn condition(&self) -> &'static str {
        sampled::CONDITION
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
        let steps = self.terms.steps(&facts, facts.epochs)?;
        let plan = sampled::plan_of(&self.losses(&facts)?);
        let door = open_door(parts.accountant.with_plan(plan))?;
        let inner = TrustedOnly::new(parts.network, &held(parts.weights)?, parts.par)?;
        Ok(Box::new(DpSgd { inner, door, steps }))
    }
}

/// See the module.
#[derive(Debug)]
pub struct DpSgd {
    inner: TrustedOnly,
    door: Door,
    steps: NoisedSteps,
}

impl DpSgd {
    /// Adds the clipped gradients of some records to `sums`.
    fn add_piece(
        inner: &mut TrustedOnly,
        steps: &NoisedSteps,
        piece: TrainBatch<'_>,
        sums: &mut [f32],
    ) -> Result<StepReport, ExecError> {
        let samples = piece.samples();
        let (engine, convolver) = inner.parts_mut();
        let logits = engine.forward(piece.images(), samples, Pass::Training, 0, convolver)?;
        let (report, mut d_logits) = loss(engine.network(), &logits, &piece)?;
        // Of each record's own loss, not of the mean.
        d_logits.iter_mut().for_each(|d| *d *= samples as f32);
        let (norms, _) = engine.sample_norms(d_logits.clone(), samples, convolver)?;
        steps.clip(&mut d_logits, &norms, sums.len());
        engine.backward(d_logits, samples, convolver)?;
        add_gradients(engine, sums);
        Ok(report)
    }
}

impl Mode for DpSgd {
    fn sampling_rate(&self, _epoch: usize) -> Option<f64> {
        Some(self.steps.q())
    }

    fn infer(&mut self, images: &[f32], records: &[usize]) -> Result<Vec<f32>, ExecError> {
        self.inner.infer(images, records)
    }

    /// Pieces of the batch are added up, and noise once.
    fn step(&mut self, batch: TrainBatch<'_>, sgd: SgdStep) -> Result<StepReport, ExecError> {
        let Self { inner, door, steps } = self;
        inner.parts_mut().0.params_mut().train();
        let mut sums = vec![0.0; trained(inner.engine())];
        let report = steps.in_pieces(&batch, |piece| Self::add_piece(inner, steps, piece, &mut sums))?;
        let mean = steps.release(sums, door)?;
        let (engine, _) = inner.parts_mut();
        set_gradients(engine, &mean);
        engine.params_mut().step(sgd);
        Ok(report)
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
    use asymflow_privacy::door::SumGate;
    use asymflow_privacy::records::RecordAccountant;
    use asymflow_zoo::{Weights, by_name, models::replace::replace_activations};
    use faer::Par;

    use super::*;
    use crate::modes::Sampling;

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
        DpSgd { inner, door, steps: NoisedSteps::new(gate, Sampling { batch, records: RECORDS }) }
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
