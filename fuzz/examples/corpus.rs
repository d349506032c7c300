//! Writes the seeds of the corpus with the encoders of the workspace: `cargo run -p asymflow-fuzz --example corpus`.
//!
//! Inputs that a target once failed on are kept beside them under other names, and stay.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "there is no corpus to write after a failure")]

use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::path::Path;

use asymflow::checkpoint::{Checkpoint, Identity, Position};
use asymflow::job::{
    Body, DataSpec, EasingSpec, FromTrusted, JobSpec, Schedule, Task, ToTrusted, TrainSpec, WorkerSpec, WorkerTransport,
};
use asymflow::modes::delta::{Codebook, DeltaSpec, Feed, Labels, ReleasedCache, Variant};
use asymflow::modes::{
    AsymMlSpec, GuardSpec, ModeRef, ModeSpec, PrivacyTerms, Registry, Sampling, TrainState, TrustedOnlySpec,
};
use asymflow::plan::SplitSpec;
use asymflow::service::protocol::{FromService, Outcome, Refusal, RefusalCode, ToService};
use asymflow::service::{AccountLimits, ClientId, Ledgers, Promise, ServedModel, Service, ServiceSettings};
use asymflow_enclave::attest::{Claims, Evidence};
use asymflow_fuzz::{attestation_files, sealed_files, share_files, small_network};
use asymflow_privacy::{Loss, accountants::Relation, payload::Precision, records::RecordLedger};
use asymflow_residual::backend::{ConvUnit, ResidualModel, Unit};
use asymflow_shares::compile::WeightShare;
use asymflow_shares::net::{
    self as shares_net, FromDealer, FromServer, Hello, ModelInfo, QueryName, Ticket, ToServer, VERSION,
};
use asymflow_shares::program::Server;
use asymflow_wire::{PREFIX_BYTES, write_frame};
use asymflow_zoo::data::Normalization;
use asymflow_zoo::models::delta::DeltaShape;
use asymflow_zoo::{
    Network, Weights, by_name,
    network::{Layer, Shape},
};
use faer::Par;
use flate2::{Compression, write::GzEncoder};
use serde::Serialize;

fn put(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(name), bytes).unwrap();
}

fn main() {
    attestation();
    protocols();
    shares();
    worker();
    models();
    kept();
    data();
}

fn attestation() {
    let (certificate, collateral) = attestation_files(br#"{"epsilon":1}"#);
    put("certificate", "simulated", &certificate);
    put("collateral", "simulated", &collateral);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/asymflow-enclave/tests/fixtures");
    let fixture = |name: &str| std::fs::read(fixtures.join(name)).unwrap();
    put("collateral", "real", &fixture("sgx_quote_collateral.json"));
    put("collateral", "policy", br#"{"mr_signer":[],"min_isv_svn":1,"tcb":{"allow_sw_hardening_needed":true}}"#);
    put("quote", "real", &fixture("sgx_quote"));
    put("quote", "simulated", &fixture("simulated_quote"));
    put("quote", "tdx", &fixture("tdx_quote"));
    let claims = Claims { public_key_sha256: [7; 32], promise: b"promise".to_vec() }.encode();
    put("evidence", "claims", &claims);
    put("evidence", "evidence", &Evidence { quote: vec![1; 20], claims }.encode());
}

fn frame(header: &impl Serialize, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, header, body).unwrap();
    bytes
}

/// The header alone, whose length may change without ado.
fn header(frame: &[u8], body_bytes: usize) -> &[u8] {
    &frame[PREFIX_BYTES..frame.len() - body_bytes]
}

fn protocols() {
    let start = frame(&ToTrusted::Start(Box::new(job(&delta())), Body::Weights), &[0; 32]);
    put("job", "start", &start);
    put("job", "start.header", header(&start, 32));
    for (name, network) in hostile_networks() {
        let job = JobSpec { network, ..job(&TrustedOnlySpec) };
        put("job", name, header(&frame(&ToTrusted::Start(Box::new(job), Body::Empty), &[]), 0));
    }
    put("job", "stop", &frame(&ToTrusted::Stop, &[]));
    put("job", "step", &frame(&FromTrusted::Step { epoch: 1, step: 2, loss: 0.5 }, &[]));
    put("job", "checkpoint", &frame(&FromTrusted::Checkpoint { epoch: 1, step: 0 }, b"bytes"));
    put(
        "service",
        "hello",
        &frame(&ToService::Hello { version: 2, client: [3; 32], generation: Some(1), witness: Some(vec![5; 72]) }, &[]),
    );
    put("service", "classify", &frame(&ToService::Classify { images: 2 }, &[9; 128]));
    let refusal = Refusal { code: RefusalCode::Budget, detail: "spent".to_owned() };
    let outcomes = vec![Outcome::Answered, Outcome::Remembered, Outcome::Refused(refusal)];
    let answers = frame(&FromService::Answers { outcomes, spent_epsilon: Some(1.5), witness: None }, &[0; 16]);
    put("service", "answers", &answers);
    put("service", "answers.header", header(&answers, 16));
    put("bits", "nine", &[9, 0, 0, 0, 0, 0, 0, 0, 0b1010_1010, 1]);
    put("bits", "none", &[0; 8]);
}

/// The worker's messages, which its crate keeps to itself, in their order.
#[derive(Serialize)]
enum Welcome {
    Ready { device: &'static str, modelled: bool },
    Missing { what: &'static str, fix: &'static str },
}

#[derive(Serialize)]
enum Opened {
    Ready,
    Model { unit: u32, reason: &'static str },
}

#[derive(Serialize)]
enum Response {
    Done { busy_seconds: f64, values: u64, precision: Precision },
    Failed { reason: &'static str },
}

fn shares() {
    let [deal, messages, image, weights] = share_files();
    put("shares", "deal", &deal);
    put("shares", "messages", &messages);
    put("shares", "query", &[deal, messages].concat());
    put("shares", "image", &image);
    put("weight_share", "first", &weights);
    let share = WeightShare::<u64>::read_from(&mut weights.as_slice()).unwrap();
    put("share_frames", "program", &share.program().to_bytes());
    let ticket = Ticket { query: QueryName { session: [1; 16], number: 2 }, secret: [8; 32] };
    let model = share.program().hash();
    put("share_frames", "client", &frame(&Hello::Client { version: VERSION }, &[]));
    put(
        "share_frames",
        "peer",
        &frame(&Hello::Peer { version: VERSION, model, ticket: ticket.id(), set_up: true }, &[]),
    );
    put("share_frames", "dealer", &frame(&Hello::Dealer { version: VERSION, model, queries: 3 }, &[]));
    put("share_frames", "input", &frame(&ToServer::Input { ticket }, &[]));
    put("share_frames", "proof", &frame(&FromDealer::Proof { certificate_bytes: 4 }, &[9; 8]));
    let info = ModelInfo {
        input: Shape::new(1, 4, 4),
        normalization: Normalization { mean: vec![0.5], std: vec![0.25] },
        class_names: vec!["cat".to_owned(), "dog".to_owned()],
        resize: None,
    };
    let welcome = FromServer::Welcome { server: Server::First, info };
    put("share_frames", "welcome", &frame(&welcome, &share.program().to_bytes()));
    let refusal = shares_net::Refusal::new(shares_net::RefusalCode::Reused, "used before");
    put("share_frames", "refused", &frame(&FromServer::Refused(refusal), &[]));
}

fn worker() {
    let done = |values, precision| Response::Done { busy_seconds: 0.1, values, precision };
    let session = [
        frame(&Welcome::Ready { device: "cpu", modelled: false }, &[]),
        frame(&Opened::Ready, &[]),
        frame(&done(0, Precision::F32), &[]),
        frame(&done(4, Precision::F16), &[0; 8]),
        frame(&done(4, Precision::F32), &[0; 20]),
        frame(&done(1, Precision::F32), &[0; 4]),
    ];
    put("worker", "session", &session.concat());
    let failed = frame(&Response::Failed { reason: "no" }, &[]);
    put("worker", "failed", &[session[..2].concat(), failed].concat());
    put("worker", "refused", &[session[0].clone(), frame(&Opened::Model { unit: 0, reason: "no" }, &[])].concat());
    put("worker", "missing", &frame(&Welcome::Missing { what: "a device", fix: "buy one" }, &[]));
    let conv = ConvUnit { input: Shape::new(2, 3, 3), out_channels: 2, kernel: 3, stride: 1, padding: 1 };
    let model = ResidualModel { units: vec![Unit::Conv(conv), Unit::Network(small_network().clone())] };
    put("worker", "model.json", &serde_json::to_vec(&model).unwrap());
}

/// Networks whose sizes overflow or that nest too deeply.
fn hostile_networks() -> [(&'static str, Network); 3] {
    let [mut shape, mut window, mut deep] = [(); 3].map(|()| small_network().clone());
    shape.input.height = 1 << 63;
    if let Some(Layer::Conv(conv)) = window.layers.first_mut() {
        conv.kernel = usize::MAX - 7;
    }
    let block = |main, _| vec![Layer::Residual { main, shortcut: Vec::new() }];
    deep.layers = (0..1000).fold(vec![Layer::Relu], block);
    [("shape-overflow.header", shape), ("window-overflow.header", window), ("deep-blocks.header", deep)]
}

fn delta() -> DeltaSpec {
    DeltaSpec {
        shape: DeltaShape::published(small_network()).unwrap(),
        decomposition: "gram".to_owned(),
        variant: Variant::Strict,
        codebook: Codebook::default(),
        epsilon: Some(2.0),
        own_epsilon: false,
        clip: 1.0,
        labels: Labels::Public,
        feed: Feed::Nothing,
        views: 1,
        stage1_epochs: 1,
        orthogonality: 0.0,
        weights: None,
    }
}

fn asymml() -> AsymMlSpec {
    AsymMlSpec {
        split: SplitSpec { decomposition: "gram".to_owned(), rank: "fixed:2".to_owned(), split_first: false },
        guard: GuardSpec { mechanism: "insecure_none".to_owned(), sigma: None, clip: None, kappa: None },
        precision: Precision::F32,
        verify: true,
        leapfrog: false,
    }
}

/// What every ε is said of.
const TERMS: PrivacyTerms = PrivacyTerms { relation: Relation::Remove, delta: 1e-5, budget_epsilon: None };

fn job(mode: &dyn ModeSpec) -> JobSpec {
    let train = TrainSpec {
        epochs: 2,
        batch: 4,
        learning_rate: 0.1,
        momentum: 0.9,
        weight_decay: 0.0,
        schedule: Schedule::Cosine,
        seed: 1,
        evaluate_every: 1,
        clip_norm: None,
        coefficient_rate: 1.0,
        first_layer_rate: 1.0,
        easing: EasingSpec::default(),
        teacher: None,
        keep_diverged: false,
    };
    JobSpec {
        mode: ModeRef::of(mode).unwrap(),
        network: small_network().clone(),
        data: DataSpec {
            path: None,
            reader: None,
            train: Some(8),
            test: Some(4),
            seed: 1,
            augment: false,
            prepare: Default::default(),
        },
        terms: TERMS,
        worker: Some(WorkerSpec {
            address: "127.0.0.1:1".to_owned(),
            fingerprint: Some("ab".repeat(32)),
            token: "0123456789abcdef".to_owned(),
            insecure_plaintext: false,
            transport: WorkerTransport::Tcp,
            timeout_seconds: 1,
            patience_seconds: 1,
        }),
        threads: 1,
        vault: None,
        memory_limit_bytes: None,
        task: Task::Train(train),
    }
}

fn model(mode: &dyn ModeSpec, others: &[&dyn ModeSpec]) -> (ServedModel, Vec<f32>) {
    let normalization = Normalization { mean: vec![0.5], std: vec![0.25] };
    let names = vec!["cat".to_owned(), "dog".to_owned()];
    let others = others.iter().map(|other| ModeRef::of(*other).unwrap()).collect();
    let modes = (ModeRef::of(mode).unwrap(), others);
    let sampling = Sampling { batch: 4, records: 8 };
    let model = ServedModel::new(modes, small_network().clone(), TERMS, sampling, normalization, names);
    let network = model.stored_network(&Registry::default()).unwrap();
    // Rounded, so that the file compresses well.
    let weights = Weights::init(&network, 1).flatten(&network).unwrap();
    (model, weights.iter().map(|weight| (weight * 16.0).round() / 16.0).collect())
}

fn models() {
    let (delta, asymml) = (delta(), asymml());
    // As a run leaves them: modes on the plain network's weights can take each other's place.
    let modes: [(&dyn ModeSpec, &[&dyn ModeSpec]); 3] =
        [(&TrustedOnlySpec, &[&asymml]), (&asymml, &[&TrustedOnlySpec]), (&delta, &[])];
    for (mode, others) in modes {
        let (model, weights) = model(mode, others);
        let file = model.encode(&weights, &Registry::default()).unwrap();
        put("model", mode.name(), &file);
        put("model", &format!("{}.header", mode.name()), header(&file, 4 * weights.len()));
    }
    // What the encoder would not write.
    let (mut model, _) = model(&delta, &[]);
    let many = DeltaSpec { shape: DeltaShape { blocks: [usize::MAX; 3], ..delta.shape }, ..delta };
    model.mode = ModeRef::of(&many).unwrap();
    put("model", "many-blocks.header", header(&frame(&model, &[]), 0));
    model.mode = ModeRef::of(&TrustedOnlySpec).unwrap();
    model.network = by_name("resnet8-cifar", 2, Some(Shape::new(1, 8, 8))).unwrap();
    put("model", "resnet8.header", header(&frame(&model, &[]), 0));
    for (name, network) in hostile_networks() {
        model.network = network;
        put("model", name, header(&frame(&model, &[]), 0));
    }
    let network = small_network();
    let weights = Weights::init(network, 1);
    put("weights", "small", &asymflow_zoo::weights::files::encode(network, &weights).unwrap());
    let mut spent = RecordLedger::default();
    spent.add(Loss::Pure { epsilon: 0.5 });
    let checkpoint = Checkpoint {
        state: TrainState { weights: vec![1.0, -2.5], momentum: vec![0.0, 3.0], released: vec![7, 0, 255] },
        spent: vec![RecordLedger::default(), spent],
        position: Position { epoch: 3, step: 7, ..Position::default() },
        identity: Identity::default(),
    };
    put("checkpoint", "small", &checkpoint.encode().unwrap());
}

fn kept() {
    let (model, weights) = model(&TrustedOnlySpec, &[]);
    let settings = ServiceSettings::default();
    let service = Service::new(model, &weights, None, settings, (&Registry::default(), Par::Seq)).unwrap();
    let promise = Promise::of(&service, &settings, &"ab".repeat(32), "sim");
    put("promise", "trusted-only", &promise.encode().unwrap());
    let mut ledgers = Ledgers::new(AccountLimits::default());
    for client in 0..3 {
        let (client, losses) = (ClientId::of(&[client; 32]), [Loss::Zcdp { rho: 0.5 }]);
        ledgers.charge(client, &losses, None, std::time::Instant::now()).expect("no budget");
    }
    put("ledgers", "three", &ledgers.blocks().next().unwrap().unwrap());
    let cache = ReleasedCache {
        views: vec![vec![1, 2, 3], vec![4]],
        labels: vec![0, 1],
        queries: BTreeMap::from([(5, vec![6, 7])]),
        ahead: Some((vec![1], vec![0.5, 0.25])),
    };
    put("released_cache", "small", &cache.encode().unwrap());
    let (sealed, guard) = sealed_files(b"content of a sealed file");
    put("sealed", "first", &sealed);
    put("guard", "first", &guard);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn data() {
    let pixels: Vec<u8> = (0..3072).map(|i| (i / 64) as u8).collect();
    let record = [&[3, 99], pixels.as_slice()].concat();
    put("cifar_binary", "two", &record.repeat(2));
    let mut tar = tar::Builder::new(Vec::new());
    for name in ["train.bin", "test.bin"] {
        let mut header = tar::Header::new_ustar();
        header.set_size(record.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("cifar-100-binary/{name}"), record.as_slice()).unwrap();
    }
    let tar = tar.into_inner().unwrap();
    put("archive", "plain.tar", &tar);
    put("archive", "gzipped.tar.gz", &gzip(&tar));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/asymflow-zoo/tests/golden");
    put("pickle", "cifar100", &std::fs::read(golden.join("cifar100_py3.pickle")).unwrap());
    put("pickle", "names", b"\x80\x02}U\x10fine_label_names](U\x01aU\x01bes.");
    for protocol in ["py2-0", "py3-0", "py3-2", "frombuffer-5"] {
        put("pickle", protocol, &std::fs::read(golden.join(format!("foreign/cifar-{protocol}.pickle"))).unwrap());
    }
    for archive in ["keras", "floats"] {
        put("arrays", archive, &std::fs::read(golden.join(format!("foreign/{archive}.npz"))).unwrap());
    }
    let header = b"\x93NUMPY\x01\0\x43\0{'descr': '|u1', 'fortran_order': False, 'shape': (2, 4, 4), }    \n";
    put("arrays", "npy", &[header, [7; 32].as_slice()].concat());
    put("table", "named", b"label,a,b,c,d\n1,0,255,3,4\n0,1,2,3,4\n");
    put("table", "sixteen", b"3,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16\n");
    put("index", "two", br#"{"metadata": {}, "weight_map": {"conv1.weight": "part", "fc.bias": "../part"}}"#);
    let networks = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/asymflow-engine/tests/golden");
    for network in ["small-13", "small-17-norms", "grouped"] {
        put("onnx", network, &std::fs::read(networks.join(format!("{network}.onnx"))).unwrap());
    }
    put("idx", "images", b"\0\0\x08\x03\0\0\0\x02\0\0\0\x02\0\0\0\x03abcdefghijkl");
    put("idx", "labels", b"\0\0\x08\x01\0\0\0\x02\x01\x02");
    put("idx", "labels.gz", &gzip(b"\0\0\x08\x01\0\0\0\x02\x01\x02"));
    let image = image::RgbImage::from_fn(9, 7, |x, y| image::Rgb([x as u8 * 20, y as u8 * 30, 7]));
    let formats = [
        ("png", image::ImageFormat::Png),
        ("jpeg", image::ImageFormat::Jpeg),
        ("webp", image::ImageFormat::WebP),
        ("bmp", image::ImageFormat::Bmp),
        ("tiff", image::ImageFormat::Tiff),
        ("gif", image::ImageFormat::Gif),
        ("pnm", image::ImageFormat::Pnm),
    ];
    for (name, format) in formats {
        let mut file = Cursor::new(Vec::new());
        image.write_to(&mut file, format).unwrap();
        put("image", name, &file.into_inner());
    }
}
