//! An allocator that counts, so that an input that makes a parser ask for too much is caught before the memory is had.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);
/// As many live bytes are allowed; nothing is watched at `usize::MAX`.
static ALLOWED_BYTES: AtomicUsize = AtomicUsize::new(usize::MAX);
static WATCHED: Mutex<Option<Watched>> = Mutex::new(None);

struct Watched {
    target: &'static str,
    limit_bytes: usize,
    input: Vec<u8>,
    /// Where the input goes when it is too much.
    keep: PathBuf,
}

/// The system's allocator, counted. Executions are watched one at a time, and all threads count.
#[derive(Debug)]
pub struct Counting;

// SAFETY: every call goes to the system's allocator as it came; what is added only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size);
        LIVE_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn count(bytes: usize) {
    let live = LIVE_BYTES.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
    if live > ALLOWED_BYTES.load(Ordering::Relaxed) {
        too_much(bytes);
    }
}

/// Names the target, keeps the input and ends the process: an allocator must not unwind.
#[cold]
fn too_much(bytes: usize) {
    // From here on nothing is watched, and this may allocate.
    ALLOWED_BYTES.store(usize::MAX, Ordering::Relaxed);
    if let Some(watched) = WATCHED.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
        let Watched { target, limit_bytes, input, keep } = watched;
        let kept = std::fs::write(keep, input).map_or_else(|error| error.to_string(), |()| keep.display().to_string());
        // Past the test harness, which would keep what is printed for a report that never comes.
        let _ = writeln!(
            std::io::stderr(),
            "{target}: an allocation of {bytes} bytes makes more than {limit_bytes} live for an input of {} bytes: {kept}",
            input.len()
        );
    }
    std::process::abort();
}

/// Runs `target` on `input`. Where it asks for more memory than it may have, the process ends, and the input lies at `keep`.
pub fn run_watched(target: &crate::Target, input: &[u8], keep: PathBuf) {
    let watched = Watched { target: target.name, limit_bytes: target.limit_bytes, input: input.to_vec(), keep };
    *WATCHED.lock().unwrap_or_else(PoisonError::into_inner) = Some(watched);
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    ALLOWED_BYTES.store(before.saturating_add(target.limit_bytes), Ordering::Relaxed);
    (target.run)(input);
    ALLOWED_BYTES.store(usize::MAX, Ordering::Relaxed);
}
