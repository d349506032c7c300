//! The process inside the enclave, as `asymflow_enclaved::main_with` runs it.

use std::process::ExitCode;

use asymflow::memory::heap::CountingAllocator;
use asymflow::modes::Registry;

/// Says at the end how much heap was held at most.
#[global_allocator]
static HEAP: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    asymflow_enclaved::main_with(&Registry::default())
}
