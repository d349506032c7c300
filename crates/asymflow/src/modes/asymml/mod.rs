//! AsymML (Niu, Ali and Avestimehr, "3LegRace"): the low-rank part of every convolution trusted, its residual on the worker.

mod sized;
mod split;
mod verify;

use std::sync::Arc;
use std::time::Duration;

use asymflow_engine::timing::Seconds;
use asymflow_engine::{Engine, program::Program};
use asymflow_linalg::{Decomposer, decompose::by_name};
use asymflow_privacy::{
    Door, Loss,
    door::Gate,
    payload::Precision,
    records::{Flow, RecordAccountant},
};
use asymflow_residual::{
    ResidualBackend,
    backend::{Pass, SgdStep, WorkerStats},
};
use asymflow_zoo::{Network, Weights};
use faer::Par;
use serde::{Deserialize, Serialize};

pub use sized::SizedNoise;
pub use split::{SplitConv, open_link};
pub use verify::VerifyError;

use super::mode::{answer_padded, engine_restore, engine_state, held, loss, open_door};
use super::{
    Answering, Asked, Charge, ExecError, Facts, Guard, GuardSpec, Losses, Macs, Mode, ModeError, ModeFamily, ModeSpec,
    Parts, Purpose, Recovered, Registry, Serving, StepReport, TrainBatch, TrainState, Unkept,
};
use crate::memory::{MemoryError, MemoryPlan, Work};
use crate::plan::{Plan, SplitSpec};

#[derive(Debug)]
pub(super) struct Family;

/// What AsymML reads of section `[worker]`.
#[derive(Deserialize)]
#[serde(default)]
struct WorkerSection {
    precision: Precision,
    verify: bool,
    leapfrog: bool,
}

impl Default for WorkerSection {
    fn default() -> Self {
        Self { precision: Precision::default(), verify: true, leapfrog: false }
    }
}

impl ModeFamily for Family {
    fn names(&self) -> &'static [&'static str] {
        &["asymml"]
    }

    fn spec(&self, asked: &Asked<'_>) -> Result<Arc<dyn ModeSpec>, ModeError> {
        let WorkerSection { precision, verify, leapfrog } = asked.sections.get("worker")?;
        let (split, guard) = (asked.sections.get("mode")?, asked.sections.get("privacy")?);
        Ok(Arc::new(AsymMlSpec { split, guard, precision, verify, leapfrog }))
    }

    fn decode(&self, settings: &str) -> Result<Arc<dyn ModeSpec>, serde_json::Error> {
        serde_json::from_str::<AsymMlSpec>(settings).map(|spec| Arc::new(spec) as Arc<dyn ModeSpec>)
    }
}

/// How convolutions are split, and what guards residuals and gradients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AsymMlSpec {
    /// Decomposition, ranks, and whether the first convolution is split.
    pub split: SplitSpec,
    /// What guards what is released.
    pub guard: GuardSpec,
    /// Precision of what is sent and answered.
    pub precision: Precision,
    /// Whether every answer of the worker is verified.
    pub verify: bool,
    /// Whether two halves of a batch leapfrog through the layers of an inference, so that one is computed on while the worker has the
    /// other.
    #[serde(default)]
    pub leapfrog: bool,
}

impl Default for AsymMlSpec {
    fn default() -> Self {
        let (split, guard, precision) = (SplitSpec::default(), GuardSpec::default(), Precision::default());
        Self { split, guard, precision, verify: true, leapfrog: false }
    }
}

impl AsymMlSpec {
    fn gate(&self, facts: &Facts<'_>) -> Result<Gate<Vec<f32>>, ModeError> {
        self.guard.gate(facts.registry, facts.terms.relation)
    }

    fn planned(&self, network: &Network, batch: usize, pass: Pass) -> Result<Plan, ModeError> {
        Ok(Plan::asymml(&Program::new(network)?, &self.split, batch, pass)?)
    }

    /// Charges of the split convolutions, each as often as said, and of the weights.
    fn charges(&self, facts: &Facts<'_>, flows: &[(&str, Flow)], times: usize) -> Result<Vec<Charge>, ModeError> {
        let loss = self.gate(facts)?.loss()?;
        let plan = self.planned(facts.network, facts.sampling.batch, facts.pass())?;
        let split = plan.convs.iter().filter(|conv| conv.placement.is_split()).count();
        let charge = |&(what, flow): &(&str, Flow)| Charge {
            what: format!("{what} of {split} layers"),
            flow,
            loss,
            times: split as u64 * times as u64,
            relation: facts.terms.relation,
        };
        Ok(if split * times == 0 { Vec::new() } else { flows.iter().map(charge).collect() })
    }
}

impl ModeSpec for AsymMlSpec {
    fn name(&self) -> &'static str {
        "asymml"
    }

    fn encode(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    fn needs_worker(&self) -> bool {
        true
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn is_whole(&self) -> bool {
        true
    }

    fn check(&self, facts: &Facts<'_>) -> Result<(), ModeError> {
        let shares_basis = facts.registry.decomposer(&self.split.decomposition)?.shares_basis();
        if shares_basis && self.gate(facts)?.loss()? != Loss::Infinite {
            // One basis for a batch would let a record's residual depend on the others, which no clip on one covers.
            return Err(ModeError::Settings {
                mode: "asymml",
                what: "a decomposition of each record by itself under noise",
            });
        }
        self.planned(facts.network, facts.sampling.batch, facts.pass()).map(drop)
    }

    fn losses(&self, facts: &Facts<'_>) -> Result<Losses, ModeError> {
        let flows = [("residuals", Flow::Residual), ("gradients", Flow::Gradient)];
        let mut train = self.charges(facts, &flows, facts.epochs)?;
        if !train.is_empty() {
            let (what, loss) = ("exact weights".to_owned(), Loss::Infinite);
            let relation = facts.terms.relation;
            train.push(Charge { what, flow: Flow::Weights, loss, times: facts.epochs as u64, relation });
        }
        Ok(Losses { train, test: self.charges(facts, &flows[..1], facts.evaluations)? })
    }

    fn guard(&self, _facts: &Facts<'_>) -> Result<Option<Guard>, ModeError> {
        let GuardSpec { mechanism, sigma, clip, .. } = self.guard.clone();
        Ok(Some(Guard { mechanism, sigma, clip, labels: "in the gradients".to_owned(), split: None }))
    }

    fn condition(&self) -> &'static str {
        "given weights, bases and normalisation, made of the same records without noise"
    }

    fn insecure(&self, purpose: Purpose) -> Vec<String> {
        let mut names = self.guard.insecure();
        if !self.verify {
            names.push("insecure_unverified_worker".to_owned());
        }
        if purpose == Purpose::Training {
            names.push(split::EXACT_WEIGHTS.to_owned());
        }
        names
    }

    fn caveat(&self) -> Option<&'static str> {
        if self.guard.kappa.is_some() {
            return Some(
                "residual_noise: noise of a multiple of what it hides has no epsilon; what it stops is what attacks measured, \
                 `cargo xtask run audit-cifar10`: exact recovery. A decoder still rebuilds images, and labels are not safe in training. \
                 See docs/threat-model.md.",
            );
        }
        if by_name(&self.split.decomposition).is_some_and(|known| known.serves() > 1) {
            return Some(
                "decomposition fixed: one basis of a layer serves for many batches. In asymml the worker can learn it from the \
                 residuals, and tells more of the data from them than with a basis for each sample; without noise the whole \
                 activation can be completed. See docs/threat-model.md.",
            );
        }
        (self.guard.mechanism == "insecure_none").then_some(
            "insecure_none: what is released carries no noise. In asymml the worker sees residuals and gradients; where an \
             activation is zero the residual is minus the low-rank part, and the gradient shows where that is, so the whole \
             activation can be completed. See docs/threat-model.md.",
        )
    }

    fn serving(&self, facts: &Facts<'_>) -> Result<Serving, ModeError> {
        if facts.registry.decomposer(&self.split.decomposition)?.shares_basis() {
            let why = "a client's answer would depend on the images of the other clients in its batch";
            return Ok(Serving::Refused { what: format!("decomposition {}", self.split.decomposition), why });
        }
        let charges = self.charges(facts, &[("residuals", Flow::Residual)], 1)?;
        let losses = charges.iter().flat_map(|charge| vec![charge.loss; charge.times as usize]).collect();
        Ok(Serving::Served { losses, guard: self.guard(facts)?, can_stream: false })
    }

    fn shares_basis(&self, registry: &Registry) -> bool {
        registry.decomposer(&self.split.decomposition).is_ok_and(|decomposer| decomposer.shares_basis())
    }

    fn plan(&self, network: &Network, batch: usize, pass: Pass) -> Result<Option<Plan>, ModeError> {
        self.planned(network, batch, pass).map(Some)
    }

    fn macs(&self, network: &Network, batch: usize) -> Result<Macs, ModeError> {
        let plan = self.planned(network, batch, Pass::Inference)?;
        let beside_convs = Macs::of(network).saturating_sub(plan.full_macs());
        Ok(Macs { trusted: plan.trusted_macs() + beside_convs, worker: plan.worker_macs() })
    }

    fn memory(&self, work: &Work<'_>) -> Result<MemoryPlan, MemoryError> {
        work.split_network(&self.split, self.precision, self.verify)
    }

    fn build(&self, parts: Parts<'_>) -> Result<Box<dyn Mode>, ModeError> {
        let own = AsymMlParts {
            plan: self.planned(&parts.network, parts.sampling.batch, parts.facts().pass())?,
            decomposer: parts.registry.decomposer(&self.split.decomposition)?,
            gate: self.gate(&parts.facts())?,
            sized: self.guard.sized(parts.registry, parts.terms.relation)?,
            precision: self.precision,
            verify: self.verify,
            leapfrog: self.leapfrog,
            backend: parts.worker(self.name())?,
            accountant: parts.accountant,
        };
        Ok(Box::new(AsymMl::new(parts.network, held(parts.weights)?, own, parts.par)?))
    }
}

/// See the module.
#[derive(Debug)]
pub struct AsymMl {
    engine: Engine,
    convolver: SplitConv,
    leapfrog: bool,
}

/// What [`AsymMl`] needs beside the network.
#[derive(Debug)]
pub struct AsymMlParts {
    /// Where each convolution is computed.
    pub plan: Plan,
    /// How activations are split.
    pub decomposer: Box<dyn Decomposer>,
    /// What guards the releases.
    pub gate: Gate<Vec<f32>>,
    /// Noise that is a multiple of what it hides, in place of that gate.
    pub sized: Option<SizedNoise>,
    /// Precision on the wire.
    pub precision: Precision,
    /// Whether every answer is verified.
    pub verify: bool,
    /// Whether halves of a batch leapfrog.
    pub leapfrog: bool,
    /// The worker.
    pub backend: Arc<dyn ResidualBackend>,
    /// Who has lost how much so far.
    pub accountant: RecordAccountant,
}

impl AsymMl {
    /// Opens the worker and sends it the weights of the split convolutions.
    ///
    /// # Errors
    /// Unusable settings, or a worker that cannot be opened.
    pub fn new(network: Network, weights: Weights, parts: AsymMlParts, par: Par) -> Result<Self, ModeError> {
        let engine = Engine::with_weights(network, weights.into(), par)?;
        let door = (open_door(parts.accountant)?, parts.gate);
        let placements = parts.plan.placements();
        let link = open_link(parts.backend, &engine.program().conv_nodes(), &placements)?;
        let pool = engine.pool().clone();
        let convolver = SplitConv::new(placements, parts.decomposer, door, parts.precision, link, pool, par);
        let convolver = if parts.verify { convolver.verified()? } else { convolver };
        let mut mode = Self { engine, convolver: convolver.sized(parts.sized), leapfrog: parts.leapfrog };
        mode.convolver.measure_sizes(&mode.engine)?;
        mode.send_weights()?;
        Ok(mode)
    }

    fn send_weights(&mut self) -> Result<(), ExecError> {
        self.convolver.send_weights(&self.engine.program().conv_nodes(), self.engine.params())
    }

    /// The trusted engine, for inspection.
    pub const fn engine(&self) -> &Engine {
        &self.engine
    }
}

impl Mode for AsymMl {
    fn infer(&mut self, images: &[f32], records: &[usize]) -> Result<Vec<f32>, ExecError> {
        self.convolver.begin(records);
        if self.leapfrog && self.convolver.can_halve() {
            return self.engine.infer_in_halves(images, records.len(), &mut self.convolver);
        }
        self.engine.forward(images, records.len(), Pass::Inference, 0, &mut self.convolver)
    }

    fn unkept_losses(&self) -> Result<Unkept, ExecError> {
        let test = self.convolver.forward_losses()?;
        // The input of every split convolution, and the gradient of its output; then weights that follow from both.
        let weights = (!test.is_empty()).then_some(Loss::Infinite);
        Ok(Unkept { train: [test.clone(), test.clone()].concat().into_iter().chain(weights).collect(), test })
    }

    fn step(&mut self, batch: TrainBatch<'_>, sgd: SgdStep) -> Result<StepReport, ExecError> {
        let samples = batch.samples();
        self.convolver.begin(batch.records());
        self.engine.set_easing(batch.easing);
        let logits =
            self.engine.forward(batch.images(), samples, Pass::Training, batch.dropout_seed, &mut self.convolver)?;
        let (report, d_logits) = loss(self.engine.network(), &logits, &batch)?;
        self.engine.backward(d_logits, samples, &mut self.convolver)?;
        self.convolver.charge_weights()?;
        self.engine.commit_moments();
        let (program, params) = self.engine.parts_mut();
        match self.convolver.step(&program.conv_nodes(), params, sgd) {
            // The step is done; a worker lost here gets all weights when it is opened again.
            Err(error) if error.is_worker_lost() => Ok(report),
            other => other.map(|()| report),
        }
    }

    fn begin_epoch(&mut self, _epoch: usize) -> Result<(), ExecError> {
        self.convolver.measure_sizes(&self.engine)
    }

    fn recover(&mut self, patience: Duration) -> Result<Recovered, ExecError> {
        self.convolver.forget();
        self.convolver.link.reopen(patience)?;
        self.send_weights()?;
        Ok(Recovered::Here)
    }

    fn state(&mut self) -> Result<TrainState, ExecError> {
        // A run that goes on from here learns them anew, as a resumed one does.
        self.convolver.forget_bases();
        Ok(engine_state(&self.engine))
    }

    fn restore(&mut self, state: &TrainState) -> Result<(), ExecError> {
        engine_restore(&mut self.engine, state)?;
        self.convolver.forget_bases();
        self.convolver.measure_sizes(&self.engine)?;
        self.send_weights()
    }

    fn door(&mut self) -> Option<&mut Door> {
        Some(&mut self.convolver.door)
    }

    fn worker(&self) -> Option<WorkerStats> {
        Some(self.convolver.link.stats())
    }

    fn seconds(&self) -> &[Seconds] {
        self.convolver.seconds()
    }

    fn answering(&mut self) -> Option<&mut dyn Answering> {
        Some(self)
    }
}

impl Answering for AsymMl {
    fn answer(
        &mut self,
        images: &[f32],
        samples: usize,
        padded: usize,
        patience: Duration,
    ) -> Result<Vec<f32>, ExecError> {
        answer_padded(self, images, samples, padded, patience)
    }
}
