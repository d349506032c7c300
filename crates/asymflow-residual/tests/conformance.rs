//! Every way to reach a device passes the same suite.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Arc, Mutex};

use asymflow_privacy::{
    Door, Private, Released,
    accountants::Relation,
    door::{Gate, Source},
    mechanisms::InsecureNone,
    payload::{Payload, Precision},
    records::{Flow, RecordAccountant},
};
use asymflow_residual::conformance::{Part, check};
use asymflow_residual::{
    ResidualBackend,
    backend::{Batch, ConvUnit, Pass, ResidualModel, SgdStep, SubmitError, Unit, UnitId},
    burn_backend::{BurnBackend, DeviceChoice},
    client::{Protection, Tap, Token, WorkerClient, WorkerConfig},
    data_parallel::DataParallel,
    serve::{ServeConfig, ServeLimits, Worker, WorkerHandle},
};
use asymflow_zoo::{
    Network,
    network::{Layer, Shape},
};
use rand::SeedableRng;

fn flex() -> Arc<dyn ResidualBackend> {
    Arc::new(BurnBackend::new(DeviceChoice::Flex))
}

fn serve(backend: Arc<dyn ResidualBackend>, plaintext: bool, answers: Precision) -> (WorkerHandle, WorkerClient) {
    let config = ServeConfig {
        token: Token::new("secret"),
        insecure_plaintext: plaintext,
        identity: None,
        ring_name: None,
        limits: ServeLimits::default(),
    };
    let worker = Worker::bind("127.0.0.1:0", backend, config).unwrap().start().unwrap();
    let protection = worker.fingerprint().map_or(Protection::InsecurePlaintext, Protection::Pinned);
    let mut config = WorkerConfig::new(worker.address().to_string(), Token::new("secret"), protection);
    config.answers = answers;
    (worker, WorkerClient::new(config))
}

fn released(values: Vec<f32>) -> Released<Payload> {
    let mut door = Door::new(RecordAccountant::new(1), rand::rngs::StdRng::seed_from_u64(1));
    let gate = Gate::new(Box::new(InsecureNone), None, Relation::Remove).unwrap();
    let source = Source { layer: "unit", flow: Flow::Residual };
    door.release(&gate, source, &[0], Private::new(values)).unwrap().encode(Precision::F32)
}

fn conforms(backend: &dyn ResidualBackend) {
    check(backend, &Part::ALL).unwrap();
}

#[test]
fn flex_conforms() {
    conforms(flex().as_ref());
}

#[test]
fn a_worker_over_tls_conforms() {
    let (_worker, client) = serve(flex(), false, Precision::F32);
    conforms(&client);
}

#[test]
fn a_worker_in_plaintext_conforms() {
    let (_worker, client) = serve(flex(), true, Precision::F32);
    conforms(&client);
}

/// The positive control: rounding every answer to binary16 is noticed wherever it shows, at once.
#[test]
fn answers_in_f16_do_not_conform() {
    let (_worker, client) = serve(flex(), true, Precision::F16);
    let broken = check(&client, &[Part::Convolutions, Part::Inference]).unwrap_err();
    let rules: Vec<&str> = broken.0.iter().map(|(rule, _)| *rule).collect();
    assert_eq!(rules, ["products", "added weights", "order", "network inference"], "{broken}");
    assert!(broken.to_string().contains("\nproducts: inference of ConvUnit"), "{broken}");
}

#[test]
fn two_devices_in_parallel_conform() {
    let (_worker, client) = serve(flex(), false, Precision::F32);
    let parallel = DataParallel::new(vec![flex(), Arc::new(client)]);
    check(&parallel, &[Part::Convolutions, Part::Inference]).unwrap();
}

#[test]
fn a_worker_with_parallel_devices_conforms() {
    let (_worker, client) = serve(Arc::new(DataParallel::new(vec![flex(), flex(), flex()])), true, Precision::F32);
    check(&client, &[Part::Convolutions, Part::Inference]).unwrap();
}

/// Each worker is sent its own samples and no others.
#[test]
fn parallel_devices_share_the_samples() {
    let seen: [Arc<Mutex<Vec<u8>>>; 3] = Default::default();
    let workers: Vec<_> = seen.iter().map(|_| serve(flex(), true, Precision::F32).0).collect();
    let client = |(worker, seen): (&WorkerHandle, &Arc<Mutex<Vec<u8>>>)| {
        let sink = Arc::clone(seen);
        let address = worker.address().to_string();
        let mut config = WorkerConfig::new(address, Token::new("secret"), Protection::InsecurePlaintext);
        config.tap = Some(Tap::new(move |bytes| sink.lock().unwrap().extend_from_slice(bytes)));
        Arc::new(WorkerClient::new(config)) as Arc<dyn ResidualBackend>
    };
    let parallel = DataParallel::new(workers.iter().zip(&seen).map(client).collect());
    let unit = ConvUnit { input: Shape::new(1, 1, 1), out_channels: 1, kernel: 1, stride: 1, padding: 0 };
    let mut session = parallel.open(&ResidualModel { units: vec![Unit::Conv(unit)] }).unwrap();
    session.set_weights(UnitId(0), &[2.0]).unwrap();
    let samples: Vec<f32> = (0..5).map(|i| i as f32 + 0.765_432_1).collect();
    let ticket = session.submit(UnitId(0), released(samples.clone()), Pass::Training).unwrap();
    let doubled = samples.iter().map(|x| 2.0 * x).collect();
    assert_eq!(session.collect(ticket).unwrap(), Batch::Outputs(doubled));
    let holders = |sample: &f32| {
        let holds = |seen: &Arc<Mutex<Vec<u8>>>| seen.lock().unwrap().windows(4).any(|w| w == sample.to_le_bytes());
        seen.iter().map(holds).collect::<Vec<_>>()
    };
    let shares: Vec<_> = samples.iter().map(holders).collect();
    let of = |worker: usize| (0..3).map(|i| i == worker).collect::<Vec<_>>();
    assert_eq!(shares, [of(0), of(1), of(1), of(2), of(2)]);
}

#[test]
fn parallel_devices_refuse_to_train_a_network() {
    let network =
        Network { name: "flat".to_owned(), input: Shape::new(2, 1, 1), classes: 2, layers: vec![Layer::Flatten] };
    let model = ResidualModel { units: vec![Unit::Network(network)] };
    let mut session = DataParallel::new(vec![flex(), flex()]).open(&model).unwrap();
    let refused = session.submit(UnitId(0), released(vec![1.0, 2.0]), Pass::Training);
    assert!(matches!(refused, Err(SubmitError::Unsupported { unit: 0, .. })), "{refused:?}");
    let sgd = SgdStep::plain(0.1, 0.0, 0.0);
    assert!(matches!(session.step(UnitId(0), sgd), Err(SubmitError::Unsupported { unit: 0, .. })));
}

/// The example `remote_host` on loopback, which ends with this value.
#[cfg(feature = "remote")]
struct RemoteHost {
    process: std::process::Child,
    key_file: std::path::PathBuf,
    device: String,
}

#[cfg(feature = "remote")]
impl RemoteHost {
    fn start() -> Self {
        let program = std::env::current_exe().unwrap().with_file_name("../examples/remote_host");
        let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let key_file = std::env::temp_dir().join(format!("asymflow-remote-{}-{port}", std::process::id()));
        let mut process = std::process::Command::new(program)
            .arg(&key_file)
            .arg(port.to_string())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(process.stdout.take().unwrap()), &mut line).unwrap();
        let device = line.trim().trim_start_matches("--device ").replace("IP", "127.0.0.1");
        Self { process, key_file, device }
    }
}

#[cfg(feature = "remote")]
impl Drop for RemoteHost {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        std::fs::remove_file(&self.key_file).unwrap();
    }
}

#[cfg(feature = "remote")]
#[test]
fn a_remote_device_conforms() {
    let host = RemoteHost::start();
    conforms(&BurnBackend::new(host.device.parse().unwrap()));
}

#[cfg(feature = "remote")]
#[test]
fn a_remote_host_with_another_key_is_refused() {
    let host = RemoteHost::start();
    let other = RemoteHost::start();
    let (_, address) = host.device.split_once('@').unwrap();
    let (key, _) = other.device.split_once('@').unwrap();
    let probed = BurnBackend::new(format!("{key}@{address}").parse().unwrap()).probe();
    assert!(matches!(probed, asymflow_residual::backend::Availability::Missing { .. }), "{probed:?}");
}

/// burn-remote notices after half a minute.
#[cfg(feature = "remote")]
#[test]
fn a_remote_host_that_is_gone_is_an_error() {
    let host = RemoteHost::start();
    let unit = ConvUnit { input: Shape::new(1, 1, 1), out_channels: 1, kernel: 1, stride: 1, padding: 0 };
    let backend = BurnBackend::new(host.device.parse().unwrap());
    let mut session = backend.open(&ResidualModel { units: vec![Unit::Conv(unit)] }).unwrap();
    session.set_weights(UnitId(0), &[2.0]).unwrap();
    drop(host);
    let ticket = session.submit(UnitId(0), released(vec![1.0]), Pass::Inference).unwrap();
    let error = session.collect(ticket).unwrap_err();
    assert!(matches!(error, asymflow_residual::backend::CollectError::Failed { .. }), "{error:?}");
}

/// On a machine without an adapter the reason is printed instead.
#[cfg(feature = "wgpu")]
#[test]
fn wgpu_conforms() {
    use asymflow_residual::backend::Availability;
    let backend = BurnBackend::new(DeviceChoice::Wgpu(0));
    match backend.probe() {
        Availability::Ready { device } => {
            println!("device: {device}");
            conforms(&backend);
        }
        Availability::Missing { what, .. } => println!("skipped: {what}"),
    }
}
