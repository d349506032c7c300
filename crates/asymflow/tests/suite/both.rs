//! What the parity tests of this crate and of the worker process share: one network, computed whole and split.

use std::sync::Arc;

use asymflow::modes::{
    AsymMl, AsymMlParts, ExecError, GuardSpec, Mode, Registry, SplitConv, TrainBatch, TrustedOnly, open_link,
};
use asymflow::plan::Plan;
use asymflow_engine::{
    Engine,
    buffer::{Activation, Buffer, Pool},
    convolver::Convolver,
    local::LocalConv,
    program::ConvNode,
};
use asymflow_linalg::decompose::by_name;
use asymflow_privacy::{Door, accountants::Relation, door::Gate, payload::Precision, records::RecordAccountant};
use asymflow_residual::{
    ResidualBackend,
    backend::{Pass, SgdStep},
};
use asymflow_zoo::{Network, Weights};
use faer::Par;
use rand::{RngExt, SeedableRng};
use rand_chacha::{ChaCha8Rng, ChaCha20Rng};

fn no_noise() -> Gate<Vec<f32>> {
    GuardSpec::default().gate(&Registry::default(), Relation::Remove).unwrap()
}

pub fn images(network: &Network, samples: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    (0..samples * network.input.len()).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect()
}

pub fn asymml(
    network: &Network,
    weights: &Weights,
    plan: Plan,
    decomposition: &str,
    precision: Precision,
    backend: Arc<dyn ResidualBackend>,
) -> AsymMl {
    in_turns(network, weights, (plan, decomposition), precision, backend, false)
}

/// The same, with halves of a batch that leapfrog where that is asked for.
pub fn in_turns(
    network: &Network,
    weights: &Weights,
    (plan, decomposition): (Plan, &str),
    precision: Precision,
    backend: Arc<dyn ResidualBackend>,
    leapfrog: bool,
) -> AsymMl {
    let parts = AsymMlParts {
        plan,
        decomposer: by_name(decomposition).unwrap(),
        gate: no_noise(),
        sized: None,
        precision,
        verify: true,
        leapfrog,
        backend,
        accountant: RecordAccountant::new(64),
    };
    AsymMl::new(network.clone(), weights.clone(), parts, Par::rayon(2)).unwrap()
}

/// ‖a − reference‖ / ‖reference‖.
pub fn relative(a: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(a.len(), reference.len());
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let off = squares(&mut a.iter().zip(reference).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    (off / squares(&mut reference.iter().map(|&v| f64::from(v)))).sqrt()
}

pub const SGD: SgdStep = SgdStep::plain(0.01, 0.9, 5e-4);

/// After one step from the same weights the momentum is the gradient, so comparing states compares gradients.
pub fn step(mode: &mut dyn Mode, images: &[f32], samples: usize) -> (f64, Vec<f32>) {
    let labels: Vec<u32> = (0..samples as u32).map(|i| i % 10).collect();
    let records: Vec<usize> = (0..samples).collect();
    let mut batch = TrainBatch::new(images, &labels, &records).unwrap();
    batch.dropout_seed = 3;
    let report = mode.step(batch, SGD).unwrap();
    (report.loss, mode.state().unwrap().momentum)
}

/// Computes every convolution both ways on the same numbers and keeps the largest disagreement.
///
/// Layer by layer, because a network of ReLUs amplifies rounding: an activation that crosses zero changes
/// its gradient wholly, whoever computes it.
struct Both {
    unsplit: LocalConv,
    split: SplitConv,
    worst: f64,
}

impl Convolver for Both {
    type Error = ExecError;

    fn forward(&mut self, node: &ConvNode, x: &Activation, weight: &[f32], pass: Pass) -> Result<Buffer, ExecError> {
        let y = self.unsplit.forward(node, x, weight, pass)?;
        self.worst = self.worst.max(relative(&self.split.forward(node, x, weight, pass)?, &y));
        Ok(y)
    }

    fn backward(
        &mut self,
        node: &ConvNode,
        dy: Buffer,
        samples: usize,
        weight: &[f32],
        d_weight: &mut [f32],
    ) -> Result<Option<Buffer>, ExecError> {
        let copy = Pool::default().adopt(dy.to_vec());
        let mut split_weight = vec![0.0; d_weight.len()];
        let split = self.split.backward(node, copy, samples, weight, &mut split_weight)?;
        let dx = self.unsplit.backward(node, dy, samples, weight, d_weight)?;
        self.worst = self.worst.max(relative(&split_weight, d_weight));
        if let (Some(split), Some(dx)) = (&split, &dx) {
            self.worst = self.worst.max(relative(split, dx));
        }
        assert_eq!(split.is_some(), dx.is_some());
        Ok(dx)
    }
}

/// Outputs, input gradients and weight gradients of every convolution within 2e-4 (relative, l2), at each
/// rank and decomposition; logits of the whole network within 1e-4.
pub fn parity(name: &str, samples: usize, backend: &dyn Fn() -> Arc<dyn ResidualBackend>) {
    let par = Par::rayon(2);
    let network = asymflow_zoo::by_name(name, 10, None).unwrap();
    let weights = Weights::init(&network, 5);
    let images = images(&network, samples);
    let records: Vec<usize> = (0..samples).collect();
    let logits = TrustedOnly::new(network.clone(), &weights, par).unwrap().infer(&images, &records).unwrap();
    for decomposition in asymflow_linalg::decompose::NAMES {
        for rank in [1, 4, 16, usize::MAX] {
            let label = format!("{name}, {decomposition}, rank {rank}");
            let mut engine = Engine::new(network.clone(), &weights, par).unwrap();
            let plan = Plan::split_all(engine.program(), rank);
            let mut whole = asymml(&network, &weights, plan.clone(), decomposition, Precision::F32, backend());
            let off = relative(&whole.infer(&images, &records).unwrap(), &logits);
            assert!(off < 1e-4, "{label}: logits off by {off:e}");

            let nodes = engine.program().conv_nodes();
            let link = open_link(backend(), &nodes, &plan.placements()).unwrap();
            let mut split = SplitConv::new(
                plan.placements(),
                by_name(decomposition).unwrap(),
                (Door::new(RecordAccountant::new(samples), ChaCha20Rng::seed_from_u64(1)), no_noise()),
                Precision::F32,
                link,
                Pool::default(),
                par,
            );
            split.begin(&records);
            split.send_weights(&nodes, engine.params()).unwrap();
            let unsplit = LocalConv::new(engine.program().convs(), Pool::default(), par);
            let mut both = Both { unsplit, split, worst: 0.0 };
            let logits = engine.forward(&images, samples, Pass::Training, 0, &mut both).unwrap();
            engine.backward(logits, samples, &mut both).unwrap();
            assert!(both.worst < 2e-4, "{label}: a layer is off by {:e}", both.worst);
        }
    }
}
