//! The program as its users run it: a server and clients as processes.
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside test functions")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use asymflow_wire::tls::{Stream, client_config, dial};
use asymflow_wire::{Limits, PREFIX_BYTES, Prefix};
use asymflow_zoo::network::{Layer, Shape};
use asymflow_zoo::ops::{Conv, Form, Linear, Quadratic};
use asymflow_zoo::weights::files;
use asymflow_zoo::{Network, Weights};
use serde_json::Value;

/// Of the built-in images: one convolution, one square.
fn network(name: &str, form: Form) -> Network {
    let conv =
        Conv { name: "conv1".into(), in_channels: 3, out_channels: 2, kernel: 8, stride: 8, padding: 0, bias: false };
    let layers = vec![
        Layer::Conv(conv),
        Layer::Quadratic(Quadratic { name: "act".into(), channels: 2, form }),
        Layer::Flatten,
        Layer::Linear(Linear { name: "fc".into(), in_features: 32, out_features: 10 }),
    ];
    Network { name: name.to_owned(), input: Shape::new(3, 32, 32), classes: 10, layers }
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_asymflow-cipher"))
}

/// Arguments that name a network and its weights, written into `folder`.
fn source(folder: &Path, network: &Network) -> Vec<String> {
    let (description, weights) =
        (folder.join(format!("{}.json", network.name)), folder.join(format!("{}.safetensors", network.name)));
    std::fs::write(&description, serde_json::to_vec(network).unwrap()).unwrap();
    files::write(&weights, network, &Weights::init(network, 1)).unwrap();
    ["--network", description.to_str().unwrap(), "--weights", weights.to_str().unwrap()].map(str::to_owned).to_vec()
}

struct Served {
    child: Child,
    address: String,
    fingerprint: String,
}

impl Served {
    fn start(folder: &Path, network: &Network) -> Self {
        let mut command = program();
        command.arg("serve").args(source(folder, network)).arg("--identity").arg(folder.join("identity.pem"));
        command.args(["--exit-with-parent", "--timeout", "20", "--clients", "1"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        let text = |key: &str| ready[key].as_str().unwrap().to_owned();
        Self { address: text("listening"), fingerprint: text("fingerprint"), child }
    }

    fn classify(&self, keys: &Path, images: &[PathBuf]) -> Output {
        self.classify_as(&self.fingerprint, keys, images)
    }

    fn classify_as(&self, fingerprint: &str, keys: &Path, images: &[PathBuf]) -> Output {
        let mut command = program();
        command.args(["classify", "--server", &self.address, "--fingerprint", fingerprint, "--timeout", "20"]);
        command.arg("--keys").arg(keys).args(images).output().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn picture(folder: &Path, seed: u8) -> PathBuf {
    let path = folder.join(format!("{seed}.png"));
    let pixels: Vec<u8> = (0..3 * 32 * 32).map(|i| (i as u8).wrapping_mul(seed)).collect();
    asymflow_zoo::data::write_png(&path, &pixels, Shape::new(3, 32, 32)).unwrap();
    path
}

fn refused(output: &Output, error: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains(error) && text.contains("\nhelp: "), "{text}");
}

#[test]
fn a_client_is_answered_and_its_keys_are_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &network("first", Form::REACT));
    let (keys, images) = (folder.path().join("keys"), [picture(folder.path(), 3), picture(folder.path(), 7)]);
    let lines = |output: Output| -> Vec<Value> {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
    };
    let first = lines(served.classify(&keys, &images));
    // Again with the same keys, which the server knows, and by another client, for whom they are forgotten.
    let logits = |lines: &[Value]| lines.iter().map(|line| line["logits"].clone()).collect::<Vec<_>>();
    assert_eq!((first.len(), first[0]["logits"].as_array().unwrap().len()), (2, 10));
    assert_ne!(first[0]["logits"], first[1]["logits"]);
    for keys in [&keys, &folder.path().join("others"), &keys] {
        assert_eq!(logits(&lines(served.classify(keys, &images))), logits(&first));
    }
    let mut files = 0;
    for entry in std::fs::read_dir(&keys).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        files += 1;
    }
    assert_eq!(files, 2);
    // A key that others could read, and one that is damaged.
    let secret = std::fs::read_dir(&keys).unwrap().map(|entry| entry.unwrap().path());
    let secret = secret.into_iter().find(|path| path.extension().is_some_and(|end| end == "secret")).unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).unwrap();
    refused(&served.classify(&keys, &images), "others may read it");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::OpenOptions::new().write(true).open(&secret).unwrap().write_all(&[0; 8]).unwrap();
    refused(&served.classify(&keys, &images), "secret key of another program");
}

#[test]
fn another_server_and_hostile_callers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &network("first", Form::REACT));
    let (keys, image) = (folder.path().join("keys"), picture(folder.path(), 3));
    let wrong = served.fingerprint.replace(|c: char| c.is_ascii_digit(), "0");
    refused(&served.classify_as(&wrong, &keys, std::slice::from_ref(&image)), "certificate");
    assert!(!keys.exists(), "no key is made for another server");
    // Bytes that are no TLS, and TLS without a frame.
    for bytes in [&b"GET / HTTP/1.0\r\n\r\n"[..], &[0; 64]] {
        let mut caller = std::net::TcpStream::connect(&served.address).unwrap();
        caller.write_all(bytes).unwrap();
    }
    for (frames, reason) in hostile() {
        let told = told(&served, &frames);
        // A refusal, of which kind, and why.
        assert_eq!(told[..2], [4, reason.0], "{told:?}");
        assert!(String::from_utf8_lossy(&told).contains(reason.1), "{told:?}");
    }
    // Whoever is honest is answered all the same.
    assert!(served.classify(&keys, &[image]).status.success());
}

/// What is sent, and how it is refused.
type Hostile = (Vec<Vec<u8>>, (u8, &'static str));

/// Frames that are not what is to be said, and the kind and part of the refusal.
fn hostile() -> Vec<Hostile> {
    let frame = |header: &[u8], body: &[u8]| {
        let mut bytes = Vec::new();
        bytes.extend(b"asyf");
        bytes.extend(1_u16.to_le_bytes());
        bytes.extend((header.len() as u32).to_le_bytes());
        bytes.extend((body.len() as u64).to_le_bytes());
        bytes.extend([header, body].concat());
        bytes
    };
    let hello = frame(&[0, 1], &[]);
    vec![
        (vec![frame(&[0, 9], &[])], (0, "")),
        (vec![frame(&[3], &[])], (3, "a hello")),
        (vec![hello.clone(), frame(&[3], &[])], (3, "keys")),
        (vec![hello.clone(), frame(&[2], &[7; 1000])], (2, "evaluation keys")),
        (vec![hello.clone(), frame(&[77], &[])], (2, "header")),
        (vec![hello, [&b"asyf\x01\x00\x01\x00\x00\x00"[..], &[255; 8]].concat()], (2, "body")),
    ]
}

/// The header of what the server says last to these bytes.
fn told(served: &Served, frames: &[Vec<u8>]) -> Vec<u8> {
    let timeout = std::time::Duration::from_secs(20);
    let tcp = dial(&served.address, timeout).unwrap();
    let mut stream = Stream::client(tcp, client_config(served.fingerprint.parse().unwrap()).unwrap()).unwrap();
    stream.set_timeout(timeout);
    for frame in frames {
        stream.write_all(frame).unwrap();
        stream.flush().unwrap();
    }
    // Each is answered by a frame, the last one by the refusal.
    let mut header = Vec::new();
    for _ in frames {
        let mut prefix = [0; PREFIX_BYTES];
        stream.read_exact(&mut prefix).unwrap();
        let lengths = Prefix::parse(prefix, Limits::default()).unwrap();
        header = vec![0; lengths.header_bytes as usize];
        stream.read_exact(&mut header).unwrap();
        stream.read_exact(&mut vec![0; lengths.body_bytes as usize]).unwrap();
    }
    header
}

#[test]
fn what_a_query_takes_is_told_and_what_is_too_deep_is_refused_with_help() {
    let folder = tempfile::tempdir().unwrap();
    let output =
        program().args(["explain", "--json"]).args(source(folder.path(), &network("first", Form::REACT))).output();
    let said: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    assert_eq!((said["cost"]["squares"].as_u64(), said["cost"]["depth"].as_u64()), (Some(1), Some(1)));
    assert!(said["expected"]["evaluate_seconds"].as_f64().unwrap() > 0.0);
    let mut deep = network("deep", Form::REACT);
    for index in 0..2 {
        let (quadratic, linear) = (format!("act{index}"), format!("fc{index}"));
        deep.layers.push(Layer::Quadratic(Quadratic { name: quadratic, channels: 10, form: Form::REACT }));
        deep.layers.push(Layer::Linear(Linear { name: linear, in_features: 10, out_features: 10 }));
    }
    let output = program().arg("explain").args(source(folder.path(), &deep)).output().unwrap();
    refused(&output, "3 squares one after the other need depth 3");
}

#[test]
fn test_images_are_answered_as_the_integers_are() {
    let folder = tempfile::tempdir().unwrap();
    for packing in ["latency", "throughput"] {
        let mut command = program();
        command.args(["evaluate", "--images", "3", "--packing", packing]);
        let output = command.args(source(folder.path(), &network("first", Form::REACT))).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let last = output.stdout.lines().last().unwrap().unwrap();
        let summary = serde_json::from_str::<Value>(&last).unwrap()["summary"].clone();
        assert_eq!((summary["images"].as_u64(), summary["equal"].as_u64()), (Some(3), Some(3)));
        assert_eq!(summary["accuracy"]["test"], summary["accuracy"]["reference"]);
    }
}
