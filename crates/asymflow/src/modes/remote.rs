//! A whole network on the worker, which keeps its weights and momentum: what `clear` and `naive-dp` train.

use std::sync::Arc;
use std::time::Duration;

use asymflow_engine::timing::{Seconds, timed};
use asymflow_privacy::{Released, payload::Payload};
use asymflow_residual::{
    ResidualBackend,
    backend::{Batch, Pass, ResidualModel, SgdStep, Unit, UnitId, Wanted, WorkerStats},
};
use asymflow_zoo::{Network, Weights, ops::Easing};

use super::{ExecError, ModeError, Recovered, TrainState};
use crate::link::Link;

const WHOLE: UnitId = UnitId(0);
/// What its errors name.
const NETWORK: &str = "network";

#[derive(Debug)]
pub(super) struct Remote {
    pub network: Network,
    link: Link,
    /// The state that was sent or fetched last.
    state: TrainState,
    /// Whether the worker may have stepped since.
    has_stepped: bool,
    /// What the worker eases.
    easing: Easing,
    pub seconds: Seconds,
}

impl Remote {
    /// Opens the worker and sends it the network.
    pub fn open(network: Network, weights: &Weights, backend: Arc<dyn ResidualBackend>) -> Result<Self, ModeError> {
        let weights = weights.flatten(&network).map_err(ExecError::from)?;
        let link = Link::open(backend, ResidualModel { units: vec![Unit::Network(network.clone())] })?;
        let state = TrainState { weights, ..TrainState::default() };
        let (has_stepped, easing, seconds) = (false, Easing::default(), Seconds::default());
        let mut remote = Self { network, link, state, has_stepped, easing, seconds };
        remote.send_state()?;
        Ok(remote)
    }

    fn send_state(&mut self) -> Result<(), ExecError> {
        self.link.session().set_weights(WHOLE, &self.state.weights).map_err(ExecError::submit(NETWORK))?;
        // A new session has none.
        if !self.state.momentum.is_empty() {
            self.link.session().set_momentum(WHOLE, &self.state.momentum).map_err(ExecError::submit(NETWORK))?;
        }
        self.has_stepped = false;
        self.easing = Easing::default();
        Ok(())
    }

    pub fn ease(&mut self, easing: Easing) -> Result<(), ExecError> {
        if easing != self.easing {
            self.link.session().ease(WHOLE, easing).map_err(ExecError::submit(NETWORK))?;
            self.easing = easing;
        }
        Ok(())
    }

    /// Logits of `samples` released images.
    pub fn forward(&mut self, images: Released<Payload>, samples: usize, pass: Pass) -> Result<Vec<f32>, ExecError> {
        // From its forward pass on, which moves the running statistics.
        self.has_stepped |= pass == Pass::Training;
        let ticket = self.link.session().submit(WHOLE, images, pass).map_err(ExecError::submit(NETWORK))?;
        let collected = timed(&mut self.seconds.wait, || self.link.session().collect(ticket));
        match collected.map_err(ExecError::collect(NETWORK))? {
            Batch::Outputs(logits) if logits.len() == samples * self.network.classes => Ok(logits),
            Batch::Outputs(_) | Batch::Gradients { .. } => {
                Err(ExecError::malformed(NETWORK, "expected one logit a class"))
            }
        }
    }

    /// A step along the released gradient of the logits of the latest forward pass.
    pub fn step(&mut self, gradient: Released<Payload>, sgd: SgdStep) -> Result<(), ExecError> {
        let wanted = Wanted { input: false, weights: false };
        let session = self.link.session();
        let ticket = session.submit_gradient(WHOLE, gradient, wanted).map_err(ExecError::submit(NETWORK))?;
        let collected = timed(&mut self.seconds.wait, || self.link.session().collect(ticket));
        collected.map_err(ExecError::collect(NETWORK))?;
        self.link.session().step(WHOLE, sgd).map_err(ExecError::submit(NETWORK))
    }

    /// The worker's weights and momentum are lost with it, and so is what it did since they were fetched.
    pub fn recover(&mut self, patience: Duration) -> Result<Recovered, ExecError> {
        let recovered = if self.has_stepped { Recovered::AtState } else { Recovered::Here };
        self.link.reopen(patience)?;
        self.send_state()?;
        Ok(recovered)
    }

    pub fn state(&mut self) -> Result<TrainState, ExecError> {
        if self.has_stepped {
            let session = self.link.session();
            let weights = session.weights(WHOLE).map_err(ExecError::collect(NETWORK))?;
            let momentum = session.momentum(WHOLE).map_err(ExecError::collect(NETWORK))?;
            self.state = TrainState { weights, momentum, released: Vec::new() };
            self.has_stepped = false;
        }
        Ok(self.state.clone())
    }

    pub fn restore(&mut self, state: &TrainState) -> Result<(), ExecError> {
        Weights::unflatten(&self.network, &state.weights)?;
        self.state = TrainState { released: Vec::new(), ..state.clone() };
        self.state.momentum.resize(state.weights.len(), 0.0);
        self.send_state()
    }

    pub fn stats(&self) -> WorkerStats {
        self.link.stats()
    }
}
