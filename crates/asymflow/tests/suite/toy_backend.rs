//! A residual backend written from outside, as `docs/how-to/add-a-backend.md` describes it: convolutions on
//! the kernels of `asymflow-linalg` and whole networks on the trusted engine, in this thread. It records what it is sent
//! and can be told to die.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use asymflow_privacy::{
    Released,
    payload::{PackedBits, Payload},
};
use asymflow_residual::{
    ResidualBackend,
    backend::{
        Availability, Batch, CollectError, OpenError, Pass, ResidualModel, ResidualSession, ResidualTraining, SgdStep,
        SubmitError, Ticket, Unit, UnitId, Wanted, WorkerStats,
    },
};

use crate::toy_units::{ToyConv, ToyNetwork, ToyUnit};

/// One thing that reached the untrusted side.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    Residual(UnitId, Vec<f32>),
    Gradient(UnitId, Vec<f32>),
    Weights(UnitId),
    Stored(UnitId),
}

#[derive(Clone, Debug, Default)]
pub struct ToyBackend {
    /// Everything that reached any session.
    pub seen: Arc<Mutex<Vec<Seen>>>,
    /// Submissions left until a session dies; zero means never.
    pub dies_after: Arc<AtomicUsize>,
}

impl ToyBackend {
    /// Whether anything but weights has reached it.
    pub fn has_seen_data(&self) -> bool {
        self.seen.lock().unwrap().iter().any(|seen| !matches!(seen, Seen::Weights(_)))
    }
}

impl ResidualBackend for ToyBackend {
    fn name(&self) -> &'static str {
        "toy"
    }

    fn probe(&self) -> Availability {
        Availability::Ready { device: "this thread".to_owned() }
    }

    fn open(&self, model: &ResidualModel) -> Result<Box<dyn ResidualTraining>, OpenError> {
        let make = |unit: &Unit| -> Box<dyn ToyUnit> {
            match unit {
                Unit::Conv(conv) => Box::new(ToyConv::new(conv)),
                Unit::Network(network) => Box::new(ToyNetwork::new(network)),
            }
        };
        let units = model.units.iter().map(make).collect();
        Ok(Box::new(ToySession { backend: self.clone(), units, results: HashMap::new(), next: 0, dead: false }))
    }
}

struct ToySession {
    backend: ToyBackend,
    units: Vec<Box<dyn ToyUnit>>,
    results: HashMap<Ticket, Batch>,
    next: u64,
    dead: bool,
}

impl ToySession {
    fn alive(&mut self) -> Result<(), SubmitError> {
        let left = self.backend.dies_after.load(Ordering::Relaxed);
        if left == 1 {
            self.dead = true;
        }
        if left > 0 {
            self.backend.dies_after.store(left - 1, Ordering::Relaxed);
        }
        if self.dead { Err(SubmitError::Lost { reason: "told to die".to_owned() }) } else { Ok(()) }
    }

    fn unit(&mut self, unit: UnitId) -> Result<&mut dyn ToyUnit, SubmitError> {
        let units = self.units.len();
        let missing = SubmitError::Unit { unit: unit.0, units };
        Ok(self.units.get_mut(unit.0 as usize).ok_or(missing)?.as_mut())
    }

    /// What a unit holds.
    fn held(&mut self, unit: UnitId, read: fn(&dyn ToyUnit) -> Vec<f32>) -> Result<Vec<f32>, CollectError> {
        let held = self.alive().and_then(|()| Ok(read(self.unit(unit)?)));
        held.map_err(|error| match error {
            SubmitError::Lost { reason } => CollectError::Lost { reason },
            other => CollectError::Failed { reason: other.to_string() },
        })
    }

    fn saw(&self, seen: Seen) {
        self.backend.seen.lock().unwrap().push(seen);
    }

    fn ticket(&mut self, batch: Batch) -> Ticket {
        self.next += 1;
        self.results.insert(Ticket(self.next), batch);
        Ticket(self.next)
    }
}

impl ResidualSession for ToySession {
    fn submit(&mut self, id: UnitId, x: Released<Payload>, pass: Pass) -> Result<Ticket, SubmitError> {
        self.alive()?;
        let x = x.into_inner().into_f32();
        self.saw(Seen::Residual(id, x.clone()));
        let y = self.unit(id)?.forward(x, pass);
        Ok(self.ticket(Batch::Outputs(y)))
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Batch, CollectError> {
        self.results.remove(&ticket).ok_or(CollectError::Ticket(ticket))
    }

    fn stats(&self) -> WorkerStats {
        WorkerStats::default()
    }
}

impl ResidualTraining for ToySession {
    fn submit_gradient(&mut self, id: UnitId, dy: Released<Payload>, wanted: Wanted) -> Result<Ticket, SubmitError> {
        self.alive()?;
        let dy = dy.into_inner().into_f32();
        self.saw(Seen::Gradient(id, dy.clone()));
        let gradients = self.unit(id)?.gradient(dy, wanted);
        let (dx, dw) = gradients.ok_or(SubmitError::NoForward { unit: id.0, samples: 0 })?;
        Ok(self.ticket(Batch::Gradients { input: dx, weights: dw }))
    }

    fn store(
        &mut self,
        id: UnitId,
        _first: u32,
        _bits: Released<PackedBits>,
        _labels: Option<Released<Vec<u32>>>,
    ) -> Result<(), SubmitError> {
        self.saw(Seen::Stored(id));
        Err(SubmitError::Unsupported { unit: id.0, what: "it remembers that it was asked to" })
    }

    fn set_weights(&mut self, id: UnitId, weights: &[f32]) -> Result<(), SubmitError> {
        self.alive()?;
        self.saw(Seen::Weights(id));
        self.unit(id)?.set_weights(weights.to_vec());
        Ok(())
    }

    fn add_weights(&mut self, id: UnitId, delta: Payload) -> Result<(), SubmitError> {
        self.alive()?;
        self.saw(Seen::Weights(id));
        let unit = self.unit(id)?;
        let sum = unit.weights().iter().zip(delta.into_f32()).map(|(w, d)| w + d).collect();
        unit.set_weights(sum);
        Ok(())
    }

    fn step(&mut self, id: UnitId, sgd: SgdStep) -> Result<(), SubmitError> {
        self.alive()?;
        self.unit(id)?.step(sgd);
        Ok(())
    }

    fn weights(&mut self, id: UnitId) -> Result<Vec<f32>, CollectError> {
        self.held(id, |unit| unit.weights())
    }

    fn momentum(&mut self, id: UnitId) -> Result<Vec<f32>, CollectError> {
        self.held(id, |unit| unit.momentum())
    }

    fn set_momentum(&mut self, id: UnitId, momentum: &[f32]) -> Result<(), SubmitError> {
        self.alive()?;
        self.unit(id)?.set_momentum(momentum);
        Ok(())
    }

    fn reset(&mut self) -> Result<(), SubmitError> {
        self.units.iter_mut().for_each(|unit| unit.reset());
        self.results.clear();
        Ok(())
    }
}
