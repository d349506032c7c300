//! Memory as planned beside memory as counted. One test: the count is that of the whole process.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

use asymflow::delta::{DeltaSpec, Feed, Labels, Variant};
use asymflow::job::{DataSpec, JobReport, JobSpec, ModeKind, Task};
use asymflow::memory::heap::{self, CountingAllocator};
use asymflow::memory::{MemoryPlan, MemoryUse};
use asymflow::memory_study::{MemorySpec, memory_study};
use asymflow::plan::SplitSpec;
use asymflow::release::PrivacySpec;
use asymflow::run::run;
use asymflow_privacy::{Precision, Relation};
use asymflow_residual::OpenError;
use asymflow_zoo::by_name;
use asymflow_zoo::delta::DeltaShape;
use faer::Par;

#[global_allocator]
static HEAP: CountingAllocator = CountingAllocator;

const THREADS: usize = 2;

fn job(model: &str, mode: ModeKind, task: Task) -> JobSpec {
    let network = by_name(model, 10, None).unwrap();
    let shape = DeltaShape::published(&network).unwrap();
    let delta = DeltaSpec {
        shape,
        decomposition: "gram".to_owned(),
        variant: Variant::Strict,
        epsilon: None,
        clip: 1.0,
        labels: Labels::Public,
        feed: Feed::Nothing,
        views: 1,
        stage1_epochs: 1,
        orthogonality: 8e-4,
    };
    JobSpec {
        mode,
        data: DataSpec { path: None, train: Some(64), test: Some(32), seed: 1, augment: true },
        split: SplitSpec { decomposition: "gram".to_owned(), rank: "fixed:8".to_owned(), split_first: false },
        privacy: PrivacySpec {
            mechanism: "insecure_none".to_owned(),
            sigma: None,
            clip: None,
            relation: Relation::Remove,
            delta: 1e-5,
            budget_epsilon: None,
        },
        delta: (mode == ModeKind::Delta).then_some(delta),
        naive_epsilon: None,
        precision: Precision::F32,
        worker: None,
        threads: THREADS,
        memory_limit_bytes: None,
        network,
        task,
    }
}

fn no_worker(_: &JobSpec) -> Result<std::sync::Arc<dyn asymflow_residual::ResidualBackend>, OpenError> {
    Err(OpenError::Missing { what: "a worker".to_owned(), fix: String::new() })
}

/// What is counted above what was there before, beside the plan. The process of the test is older than the job.
fn measured(job: &JobSpec, spec: &MemorySpec) -> (MemoryPlan, u64) {
    let before = heap::heap_live_bytes().unwrap();
    heap::mark_heap();
    let mut peak = 0;
    let report = memory_study(job, spec, &no_worker, Par::rayon(THREADS)).unwrap();
    // The study has a mark of its own; the earlier span is part of the whole, which only grows in this test.
    peak = peak.max(report.process.heap_peak_bytes.unwrap());
    (report.plan, peak.max(report.running_heap_bytes.unwrap()) - before)
}

#[test]
fn the_plan_is_above_the_count_and_near_it() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(THREADS).build().unwrap();
    pool.install(|| {
        // Smaller ones first: the peak of the process is that of the latest.
        for (model, mode, batch, is_training) in [
            ("demo-cnn", ModeKind::TrustedOnly, 16, false),
            ("demo-cnn", ModeKind::TrustedOnly, 32, true),
            ("resnet8-cifar", ModeKind::TrustedOnly, 64, true),
            ("resnet8-cifar", ModeKind::Delta, 64, true),
            ("resnet18-cifar", ModeKind::TrustedOnly, 8, false),
            ("resnet18-cifar", ModeKind::Delta, 8, true),
            ("vgg16-cifar", ModeKind::TrustedOnly, 8, false),
            ("vgg16-cifar", ModeKind::TrustedOnly, 8, true),
            ("resnet18-cifar", ModeKind::TrustedOnly, 8, true),
            ("resnet18-cifar", ModeKind::Delta, 32, true),
            ("resnet18-cifar", ModeKind::TrustedOnly, 32, true),
        ] {
            let spec = MemorySpec { batch, is_training, repeats: 3, streamed: None, seed: 1 };
            let job = job(model, mode, Task::Memory(spec.clone()));
            let (plan, counted) = measured(&job, &spec);
            let ratio = plan.peak_bytes as f64 / counted as f64;
            println!("{model} {mode:?} batch {batch} training {is_training}: {} counted {counted}, {ratio:.3}", plan.peak_bytes);
            println!("   {plan:?}");
        }
    });
}
