//! Every target on its corpus and on mutations of it: as many executions with one seed as fit into a few seconds.
//!
//! `ASYMFLOW_FUZZ_SECONDS` gives each target more time, `ASYMFLOW_FUZZ_SEED` other mutations, and `ASYMFLOW_FUZZ_TRACE=1`
//! keeps every input before it is run, for one that ends the process without a word.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking, in its helpers as well")]
#![expect(clippy::print_stdout, reason = "a test says how far it came")]

mod mutate;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use asymflow_fuzz::memory::{Counting, run_watched};
use asymflow_fuzz::{TARGETS, Target, by_name};
use mutate::Mutator;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A target ends after so many executions or seconds, whichever comes first: 24 targets make 48 seconds.
const EXECUTIONS: u64 = 100_000;
const SECONDS: f64 = 2.0;
const SEED: u64 = 1;
/// Inputs grow no longer.
const MAX_INPUT_BYTES: usize = 1 << 18;

/// Memory is counted for the whole process, so targets run one after the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
/// Set by a panic in any thread, also where a parser or a library catches it.
static HAS_PANICKED: AtomicBool = AtomicBool::new(false);

fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Runs one input; fails the test with the path at which it is kept.
fn execute(target: &Target, input: &[u8], origin: &str) {
    let keep = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.failed", target.name));
    if std::env::var_os("ASYMFLOW_FUZZ_TRACE").is_some() {
        std::fs::write(&keep, input).unwrap();
    }
    let outcome = catch_unwind(AssertUnwindSafe(|| run_watched(target, input, keep.clone())));
    if outcome.is_err() || HAS_PANICKED.load(Ordering::Relaxed) {
        std::fs::write(&keep, input).unwrap();
        panic!("{} panicked on {origin}; the input of {} bytes is {}", target.name, input.len(), keep.display());
    }
}

fn run(name: &str) {
    static HOOK: Once = Once::new();
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    HOOK.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            HAS_PANICKED.store(true, Ordering::Relaxed);
            report(info);
        }));
    });
    HAS_PANICKED.store(false, Ordering::Relaxed);
    let target = by_name(name).unwrap();
    let seeds = corpus(target);
    for (path, input) in &seeds {
        execute(target, input, &path.display().to_string());
    }
    let given: Option<f64> = number("ASYMFLOW_FUZZ_SECONDS");
    let most = if given.is_some() { u64::MAX } else { EXECUTIONS };
    let seed = number("ASYMFLOW_FUZZ_SEED").unwrap_or(SEED);
    let end = Instant::now() + Duration::from_secs_f64(given.unwrap_or(SECONDS));
    let mut mutator = Mutator::new(seed, seeds.iter().map(|(_, input)| input.as_slice()).collect());
    let mut executions = 0;
    while executions < most && Instant::now() < end {
        let input = mutator.next(MAX_INPUT_BYTES);
        execute(target, &input, &format!("mutation {executions} of seed {seed}"));
        executions += 1;
    }
    println!("{name}: {} inputs of the corpus, {executions} mutations", seeds.len());
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            run(stringify!($name));
        })*

        #[test]
        fn every_target_is_run_and_has_a_corpus() {
            let tested = [$(stringify!($name)),*];
            assert_eq!(TARGETS.map(|target| target.name), tested);
            TARGETS.iter().for_each(|target| assert!(!corpus(target).is_empty(), "{}", target.name));
            let folders = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")).unwrap();
            assert_eq!(folders.count(), TARGETS.len(), "a folder of the corpus belongs to no target");
        }
    };
}

targets! {
    archive arrays bits certificate checkpoint cifar_binary collateral evidence guard idx image index job ledgers model onnx
    pickle promise quote released_cache sealed service share_frames shares table weight_share weights worker
}
