//! What holds for every mode, whatever it is called: these tests go over the registry, so that a new mode is in them.

use std::sync::Arc;
use std::time::Duration;

use asymflow::checkpoint::Checkpoint;
use asymflow::job::{Body, JobSpec, Task};
use asymflow::modes::{Facts, Mode, ModeSpec, Parts, Records, Registry, Sampling, Serving, TrainBatch};
use asymflow::run::load;
use asymflow_privacy::records::{Budget, RecordAccountant};
use asymflow_residual::{ResidualBackend, backend::SgdStep};
use asymflow_zoo::data::{Augment, Loader, Normalization};
use asymflow_zoo::{Weights, by_name, models::replace::replace_activations};
use faer::Par;
use serde_json::json;

use crate::toy_backend::ToyBackend;
use crate::training::{go, job_of};

/// A job in every mode of the registry, on a network that each can compute, with noise where a mode draws any.
pub fn jobs() -> Vec<(&'static str, JobSpec)> {
    let noise = json!({ "mechanism": "discrete_gaussian", "sigma": 2.0, "clip": 1.0 });
    let job = |(name, delta)| {
        let mut job = job_of(name, &[("privacy", noise.clone()), ("delta", delta)]);
        let network = by_name("demo-cnn", 10, None).unwrap();
        let replacement = match name {
            "dp-sgd" => "group-norm:4",
            "cipher" => "react",
            _ => "average-pool",
        };
        job.network = replace_activations(&network, &replacement.parse().unwrap()).unwrap();
        (name, job)
    };
    let compact = |codebook| ("delta", json!({ "variant": "compact", "codebook": codebook, "epsilon": 4.0 }));
    let names = Registry::default().names().map(|name| (name, json!({}))).collect::<Vec<_>>();
    let jobs: Vec<_> = names.into_iter().chain(["classes", "sphere"].map(compact)).map(job).collect();
    assert!(jobs.len() >= 7, "the list of modes has shrunk to {}", jobs.len());
    jobs
}

pub fn facts<'a>(job: &'a JobSpec, registry: &'a Registry) -> Facts<'a> {
    let Task::Train(spec) = &job.task else { panic!("not a training") };
    let sampling = Sampling { batch: spec.batch, records: 48 };
    let (network, terms) = (&job.network, &job.terms);
    Facts { network, terms, sampling, epochs: spec.epochs, evaluations: spec.evaluations(), registry }
}

/// Below the cost of any release.
const TOO_LITTLE: f64 = 1e-6;

#[test]
fn a_run_whose_budget_is_below_one_release_sends_nothing() {
    let registry = Registry::default();
    for (name, mut job) in jobs() {
        let losses = registry.decode(&job.mode).unwrap().losses(&facts(&job, &registry)).unwrap();
        let is_silent = losses.train.is_empty() && losses.test.is_empty();
        job.terms.budget_epsilon = Some(TOO_LITTLE);
        let backend = ToyBackend::default();
        let (result, heard) = go(&job, (Body::Empty, &[]), &backend, None);
        assert!(!backend.has_seen_data(), "{name}");
        assert!(heard.ledger().is_empty(), "{name}");
        assert_eq!(result.is_ok(), is_silent, "{name}: {:?}", result.err());
    }
}

/// Everything that a mode can be asked to do, whether it succeeds or not: how often it was refused.
fn ask_for_everything(mode: &mut dyn Mode, job: &JobSpec) -> usize {
    let data = load(&job.data, &Registry::default()).unwrap().split;
    let normalization = Normalization::of(&data.train);
    let loader = Loader::new(&data.train, &normalization, Augment::NONE, 1);
    let mut batch = asymflow_zoo::data::Batch::default();
    loader.gather(None, &(0..8).collect::<Vec<_>>(), &mut batch);
    let records: Vec<usize> = (0..8).collect();
    let mut refused = 0;
    let mut count = |is_error: bool| refused += usize::from(is_error);
    // The last epoch, in which everything that is ever released has begun to be.
    count(mode.draw(2, &Records { loader: &loader, count: 48, batch: 8 }).is_err());
    count(mode.begin_epoch(2).is_err());
    let step = TrainBatch::new(&batch.images, &batch.labels, &records).unwrap();
    count(mode.step(step, SgdStep::plain(1e-3, 0.9, 0.0)).is_err());
    count(mode.draw_queries(&batch.images, &records).is_err());
    count(mode.infer(&batch.images, &records).is_err());
    if let Some(answering) = mode.answering() {
        count(answering.answer(&batch.images, 8, 8, Duration::ZERO).is_err());
    }
    refused
}

fn built(spec: &dyn ModeSpec, job: &JobSpec, accountant: RecordAccountant, backend: &ToyBackend) -> Box<dyn Mode> {
    let registry = Registry::default();
    let weights = Weights::init(&spec.stored_network(&job.network).unwrap(), 3);
    let parts = Parts {
        network: job.network.clone(),
        weights: weights.into(),
        terms: job.terms,
        sampling: Sampling { batch: 8, records: 48 },
        epochs: 3,
        accountant,
        backend: Some(Arc::new(backend.clone()) as Arc<dyn ResidualBackend>),
        registry: &registry,
        par: Par::Seq,
    };
    spec.build(parts).unwrap()
}

/// The plan before a run is one guard; the door itself is the other.
#[test]
fn a_door_whose_budget_is_below_one_release_lets_nothing_out() {
    let registry = Registry::default();
    for (name, job) in jobs() {
        let spec = registry.decode(&job.mode).unwrap();
        let losses = spec.losses(&facts(&job, &registry)).unwrap();
        let budget = Budget { epsilon: TOO_LITTLE, delta: job.terms.delta };
        for accountant in [
            RecordAccountant::new(64).with_budget(Some(budget)),
            RecordAccountant::prepaid(64, &[]),
            // Of no record at all.
            RecordAccountant::new(0),
        ] {
            let backend = ToyBackend::default();
            let mut mode = built(&*spec, &job, accountant, &backend);
            let refused = ask_for_everything(&mut *mode, &job);
            assert!(!backend.has_seen_data(), "{name}: {:?}", backend.seen.lock().unwrap());
            assert_eq!(refused > 0, !losses.train.is_empty(), "{name}: {refused} refusals");
        }
    }
}

/// A service is told what an answer costs; the door lets out that and no more.
#[test]
fn an_answer_costs_what_the_mode_says() {
    let registry = Registry::default();
    let mut served = 0;
    for (name, job) in jobs() {
        let spec = registry.decode(&job.mode).unwrap();
        let Serving::Served { losses, .. } = spec.serving(&facts(&job, &registry)).unwrap() else { continue };
        served += 1;
        let images = vec![0.5; 2 * job.network.input.len()];
        let answer = |losses| {
            let mut mode = built(&*spec, &job, RecordAccountant::prepaid(4, losses), &ToyBackend::default());
            mode.answering().expect("it is served").answer(&images, 2, 4, Duration::ZERO).map(|logits| logits.len())
        };
        // Enough is let out, by modes whose worker computes here.
        assert_eq!(answer(&losses).unwrap(), 20, "{name}");
        if let [_, fewer @ ..] = &losses[..] {
            assert!(answer(fewer).is_err(), "{name}: a release that was not charged");
        }
    }
    assert!(served >= 3, "{served} modes are served");
}

/// Every mode is told of a batch whose labels and records differ before it looks at either.
#[test]
fn a_batch_whose_parts_differ_in_length_is_none() {
    let images = vec![0.0; 64];
    for (labels, records) in [(64, 1), (1, 64), (0, 0), (3, 3)] {
        let (labels, records) = (vec![0; labels], (0..records).collect::<Vec<usize>>());
        assert!(TrainBatch::new(&images, &labels, &records).is_err(), "{} {}", labels.len(), records.len());
    }
}

/// Of the same run a checkpoint is gone on from; of one that differs in anything it is refused, and what differs is named.
#[test]
fn a_checkpoint_of_another_run_is_refused_in_every_mode() {
    type Change = fn(&mut JobSpec);
    fn train(job: &mut JobSpec) -> &mut asymflow::job::TrainSpec {
        match &mut job.task {
            Task::Train(spec) => spec,
            other => panic!("{other:?}"),
        }
    }
    let changes: [(&str, Change); 7] = [
        ("data.test.images", |job| job.data.test = Some(15)),
        ("data.train.images", |job| job.data.train = Some(47)),
        ("data.train.sha256", |job| job.data.seed = 2),
        ("privacy.delta", |job| job.terms.delta = 1e-6),
        ("privacy.budget_epsilon", |job| job.terms.budget_epsilon = Some(1e9)),
        ("schedule.learning_rate", |job| train(job).learning_rate = 0.5),
        ("schedule.epochs", |job| train(job).epochs = 4),
    ];
    for (name, job) in jobs() {
        if registry_needs_stored_records(&job) {
            continue;
        }
        let (_, heard) = go(&job, (Body::Empty, &[]), &ToyBackend::default(), Some(1));
        let kept = heard.checkpoints.last().unwrap_or_else(|| panic!("{name} left no checkpoint"));
        assert!(Checkpoint::decode(kept).is_ok());
        for (what, change) in changes {
            let mut other = job.clone();
            change(&mut other);
            let backend = ToyBackend::default();
            let (result, _) = go(&other, (Body::Checkpoint, kept), &backend, None);
            let said = result.unwrap_err().to_string();
            assert!(!backend.has_seen_data(), "{name} {what}");
            assert!(said.contains("of another run") && said.contains(what), "{name} {what}: {said}");
        }
    }
}

/// The toy stores no records: what trains on stored ones is tested beside the worker.
fn registry_needs_stored_records(job: &JobSpec) -> bool {
    let backend = ToyBackend::default();
    let (result, _) = go(job, (Body::Empty, &[]), &backend, None);
    result.is_err_and(|error| error.to_string().contains("stores") || error.to_string().contains("remembers"))
}
