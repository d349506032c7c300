//! Memory of the trusted part beside a worker process, as planned and as counted. One test: the count is that of the
//! whole process, which is the trusted part's alone.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers as well")]

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;

use asymflow::delta::{DeltaSpec, Feed, Labels, Variant};
use asymflow::job::{DataSpec, JobSpec, ModeKind, Task};
use asymflow::memory::heap::{self, CountingAllocator};
use asymflow::memory_study::{MemorySpec, memory_study};
use asymflow::plan::SplitSpec;
use asymflow::release::PrivacySpec;
use asymflow_privacy::{Precision, Relation};
use asymflow_residual::{Protection, ResidualBackend, Token, WorkerClient, WorkerConfig};
use asymflow_zoo::by_name;
use asymflow_zoo::delta::DeltaShape;
use faer::Par;

#[global_allocator]
static HEAP: CountingAllocator = CountingAllocator;

const THREADS: usize = 2;
/// Not everything that crosses is held at once.
const FACTOR: f64 = 1.4;

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

fn job(model: &str, mode: ModeKind, precision: Precision, task: Task) -> JobSpec {
    let network = by_name(model, 10, None).unwrap();
    let delta = DeltaSpec {
        shape: DeltaShape::published(&network).unwrap(),
        decomposition: "gram".to_owned(),
        variant: Variant::Strict,
        epsilon: Some(9.0),
        clip: 1.0,
        labels: Labels::Public,
        feed: Feed::Residual,
        views: 1,
        stage1_epochs: 1,
        orthogonality: 8e-4,
    };
    JobSpec {
        mode,
        data: DataSpec { path: None, train: Some(64), test: Some(32), seed: 1, augment: true },
        split: SplitSpec { decomposition: "gram".to_owned(), rank: "fixed:8".to_owned(), split_first: false },
        privacy: PrivacySpec {
            mechanism: "discrete_gaussian".to_owned(),
            sigma: Some(0.1),
            clip: Some(1.0),
            relation: Relation::Remove,
            delta: 1e-5,
            budget_epsilon: None,
        },
        delta: (mode == ModeKind::Delta).then_some(delta),
        naive_epsilon: None,
        shares: Default::default(),
        precision,
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
        use ModeKind::{Asymml, Delta};
        for (model, mode, precision, batch, is_training) in [
            ("resnet8-cifar", Asymml, Precision::F32, 32, false),
            ("resnet8-cifar", Asymml, Precision::F32, 32, true),
            ("resnet8-cifar", Asymml, Precision::F16, 32, true),
            ("resnet8-cifar", Delta, Precision::F32, 64, false),
            ("resnet8-cifar", Delta, Precision::F32, 64, true),
            ("resnet18-cifar", Asymml, Precision::F32, 4, false),
            ("resnet18-cifar", Asymml, Precision::F32, 4, true),
            ("resnet18-cifar", Delta, Precision::F32, 8, false),
            ("resnet18-cifar", Delta, Precision::F32, 8, true),
        ] {
            let mut config = worker.config.clone();
            config.answers = precision;
            let backend: Arc<dyn ResidualBackend> = Arc::new(WorkerClient::new(config));
            let spec = MemorySpec { batch, is_training, repeats: 3, streamed: None, seed: 1 };
            let job = job(model, mode, precision, Task::Memory(spec.clone()));
            let before = heap::heap_live_bytes().unwrap();
            heap::mark_heap();
            let report = memory_study(&job, &spec, &|_| Ok(Arc::clone(&backend)), Par::rayon(THREADS)).unwrap();
            let peak = report.startup_heap_bytes.max(report.running_heap_bytes).unwrap();
            let counted = peak - before - report.reserved_bytes.unwrap();
            let planned = report.plan.touched_bytes();
            let ratio = planned as f64 / counted as f64;
            let what = format!("{model} {mode:?} {precision:?}, batch {batch}, training {is_training}");
            assert!((1.0..FACTOR).contains(&ratio), "{what}: planned {planned}, counted {counted}; {report:?}");
        }
    });
}
