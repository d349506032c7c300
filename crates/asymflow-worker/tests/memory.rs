//! Memory of the trusted part beside a worker process, as planned and as counted. One test: the count is that of the
//! whole process, which is the trusted part's alone.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers as well")]

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use asymflow::job::{Body, DataSpec, FromTrusted, JobSpec, Task};
use asymflow::memory::heap::{self, CountingAllocator};
use asymflow::modes::delta::{DeltaSpec, Feed, Labels, Variant};
use asymflow::modes::{AsymMlSpec, GuardSpec, ModeRef, ModeSpec, PrivacyTerms, Registry};
use asymflow::plan::SplitSpec;
use asymflow::run::run;
use asymflow::studies::{MemoryStudy, Study};
use asymflow::train::{HostGone, Observer};
use asymflow_privacy::{accountants::Relation, payload::Precision};
use asymflow_residual::{
    ResidualBackend,
    client::{Protection, Token, WorkerClient, WorkerConfig},
};
use asymflow_zoo::models::delta::DeltaShape;
use asymflow_zoo::{Network, by_name};

#[global_allocator]
static HEAP: CountingAllocator = CountingAllocator;

const THREADS: usize = 2;
/// Not everything that crosses is held at once.
const FACTOR: f64 = 1.4;

struct Nobody;

impl Observer for Nobody {
    fn tell(&mut self, _: FromTrusted, _: &[u8]) -> Result<(), HostGone> {
        Ok(())
    }
}

struct Worker {
    child: Child,
    _stdin: ChildStdin,
    config: WorkerConfig,
}

impl Worker {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_asymflow-worker"))
            .arg("--exit-with-parent")
            .env("ASYMFLOW_WORKER_TOKEN", "secret")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
        let pin = ready["fingerprint"].as_str().unwrap().parse().unwrap();
        let address = ready["listening"].as_str().unwrap();
        let config = WorkerConfig::new(address, Token::new("secret"), Protection::Pinned(pin));
        Self { _stdin: child.stdin.take().unwrap(), child, config }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn asymml(precision: Precision) -> AsymMlSpec {
    let split = SplitSpec { decomposition: "gram".to_owned(), rank: "fixed:8".to_owned(), split_first: false };
    let guard = GuardSpec { mechanism: "discrete_gaussian".to_owned(), sigma: Some(0.1), clip: Some(1.0), kappa: None };
    AsymMlSpec { split, guard, precision, verify: true, leapfrog: false }
}

fn delta(network: &Network) -> DeltaSpec {
    DeltaSpec {
        shape: DeltaShape::published(network).unwrap(),
        decomposition: "gram".to_owned(),
        variant: Variant::Strict,
        codebook: Default::default(),
        epsilon: Some(9.0),
        own_epsilon: false,
        clip: 1.0,
        labels: Labels::Public,
        feed: Feed::Residual,
        views: 1,
        stage1_epochs: 1,
        orthogonality: 8e-4,
        weights: None,
    }
}

fn job(network: Network, mode: &dyn ModeSpec, task: Task) -> JobSpec {
    JobSpec {
        mode: ModeRef::of(mode).unwrap(),
        data: DataSpec {
            path: None,
            reader: None,
            train: Some(64),
            test: Some(32),
            seed: 1,
            augment: true,
            prepare: Default::default(),
        },
        terms: PrivacyTerms { relation: Relation::Remove, delta: 1e-5, budget_epsilon: None },
        worker: None,
        threads: THREADS,
        vault: None,
        memory_limit_bytes: None,
        network,
        task,
    }
}

#[test]
fn the_plan_is_above_the_count_and_near_it_with_a_worker() {
    let worker = Worker::start();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(THREADS).build().unwrap();
    pool.install(|| {
        // Split at the precision given, or Delta without one.
        for (model, split, batch, is_training) in [
            ("resnet8-cifar", Some(Precision::F32), 32, false),
            ("resnet8-cifar", Some(Precision::F32), 32, true),
            ("resnet8-cifar", Some(Precision::F16), 32, true),
            ("resnet8-cifar", None, 64, false),
            ("resnet8-cifar", None, 64, true),
            ("resnet18-cifar", Some(Precision::F32), 4, false),
            ("resnet18-cifar", Some(Precision::F32), 4, true),
            ("resnet18-cifar", None, 8, false),
            ("resnet18-cifar", None, 8, true),
        ] {
            let network = by_name(model, 10, None).unwrap();
            let mode: Box<dyn ModeSpec> = match split {
                Some(precision) => Box::new(asymml(precision)),
                None => Box::new(delta(&network)),
            };
            let mut config = worker.config.clone();
            config.answers = mode.precision();
            let backend: Arc<dyn ResidualBackend> = Arc::new(WorkerClient::new(config));
            let spec = MemoryStudy { batch, is_training, repeats: 3, streamed: None, seed: 1 };
            let job = job(network, &*mode, spec.task().unwrap());
            let before = heap::heap_live_bytes().unwrap();
            heap::mark_heap();
            let open = |_: &JobSpec, _| Ok(Arc::clone(&backend));
            let start = (Body::Empty, Vec::new());
            let done = run(&job, start, &Registry::default(), &open, &AtomicBool::new(false), &mut Nobody).unwrap();
            let report = MemoryStudy::report(done).unwrap();
            let peak = report.startup_heap_bytes.max(report.running_heap_bytes).unwrap();
            let counted = peak - before - report.reserved_bytes.unwrap();
            let planned = report.plan.touched_bytes();
            let ratio = planned as f64 / counted as f64;
            let what = format!("{model} {} {:?}, batch {batch}, training {is_training}", mode.name(), mode.precision());
            assert!((1.0..FACTOR).contains(&ratio), "{what}: planned {planned}, counted {counted}; {report:?}");
        }
    });
}
