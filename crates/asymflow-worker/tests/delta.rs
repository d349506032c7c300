//! Delta with a real residual network: what is computed, what leaves, what a lost worker and a restart cost.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking, in its helpers as well")]

mod flaky;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use asymflow::checkpoint::Checkpoint;
use asymflow::job::{
    Body, DataSpec, Failure, FailureCode, FromTrusted, JobReport, JobSpec, Schedule, Task, TrainReport, TrainSpec,
    WorkerSpec, WorkerTransport,
};
use asymflow::modes::delta::{Codebook, DeltaSpec, FeatureSplit, Feed, Labels, ReleasedCache, Variant};
use asymflow::modes::{DpTerms, ModeRef, ModeSpec, PrivacyTerms, Registry, Sampling};
use asymflow::run::{RunError, run};
use asymflow::train::{HostGone, Observer};
use asymflow_engine::{Engine, local::LocalConv};
use asymflow_privacy::{
    Loss,
    accountants::{Accountant, Event, PldAccountant, Relation},
    calibration::gaussian_epsilon,
    payload::Precision,
    records::LedgerEntry,
};
use asymflow_residual::{
    ResidualBackend,
    backend::{Pass, ResidualModel, Unit},
    burn_backend::{BurnBackend, DeviceChoice},
    client::{Protection, Tap, Token, WorkerClient, WorkerConfig},
    serve::{ServeConfig, ServeLimits, Worker},
};
use asymflow_wire::tls::Identity;
use asymflow_zoo::models::delta::{CompactShape, DeltaShape, delta};
use asymflow_zoo::models::replace::replace_activations;
use asymflow_zoo::{Network, Weights, burn_net::BurnNet, by_name};
use faer::Par;

use flaky::Flaky;

const TRAIN: usize = 48;
const TEST: usize = 16;
const BATCH: usize = 16;
const SAMPLING: Sampling = Sampling { batch: BATCH, records: TRAIN };

#[derive(Default)]
struct Heard {
    losses: Vec<(usize, usize, f64)>,
    checkpoints: Vec<Vec<u8>>,
    ledger: Vec<LedgerEntry>,
    reopened: usize,
    stop_after: Option<usize>,
    stop: Arc<AtomicBool>,
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
            FromTrusted::Notice(_) => self.reopened += 1,
            _ => {}
        }
        Ok(())
    }
}

impl Heard {
    fn last(&self) -> Checkpoint {
        Checkpoint::decode(self.checkpoints.last().unwrap()).unwrap()
    }

    fn cache(&self) -> ReleasedCache {
        ReleasedCache::decode(&self.last().state.released).unwrap()
    }

    /// σ of the noise on residuals, which are clipped to 1, by what they cost.
    fn sigma(&self) -> f64 {
        let mut sigmas = self.ledger.iter().filter(|e| e.mechanism == "one_bit").map(|e| match e.loss {
            Loss::Gaussian { mu } => mu.recip(),
            other => panic!("{other:?}"),
        });
        let sigma = sigmas.next().unwrap();
        assert!(sigmas.all(|other| other == sigma));
        sigma
    }
}

fn network() -> Network {
    by_name("resnet8-cifar", 10, None).unwrap()
}

/// Two epochs of stage 1.
fn spec(epsilon: Option<f64>, labels: Labels) -> DeltaSpec {
    DeltaSpec {
        shape: DeltaShape::published(&network()).unwrap(),
        decomposition: "gram".to_owned(),
        variant: Variant::Strict,
        codebook: Codebook::Classes,
        epsilon,
        own_epsilon: false,
        clip: 1.0,
        labels,
        feed: Feed::Residual,
        views: 2,
        stage1_epochs: 2,
        orthogonality: 8e-4,
        weights: None,
    }
}

/// Two epochs of stage 1 and three of stage 2, on few images.
fn job(spec: &DeltaSpec) -> JobSpec {
    JobSpec {
        mode: ModeRef::of(spec).unwrap(),
        network: network(),
        data: DataSpec {
            path: None,
            reader: None,
            train: Some(TRAIN),
            test: Some(TEST),
            seed: 1,
            augment: true,
            prepare: Default::default(),
        },
        terms: PrivacyTerms { relation: Relation::Remove, delta: 1e-5, budget_epsilon: None },
        worker: Some(WorkerSpec {
            address: String::new(),
            fingerprint: None,
            token: String::new(),
            insecure_plaintext: false,
            transport: WorkerTransport::Tcp,
            timeout_seconds: 5,
            patience_seconds: 5,
        }),
        threads: 2,
        vault: None,
        memory_limit_bytes: None,
        task: Task::Train(TrainSpec {
            epochs: 5,
            batch: BATCH,
            learning_rate: 0.02,
            momentum: 0.9,
            weight_decay: 5e-4,
            schedule: Schedule::Cosine,
            seed: 4,
            evaluate_every: 2,
            clip_norm: None,
            coefficient_rate: 1.0,
            first_layer_rate: 1.0,
            easing: Default::default(),
            teacher: None,
            keep_diverged: false,
        }),
    }
}

fn flex() -> Arc<dyn ResidualBackend> {
    Arc::new(BurnBackend::new(DeviceChoice::Flex))
}

fn go(
    job: &JobSpec,
    body: (Body, &[u8]),
    backend: &Arc<dyn ResidualBackend>,
    stop_after: Option<usize>,
) -> (Result<TrainReport, RunError>, Heard) {
    let stop = Arc::new(AtomicBool::new(false));
    let mut heard = Heard { stop_after, stop: Arc::clone(&stop), ..Heard::default() };
    let open = |_: &JobSpec, _: Precision| Ok(Arc::clone(backend));
    let report = run(job, (body.0, body.1.to_vec()), &Registry::default(), &open, &stop, &mut heard);
    let report = report.map(|report| match report {
        JobReport::Train(report) => *report,
        other => panic!("{other:?}"),
    });
    (report, heard)
}

/// Signs without noise and public labels: two runs of the same seed release the same.
fn repeatable() -> DeltaSpec {
    spec(None, Labels::Public)
}

/// The same settings with codewords in place of bits of the residual.
fn compact(of: DeltaSpec, codebook: Codebook) -> DeltaSpec {
    let (values, bits) = match codebook {
        Codebook::Classes => (10, 16),
        Codebook::Sphere => (9, 72),
    };
    let shape = DeltaShape { compact: Some(CompactShape { values, bits }), ..of.shape.clone() };
    DeltaSpec { variant: Variant::Compact, codebook, shape, ..of }
}

/// Every release that keeps its promise, of these settings.
fn releases(of: &DeltaSpec) -> [DeltaSpec; 3] {
    [of.clone(), compact(of.clone(), Codebook::Classes), compact(of.clone(), Codebook::Sphere)]
}

#[test]
fn a_stopped_run_resumes_to_the_same_losses_and_releases_nothing_twice() {
    releases(&repeatable()).iter().for_each(|spec| stops_and_resumes(&job(spec)));
}

fn stops_and_resumes(job: &JobSpec) {
    let (whole, undisturbed) = go(job, (Body::Empty, &[]), &flex(), None);
    whole.unwrap();
    assert_eq!(undisturbed.losses.len(), 15);
    // In stage 1, in the middle of stage 2 while the worker is a step ahead, and at the end of an epoch.
    for stop_after in [4, 8, 9, 12] {
        let (first, before) = go(job, (Body::Empty, &[]), &flex(), Some(stop_after));
        assert!(first.unwrap().interrupted);
        let (second, after) = go(job, (Body::Checkpoint, before.checkpoints.last().unwrap()), &flex(), None);
        assert!(!second.unwrap().interrupted);
        let resumed: Vec<_> = before.losses.iter().chain(&after.losses).copied().collect();
        assert_eq!(resumed, undisturbed.losses, "stopped after {stop_after}");
        assert_eq!(after.last(), undisturbed.last(), "stopped after {stop_after}");
        assert_eq!(before.ledger.len() + after.ledger.len(), undisturbed.ledger.len(), "stopped after {stop_after}");
    }
}

#[test]
fn a_lost_worker_costs_time_and_no_privacy() {
    // A compact release crosses in the same way; losing its worker at a few calls is enough.
    for (spec, every) in releases(&repeatable()).iter().zip([3, 11, 13]) {
        loses_its_worker(&job(spec), every);
    }
}

fn loses_its_worker(job: &JobSpec, every: usize) {
    let (whole, undisturbed) = go(job, (Body::Empty, &[]), &flex(), None);
    whole.unwrap();
    let flaky = Flaky::new(flex(), usize::MAX);
    go(job, (Body::Empty, &[]), &(Arc::clone(&flaky) as Arc<dyn ResidualBackend>), None).0.unwrap();
    let calls = flaky.calls();
    assert!(calls > 30, "{calls} calls");
    for dies_after in (2..calls).step_by(every) {
        let flaky: Arc<dyn ResidualBackend> = Flaky::new(flex(), dies_after);
        let (report, heard) = go(job, (Body::Empty, &[]), &flaky, None);
        assert_eq!((report.unwrap().reopened, heard.reopened), (1, 1), "dies after {dies_after}");
        let mut losses = heard.losses.clone();
        losses.sort_by_key(|&(epoch, step, _)| (epoch, step));
        losses.dedup();
        assert_eq!(losses, undisturbed.losses, "dies after {dies_after}");
        assert_eq!(heard.last().state, undisturbed.last().state, "dies after {dies_after}");
        // What was released before is sent again as it was: no release is counted twice.
        assert_eq!(heard.ledger.len(), undisturbed.ledger.len(), "dies after {dies_after}");
    }
}

#[test]
fn a_restart_keeps_what_was_spent_and_cannot_spend_it_again() {
    // No budget is set: what the settings promise is one.
    let promised = spec(Some(3.0), Labels::RandomisedResponse { epsilon: 2.0 });
    releases(&promised).iter().for_each(|spec| restarts(&job(spec)));
}

fn restarts(job: &JobSpec) {
    let (whole, heard) = go(job, (Body::Empty, &[]), &flex(), None);
    let epsilon = whole.unwrap().epsilon.unwrap();
    assert!((epsilon - 5.0).abs() < 1e-6, "{epsilon}");

    // A restart goes on with the same ε and draws no new noise.
    let (first, before) = go(job, (Body::Empty, &[]), &flex(), Some(8));
    assert!(first.unwrap().interrupted);
    let checkpoint = before.checkpoints.last().unwrap();
    let (second, after) = go(job, (Body::Checkpoint, checkpoint), &flex(), None);
    assert_eq!(second.unwrap().epsilon.unwrap(), epsilon);
    assert_eq!(after.cache().views, before.cache().views);
    assert_eq!(after.cache().labels, before.cache().labels);

    // A checkpoint that forgot what was released does not forget what it cost.
    let mut forgetful = Checkpoint::decode(checkpoint).unwrap();
    forgetful.state.released = Vec::new();
    let (third, after) = go(job, (Body::Checkpoint, &forgetful.encode().unwrap()), &flex(), None);
    let Failure { code, detail } = third.unwrap_err().failure();
    assert_eq!(code, FailureCode::Release);
    assert!(detail.contains("layer features") && detail.contains("above the limit 5"), "{detail}");
    assert!(detail.ends_with("nothing left"), "{detail}");
    assert!(after.ledger.is_empty());
    drop(heard);
}

/// A run that is killed goes on from whatever checkpoint it left last: none may make it draw for a record again.
#[test]
fn every_checkpoint_holds_what_had_been_released_by_then() {
    let job = job(&spec(Some(3.0), Labels::RandomisedResponse { epsilon: 2.0 }));
    let (whole, heard) = go(&job, (Body::Empty, &[]), &flex(), None);
    let epsilon = whole.unwrap().epsilon.unwrap();
    // Five epochs, one before the first bits of training records are sent, and one before those of test records.
    assert_eq!(heard.checkpoints.len(), 7);
    for checkpoint in &heard.checkpoints {
        let (resumed, after) = go(&job, (Body::Checkpoint, checkpoint), &flex(), None);
        assert_eq!(resumed.unwrap().epsilon.unwrap(), epsilon);
        if after.checkpoints.is_empty() {
            // Nothing was left to do.
            continue;
        }
        let before = ReleasedCache::decode(&Checkpoint::decode(checkpoint).unwrap().state.released).unwrap();
        let cache = after.cache();
        assert!(before.views.is_empty() || before.views == cache.views);
        assert!(before.queries.iter().all(|(record, bits)| cache.queries[record] == *bits));
    }
}

/// The failure of a job that is refused before the worker hears anything.
fn refused(job: &JobSpec) -> Failure {
    let flaky = Flaky::new(flex(), usize::MAX);
    let (result, heard) = go(job, (Body::Empty, &[]), &(Arc::clone(&flaky) as Arc<dyn ResidualBackend>), None);
    let failure = result.unwrap_err().failure();
    assert_eq!((flaky.calls(), flaky.stored()), (0, 0), "{failure:?}");
    assert!(heard.ledger.is_empty(), "{failure:?}");
    failure
}

#[test]
fn a_spent_budget_refuses_before_anything_leaves() {
    let mut job = job(&spec(Some(3.0), Labels::Public));
    // One view of two would fit the budget, the second does not.
    job.terms.budget_epsilon = Some(2.5);
    let Failure { code, detail } = refused(&job);
    assert_eq!(code, FailureCode::Release);
    assert!(detail.contains("above the budget of 2.5") && detail.contains("2 times residual"), "{detail}");
}

#[test]
fn a_label_that_does_not_fit_the_budget_stays() {
    let mut job = job(&spec(Some(3.0), Labels::RandomisedResponse { epsilon: 2.0 }));
    job.terms.budget_epsilon = Some(3.5);
    let Failure { code, detail } = refused(&job);
    assert_eq!(code, FailureCode::Release);
    assert!(detail.contains("above the budget of 3.5") && detail.contains("label by randomised response"), "{detail}");
}

#[test]
fn settings_that_cannot_be_are_refused_in_words() {
    type Change = fn(&mut DeltaSpec);
    let refuse = |change: Change| {
        let mut spec = repeatable();
        change(&mut spec);
        refused(&job(&spec)).detail
    };
    let refusals: [(Change, &str); 6] = [
        (|s| s.shape.rank = 17, "rank 17 is out of range 1..=16"),
        (|s| s.shape.block = 5, "blocks of 5"),
        (|s| s.clip = 0.0, "l2 sensitivity must be positive"),
        (|s| s.epsilon = Some(-1.0), "epsilon must be positive"),
        (|s| s.decomposition = "shared-basis".to_owned(), "each record by itself"),
        (|s| s.labels = Labels::RandomisedResponse { epsilon: 0.0 }, "epsilon must be positive"),
    ];
    for (change, said) in refusals {
        let detail = refuse(change);
        assert!(detail.contains(said), "{detail}");
    }
    let mut job = job(&repeatable());
    job.mode.settings = "{}".to_owned();
    assert!(refused(&job).detail.contains("settings of mode delta: missing field"));
}

#[test]
fn weights_that_overflow_release_nothing() {
    let job = job(&repeatable());
    let network = repeatable().stored_network(&job.network).unwrap();
    let mut weights = Weights::init(&network, 1);
    // Two of these in a row exceed what f32 holds.
    weights.tensors.get_mut("conv1.weight").unwrap().data.fill(3e38);
    let bytes: Vec<u8> = weights.flatten(&network).unwrap().iter().flat_map(|v| v.to_le_bytes()).collect();
    let flaky = Flaky::new(flex(), usize::MAX);
    let backend = Arc::clone(&flaky) as Arc<dyn ResidualBackend>;
    let (result, heard) = go(&job, (Body::Weights, &bytes), &backend, None);
    assert_eq!(result.unwrap_err().failure().code, FailureCode::NonFinite);
    assert!(heard.ledger.is_empty() && flaky.stored() == 0);
}

/// What the worker and the trusted part compute together, from their parts by hand.
#[test]
fn logits_are_the_sum_of_two_networks() {
    let spec = repeatable();
    let networks = delta(&network(), &spec.shape).unwrap();
    let (report, heard) = go(&job(&spec), (Body::Empty, &[]), &flex(), None);
    let all = spec.stored_network(&network()).unwrap();
    let weights = Weights::unflatten(&all, &heard.last().state.weights).unwrap();

    let data = asymflow_zoo::data::synthetic(TRAIN, TEST, 1);
    let normalization = asymflow_zoo::data::Normalization::of(&data.train);
    let loader = asymflow_zoo::data::Loader::new(&data.test, &normalization, asymflow_zoo::data::Augment::NONE, 4);
    let mut batch = asymflow_zoo::data::Batch::default();
    loader.gather(None, &(0..TEST as u32).collect::<Vec<_>>(), &mut batch);

    let engine = |network: &Network, x: &[f32]| {
        let mut engine = Engine::new(network.clone(), &weights, Par::Seq).unwrap();
        let mut convolver = LocalConv::new(engine.program().convs(), engine.pool().clone(), Par::Seq);
        engine.forward(x, TEST, Pass::Inference, 0, &mut convolver).unwrap()
    };
    let features = engine(&networks.backbone, &batch.images);
    let decomposer = asymflow_linalg::decompose::by_name("gram").unwrap();
    let mut split = FeatureSplit::new(&networks, &spec.shape, decomposer, Par::Seq).unwrap();
    let (mut low, mut residual) = (vec![0.0; TEST * networks.low.len()], vec![0.0; features.len()]);
    split.split(&features, &mut low, &mut residual).unwrap();
    let signs: Vec<f32> = residual.iter().map(|&v| if v >= 0.0 { 1.0 } else { 0.0 }).collect();
    // The bits that were released are those signs.
    for (record, bits) in heard.cache().queries {
        for (i, byte) in bits.iter().enumerate() {
            for bit in 0..8 {
                let sign = signs[(record - TRAIN) * networks.features.len() + 8 * i + bit];
                assert_eq!(f32::from(byte >> bit & 1), sign, "record {record}, value {}", 8 * i + bit);
            }
        }
    }
    let device = Default::default();
    let mut net = BurnNet::new(&networks.residual, &weights, &device).unwrap();
    let x = net.batch(signs).unwrap();
    let from_worker = asymflow_zoo::burn_net::download(net.forward(x, false).unwrap()).unwrap();
    let logits = engine(&networks.main, &low).into_iter().zip(from_worker).map(|(a, b)| a + b).collect::<Vec<f32>>();
    let hits = logits.chunks(10).zip(&batch.labels).filter(|(row, label)| {
        let best = (0..10).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        best == **label as usize
    });
    assert_eq!(hits.count() as f64 / TEST as f64, report.unwrap().test_accuracy.unwrap());
}

#[test]
fn noisy_gradients_release_every_step_and_reach_their_epsilon() {
    let job = job(&spec(Some(4.0), Labels::NoisyGradient { epsilon: 6.0 }));
    let (report, heard) = go(&job, (Body::Empty, &[]), &flex(), None);
    // Two Gaussian losses compose to less than the sum of their ε.
    let epsilon = report.unwrap().epsilon.unwrap();
    assert!(epsilon > 6.0 && epsilon <= 10.0, "{epsilon}");
    let gradients = heard.ledger.iter().filter(|e| e.mechanism == "discrete_gaussian").count();
    assert_eq!(gradients, 3 * TRAIN / BATCH);
    assert!(heard.cache().labels.is_empty(), "the worker got labels");
}

/// One ε covers weights, releases and labels, and no weight of the trusted part moves once steps are no longer noised.
#[test]
fn with_dp_sgd_epsilon_is_that_of_weights_releases_and_labels_together() {
    let weights: DpTerms = serde_json::from_str("{\"epsilon\": 3.0}").unwrap();
    let labels = Labels::RandomisedResponse { epsilon: 4.0 };
    let spec = DeltaSpec { views: 1, weights: Some(weights), ..spec(Some(9.0), labels) };
    let grouped = replace_activations(&network(), &"group-norm:4".parse().unwrap()).unwrap();
    let job = JobSpec { network: grouped.clone(), ..job(&spec) };
    let (report, heard) = go(&job, (Body::Empty, &[]), &flex(), None);
    let whole = report.unwrap().epsilon.unwrap();
    let of = |mechanism: &str| heard.ledger.iter().filter(|entry| entry.mechanism == mechanism).collect::<Vec<_>>();
    let steps = of("dp_sgd");
    assert!(steps.len() == 2 * TRAIN.div_ceil(BATCH) && steps.iter().all(|step| step.records == TRAIN));
    assert!(of("randomised_response").iter().all(|label| label.loss == Loss::Pure { epsilon: 4.0 }));
    let mut pld = PldAccountant::default();
    pld.compose(Event::of_loss(steps[0].loss).unwrap(), steps.len() as u64).unwrap();
    let of_weights = pld.epsilon(1e-5).unwrap();
    assert!((2.99..=3.0).contains(&of_weights), "{of_weights}");
    pld.compose(Event::Gaussian { noise_multiplier: heard.sigma() }, 1).unwrap();
    let without_label = pld.epsilon(1e-5).unwrap();
    assert!(whole > without_label && whole <= without_label + 4.0, "{whole} {without_label}");
    let states: Vec<Checkpoint> = heard.checkpoints.iter().map(|body| Checkpoint::decode(body).unwrap()).collect();
    let networks = delta(&grouped, &spec.shape).unwrap();
    let trusted: usize = networks.all_layers(false).parameters().iter().map(|parameter| parameter.len()).sum();
    let of_epoch = |epoch: usize| states.iter().rev().find(|state| state.position.epoch == epoch).unwrap();
    let [stage1, last] = [2, 5].map(|epoch| &of_epoch(epoch).state.weights);
    assert_eq!(stage1[..trusted], last[..trusted]);
    assert_ne!(stage1[trusted..], last[trusted..]);
}

#[test]
fn the_reported_epsilon_is_never_below_the_numerical_one() {
    for (target, views) in [(1.4, 1), (9.0, 1), (9.0, 4), (17.0, 2)] {
        let spec = DeltaSpec { views, ..spec(Some(target), Labels::Public) };
        let job = job(&spec);
        let (report, heard) = go(&job, (Body::Empty, &[]), &flex(), None);
        let (report, sigma) = (report.unwrap(), heard.sigma());
        let said = spec.sigma(&job.terms, SAMPLING).unwrap().unwrap();
        assert!((sigma - said).abs() < 1e-12 * said, "{sigma}, said to be {said}");
        let mut pld = PldAccountant::default();
        pld.compose(Event::Gaussian { noise_multiplier: sigma }, views as u64).unwrap();
        let (numerical, reported) = (pld.epsilon(1e-5).unwrap(), report.epsilon.unwrap());
        // The numerical one is an upper bound itself, by less than a hundredth.
        assert!(reported >= numerical - 0.01, "{reported} below {numerical}");
        assert!((reported - target).abs() < 1e-6, "{reported}, asked for {target}");
        let exact = gaussian_epsilon(sigma, (views as f64).sqrt(), 1e-5).unwrap();
        assert!((reported - exact).abs() < 1e-9 * exact);
    }
}

#[test]
fn the_papers_noise_is_reported_at_its_true_epsilon() {
    let spec = DeltaSpec { variant: Variant::Paper, views: 1, ..spec(Some(1.4), Labels::Public) };
    let job = job(&spec);
    let (report, heard) = go(&job, (Body::Empty, &[]), &flex(), None);
    // p = 16/48: ε′ = ln(1 + (e^1.4 − 1)·3) = 2.3164, δ′ = 3e-5, σ² = 2·ln(2/δ′)/ε′.
    let local = (1.4f64.exp_m1() * 3.0).ln_1p();
    let sigma = (2.0 * (2.0f64 / 3e-5).ln() / local).sqrt();
    assert!((heard.sigma() - sigma).abs() < 1e-9);
    assert!((spec.sigma(&job.terms, SAMPLING).unwrap().unwrap() - sigma).abs() < 1e-9);
    let true_epsilon = gaussian_epsilon(sigma, 1.0, 1e-5).unwrap();
    assert!((report.unwrap().epsilon.unwrap() - true_epsilon).abs() < 1e-9);
}

#[test]
fn the_released_codes_variant_says_that_it_guarantees_nothing() {
    let mut spec = DeltaSpec { variant: Variant::ReleasedCode, views: 1, ..spec(Some(1.4), Labels::Public) };
    let detail = refused(&job(&spec)).detail;
    assert!(detail.contains("channel mean"), "{detail}");
    spec.shape.mean_residual = true;
    let (report, heard) = go(&job(&spec), (Body::Empty, &[]), &flex(), None);
    assert_eq!(report.unwrap().epsilon, Some(f64::INFINITY));
    // Bits anew in nine steps and in two evaluations, and nine gradients as they are.
    let of = |name: &str| heard.ledger.iter().filter(|e| e.mechanism == name).count();
    assert_eq!((of("insecure_laplace_sign"), of("insecure_none"), of("one_bit")), (11, 9, 0));
    assert!(heard.cache().views.is_empty() && heard.cache().queries.is_empty());
}

/// Every byte that reaches the worker is one that was released, a public weight, or a number of a record.
#[test]
fn every_byte_sent_is_a_released_bit_or_public() {
    let spec = spec(Some(9.0), Labels::RandomisedResponse { epsilon: 4.0 });
    releases(&spec).iter().for_each(sends_what_was_released);
}

fn sends_what_was_released(spec: &DeltaSpec) {
    let token = || Token::new("a secret of the test");
    let identity = Identity::generate().unwrap();
    let protection = Protection::Pinned(identity.fingerprint());
    let limits = ServeLimits::default();
    let config =
        ServeConfig { token: token(), insecure_plaintext: false, identity: Some(identity), ring_name: None, limits };
    let worker = Worker::bind("127.0.0.1:0", flex(), config).unwrap();
    let address = worker.address().to_string();
    let _handle = worker.start().unwrap();
    let sent = Arc::new(Mutex::new(Vec::new()));
    let taken = Arc::clone(&sent);
    let tap = Tap::new(move |bytes| taken.lock().unwrap().extend_from_slice(bytes));
    let client = WorkerConfig { tap: Some(tap), ..WorkerConfig::new(address, token(), protection) };
    let backend: Arc<dyn ResidualBackend> = Arc::new(WorkerClient::new(client));
    let (report, heard) = go(&job(spec), (Body::Empty, &[]), &backend, None);
    report.unwrap();

    let networks = delta(&network(), &spec.shape).unwrap();
    let record_bytes = networks.residual.input.len() / 8;
    let cache = heard.cache();
    let mut allowed: HashSet<Vec<u8>> = HashSet::new();
    allowed.insert(Vec::new());
    // The public weights that M_res starts from.
    let weights = Weights::init(&spec.stored_network(&network()).unwrap(), 4).flatten(&networks.residual).unwrap();
    allowed.insert(weights.iter().flat_map(|w| w.to_le_bytes()).collect());
    // Released bits of the training records with the released labels; they all fit into one message a view.
    for view in &cache.views {
        let labels = cache.labels.iter().flat_map(|label| label.to_le_bytes());
        allowed.insert(view.iter().copied().chain(labels).collect());
    }
    // Released bits of the test records.
    let queries: Vec<u8> = cache.queries.values().flatten().copied().collect();
    allowed.extend(queries.chunks(BATCH * record_bytes).map(<[u8]>::to_vec));

    let sent = sent.lock().unwrap();
    let mut rest = &sent[..];
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let header = u32::from_le_bytes(rest[6..10].try_into().unwrap()) as usize;
        let body = u64::from_le_bytes(rest[10..18].try_into().unwrap()) as usize;
        frames.push((&rest[18..18 + header], &rest[18 + header..18 + header + body]));
        rest = &rest[18 + header + body..];
    }
    let [(_, hello), (_, model), session @ ..] = &frames[..] else { panic!("no session was opened") };
    assert!(hello.is_empty());
    let model: ResidualModel = serde_json::from_slice(model).unwrap();
    assert_eq!(model.units, [Unit::Network(networks.residual.clone())]);
    let mut released = 0;
    for (header, body) in session {
        // The kind of a request, its unit and the optimiser's settings.
        assert!(header.len() < 32, "a header of {} bytes", header.len());
        // Numbers of records: each is below that of all views.
        let numbers = body.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b));
        let is_records = body.len() == 4 * BATCH && numbers.clone().all(|n| (n as usize) < 2 * TRAIN);
        assert!(is_records || allowed.contains(*body), "{} bytes that were not released", body.len());
        released += usize::from(!is_records && body.len() > BATCH);
    }
    // Weights once, two views, and the test records at each of two evaluations of stage 2.
    assert_eq!(released, 1 + 2 + 2);
}
