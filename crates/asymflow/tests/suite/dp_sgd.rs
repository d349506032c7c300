//! DP-SGD in the trusted part: what it charges, and what it refuses.

use asymflow::checkpoint::Checkpoint;
use asymflow::job::{Body, JobReport, JobSpec};
use asymflow::modes::{Facts, ModeRef, Registry, Sampling};
use asymflow_privacy::Loss;
use asymflow_privacy::accountants::{Accountant, Event, PldAccountant, Relation};
use asymflow_zoo::{by_name, models::replace::replace_activations};
use serde_json::json;

use crate::toy_backend::ToyBackend;
use crate::training::{go, job_of};

/// 48 records in batches of 16, three epochs.
fn job(settings: serde_json::Value) -> JobSpec {
    let mut job = job_of("dp-sgd", &[("dp", settings)]);
    let network = by_name("demo-cnn", 10, None).unwrap();
    job.network = replace_activations(&network, &"group-norm:4".parse().unwrap()).unwrap();
    job
}

#[test]
fn a_run_costs_what_its_steps_cost_and_no_more_than_was_asked() {
    for (settings, asked) in [(json!({ "epsilon": 3.0 }), Some(3.0)), (json!({ "noise_multiplier": 1.5 }), None)] {
        let job = job(settings);
        let (report, heard) = go(&job, (Body::Empty, &[]), &ToyBackend::default(), None);
        let JobReport::Train(report) = report.unwrap() else { panic!("not a training") };
        // A step is charged to every record, whether it took part or not.
        assert_eq!(heard.ledger().len(), 9);
        assert!(heard.ledger().iter().all(|entry| entry.mechanism == "dp_sgd" && entry.records == 48));
        let event = Event::of_loss(heard.ledger()[0].loss).unwrap();
        let Event::PoissonSampled { q, noise_multiplier } = event else { panic!("{event:?}") };
        assert!((q - 1.0 / 3.0).abs() < 1e-12);
        let mut pld = PldAccountant::default();
        pld.compose(Event::PoissonSampled { q, noise_multiplier }, 9).unwrap();
        let epsilon = report.epsilon.unwrap();
        assert_eq!(epsilon, pld.epsilon(1e-5).unwrap());
        match asked {
            Some(asked) => assert!(epsilon <= asked && epsilon > 0.999 * asked, "{epsilon}"),
            None => assert!((noise_multiplier / 1.5 - 1.0).abs() < 1e-9),
        }
        // A resumed run has nothing left to do and the same ε; test records lose nothing.
        let last = heard.checkpoints.last().unwrap();
        let spent = Checkpoint::decode(last).unwrap().spent;
        assert_eq!(spent[63].epsilon(1e-5), Ok(0.0));
        let (resumed, after) = go(&job, (Body::Checkpoint, last), &ToyBackend::default(), None);
        let JobReport::Train(resumed) = resumed.unwrap() else { panic!("not a training") };
        assert_eq!(resumed.epsilon, Some(epsilon));
        assert!(after.ledger().is_empty());
    }
}

#[test]
fn a_stopped_run_goes_on_within_its_promise() {
    let job = job(json!({ "epsilon": 3.0 }));
    let (first, before) = go(&job, (Body::Empty, &[]), &ToyBackend::default(), Some(4));
    let JobReport::Train(first) = first.unwrap() else { panic!("not a training") };
    assert!(first.interrupted && before.ledger().len() == 4);
    let kept = before.checkpoints.last().unwrap();
    let (second, after) = go(&job, (Body::Checkpoint, kept), &ToyBackend::default(), None);
    let JobReport::Train(second) = second.unwrap() else { panic!("not a training") };
    assert_eq!(after.ledger().len(), 5);
    assert!(second.epsilon.unwrap() <= 3.0, "{:?}", second.epsilon);
}

/// Delta whose M_bb and M_main are trained by DP-SGD, two epochs of three.
fn delta(name: &str, variant: &str) -> JobSpec {
    let settings = json!({ "weights": "dp-sgd", "stage1_epochs": 2, "variant": variant });
    let mut job = job_of(name, &[("delta", settings), ("dp", json!({ "epsilon": 3.0 }))]);
    let network = by_name("demo-cnn", 10, None).unwrap();
    job.network = replace_activations(&network, &"group-norm:4".parse().unwrap()).unwrap();
    job
}

#[test]
fn what_is_alone_is_trained_to_the_end_and_a_projection_of_the_records_is_refused() {
    let alone = delta("main-only", "strict");
    let registry = Registry::default();
    let facts = Facts {
        network: &alone.network,
        terms: &alone.terms,
        sampling: Sampling { batch: 16, records: 48 },
        epochs: 3,
        evaluations: 3,
        registry: &registry,
    };
    let guard = registry.decode(&alone.mode).unwrap().guard(&facts).unwrap().unwrap();
    assert!(guard.mechanism == "dp_sgd" && guard.sigma.unwrap() > 0.0);
    let (report, heard) = go(&alone, (Body::Empty, &[]), &ToyBackend::default(), None);
    let JobReport::Train(report) = report.unwrap() else { panic!("not a training") };
    assert_eq!(heard.ledger().len(), 9);
    assert!((2.9..=3.0).contains(&report.epsilon.unwrap()), "{:?}", report.epsilon);
    let job = delta("delta", "compact");
    let said = go(&job, (Body::Empty, &[]), &ToyBackend::default(), None).0.unwrap_err().to_string();
    assert!(said.contains("variant strict where weights are trained by dp-sgd"), "{said}");
    let mut plain = delta("delta", "strict");
    plain.network = by_name("demo-cnn", 10, None).unwrap();
    let said = go(&plain, (Body::Empty, &[]), &ToyBackend::default(), None).0.unwrap_err().to_string();
    assert!(said.contains("use +group-norm:8 instead"), "{said}");
}

#[test]
fn networks_and_settings_that_guarantee_nothing_are_refused_in_words() {
    let refused = |job: &JobSpec| go(job, (Body::Empty, &[]), &ToyBackend::default(), None).0.unwrap_err().to_string();
    let mut batch = job(json!({}));
    batch.network = by_name("demo-cnn", 10, None).unwrap();
    let said = refused(&batch);
    assert!(said.contains("batch normalisation") && said.contains("use +group-norm:8 instead"), "{said}");
    let mut replaced = job(json!({}));
    replaced.terms.relation = Relation::Replace;
    assert!(refused(&replaced).contains("privacy.relation"));
    assert!(refused(&job(json!({ "clip": 0.0 }))).contains("sigma must be positive"));
    let mut short = job(json!({ "noise_multiplier": 1.0 }));
    short.terms.budget_epsilon = Some(1.0);
    let said = refused(&short);
    assert!(said.contains("9 times sampled gradient"), "{said}");
    let spec = Registry::default().decode(&short.mode).unwrap();
    assert_eq!(ModeRef::of(&*spec).unwrap(), short.mode);
}

#[derive(serde::Deserialize)]
struct Golden {
    delta: f64,
    points: Vec<Point>,
}

#[derive(serde::Deserialize)]
struct Point {
    records: usize,
    batch: usize,
    epochs: usize,
    asked: f64,
    rate: f64,
    steps: u64,
    noise_multiplier: f64,
    epsilon: f64,
}

/// By `golden/dp_sgd.py`. Opacus bounds ε from above by at most 0.01 and a tenth of a percent, and so its noise.
#[test]
fn rate_steps_noise_and_epsilon_are_those_of_opacus() {
    let golden: Golden = serde_json::from_str(include_str!("golden/dp_sgd.json")).unwrap();
    let registry = Registry::default();
    for point in golden.points {
        let job = job(json!({ "epsilon": point.asked }));
        let facts = Facts {
            network: &job.network,
            terms: &job.terms,
            sampling: Sampling { batch: point.batch, records: point.records },
            epochs: point.epochs,
            evaluations: 0,
            registry: &registry,
        };
        let losses = registry.decode(&job.mode).unwrap().losses(&facts).unwrap();
        let charge = &losses.train[0];
        let Loss::Sampled { q, noise_multiplier, .. } = charge.loss else { panic!("{:?}", charge.loss) };
        assert!((q / point.rate - 1.0).abs() < 1e-12 && charge.times == point.steps, "{q} {}", charge.times);
        let off = noise_multiplier / point.noise_multiplier - 1.0;
        assert!((-0.01..0.001).contains(&off), "noise {noise_multiplier}, by Opacus {}", point.noise_multiplier);
        let mut pld = PldAccountant::default();
        let event = Event::PoissonSampled { q, noise_multiplier: point.noise_multiplier };
        pld.compose(event, point.steps).unwrap();
        let epsilon = pld.epsilon(golden.delta).unwrap();
        assert!((-0.03..0.002).contains(&(epsilon - point.epsilon)), "{epsilon}, by Opacus {}", point.epsilon);
    }
}
