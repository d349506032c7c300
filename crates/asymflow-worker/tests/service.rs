//! Answers for clients with a real worker: the same as the mode gives in process, charged once, in one shape.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers as well")]

mod flaky;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use asymflow::modes::delta::{DeltaSpec, Feed, Labels, Variant};
use asymflow::modes::{
    AsymMlSpec, ClearSpec, GuardSpec, ModeRef, ModeSpec, Parts, PrivacyTerms, Records, Registry, Sampling,
    TrustedOnlySpec,
};
use asymflow::plan::SplitSpec;
use asymflow::service::{
    AccountLimits, Answer, ChargeError, ClientId, Keeper, Ledgers, ModelFile, Promise, Query, QueryError, ServedModel,
    Service, ServiceSettings, sha256_hex,
};
use asymflow_engine::streamed::ModelWeights;
use asymflow_privacy::{
    accountants::Relation,
    calibration::gaussian_epsilon,
    payload::Precision,
    records::{BudgetError, RecordAccountant},
};
use asymflow_residual::{
    ResidualBackend,
    burn_backend::{BurnBackend, DeviceChoice},
    client::{Protection, Tap, Token, WorkerClient, WorkerConfig},
    serve::{ServeConfig, ServeLimits, Worker},
};
use asymflow_wire::tls::Identity;
use asymflow_zoo::data::{Augment, Batch, Dataset, Loader, Normalization};
use asymflow_zoo::models::delta::DeltaShape;
use asymflow_zoo::{Network, Weights, by_name};
use faer::Par;
use flaky::Flaky;

const IMAGES: usize = 12;
const BATCH: usize = 4;

fn network() -> Network {
    by_name("resnet8-cifar", 10, None).unwrap()
}

fn delta(epsilon: Option<f64>, feed: Feed) -> DeltaSpec {
    DeltaSpec {
        shape: DeltaShape::published(&network()).unwrap(),
        decomposition: "gram".to_owned(),
        variant: Variant::Strict,
        codebook: Default::default(),
        epsilon,
        own_epsilon: false,
        clip: 1.0,
        labels: Labels::RandomisedResponse { epsilon: 4.0 },
        feed,
        views: 1,
        stage1_epochs: 0,
        orthogonality: 0.0,
        weights: None,
    }
}

fn asymml(decomposition: &str) -> AsymMlSpec {
    let split = SplitSpec { decomposition: decomposition.to_owned(), rank: "fixed:4".to_owned(), split_first: false };
    AsymMlSpec { split, guard: GuardSpec::default(), precision: Precision::F32, verify: true, leapfrog: false }
}

fn model(mode: &dyn ModeSpec) -> ServedModel {
    let terms = PrivacyTerms { relation: Relation::Remove, delta: 1e-5, budget_epsilon: None };
    let sampling = Sampling { batch: 8, records: 100 };
    let (normalization, names) = (Normalization::of(&images()), images().class_names().to_vec());
    ServedModel::new((ModeRef::of(mode).unwrap(), Vec::new()), network(), terms, sampling, normalization, names)
}

/// A model of Delta as it is meant, at an ε of 2 an answer.
fn noised() -> ServedModel {
    model(&delta(Some(2.0), Feed::Residual))
}

fn images() -> Dataset {
    asymflow_zoo::data::synthetic(IMAGES, 0, 3).train
}

fn weights(model: &ServedModel) -> Vec<f32> {
    let network = model.stored_network(&Registry::default()).unwrap();
    Weights::init(&network, 5).flatten(&network).unwrap()
}

fn flex() -> Arc<dyn ResidualBackend> {
    Arc::new(BurnBackend::new(DeviceChoice::Flex))
}

fn settings(budget_epsilon: Option<f64>) -> ServiceSettings {
    ServiceSettings { batch: BATCH, budget_epsilon, ..ServiceSettings::default() }
}

fn service(model: &ServedModel, budget: Option<f64>, worker: &Arc<dyn ResidualBackend>) -> Service {
    let with = (&Registry::default(), Par::Seq);
    Service::new(model.clone(), &weights(model), Some(worker), settings(budget), with).unwrap()
}

fn sigma(service: &Service) -> f64 {
    service.guard().unwrap().sigma.unwrap()
}

fn queries(client: u8) -> Vec<Query> {
    let of = |i| Query { client: ClientId::of(&[client; 32]), image: images().image(i).unwrap().to_vec() };
    (0..IMAGES).map(of).collect()
}

fn logits(answers: Vec<Result<Answer, QueryError>>) -> Vec<f32> {
    answers.into_iter().flat_map(|answer| answer.unwrap().logits).collect()
}

/// The same network asked in process, as an evaluation does it.
fn in_process(model: &ServedModel) -> Vec<f32> {
    let registry = Registry::default();
    let weights = Weights::unflatten(&model.stored_network(&registry).unwrap(), &weights(model)).unwrap();
    let parts = Parts {
        network: model.network.clone(),
        weights: weights.into(),
        terms: model.terms,
        sampling: model.sampling,
        epochs: 1,
        accountant: RecordAccountant::new(IMAGES),
        backend: Some(flex()),
        registry: &registry,
        par: Par::Seq,
    };
    let mut mode = registry.decode(&model.mode).unwrap().build(parts).unwrap();
    let data = images();
    let loader = Loader::new(&data, &model.normalization, Augment::NONE, 0);
    // An evaluation asks the worker only once stage 2 of Delta has begun.
    mode.draw(0, &Records { loader: &loader, count: 0, batch: 1 }).unwrap();
    let mut batch = Batch::default();
    loader.gather(None, &(0..IMAGES as u32).collect::<Vec<_>>(), &mut batch);
    mode.infer(&batch.images, &(0..IMAGES).collect::<Vec<_>>()).unwrap()
}

fn assert_near(got: &[f32], expected: &[f32], bound: f32) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= bound * (1.0 + expected.abs()), "logit {i}: {got}, expected {expected}");
    }
}

#[test]
fn an_answer_is_what_the_mode_gives_in_process() {
    // Without noise, so that both sides draw the same.
    let (both, main_only) = (delta(None, Feed::Residual), delta(None, Feed::Nothing));
    let modes: [&dyn ModeSpec; 4] = [&both, &main_only, &TrustedOnlySpec, &asymml("gram")];
    for mode in modes {
        let model = model(mode);
        let mut service = service(&model, None, &flex());
        let answers = logits(service.answer(&queries(1)));
        assert_near(&answers, &in_process(&model), 1e-4);
        // One by one, and so beside other rows of the batch, it is the same.
        let mut alone = self::service(&model, None, &flex());
        let one_by_one = queries(1).iter().flat_map(|q| alone.answer(std::slice::from_ref(q))).collect();
        assert_near(&logits(one_by_one), &answers, 1e-4);
        assert_eq!(alone.stats().batches, IMAGES as u64);
    }
}

#[test]
fn a_client_pays_once_for_an_image_and_is_refused_when_its_budget_is_spent() {
    let model = noised();
    let three = {
        let service = service(&model, None, &flex());
        assert!((service.answer_epsilon().unwrap() - 2.0).abs() < 1e-6);
        gaussian_epsilon(sigma(&service), 3_f64.sqrt(), 1e-5).unwrap()
    };
    let mut service = service(&model, Some(three * 1.000_001), &flex());
    let some = &queries(1)[..3];
    let first = logits(service.answer(some));
    assert_eq!(logits(service.answer(some)), first, "the same image is told the same");
    assert!(service.answer(some).iter().all(|a| a.as_ref().unwrap().is_remembered));
    assert!((service.spent_epsilon(&some[0].client) - three).abs() < 1e-6);
    let refused = service.answer(&queries(1)[3..5]);
    assert!(
        refused
            .iter()
            .all(|a| matches!(a, Err(QueryError::Charge(ChargeError::Budget(BudgetError::Exhausted { .. }))))),
        "{refused:?}"
    );
    // Another client has its own budget, and hears nothing of what others were told.
    let other = service.answer(&queries(2)[..1]);
    assert!(!other[0].as_ref().unwrap().is_remembered);
    let stats = service.stats();
    assert_eq!((stats.answered, stats.remembered, stats.refused), (10, 6, 2));
    assert_eq!(stats.batches, 5, "a batch that costs nothing goes to the worker as well");
}

#[test]
fn an_image_of_another_size_costs_nothing() {
    let mut service = service(&noised(), Some(2.0), &flex());
    let mut query = queries(1)[0].clone();
    query.image.pop();
    assert_eq!(service.answer(&[query.clone()]), [Err(QueryError::Image { expected: 3072, got: 3071 })]);
    assert_eq!(service.spent_epsilon(&query.client), 0.0);
}

#[derive(Clone, Default)]
struct Kept {
    blocks: Arc<Mutex<Vec<Vec<u8>>>>,
    fails: Arc<AtomicBool>,
}

impl Keeper for Kept {
    fn keep(&mut self, ledgers: &Ledgers, charged: &[ClientId]) -> Result<(), String> {
        if self.fails.load(Ordering::Relaxed) {
            return Err("disk full".to_owned());
        }
        self.blocks.lock().unwrap().push(ledgers.encode(charged).unwrap());
        Ok(())
    }
}

#[test]
fn a_restart_keeps_what_clients_have_spent_and_nothing_leaves_that_was_not_kept() {
    let model = noised();
    let (kept, flaky) = (Kept::default(), Flaky::new(flex(), usize::MAX));
    let backend = Arc::clone(&flaky) as Arc<dyn ResidualBackend>;
    let open = |kept: &Kept| {
        let mut ledgers = Ledgers::new(AccountLimits::default());
        kept.blocks.lock().unwrap().iter().for_each(|block| ledgers.recall(block).unwrap());
        service(&model, Some(2.000_001), &backend).with_ledgers(ledgers).with_keeper(Box::new(kept.clone()))
    };
    assert!(open(&kept).answer(&queries(1)[..1])[0].is_ok());
    let again = open(&kept).answer(&queries(1)[..1]);
    let is_spent = matches!(again[0], Err(QueryError::Charge(ChargeError::Budget(_))));
    assert!(is_spent, "a restart does not reset a budget: {again:?}");

    kept.fails.store(true, Ordering::Relaxed);
    let mut service = open(&kept);
    let calls = flaky.calls();
    assert_eq!(service.answer(&queries(2)[..1]), [Err(QueryError::Unkept)]);
    assert_eq!((flaky.calls(), flaky.stored()), (calls, 0), "nothing was sent");
}

#[test]
fn a_lost_worker_is_sent_the_same_bits_again_and_costs_once() {
    let model = model(&delta(None, Feed::Residual));
    let expected = in_process(&model);
    for dies_after in 1..7 {
        let flaky = Flaky::new(flex(), dies_after);
        let mut service = service(&model, None, &(Arc::clone(&flaky) as Arc<dyn ResidualBackend>));
        assert_near(&logits(service.answer(&queries(1))), &expected, 1e-4);
        assert!(flaky.calls() > dies_after, "it died at call {dies_after}");
        // With noise, what is charged does not grow by the loss of a worker.
        let flaky = Flaky::new(flex(), dies_after) as Arc<dyn ResidualBackend>;
        let mut service = self::service(&noised(), None, &flaky);
        let some = &queries(1)[..6];
        assert_eq!(service.answer(some).iter().filter(|a| a.is_ok()).count(), 6);
        let six = gaussian_epsilon(sigma(&service), 6_f64.sqrt(), 1e-5).unwrap();
        assert!((service.spent_epsilon(&some[0].client) - six).abs() < 1e-6);
    }
}

/// Sizes of what was sent to the worker after its weights.
fn sizes(answers: &[usize]) -> Vec<usize> {
    let identity = Identity::generate().unwrap();
    let fingerprint = identity.fingerprint();
    let config = ServeConfig {
        token: Token::new("t"),
        insecure_plaintext: false,
        identity: Some(identity),
        ring_name: None,
        limits: ServeLimits::default(),
    };
    let worker = Worker::bind("127.0.0.1:0", flex(), config).unwrap();
    let mut config = WorkerConfig::new(worker.address().to_string(), Token::new("t"), Protection::Pinned(fingerprint));
    let sent = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&sent);
    config.tap = Some(Tap::new(move |bytes| heard.lock().unwrap().extend_from_slice(bytes)));
    std::thread::spawn(move || worker.run());
    let client: Arc<dyn ResidualBackend> = Arc::new(WorkerClient::new(config));
    let mut service = service(&model(&delta(Some(9.0), Feed::Residual)), Some(1e3), &client);
    let queries = queries(1);
    let mut seen = sent.lock().unwrap().len();
    let mut sizes = Vec::new();
    for &images in answers {
        assert!(service.answer(&queries[..images]).iter().all(Result::is_ok));
        let now = sent.lock().unwrap().len();
        sizes.push(now - seen);
        seen = now;
    }
    sizes
}

#[test]
fn every_message_to_the_worker_has_one_size() {
    // One image, four, the same four again, and three of them with a new one.
    let sizes = sizes(&[1, 4, 4, 2]);
    assert!(sizes[0] > BATCH * 1024, "a batch of bits: {sizes:?}");
    assert!(sizes.iter().all(|&size| size == sizes[0]), "{sizes:?}");
}

#[test]
fn what_cannot_be_promised_is_not_served() {
    let refuse = |mode: &dyn ModeSpec| {
        let (model, with) = (model(mode), (&Registry::default(), Par::Seq));
        match Service::new(model.clone(), &weights(&model), Some(&flex()), settings(None), with) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("served"),
        }
    };
    assert!(refuse(&ClearSpec).contains("mode clear is not served"));
    assert!(refuse(&asymml("shared-basis")).contains("shared-basis is not served"));
    // As it can be trained: with the channel mean, and labels that everybody knows.
    let mut code = delta(Some(9.0), Feed::Residual);
    (code.variant, code.shape.mean_residual, code.labels) = (Variant::ReleasedCode, true, Labels::Public);
    assert!(refuse(&code).contains("released-code is not served"));
}

#[test]
fn a_promise_says_what_guards_a_release_and_a_model_file_holds_what_is_served() {
    let registry = Registry::default();
    let model = model(&delta(Some(9.0), Feed::Residual));
    let file = model.encode(&weights(&model), &registry).unwrap();
    let (read, read_weights) = ServedModel::decode(&file, &registry).unwrap();
    assert_eq!((&read, &read_weights), (&model, &weights(&model)));
    let service = service(&read, Some(20.0), &flex());
    let promise = Promise::of(&service, &settings(Some(20.0)), &sha256_hex(&file), "sim");
    let release = promise.release.clone().unwrap();
    assert_eq!(release.mechanism, "one_bit");
    assert!((release.answer_epsilon.unwrap() - 9.0).abs() < 1e-6);
    assert_eq!((release.client_epsilon, release.clip), (Some(20.0), Some(1.0)));
    assert!(promise.insecure.is_empty());
    assert_eq!(Promise::decode(&promise.encode().unwrap()).unwrap(), promise);
    let unlimited = Promise::of(&service, &settings(None), &sha256_hex(&file), "sim");
    assert_eq!(unlimited.insecure, ["insecure_unlimited_answers"]);

    for end in (0..file.len()).step_by(file.len() / 50) {
        assert!(ServedModel::decode(&file[..end], &registry).is_err(), "cut at {end}");
        assert!(ModelFile::open(&file[..end], &registry).and_then(ModelFile::held).is_err(), "cut at {end}");
    }
    let longer = [&file[..], &[0]].concat();
    assert!(ServedModel::decode(&longer, &registry).is_err());
    assert!(ModelFile::open(&longer[..], &registry).and_then(ModelFile::held).is_err());
    let piecewise = ModelFile::open(&file[..], &registry).and_then(ModelFile::held).unwrap();
    assert_eq!((piecewise.model, piecewise.sha256), (model.clone(), sha256_hex(&file)));
    let network = model.stored_network(&registry).unwrap();
    assert!(
        matches!(piecewise.weights, ModelWeights::Held(held) if held.flatten(&network).unwrap() == weights(&model))
    );
    let mut other = model.clone();
    other.mode.settings = "{}".to_owned();
    assert!(other.encode(&weights(&model), &registry).is_err());
}
