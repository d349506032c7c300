//! A residual backend written from outside, as `docs/how-to/add-a-backend.md` describes it: convolutions on
//! the kernels of `asymflow-linalg`, in this thread. It records what it is sent and can be told to die.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use asymflow_linalg::conv::{self, ConvShape};
use asymflow_privacy::{Payload, Released};
use asymflow_residual::{
    Availability, Batch, CollectError, ConvUnit, OpenError, Pass, ResidualBackend, ResidualModel, ResidualSession,
    ResidualTraining, SgdStep, SubmitError, Ticket, Unit, UnitId, Wanted, WorkerStats,
};
use faer::Par;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};

/// One thing that reached the untrusted side.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    Residual(UnitId, Vec<f32>),
    Gradient(UnitId, Vec<f32>),
    Weights(UnitId),
}

#[derive(Clone, Debug, Default)]
pub struct ToyBackend {
    /// Everything that reached any session.
    pub seen: Arc<Mutex<Vec<Seen>>>,
    /// Submissions left until a session dies; zero means never.
    pub dies_after: Arc<AtomicUsize>,
}

impl ResidualBackend for ToyBackend {
    fn name(&self) -> &'static str {
        "toy"
    }

    fn probe(&self) -> Availability {
        Availability::Ready { device: "this thread".to_owned() }
    }

    fn open(&self, model: &ResidualModel) -> Result<Box<dyn ResidualTraining>, OpenError> {
        let mut units = Vec::new();
        for (index, unit) in model.units.iter().enumerate() {
            let Unit::Conv(conv) = unit else {
                let reason = "the toy computes convolutions only".to_owned();
                return Err(OpenError::Model { unit: index as u32, reason });
            };
            let weights = vec![0.0; shape(conv, 1).weight_len()];
            units.push(ToyUnit { conv: conv.clone(), weights, kept: None });
        }
        Ok(Box::new(ToySession { backend: self.clone(), units, results: HashMap::new(), next: 0, dead: false }))
    }
}

struct ToyUnit {
    conv: ConvUnit,
    weights: Vec<f32>,
    kept: Option<Vec<f32>>,
}

struct ToySession {
    backend: ToyBackend,
    units: Vec<ToyUnit>,
    results: HashMap<Ticket, Batch>,
    next: u64,
    dead: bool,
}

fn shape(unit: &ConvUnit, samples: usize) -> ConvShape {
    ConvShape {
        samples,
        in_channels: unit.input.channels,
        height: unit.input.height,
        width: unit.input.width,
        out_channels: unit.out_channels,
        kernel: unit.kernel,
        stride: unit.stride,
        padding: unit.padding,
    }
}

fn with_stack<T>(request: StackReq, f: impl FnOnce(&mut MemStack) -> T) -> T {
    f(MemStack::new(&mut MemBuffer::new(request)))
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

    fn unit(&mut self, unit: UnitId) -> Result<&mut ToyUnit, SubmitError> {
        let units = self.units.len();
        self.units.get_mut(unit.0 as usize).ok_or(SubmitError::Unit { unit: unit.0, units })
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
        let unit = self.unit(id)?;
        let s = shape(&unit.conv, x.len() / unit.conv.input.len());
        let mut y = vec![0.0; s.output_len()];
        let par = Par::Seq;
        with_stack(conv::forward_scratch(s, par), |stack| conv::forward(s, &x, &unit.weights, &mut y, par, stack))
            .expect("shapes were checked");
        unit.kept = (pass == Pass::Training).then_some(x);
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
        let unit = self.unit(id)?;
        let x = unit.kept.take().ok_or(SubmitError::NoForward { unit: id.0, samples: 0 })?;
        let s = shape(&unit.conv, x.len() / unit.conv.input.len());
        let (mut dx, mut dw, par) = (Vec::new(), vec![0.0; s.weight_len()], Par::Seq);
        with_stack(conv::weight_gradient_scratch(s, par), |stack| {
            conv::weight_gradient(s, &x, &dy, &mut dw, par, stack)
        })
        .expect("shapes were checked");
        if wanted.input {
            dx = vec![0.0; s.input_len()];
            with_stack(conv::input_gradient_scratch(s, par), |stack| {
                conv::input_gradient(s, &dy, &unit.weights, &mut dx, par, stack)
            })
            .expect("shapes were checked");
        }
        Ok(self.ticket(Batch::Gradients { input: dx, weights: dw }))
    }

    fn set_weights(&mut self, id: UnitId, weights: &[f32]) -> Result<(), SubmitError> {
        self.alive()?;
        self.saw(Seen::Weights(id));
        self.unit(id)?.weights.copy_from_slice(weights);
        Ok(())
    }

    fn add_weights(&mut self, id: UnitId, delta: Payload) -> Result<(), SubmitError> {
        self.alive()?;
        self.saw(Seen::Weights(id));
        let delta = delta.into_f32();
        self.unit(id)?.weights.iter_mut().zip(delta).for_each(|(w, d)| *w += d);
        Ok(())
    }

    fn step(&mut self, id: UnitId, _sgd: SgdStep) -> Result<(), SubmitError> {
        Err(SubmitError::Unit { unit: id.0, units: 0 })
    }

    fn weights(&mut self, id: UnitId) -> Result<Vec<f32>, CollectError> {
        let unit = self.units.get(id.0 as usize);
        unit.map(|u| u.weights.clone()).ok_or(CollectError::Failed { reason: "no such unit".to_owned() })
    }

    fn reset(&mut self) -> Result<(), SubmitError> {
        self.units.iter_mut().for_each(|unit| unit.kept = None);
        self.results.clear();
        Ok(())
    }
}
