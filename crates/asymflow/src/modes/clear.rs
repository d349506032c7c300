//! The baseline without protection: everything on the accelerator, which sees images, logits and gradients as they are, and keeps
//! weights and momentum.

use std::sync::Arc;
use std::time::Duration;

use asymflow_engine::timing::Seconds;
use asymflow_privacy::{
    Door, Loss, Private, Released,
    accountants::Relation,
    door::{Gate, Source},
    mechanisms::InsecureNone,
    payload::{Payload, Precision},
    records::{Flow, RecordAccountant},
};
use asymflow_residual::{
    ResidualBackend,
    backend::{Pass, SgdStep, WorkerStats},
};
use asymflow_zoo::{Network, Weights};

use super::mode::{held, loss, open_door};
use super::remote::Remote;
use super::{
    Asked, Charge, ExecError, Facts, Guard, Losses, Macs, Mode, ModeError, ModeFamily, ModeSpec, Parts, Purpose,
    Recovered, Serving, StepReport, TrainBatch, TrainState,
};
use crate::memory::{MemoryError, MemoryPlan, Work};

#[derive(Debug)]
pub(super) struct Family;

impl ModeFamily for Family {
    fn names(&self) -> &'static [&'static str] {
        &["clear"]
    }

    fn spec(&self, _asked: &Asked<'_>) -> Result<Arc<dyn ModeSpec>, ModeError> {
        Ok(Arc::new(ClearSpec))
    }

    fn decode(&self, settings: &str) -> Result<Arc<dyn ModeSpec>, serde_json::Error> {
        serde_json::from_str::<()>(settings).map(|()| Arc::new(ClearSpec) as Arc<dyn ModeSpec>)
    }
}

/// It has no settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClearSpec;

impl ModeSpec for ClearSpec {
    fn name(&self) -> &'static str {
        "clear"
    }

    fn encode(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(&())
    }

    fn needs_worker(&self) -> bool {
        true
    }

    fn computes_here(&self) -> bool {
        false
    }

    fn is_whole(&self) -> bool {
        true
    }

    fn losses(&self, facts: &Facts<'_>) -> Result<Losses, ModeError> {
        let charge = |what: &str, flow, times: usize| Charge {
            what: what.to_owned(),
            flow,
            loss: Loss::Infinite,
            times: times as u64,
            relation: facts.terms.relation,
        };
        let train = [("images", Flow::Residual), ("gradients of logits", Flow::Gradient)];
        Ok(Losses {
            train: train.map(|(what, flow)| charge(what, flow, facts.epochs)).to_vec(),
            test: vec![charge("images", Flow::Residual, facts.evaluations)],
        })
    }

    fn guard(&self, _facts: &Facts<'_>) -> Result<Option<Guard>, ModeError> {
        let (mechanism, labels) = ("insecure_none".to_owned(), "in the gradients".to_owned());
        Ok(Some(Guard { mechanism, labels, ..Guard::default() }))
    }

    fn insecure(&self, _purpose: Purpose) -> Vec<String> {
        vec!["insecure_none".to_owned()]
    }

    fn serving(&self, _facts: &Facts<'_>) -> Result<Serving, ModeError> {
        let why = "clients would send their images to the worker";
        Ok(Serving::Refused { what: "mode clear".to_owned(), why })
    }

    fn macs(&self, network: &Network, _batch: usize) -> Result<Macs, ModeError> {
        Ok(Macs { trusted: 0, worker: Macs::of(network) })
    }

    fn memory(&self, work: &Work<'_>) -> Result<MemoryPlan, MemoryError> {
        Ok(work.remote())
    }

    fn build(&self, parts: Parts<'_>) -> Result<Box<dyn Mode>, ModeError> {
        let backend = parts.worker(self.name())?;
        Ok(Box::new(Clear::new(parts.network, &held(parts.weights)?, backend, parts.accountant)?))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Clear {
    remote: Remote,
    door: Door,
    gate: Gate<Vec<f32>>,
}

impl Clear {
    /// Opens the worker and sends it the network.
    ///
    /// # Errors
    /// A network or weights that do not fit, or a worker that cannot be opened.
    pub fn new(
        network: Network,
        weights: &Weights,
        backend: Arc<dyn ResidualBackend>,
        accountant: RecordAccountant,
    ) -> Result<Self, ModeError> {
        let door = open_door(accountant)?;
        let gate = Gate::new(Box::new(InsecureNone), None, Relation::Remove)?;
        Ok(Self { remote: Remote::open(network, weights, backend)?, door, gate })
    }

    fn release(
        &mut self,
        values: Vec<f32>,
        records: &[usize],
        layer: &str,
        flow: Flow,
    ) -> Result<Released<Payload>, ExecError> {
        let released = self.door.release(&self.gate, Source { layer, flow }, records, Private::new(values));
        Ok(released.map_err(ExecError::release(layer))?.encode(Precision::F32))
    }
}

impl Mode for Clear {
    fn infer(&mut self, images: &[f32], records: &[usize]) -> Result<Vec<f32>, ExecError> {
        let images = self.release(images.to_vec(), records, "input", Flow::Residual)?;
        self.remote.forward(images, records.len(), Pass::Inference)
    }

    fn step(&mut self, batch: TrainBatch<'_>, sgd: SgdStep) -> Result<StepReport, ExecError> {
        self.remote.ease(batch.easing)?;
        let images = self.release(batch.images().to_vec(), batch.records(), "input", Flow::Residual)?;
        let logits = self.remote.forward(images, batch.samples(), Pass::Training)?;
        let (report, d_logits) = loss(&self.remote.network, &logits, &batch)?;
        let gradient = self.release(d_logits, batch.records(), "logits", Flow::Gradient)?;
        self.remote.step(gradient, sgd)?;
        Ok(report)
    }

    fn recover(&mut self, patience: Duration) -> Result<Recovered, ExecError> {
        self.remote.recover(patience)
    }

    fn state(&mut self) -> Result<TrainState, ExecError> {
        self.remote.state()
    }

    fn restore(&mut self, state: &TrainState) -> Result<(), ExecError> {
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
