//! Training runs: resumed ones, ones that lose their worker, and what they account.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use asymflow::checkpoint::Checkpoint;
use asymflow::job::{
    Body, DataSpec, EasingSpec, FailureCode, FromTrusted, JobReport, JobSpec, Notice, Schedule, Task, TrainSpec,
    WorkerSpec, WorkerTransport,
};
use asymflow::modes::{Asked, ModeRef, PrivacyTerms, Registry, Sections};
use asymflow::run::{RunError, run};
use asymflow::train::{HostGone, Observer};
use asymflow_privacy::{
    Loss,
    accountants::Relation,
    calibration::gaussian_epsilon,
    payload::Precision,
    records::{Flow, LedgerEntry, RecordLedger},
};
use asymflow_residual::ResidualBackend;
use asymflow_zoo::by_name;
use serde_json::json;

use crate::toy_backend::ToyBackend;

#[derive(Default)]
pub struct Heard {
    losses: Vec<(usize, usize, f64)>,
    pub checkpoints: Vec<Vec<u8>>,
    ledger: Vec<LedgerEntry>,
    notices: Vec<Notice>,
    stop_after: Option<usize>,
    stop: Arc<AtomicBool>,
}

impl Heard {
    /// What was released.
    pub fn ledger(&self) -> &[LedgerEntry] {
        &self.ledger
    }
}

impl Observer for Heard {
    fn tell(&mut self, message: FromTrusted, body: &[u8]) -> Result<(), HostGone> {
        match message {
            FromTrusted::Step { epoch, step, loss } => {
                self.losses.push((epoch, step, loss));
                if self.stop_after == Some(self.losses.len()) {
                    self.stop.store(true, Ordering::Relaxed);
                }
            }
            FromTrusted::Checkpoint { .. } => self.checkpoints.push(body.to_vec()),
            FromTrusted::Ledger(entries) => self.ledger.extend(entries),
            FromTrusted::Notice(notice) => self.notices.push(notice),
            _ => {}
        }
        Ok(())
    }
}

fn job(mode: &str) -> JobSpec {
    guarded_job(mode, json!({ "mechanism": "insecure_none" }))
}

/// A job in a mode whose section `[privacy]` is `privacy`.
pub fn guarded_job(mode: &str, privacy: serde_json::Value) -> JobSpec {
    job_of(mode, &[("privacy", privacy)])
}

pub fn job_of(mode: &str, others: &[(&str, serde_json::Value)]) -> JobSpec {
    let network = by_name("demo-cnn", 10, None).unwrap();
    let mut sections = Sections::default();
    sections.values.insert("mode".to_owned(), json!({ "rank": "fixed:4" }));
    for (name, section) in others {
        sections.values.insert((*name).to_owned(), section.clone());
    }
    let asked = Asked { name: mode, epsilon: None, network: &network, epochs: 3, sections: &sections };
    let spec = Registry::default().spec(&asked).unwrap();
    JobSpec {
        mode: ModeRef::of(&*spec).unwrap(),
        terms: PrivacyTerms { relation: Relation::Remove, delta: 1e-5, budget_epsilon: None },
        data: DataSpec {
            path: None,
            reader: None,
            train: Some(48),
            test: Some(16),
            seed: 1,
            augment: true,
            prepare: Default::default(),
        },
        network,
        worker: Some(WorkerSpec {
            address: String::new(),
            fingerprint: None,
            token: String::new(),
            insecure_plaintext: false,
            transport: WorkerTransport::Tcp,
            timeout_seconds: 1,
            patience_seconds: 1,
        }),
        threads: 2,
        vault: None,
        memory_limit_bytes: None,
        task: Task::Train(TrainSpec {
            epochs: 3,
            batch: 16,
            learning_rate: 0.05,
            momentum: 0.9,
            weight_decay: 5e-4,
            schedule: Schedule::Cosine,
            seed: 4,
            evaluate_every: 2,
            clip_norm: None,
            coefficient_rate: 1.0,
            first_layer_rate: 1.0,
            easing: EasingSpec::default(),
            teacher: None,
            keep_diverged: false,
        }),
    }
}

pub fn go(
    job: &JobSpec,
    body: (Body, &[u8]),
    backend: &ToyBackend,
    stop_after: Option<usize>,
) -> (Result<JobReport, RunError>, Heard) {
    let stop = Arc::new(AtomicBool::new(false));
    let mut heard = Heard { stop_after, stop: Arc::clone(&stop), ..Heard::default() };
    let backend = backend.clone();
    let open = move |_: &JobSpec, _: Precision| Ok(Arc::new(backend.clone()) as Arc<dyn ResidualBackend>);
    (run(job, (body.0, body.1.to_vec()), &Registry::default(), &open, &stop, &mut heard), heard)
}

#[test]
fn a_stopped_run_resumes_to_the_same_losses() {
    for mode in ["trusted-only", "asymml", "clear"] {
        let job = job(mode);
        let (whole, heard) = go(&job, (Body::Empty, &[]), &ToyBackend::default(), None);
        whole.unwrap();
        assert_eq!(heard.losses.len(), 9);
        // In the middle of an epoch, and at its last step.
        for stop_after in [4, 6] {
            let (first, before) = go(&job, (Body::Empty, &[]), &ToyBackend::default(), Some(stop_after));
            let JobReport::Train(first) = first.unwrap() else { panic!("not a training") };
            assert!(first.interrupted);
            let checkpoint = before.checkpoints.last().unwrap();
            let (second, after) = go(&job, (Body::Checkpoint, checkpoint), &ToyBackend::default(), None);
            assert!(matches!(second, Ok(JobReport::Train(report)) if !report.interrupted));
            let resumed: Vec<_> = before.losses.iter().chain(&after.losses).copied().collect();
            assert_eq!(resumed, heard.losses, "{mode:?} stopped after {stop_after}");
            let end = |heard: &Heard| Checkpoint::decode(heard.checkpoints.last().unwrap()).unwrap();
            assert_eq!(end(&after), end(&heard));
        }
    }
}

#[test]
fn a_run_survives_the_loss_of_its_worker_and_says_so() {
    let job = job("asymml");
    let (whole, undisturbed) = go(&job, (Body::Empty, &[]), &ToyBackend::default(), None);
    whole.unwrap();
    for dies_after in [9, 14, 23, 40] {
        let backend = ToyBackend::default();
        backend.dies_after.store(dies_after, Ordering::Relaxed);
        let (result, heard) = go(&job, (Body::Empty, &[]), &backend, None);
        let JobReport::Train(report) = result.unwrap() else { panic!("not a training") };
        assert_eq!(report.reopened, 1, "dies after {dies_after}");
        assert!(matches!(heard.notices[..], [Notice::WorkerReopened { .. }]));
        assert_eq!(heard.losses, undisturbed.losses, "dies after {dies_after}");
    }
}

/// In `clear` the worker holds what was trained since the last checkpoint, and takes it with it.
#[test]
fn a_clear_run_does_lost_steps_again_wherever_its_worker_dies() {
    let job = job("clear");
    let (whole, undisturbed) = go(&job, (Body::Empty, &[]), &ToyBackend::default(), None);
    whole.unwrap();
    // The first message sends the weights; a step takes three, an epoch's state two, an evaluation one.
    let messages = 1 + 9 * 3 + 3 * 2 + 2;
    for dies_after in 2..=messages {
        let backend = ToyBackend::default();
        backend.dies_after.store(dies_after, Ordering::Relaxed);
        let (result, heard) = go(&job, (Body::Empty, &[]), &backend, None);
        let JobReport::Train(report) = result.unwrap() else { panic!("not a training") };
        assert_eq!(report.reopened, 1, "dies after {dies_after}");
        let [Notice::WorkerReopened { step, from, .. }] = heard.notices[..] else { panic!("{:?}", heard.notices) };
        assert!(from == step || from == 0, "step {step}, from {from}");
        let mut losses = heard.losses.clone();
        assert_eq!(losses.len(), 9 + step - from, "dies after {dies_after}");
        losses.sort_by_key(|&(epoch, step, _)| (epoch, step));
        losses.dedup();
        assert_eq!(losses, undisturbed.losses, "dies after {dies_after}");
        assert_eq!(heard.checkpoints, undisturbed.checkpoints, "dies after {dies_after}");
    }
}

#[test]
fn every_release_is_in_the_ledger_and_composes_by_record() {
    let mut job = job("asymml");
    let (report, heard) = go(&job, (Body::Empty, &[]), &ToyBackend::default(), None);
    let JobReport::Train(report) = report.unwrap() else { panic!("not a training") };
    assert_eq!(report.epsilon, Some(f64::INFINITY));
    let split = report.plan.unwrap().convs.iter().filter(|c| c.placement.is_split()).count();
    // 9 training steps release a residual and a gradient a layer, and the weights; two evaluations release a residual.
    assert_eq!(heard.ledger.len(), split * (9 * 2 + 2) + 9);
    let weights = |e: &&LedgerEntry| e.flow == Flow::Weights;
    assert_eq!(heard.ledger.iter().filter(weights).count(), 9);
    assert!(heard.ledger.iter().all(|e| e.loss == Loss::Infinite));

    job = guarded_job("asymml", json!({ "mechanism": "discrete_gaussian", "sigma": 2.0, "clip": 1.0 }));
    // The noise is large and random; at this rate it cannot make the weights diverge.
    let Task::Train(train) = &mut job.task else { panic!("not a training") };
    train.learning_rate = 1e-6;
    let (report, heard) = go(&job, (Body::Empty, &[]), &ToyBackend::default(), None);
    let JobReport::Train(report) = report.unwrap() else { panic!("not a training") };
    // The worker is sent the exact weights: no ε holds for what they were trained on.
    assert_eq!(report.epsilon, Some(f64::INFINITY));
    let others: Vec<_> = heard.ledger.iter().filter(|e| e.flow != Flow::Weights).collect();
    assert!(others.iter().all(|e| (e.loss.rho() - 0.125).abs() < 1e-11));
    // A test record is in two evaluations, a residual a layer, each 1/(2·2²).
    let checkpoint = Checkpoint::decode(heard.checkpoints.last().unwrap()).unwrap();
    assert_eq!(checkpoint.spent.len(), 64);
    let rho = 2.0 * split as f64 / 8.0;
    let bound = rho + 2.0 * (rho * (1e5f64).ln()).sqrt();
    let expected = gaussian_epsilon(1.0, (2.0 * rho).sqrt(), 1e-5).unwrap();
    assert!(expected <= bound && expected > 0.8 * bound, "{expected}, by the textbook {bound}");
    let spent = checkpoint.spent[63].epsilon(1e-5).unwrap();
    assert!((spent - expected).abs() < 1e-9 * expected, "{spent} {expected}");
    // A resumed run keeps its ε: nothing is left to train, so it is exactly what was spent.
    let (resumed, _) = go(&job, (Body::Checkpoint, heard.checkpoints.last().unwrap()), &ToyBackend::default(), None);
    let JobReport::Train(resumed) = resumed.unwrap() else { panic!("not a training") };
    assert_eq!(resumed.epsilon, report.epsilon);
}

#[test]
fn bad_jobs_are_refused_in_words_and_nothing_is_released() {
    let refuse = |job: JobSpec, body: (Body, &[u8])| {
        let backend = ToyBackend::default();
        let (result, _) = go(&job, body, &backend, None);
        let failure = result.unwrap_err().failure();
        assert!(!backend.has_seen_data(), "{failure:?}");
        (failure.code, failure.detail)
    };
    let none = (Body::Empty, &[][..]);
    let (code, text) = refuse(job_of("asymml", &[("mode", json!({ "decomposition": "svd" }))]), none);
    assert_eq!((code, text.as_str()), (FailureCode::Job, "unknown decomposition \"svd\""));
    let (code, text) = refuse(guarded_job("asymml", json!({ "mechanism": "laplace" })), none);
    assert_eq!(code, FailureCode::Job);
    assert!(text.starts_with("unknown mechanism \"laplace\""), "{text}");
    let mut nowhere = job("asymml");
    nowhere.data.path = Some("no/such/folder".into());
    assert_eq!(refuse(nowhere, none).0, FailureCode::Data);
    let (code, _) = refuse(job_of("asymml", &[("mode", json!({ "rank": "fixed:0" }))]), none);
    assert_eq!(code, FailureCode::Job);
    let (code, text) = refuse(job("asymml"), (Body::Checkpoint, b"not a checkpoint"));
    assert_eq!(code, FailureCode::Checkpoint, "{text}");
    let (_, heard) = go(&job("trusted-only"), none, &ToyBackend::default(), Some(1));
    let (code, text) = refuse(job("asymml"), (Body::Checkpoint, heard.checkpoints.last().unwrap()));
    assert_eq!(code, FailureCode::Checkpoint);
    let expected = r#"the checkpoint is of another run: mode.name was "trusted-only" there, and is "asymml" here"#;
    assert_eq!(text, expected);
}

#[test]
fn a_nan_names_the_layer_and_never_the_value() {
    let mut job = job("asymml");
    let Task::Train(train) = &mut job.task else { panic!("not a training") };
    train.learning_rate = f32::MAX;
    let (result, _) = go(&job, (Body::Empty, &[]), &ToyBackend::default(), None);
    let failure = result.unwrap_err().failure();
    assert_eq!(failure.code, FailureCode::NonFinite);
    assert!(failure.detail.starts_with("layer "), "{}", failure.detail);
    assert!(!failure.detail.contains("value 0"), "{}", failure.detail);
}

/// Compares every loss with the latest checkpoint: killed at this moment, the run would go on from that one.
#[derive(Default)]
struct Killed {
    kept: Option<Checkpoint>,
    /// The epoch of a step whose losses are told next.
    stepped: Option<usize>,
    /// ρ of a test record in the evaluations so far, by layer and kind of the entries.
    evaluated: f64,
    compared: usize,
}

impl Observer for Killed {
    fn tell(&mut self, message: FromTrusted, body: &[u8]) -> Result<(), HostGone> {
        match message {
            FromTrusted::Checkpoint { .. } => self.kept = Some(Checkpoint::decode(body).unwrap()),
            FromTrusted::Step { epoch, .. } => self.stepped = Some(epoch),
            FromTrusted::Ledger(entries) => {
                let mut ledger = RecordLedger::default();
                entries.iter().for_each(|entry| ledger.add(entry.loss));
                let spent = &self.kept.as_ref().expect("a checkpoint before anything is released").spent;
                let (records, lost) = match self.stepped.take() {
                    // Every record is in one step of an epoch, and its losses are the same in each.
                    Some(epoch) => (&spent[..48], (epoch + 1) as f64 * ledger.rho()),
                    None => {
                        self.evaluated += ledger.rho();
                        (&spent[48..], self.evaluated)
                    }
                };
                self.compared += 1;
                assert!(lost > 0.0);
                for spent in records {
                    assert!(spent.rho() >= lost * (1.0 - 1e-9), "{} kept, {lost} lost", spent.rho());
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn a_killed_run_has_kept_all_that_it_may_have_lost() {
    let job = guarded_job("asymml", json!({ "mechanism": "discrete_gaussian", "sigma": 1.0, "clip": 1.0 }));
    let backend = ToyBackend::default();
    let open = move |_: &JobSpec, _: Precision| Ok(Arc::new(backend.clone()) as Arc<dyn ResidualBackend>);
    let mut killed = Killed::default();
    run(&job, (Body::Empty, Vec::new()), &Registry::default(), &open, &AtomicBool::new(false), &mut killed).unwrap();
    // Nine steps, and evaluations of 16 records after the second epoch and the last.
    assert_eq!(killed.compared, 9 + 2);
    // When all is done the checkpoint holds what was lost and no more.
    let test = killed.kept.unwrap().spent[63].rho();
    assert!((test - killed.evaluated).abs() < 1e-9 * test, "{test} kept, {} lost", killed.evaluated);
}
