//! Runs the target that `ASYMFLOW_FUZZ_TARGET` names under libFuzzer, with the memory limit of the bounded run.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use asymflow_fuzz::memory::{Counting, run_watched};
use asymflow_fuzz::{TARGETS, Target, by_name};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("ASYMFLOW_FUZZ_TARGET").unwrap_or_default();
    let known = || TARGETS.map(|target| target.name).join(" ");
    by_name(&name).unwrap_or_else(|| panic!("ASYMFLOW_FUZZ_TARGET is {name:?}, none of: {}", known()))
});

fuzz_target!(|input: &[u8]| run_watched(&TARGET, input, PathBuf::from(format!("{}.failed", TARGET.name))));
