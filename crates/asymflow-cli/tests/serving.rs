//! A service in its own process, a worker in another, and clients that come to them: friends and others.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers as well")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use asymflow::modes::delta::{DeltaSpec, Feed, Labels, Variant};
use asymflow::modes::{AsymMlSpec, GuardSpec, ModeRef, ModeSpec, PrivacyTerms, Registry, Sampling, TrustedOnlySpec};
use asymflow::plan::SplitSpec;
use asymflow::service::{ClientId, Query, ServedModel, Service, ServiceSettings, sha256_hex};
use asymflow_privacy::{accountants::Relation, payload::Precision};
use asymflow_zoo::data::{Normalization, read_image, synthetic};
use asymflow_zoo::models::delta::DeltaShape;
use asymflow_zoo::{Network, Weights, by_name, network::Shape};
use faer::Par;

/// A process that ends with its test.
struct Process {
    child: Child,
    ready: serde_json::Value,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// Starts a program and waits for its line of JSON.
    fn start(program: &str, folder: &Path, flags: &[&str]) -> Self {
        let beside = Path::new(env!("CARGO_BIN_EXE_asymflow")).with_file_name(program);
        assert!(beside.is_file(), "{program} is not built: cargo build --release -p {program}");
        let mut child = Command::new(beside)
            .current_dir(folder)
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).unwrap();
        Self { child, ready }
    }

    fn says(&self, key: &str) -> String {
        self.ready[key].as_str().unwrap().to_owned()
    }
}

struct Deployment {
    folder: tempfile::TempDir,
    service: Process,
    _worker: Option<Process>,
}

/// The network of every test.
fn network() -> Network {
    by_name("resnet8-cifar", 10, None).unwrap()
}

/// An answer costs ε 9.
fn delta() -> DeltaSpec {
    DeltaSpec {
        shape: DeltaShape::published(&network()).unwrap(),
        decomposition: "gram".to_owned(),
        variant: Variant::Strict,
        codebook: Default::default(),
        epsilon: Some(9.0),
        own_epsilon: false,
        clip: 1.0,
        labels: Labels::Public,
        feed: Feed::Residual,
        views: 1,
        stage1_epochs: 0,
        orthogonality: 0.0,
        weights: None,
    }
}

fn asymml() -> AsymMlSpec {
    AsymMlSpec {
        split: SplitSpec { decomposition: "gram".to_owned(), rank: "fixed:4".to_owned(), split_first: false },
        guard: GuardSpec { mechanism: "insecure_none".to_owned(), sigma: None, clip: None, kappa: None },
        precision: Precision::F32,
        verify: true,
        leapfrog: false,
    }
}

/// A model of random weights: what it answers is as good a witness as what a trained one does.
fn model(mode: &dyn ModeSpec) -> (ServedModel, Vec<f32>) {
    let data = synthetic(100, 0, 1).train;
    let terms = PrivacyTerms { relation: Relation::Remove, delta: 1e-5, budget_epsilon: None };
    let model = ServedModel::new(
        (ModeRef::of(mode).unwrap(), Vec::new()),
        network(),
        terms,
        Sampling { batch: 8, records: 100 },
        Normalization::of(&data),
        data.class_names().to_vec(),
    );
    let network = model.stored_network(&Registry::default()).unwrap();
    let weights = Weights::init(&network, 7).flatten(&network).unwrap();
    (model, weights)
}

/// The bytes of its file.
fn model_file(mode: &dyn ModeSpec) -> Vec<u8> {
    let (model, weights) = model(mode);
    model.encode(&weights, &Registry::default()).unwrap()
}

impl Deployment {
    fn of(mode: &dyn ModeSpec, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        std::fs::write(at.join("model.asymflow"), model_file(mode)).unwrap();
        std::fs::write(at.join("token"), "a shared secret\n").unwrap();
        let mut all = vec!["serve", "--model", "model.asymflow", "--listen", "127.0.0.1:0"];
        all.extend(flags);
        let (worker, address, fingerprint);
        if mode.needs_worker() {
            let started = Process::start("asymflow-worker", at, &["--listen", "127.0.0.1:0", "--token-file", "token"]);
            (address, fingerprint) = (started.says("listening"), started.says("fingerprint"));
            all.extend(["--worker", &address, "--worker-fingerprint", &fingerprint, "--worker-token-file", "token"]);
            worker = Some(started);
        } else {
            worker = None;
        }
        let service = Process::start("asymflow-enclaved", at, &all);
        let deployment = Self { folder, service, _worker: worker };
        assert!(deployment.asymflow(&["samples", "images", "--count", "6"]).status.success());
        deployment
    }

    fn asymflow(&self, flags: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_asymflow"));
        command.current_dir(self.folder.path()).args(flags).stdin(Stdio::null()).output().unwrap()
    }

    fn client(&self, what: &str, flags: &[&str]) -> Output {
        let address = self.service.says("listening");
        let mut all = vec!["client", what, "--enclave", &address, "--account", "account"];
        all.extend(flags);
        self.asymflow(&all)
    }

    fn images(&self) -> Vec<PathBuf> {
        let mut images: Vec<_> =
            std::fs::read_dir(self.folder.path().join("images")).unwrap().map(|entry| entry.unwrap().path()).collect();
        images.sort();
        images
    }

    /// Logits of every image, as the client hears them.
    fn classify(&self) -> Vec<Vec<f32>> {
        let images = self.images();
        let mut flags = vec!["--insecure-accept-simulated", "--json"];
        flags.extend(images.iter().map(|path| path.to_str().unwrap()));
        let output = self.client("classify", &flags);
        assert!(output.status.success(), "{}", stderr(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        let line = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        text.lines().map(|text| serde_json::from_value(line(text)["logits"].clone()).unwrap()).collect()
    }

    /// Why a client with these flags refuses the service, or is refused.
    fn refusal(&self, flags: &[&str]) -> String {
        let mut all = flags.to_vec();
        let images = self.images();
        all.push(images[0].to_str().unwrap());
        let output = self.client("classify", &all);
        assert!(!output.status.success() && output.stdout.is_empty());
        stderr(&output)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs the enclave program to its end.
fn enclaved(folder: &Path, flags: &[&str]) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_asymflow")).with_file_name("asymflow-enclaved");
    Command::new(program).current_dir(folder).args(flags).output().unwrap()
}

/// The same images asked in this process.
fn in_process(deployment: &Deployment) -> Vec<Vec<f32>> {
    let (model, weights) = model(&TrustedOnlySpec);
    let around = (&Registry::default(), Par::Seq);
    let mut service = Service::new(model, &weights, None, ServiceSettings::default(), around).unwrap();
    let query = |path: &PathBuf| Query {
        client: ClientId::of(&[0; 32]),
        image: read_image(path, Shape::new(3, 32, 32), None).unwrap(),
    };
    let queries: Vec<_> = deployment.images().iter().map(query).collect();
    service.answer(&queries).into_iter().map(|answer| answer.unwrap().logits).collect()
}

fn assert_near(got: &[Vec<f32>], expected: &[Vec<f32>], bound: f32) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().flatten().zip(expected.iter().flatten()) {
        assert!((got - expected).abs() <= bound * (1.0 + expected.abs()), "{got}, expected {expected}");
    }
}

#[test]
fn a_client_is_answered_as_the_network_answers_in_process() {
    let trusted = Deployment::of(&TrustedOnlySpec, &[]);
    let expected = in_process(&trusted);
    assert_near(&trusted.classify(), &expected, 1e-4);
    // The same weights, every convolution split between two more processes.
    let flags = ["--insecure-unlimited-answers", "--insecure-forgetful", "--batch", "4", "--worker-shm"];
    for flags in [&flags[..4], &flags] {
        let split = Deployment::of(&asymml(), flags);
        assert_near(&split.classify(), &expected, 1e-3);
    }
}

/// A pipe, a device, standard input; one that is none among others; and nowhere to write an answer to.
#[test]
fn images_come_by_every_road_and_answers_that_nobody_gets_are_a_failure() {
    let deployment = Deployment::of(&TrustedOnlySpec, &[]);
    let (address, images, expected) =
        (deployment.service.says("listening"), deployment.images(), deployment.classify());
    let image = images[0].to_str().unwrap();
    let ask = |files: &str, input: Stdio, output: Stdio| {
        let program = env!("CARGO_BIN_EXE_asymflow");
        let flags = "--account account --insecure-accept-simulated --json";
        let mut shell = Command::new("bash");
        shell.current_dir(deployment.folder.path()).stdin(input).stdout(output).stderr(Stdio::piped());
        shell.args(["-c", &format!("exec '{program}' client classify --enclave {address} {flags} {files}")]);
        shell.spawn().unwrap().wait_with_output().unwrap()
    };
    let lines = |output: &Output| -> Vec<serde_json::Value> {
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let is_answer = |line: &serde_json::Value, image: usize| {
        let logits: Vec<f32> = serde_json::from_value(line["logits"].clone()).unwrap();
        assert_near(&[logits], &expected[image..=image], 1e-5);
    };
    let pipe = format!("<(cat '{image}')");
    for (files, input) in [("-", true), ("/dev/stdin", true), (pipe.as_str(), false)] {
        let input = if input { std::fs::File::open(&images[0]).unwrap().into() } else { Stdio::null() };
        let output = ask(files, input, Stdio::piped());
        assert!(output.status.success(), "{files}: {}", stderr(&output));
        is_answer(&lines(&output)[0], 0);
        // One line of assurance a session, and the line of JSON names its file.
        assert_eq!(stderr(&output).lines().count(), 1, "{files}: {}", stderr(&output));
        assert!(lines(&output)[0]["file"].as_str().is_some_and(|file| !file.is_empty()), "{files}");
    }

    deployment.write("broken.png", "none");
    let output = ask(&format!("{image} broken.png {}", images[1].display()), Stdio::null(), Stdio::piped());
    assert_eq!(output.status.code(), Some(2));
    let told = lines(&output);
    let of = |file: &str| told.iter().find(|line| line["file"] == file).unwrap();
    is_answer(of(image), 0);
    is_answer(of(images[1].to_str().unwrap()), 1);
    assert!(of("broken.png")["error"].as_str().is_some_and(|error| error.contains("broken.png")));

    let (reader, broken) = std::io::pipe().unwrap();
    drop(reader);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    for nowhere in [Stdio::from(broken), Stdio::from(full)] {
        let output = ask(image, Stdio::null(), nowhere);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains("error: cannot write the results"), "{}", stderr(&output));
    }
}

#[test]
fn a_budget_outlives_the_service_and_an_answer_is_given_again() {
    let flags = ["--budget-epsilon", "20", "--state", "state"];
    let mut deployment = Deployment::of(&delta(), &flags);
    let images = deployment.images();
    let ask = |deployment: &Deployment, image: usize| {
        deployment.client("classify", &["--insecure-accept-simulated", images[image].to_str().unwrap()])
    };
    let first = ask(&deployment, 0);
    assert!(first.status.success(), "{}", stderr(&first));
    assert_eq!(ask(&deployment, 0).stdout, first.stdout);
    for image in [1, 2] {
        assert!(ask(&deployment, image).status.success());
    }
    let refused = ask(&deployment, 3);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("above the limit 20"), "{}", stderr(&refused));
    // What was answered before still is.
    assert_eq!(ask(&deployment, 0).stdout, first.stdout);

    let worker = deployment._worker.as_ref().unwrap();
    let (address, fingerprint) = (worker.says("listening"), worker.says("fingerprint"));
    let mut all = vec!["serve", "--model", "model.asymflow", "--listen", "127.0.0.1:0"];
    all.extend(["--worker", &address, "--worker-fingerprint", &fingerprint, "--worker-token-file", "token"]);
    all.extend(flags);
    let state = deployment.folder.path().join("state");
    let logs = || (0..6).map(|slot| state.join(format!("answers.{slot}.log"))).filter(|path| path.exists());
    let restart = |deployment: &mut Deployment| {
        deployment.service.child.kill().unwrap();
        deployment.service.child.wait().unwrap();
        deployment.service = Process::start("asymflow-enclaved", deployment.folder.path(), &all);
    };
    restart(&mut deployment);
    let refused = ask(&deployment, 3);
    assert!(stderr(&refused).contains("above the limit 20"), "killed and started again: {}", stderr(&refused));
    // What was answered by the process before is answered by this one, and costs nothing.
    assert_eq!(ask(&deployment, 0).stdout, first.stdout);

    // A host that takes answers away makes their images cost again; what was lost before stays lost.
    logs().for_each(|log| std::fs::write(log, b"").unwrap());
    restart(&mut deployment);
    for image in [0, 3] {
        let refused = ask(&deployment, image);
        assert!(stderr(&refused).contains("above the limit 20"), "image {image}: {}", stderr(&refused));
    }
}

#[test]
fn a_client_notices_that_everything_was_put_back() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let flags = ["--budget-epsilon", "20", "--state", "state", "--guard", "guard", "--listen", &free];
    let mut deployment = Deployment::of(&delta(), &flags);
    let at = deployment.folder.path().to_owned();
    let images = deployment.images();
    let ask = |deployment: &Deployment, image: usize, flags: &[&str]| {
        let mut all = vec!["--insecure-accept-simulated", images[image].to_str().unwrap()];
        all.extend(flags);
        deployment.client("classify", &all)
    };
    let copy = |from: &str, to: &str| {
        for folder in ["state", "guard"] {
            let (from, to) = (at.join(format!("{folder}{from}")), at.join(format!("{folder}{to}")));
            std::fs::create_dir_all(&to).unwrap();
            for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap).filter(|e| e.path().is_file()) {
                std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
    };
    let restart = |deployment: &mut Deployment| {
        deployment.service.child.kill().unwrap();
        deployment.service.child.wait().unwrap();
        let worker = deployment._worker.as_ref().unwrap();
        let (address, fingerprint) = (worker.says("listening"), worker.says("fingerprint"));
        let mut all = vec!["serve", "--model", "model.asymflow"];
        all.extend(["--worker", &address, "--worker-fingerprint", &fingerprint, "--worker-token-file", "token"]);
        all.extend(flags);
        deployment.service = Process::start("asymflow-enclaved", &at, &all);
    };
    assert!(ask(&deployment, 0, &[]).status.success());
    copy("", "-then");
    assert!(ask(&deployment, 1, &[]).status.success());
    restart(&mut deployment);
    assert!(ask(&deployment, 1, &[]).status.success(), "an honest restart goes unremarked");
    copy("-then", "");
    restart(&mut deployment);
    let refused = ask(&deployment, 2, &[]);
    assert!(stderr(&refused).contains("it was rolled back"), "{}", stderr(&refused));
    assert!(ask(&deployment, 2, &["--forget-witness"]).status.success());
}

#[test]
fn a_client_refuses_what_its_policy_does_not_name() {
    let deployment = Deployment::of(&TrustedOnlySpec, &[]);
    let unproven = deployment.refusal(&[]);
    assert!(unproven.contains("no collateral") && unproven.contains("help: "), "{unproven}");

    let inspected = deployment.client("inspect", &["--insecure-accept-simulated"]);
    let policy = String::from_utf8(inspected.stdout).unwrap();
    deployment.write("policy.toml", &policy);
    let simulated = ["--insecure-accept-simulated", "--policy", "policy.toml"];
    let images = deployment.images();
    let mut accepted = simulated.to_vec();
    accepted.push(images[0].to_str().unwrap());
    let output = deployment.client("classify", &accepted);
    assert!(output.status.success(), "what it proved can be pinned: {}", stderr(&output));

    let changed = |from: &str, to: &str| {
        assert!(policy.contains(from), "{policy}");
        deployment.write("policy.toml", &policy.replacen(from, to, 1));
        deployment.refusal(&simulated)
    };
    let other = format!("mr_enclave = [\"{}\"]", "ab".repeat(32));
    let pinned = policy.lines().find(|line| line.starts_with("mr_enclave")).unwrap().to_owned();
    assert!(changed(&pinned, &other).contains("MRENCLAVE is"));
    let pinned = policy.lines().find(|line| line.starts_with("sha256")).unwrap().to_owned();
    let other = format!("sha256 = \"{}\"", "ab".repeat(32));
    assert!(changed(&pinned, &other).contains("SHA-256 of the promise is"));
    assert!(changed("min_isv_svn = 1", "min_isv_svn = 9").contains("ISVSVN is 1, the policy asks for at least 9"));
    assert!(changed("tcb.min_evaluation = 1", "tcb.min_evaluation = 2").contains("rated by TCB evaluation 1"));
    assert!(changed("[enclave]", "[enclave]\nmr_enclav = []").contains("unknown field `mr_enclav`"));
    // A file cannot ask for what the flag asks for: nobody would be told.
    let simulated = "[enclave]\ninsecure_accept_simulated = true";
    assert!(changed("[enclave]", simulated).contains("unknown field `insecure_accept_simulated`"));
    let debug = policy.replacen("[enclave]", "[enclave]\ninsecure_allow_debug = true", 1);
    deployment.write("policy.toml", &debug);
    let output = deployment.client("classify", &accepted);
    assert!(output.status.success() && stderr(&output).contains("insecure_allow_debug"), "{}", stderr(&output));
}

#[test]
fn a_client_reads_the_promise() {
    let flags = ["--budget-epsilon", "20", "--state", "state"];
    let deployment = Deployment::of(&delta(), &flags);
    deployment.write("policy.toml", "[promise]\nmax_answer_epsilon = 2.0\n");
    let refused = deployment.refusal(&["--insecure-accept-simulated", "--policy", "policy.toml"]);
    assert!(refused.contains("the policy allows epsilon 2"), "{refused}");

    // What could not be written was answered and paid for: that is said, and it is a failure.
    let image = deployment.images().remove(0);
    let address = deployment.service.says("listening");
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_asymflow"));
    command.current_dir(deployment.folder.path()).args(["client", "classify", "--enclave", &address]);
    command.args(["--account", "account", "--insecure-accept-simulated"]).arg(image);
    let output = command.stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("has spent epsilon 9.000 of 20") && said.contains("cannot write the results: "), "{said}");
}

#[test]
fn plain_tls_is_no_enclave() {
    let deployment = Deployment::of(&delta(), &["--budget-epsilon", "20", "--state", "state"]);
    let worker = deployment._worker.as_ref().unwrap().says("listening");
    let images = deployment.images();
    let image = images[0].to_str().unwrap();
    let output = deployment.asymflow(&[
        "client",
        "classify",
        "--enclave",
        &worker,
        "--account",
        "account",
        "--insecure-accept-simulated",
        image,
    ]);
    assert!(stderr(&output).contains("carries no attestation evidence"), "{}", stderr(&output));
}

#[test]
fn an_enclave_program_says_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let file = model_file(&delta());
    std::fs::write(folder.path().join("model"), &file).unwrap();
    std::fs::write(folder.path().join("cut"), &file[..file.len() / 2]).unwrap();
    let refusal = |flags: &[&str]| {
        let output = enclaved(folder.path(), flags);
        assert!(!output.status.success() && output.stdout.is_empty());
        stderr(&output)
    };
    assert!(refusal(&["serve"]).contains("--model is missing"));
    assert!(refusal(&["serve", "--model", "absent"]).contains("cannot read absent"));
    assert!(refusal(&["serve", "--model", "cut"]).contains("not a complete model file"));
    assert!(refusal(&["serve", "--model", "model"]).contains("--worker is missing"));
    assert!(refusal(&["serve", "--model", "model", "--mode", "asymml"]).contains("cannot be served as"));
    assert!(refusal(&["serve", "--model", "model", "--bath", "3"]).contains("--bath"));
}

#[test]
fn a_sealed_model_answers_as_the_plain_one_and_promises_the_same() {
    let plain = Deployment::of(&TrustedOnlySpec, &[]);
    let at = plain.folder.path();
    let sealed = enclaved(at, &["seal-model", "--model", "model.asymflow", "--state", "state"]);
    assert!(sealed.status.success(), "{}", stderr(&sealed));
    let said: serde_json::Value = serde_json::from_slice(&sealed.stdout).unwrap();
    assert_eq!(said["model_sha256"], sha256_hex(&std::fs::read(at.join("model.asymflow")).unwrap()));
    let flags = ["serve", "--model", "state/model.sealed", "--state", "state", "--listen", "127.0.0.1:0"];
    let expected = plain.classify();
    for more in [&[][..], &["--stream-weights", "weights"]] {
        let service = Process::start("asymflow-enclaved", at, &[&flags, more].concat());
        let deployment = Deployment { service, _worker: None, folder: tempfile::tempdir().unwrap() };
        assert!(deployment.asymflow(&["samples", "images", "--count", "6"]).status.success());
        assert_eq!(deployment.classify(), expected);
        let promised = deployment.client("inspect", &["--insecure-accept-simulated"]);
        assert!(String::from_utf8_lossy(&promised.stdout).contains(said["model_sha256"].as_str().unwrap()));
    }

    let refused = |flags: &[&str]| stderr(&enclaved(at, flags));
    assert!(refused(&["seal-model", "--model", "state/model.sealed", "--state", "state"]).contains("not a complete"));
    assert!(refused(&["serve", "--model", "state/model.sealed"]).contains("--state is missing: a sealed model"));
    let elsewhere = refused(&["serve", "--model", "state/model.sealed", "--state", "other"]);
    assert!(elsewhere.contains("sealed under another key"), "{elsewhere}");
    let mut file = std::fs::read(at.join("state/model.sealed")).unwrap();
    let middle = file.len() / 2;
    file[middle] ^= 1;
    std::fs::write(at.join("state/model.sealed"), file).unwrap();
    assert!(refused(&flags).contains("was altered"), "{}", refused(&flags));
}

#[test]
fn a_service_is_started_where_its_plan_fits_and_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.asymflow"), model_file(&TrustedOnlySpec)).unwrap();
    let options = ["--model", "model.asymflow", "--threads", "2", "--remembered", "1000"];
    let planned = enclaved(folder.path(), &[&["plan"], &options[..]].concat());
    assert!(planned.status.success(), "{}", stderr(&planned));
    let planned: serde_json::Value = serde_json::from_slice(&planned.stdout).unwrap();
    let peak = planned["plan"]["peak_bytes"].as_u64().unwrap();
    assert_eq!(planned["threads"], 2);

    let deployment = |limit: u64| {
        let limit = limit.to_string();
        let flags = ["--threads", "2", "--remembered", "1000", "--memory-limit", &limit];
        Deployment::of(&TrustedOnlySpec, &flags).classify().len()
    };
    assert_eq!(deployment(peak), 6);
    let small = (peak - 1).to_string();
    let refused = enclaved(folder.path(), &[&["serve"], &options[..], &["--memory-limit", &small]].concat());
    assert!(stderr(&refused).contains("of memory, the limit is"), "{}", stderr(&refused));
}

/// Connections that never say a word, say it slowly, or hang up in the middle: others are answered meanwhile.
#[test]
fn hostile_connections_do_not_keep_others_waiting() {
    let deployment = Deployment::of(&TrustedOnlySpec, &["--sessions", "2000"]);
    let address = deployment.service.says("listening");
    let expected = deployment.classify();
    let mut silent = Vec::new();
    for number in 0..1000 {
        let mut stream = TcpStream::connect(&address).unwrap();
        match number % 4 {
            // The first bytes of a TLS handshake that never comes.
            1 => stream.write_all(&[22, 3, 1, 2]).unwrap(),
            2 => stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap(),
            3 => {
                stream.write_all(&[22, 3, 1]).unwrap();
                drop(stream);
                continue;
            }
            _ => {}
        }
        silent.push(stream);
    }
    assert_near(&deployment.classify(), &expected, 1e-6);
    // They are shown out when their handshake takes too long.
    let mut first = silent.swap_remove(0);
    first.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert_eq!(first.read(&mut [0; 16]).unwrap_or(0), 0);
    assert_near(&deployment.classify(), &expected, 1e-6);
}

/// One command prepares the enclave and serves in it; the answer is that of this process.
fn assert_served_under(runtime: &str) {
    let deployment = Deployment::of(&TrustedOnlySpec, &[]);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (folder, model) = (deployment.folder.path().join("enclave"), deployment.folder.path().join("model.asymflow"));
    let mut child = Command::new(env!("CARGO"))
        .args(["xtask", "enclave", "run", "--runtime", runtime, "--threads", "2", "--folder"])
        .arg(&folder)
        .args(["--", "serve", "--exit-with-parent", "--threads", "2", "--listen", &free, "--model"])
        .arg(&model)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.find_map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()).ok()).unwrap();
    assert_eq!(ready["runtime"], runtime);
    let images = deployment.images();
    let mut flags = vec!["client", "classify", "--enclave", &free, "--account", "account", "--json"];
    flags.push("--insecure-accept-simulated");
    flags.extend(images.iter().map(|path| path.to_str().unwrap()));
    let output = deployment.asymflow(&flags);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let logits: Vec<Vec<f32>> = text
        .lines()
        .map(|line| {
            serde_json::from_value(serde_json::from_str::<serde_json::Value>(line).unwrap()["logits"].clone()).unwrap()
        })
        .collect();
    assert_near(&logits, &in_process(&deployment), 1e-4);
    // It ends when its standard input does.
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_client_is_answered_from_inside_gramine() {
    use asymflow_enclave::runtime::{Availability, Gramine, TrustedRuntime};
    match Gramine::direct("asymflow-enclaved").probe() {
        Availability::Missing { what, .. } => println!("skipped: {what}"),
        Availability::Ready => assert_served_under("gramine-direct"),
    }
}
