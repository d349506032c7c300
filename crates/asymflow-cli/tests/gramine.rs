//! The trusted program under something that behaves like Gramine (`examples/gramine_stand_in.rs`), where the kernel allows that. Needs
//! `asymflow-enclaved` and `asymflow-worker` beside the command.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::panic,
    reason = "a test may fail by panicking, in its helpers as well"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use asymflow_enclave::manifest::{ManifestFor, ManifestSpec, Mount, TrustedFile};

const EXPERIMENT: &str = r#"
schema = 1
title = "inside"
claim = "none"
kind = "train"
[data]
train = 64
test = 32
[model]
names = ["demo-cnn"]
[mode]
run = ["trusted-only", "asymml", "clear", "delta@inf"]
rank = "fixed:2"
[delta]
stage1_epochs = 1
labels = "public"
[trusted]
threads = 2
[train]
epochs = 2
batch = 16
learning_rate = 0.05
"#;

/// A folder with an enclave's files, and programs that stand for Gramine's.
struct Inside {
    folder: tempfile::TempDir,
    path: std::ffi::OsString,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn beside(program: &str) -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_asymflow")).with_file_name(program);
    assert!(beside.is_file(), "{} is not built", beside.display());
    beside
}

impl Inside {
    /// None where the kernel lets nobody make a mount namespace.
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("bin");
        for made in ["bin", "enclave", "kept"] {
            std::fs::create_dir(folder.path().join(made)).unwrap();
        }
        let stand_in = beside("examples/gramine_stand_in");
        for name in ["gramine-direct", "gramine-manifest"] {
            symlink(&stand_in, bin.join(name)).unwrap();
        }
        let probe = Command::new(bin.join("gramine-direct")).arg("--probe").output().unwrap();
        if !probe.status.success() {
            println!("skipped: {}", text(&probe.stdout).trim());
            return None;
        }
        let path = std::env::var_os("PATH").unwrap();
        let path = std::env::join_paths(std::iter::once(bin).chain(std::env::split_paths(&path))).unwrap();
        let inside = Self { folder, path };
        std::fs::write(inside.at("inside.toml"), EXPERIMENT).unwrap();
        Some(inside)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn mount(&self, host: &str, path: &str) -> Mount {
        Mount { host: self.at(host).to_str().unwrap().to_owned(), path: path.to_owned() }
    }

    /// Writes the manifest of the trusted program, or another one, as `change` would have it.
    fn manifest(&self, program: &Path, change: impl FnOnce(&mut ManifestSpec)) {
        let mut spec = ManifestSpec::new("asymflow-enclaved", 2, 16, 1 << 30);
        spec.runtime = ManifestFor::GramineDirect;
        spec.program = program.to_str().unwrap().to_owned();
        change(&mut spec);
        let template = self.at("enclave/asymflow-enclaved.manifest.template");
        std::fs::write(&template, spec.render().unwrap().text()).unwrap();
        let filled = Command::new("gramine-manifest")
            .env("PATH", &self.path)
            .current_dir(self.at("enclave"))
            .args(["-Darch_libdir=/lib/x86_64-linux-gnu", "asymflow-enclaved.manifest.template"])
            .arg("asymflow-enclaved.manifest")
            .output()
            .unwrap();
        assert!(filled.status.success(), "{}", text(&filled.stdout));
    }

    fn asymflow(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_asymflow"));
        command.current_dir(self.folder.path()).env("PATH", &self.path).args(arguments).output().unwrap()
    }

    /// Runs an experiment inside, with its runs below `runs`.
    fn run(&self, runs: &str, more: &[&str]) -> Output {
        let inside = ["--set", "trusted.runtime=gramine-direct", "--set", "trusted.app=enclave/asymflow-enclaved"];
        self.asymflow(&[&["run", "inside.toml", "--runs", runs], &inside[..], more].concat())
    }

    /// Starts the program of the manifest.
    fn start(&self) -> (Child, Lines<BufReader<ChildStdout>>) {
        let mut command = Command::new("gramine-direct");
        command.env("PATH", &self.path).current_dir(self.at("enclave")).arg("asymflow-enclaved");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines)
    }

    /// The trained weights of the one run below `runs`, by job.
    fn weights(&self, runs: &str) -> BTreeMap<String, Vec<u8>> {
        let runs: Vec<_> = std::fs::read_dir(self.at(runs)).unwrap().map(|run| run.unwrap().path()).collect();
        let [run] = &runs[..] else { panic!("{runs:?}") };
        let jobs = std::fs::read_dir(run).unwrap().map(|job| job.unwrap().path());
        let jobs = jobs.filter(|job| job.join("weights.safetensors").is_file());
        let read = |job: PathBuf| {
            let name = job.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read(job.join("weights.safetensors")).unwrap())
        };
        jobs.map(read).collect()
    }
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// The stand-in does what it is there for.
#[test]
fn the_stand_in_is_as_poor_as_gramine() {
    let Some(inside) = Inside::new() else { return };
    std::fs::copy(beside("examples/gramine_stand_in"), inside.at("checks")).unwrap();
    let shared = Path::new("/dev/shm").join(format!("asymflow-ring-poor-{}", std::process::id()));
    std::fs::write(&shared, "shared").unwrap();
    inside.manifest(&inside.at("checks"), |spec| {
        spec.sealed_folders = vec![inside.mount("kept", "/state/kept")];
        spec.shared_memory = vec![shared.file_name().unwrap().to_str().unwrap().to_owned()];
    });
    // It has no handler of its own; what has one is ended by SIGTERM in the test of the service.
    for name in ["-USR1", "-TERM"] {
        let (mut child, lines) = inside.start();
        let said: Vec<String> = lines.map_while(Result::ok).take(7).collect();
        signal(&child, name);
        assert!(!child.wait().unwrap().success(), "{name}");
        assert_eq!(
            said,
            [
                "standard error",
                "link: Err(Unsupported)",
                "rename: Ok(())",
                "localhost: false",
                "shared memory: true",
                "own files: Err(ReadOnlyFilesystem)",
                r#"root: ["app", "dev", "lib", "lib64", "proc", "state", "tmp"]"#,
            ]
        );
    }
    std::fs::remove_file(shared).unwrap();
    assert!(inside.at("kept/renamed").is_file());
}

/// Every kind of worker's work, from data that the manifest mounts: the same weights as under `sim`.
#[test]
fn jobs_with_workers_and_mounted_data_give_what_they_give_under_sim() {
    let Some(inside) = Inside::new() else { return };
    assert!(inside.asymflow(&["run", "inside.toml", "--runs", "sim"]).status.success());
    inside.manifest(&beside("asymflow-enclaved"), |_| ());
    let output = inside.run("direct", &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(inside.weights("direct").len(), 4);
    assert!(inside.weights("direct") == inside.weights("sim"));

    // Data of one's own, and what is said where the manifest does not know them.
    for part in ["train", "test"] {
        assert!(inside.asymflow(&["samples", "made", "--count", "20"]).status.success());
        for image in std::fs::read_dir(inside.at("made")).unwrap().map(|image| image.unwrap().path()) {
            let class = if image.to_str().unwrap().ends_with("circle.png") { "circle" } else { "other" };
            let folder = inside.at("own").join(part).join(class);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::copy(&image, folder.join(image.file_name().unwrap())).unwrap();
        }
    }
    let own = ["--data", "own", "--set", "mode.run=[\"trusted-only\"]", "--set", "train.batch=4"];
    let refused = inside.run("unmounted", &own);
    assert_eq!(refused.status.code(), Some(2));
    let words = text(&refused.stderr);
    assert!(words.contains("mounts nothing that holds ") && words.contains("enclave manifest --data DIR"), "{words}");
    inside.manifest(&beside("asymflow-enclaved"), |spec| spec.trusted_folders = vec![inside.mount("own", "/data/own")]);
    let output = inside.run("mounted", &own);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        text(&output.stderr).contains("20 training and 20 test images of image folders"),
        "{}",
        text(&output.stderr)
    );
    assert!(inside.asymflow(&[&["run", "inside.toml", "--runs", "plain"], &own[..]].concat()).status.success());
    assert!(inside.weights("mounted") == inside.weights("plain"));
}

#[test]
fn checkpoints_are_sealed_where_they_outlive_the_enclave_or_not_at_all() {
    let Some(inside) = Inside::new() else { return };
    let seal = ["--set", "trusted.seal=true", "--set", "mode.run=[\"asymml\"]"];
    inside.manifest(&beside("asymflow-enclaved"), |_| ());
    let refused = inside.run("elsewhere", &seal);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("enclave manifest --sealed DIR"), "{}", text(&refused.stderr));

    inside
        .manifest(&beside("asymflow-enclaved"), |spec| spec.sealed_folders = vec![inside.mount("kept", "/state/kept")]);
    let output = inside.run("kept", &seal);
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("insecure settings in force: insecure_exact_weights, insecure_host_key"), "{stderr}");
    let run = std::fs::read_dir(inside.at("kept")).unwrap().next().unwrap().unwrap().path();
    let sealed: Vec<_> = std::fs::read_dir(run.join("asymml-seed1/sealed")).unwrap().collect();
    assert!(sealed.len() >= 3, "key, guard and checkpoint: {sealed:?}");
    let output = inside.asymflow(&["run", "inside.toml", "--runs", "sim", "--set", "mode.run=[\"asymml\"]"]);
    assert!(output.status.success());
    assert!(inside.weights("kept") == inside.weights("sim"));
}

/// A service with a new state, a worker and shared memory; its end by the one signal that comes through.
#[test]
fn the_service_runs_inside_and_ends_with_its_counters() {
    let Some(inside) = Inside::new() else { return };
    let output = inside.asymflow(&["run", "inside.toml", "--set", "mode.run=[\"asymml\"]"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let run = std::fs::read_dir(inside.at("runs")).unwrap().next().unwrap().unwrap().path();
    std::fs::copy(run.join("asymml-seed1/model.asymflow"), inside.at("model")).unwrap();
    std::fs::write(inside.at("token"), "a shared secret\n").unwrap();
    let ring = format!("asymflow-ring-gramine-{}", std::process::id());
    let mut worker = Command::new(beside("asymflow-worker"))
        .args(["--listen", "127.0.0.1:0", "--token-file", "token", "--exit-with-parent", "--shm", &ring])
        .current_dir(inside.folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(worker.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
    let (address, fingerprint) = (ready["listening"].as_str().unwrap(), ready["fingerprint"].as_str().unwrap());
    let serving = |state: &str, worker: &str| {
        inside.manifest(&beside("asymflow-enclaved"), |spec| {
            let files = [("model", "/app/data/model"), ("token", "/app/data/token")];
            let file = |(host, path)| TrustedFile { mount: inside.mount(host, path), sha256: None };
            spec.trusted_files = files.into_iter().map(file).collect();
            spec.sealed_folders = vec![inside.mount("kept", "/state/kept")];
            spec.shared_memory = vec![ring.clone()];
            let words = format!(
                "serve --model /app/data/model --listen 127.0.0.1:0 --state {state} --worker {worker} \
                 --worker-fingerprint {fingerprint} --worker-token-file /app/data/token --worker-shm \
                 --insecure-unlimited-answers --threads 2"
            );
            spec.arguments = words.split(' ').map(str::to_owned).collect();
        });
        inside.start()
    };
    let port = address.rsplit(':').next().unwrap();
    for (state, worker, message) in [
        ("/state/kept", &*format!("localhost:{port}"), "give host:port, or an IP address"),
        ("/state/other", address, "/state/other goes with the enclave"),
        ("/state/kept/../../tmp/x", address, "goes with the enclave"),
    ] {
        let (mut child, lines) = serving(state, worker);
        let said: Vec<String> = lines.map_while(Result::ok).collect();
        assert!(!child.wait().unwrap().success());
        assert!(said.iter().any(|line| line.contains(message)), "{state} {worker}: {said:?}");
    }
    let mut answers = Vec::new();
    for visit in 0..2 {
        let (mut child, mut lines) = serving("/state/kept", address);
        let mut said = Vec::new();
        let ready = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let ready = serde_json::from_str::<serde_json::Value>(&line).ok();
            said.push(line);
            ready
        });
        let listening = ready.unwrap()["listening"].as_str().unwrap().to_owned();
        assert!(inside.asymflow(&["samples", "images", "--count", "3"]).status.success());
        let images: Vec<String> = (std::fs::read_dir(inside.at("images")).unwrap())
            .map(|image| image.unwrap().path().to_str().unwrap().to_owned())
            .collect();
        let ask = [
            "client",
            "classify",
            "--enclave",
            &listening,
            "--account",
            "account",
            "--insecure-accept-simulated",
            "--json",
        ];
        let ask: Vec<&str> = ask.into_iter().chain(images.iter().map(String::as_str)).collect();
        let output = inside.asymflow(&ask);
        assert!(output.status.success(), "visit {visit}: {}", text(&output.stderr));
        answers.push(text(&output.stdout));
        signal(&child, "-TERM");
        said.extend(lines.map_while(Result::ok));
        // The worker's ring is there, though no plain file to whoever asks.
        assert!(!said.iter().any(|line| line.contains("no shared memory")), "{said:?}");
        let last = said.pop().unwrap();
        assert!(child.wait().unwrap().success());
        let counters: serde_json::Value = serde_json::from_str(&last).unwrap();
        assert_eq!(
            counters["service"]["asked"].as_u64().or(counters["service"]["answered"].as_u64()),
            Some(3),
            "{last}"
        );
        assert!(counters["resident_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{last}");
    }
    assert_eq!(answers[0], answers[1]);
    worker.kill().unwrap();
    worker.wait().unwrap();
}

/// The smoke form of every experiment. What cannot run inside says what to do instead.
#[test]
fn the_smoke_form_of_every_experiment_runs_inside() {
    let Some(inside) = Inside::new() else { return };
    inside.manifest(&beside("asymflow-enclaved"), |spec| {
        spec.peak_bytes = 16 << 30;
        spec.sealed_folders = vec![inside.mount("kept", "/state/kept")];
    });
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    // Some experiments name files of the repository.
    symlink(root.join("cipher"), inside.at("cipher")).unwrap();
    let experiments = root.join("xtask/experiments");
    let mut ran = 0;
    for entry in std::fs::read_dir(experiments).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let inside_it = ["--set", "trusted.runtime=gramine-direct", "--set", "trusted.app=enclave/asymflow-enclaved"];
        let smoke = ["run", path.to_str().unwrap(), "--smoke", "--runs", "kept"];
        let output = inside.asymflow(&[&smoke[..], &inside_it].concat());
        let stderr = text(&output.stderr);
        if path.ends_with("serve.toml") {
            assert!(stderr.contains("help: start the service with `cargo xtask enclave run -- serve …`"), "{stderr}");
            continue;
        }
        // A program of another workspace.
        if stderr.contains("needs asymflow-cipher") {
            continue;
        }
        assert!(output.status.success(), "{}: {stderr}", path.display());
        ran += 1;
    }
    assert!(ran >= 19, "{ran}");
}

/// A service's arguments are part of its manifest, so the experiment that measures services says what to do instead.
#[test]
fn what_the_manifest_fixes_is_refused_with_what_to_do_instead() {
    let Some(inside) = Inside::new() else { return };
    inside.manifest(&beside("asymflow-enclaved"), |_| ());
    let serve = EXPERIMENT
        .replace("kind = \"train\"", "kind = \"serve\"")
        .replace("names = [\"demo-cnn\"]", "names = [\"resnet8-cifar\"]");
    std::fs::write(inside.at("inside.toml"), serve).unwrap();
    let output = inside.run("runs", &["--set", "mode.run=[\"trusted-only\"]"]);
    assert_eq!(output.status.code(), Some(3));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("help: start the service with `cargo xtask enclave run -- serve …`"), "{stderr}");
}
