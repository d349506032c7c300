//! How much heap the process holds: counted by the allocator itself, which sees what no plan can forget.

#![expect(unsafe_code, reason = "an allocator cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);
static PEAK_BYTES: AtomicUsize = AtomicUsize::new(0);
/// The peak before the latest mark.
static EARLIER_BYTES: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, which counts the bytes that are asked of it and not given back.
///
/// A program installs it with `#[global_allocator]`; elsewhere nothing is counted. What the allocator itself wastes
/// between blocks, stacks and code are not in the count; see [`MemoryUse::resident_peak_bytes`].
#[derive(Clone, Copy, Debug, Default)]
pub struct CountingAllocator;

fn grown(bytes: usize) {
    let live = LIVE_BYTES.fetch_add(bytes, Relaxed).wrapping_add(bytes);
    if live > PEAK_BYTES.load(Relaxed) {
        PEAK_BYTES.fetch_max(live, Relaxed);
    }
}

fn shrunk(bytes: usize) {
    LIVE_BYTES.fetch_sub(bytes, Relaxed);
}

// SAFETY: every call goes to the system's allocator as it is; counting touches no memory of the blocks.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those of `System`.
        let block = unsafe { System.alloc(layout) };
        if !block.is_null() {
            grown(layout.size());
        }
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those of `System`.
        let block = unsafe { System.alloc_zeroed(layout) };
        if !block.is_null() {
            grown(layout.size());
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block came from `System` with this layout.
        unsafe { System.dealloc(block, layout) };
        shrunk(layout.size());
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the block came from `System` with this layout.
        let moved = unsafe { System.realloc(block, layout, size) };
        if !moved.is_null() {
            if size > layout.size() {
                grown(size - layout.size());
            } else {
                shrunk(layout.size() - size);
            }
        }
        moved
    }
}

/// The most memory that this process has held at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUse {
    /// Heap, as the [`CountingAllocator`] counts it; absent where that is not installed.
    pub heap_peak_bytes: Option<u64>,
    /// Pages in memory (VmHWM), code and stacks included; absent where the system does not say.
    pub resident_peak_bytes: Option<u64>,
}

impl MemoryUse {
    /// As of now.
    pub fn now() -> Self {
        Self { heap_peak_bytes: heap_peak_bytes(), resident_peak_bytes: resident_peak_bytes() }
    }
}

/// Bytes of heap in use; absent where no [`CountingAllocator`] is installed.
pub fn heap_live_bytes() -> Option<u64> {
    Some(LIVE_BYTES.load(Relaxed) as u64).filter(|&bytes| bytes > 0)
}

/// The most bytes of heap in use at once since the process started.
pub fn heap_peak_bytes() -> Option<u64> {
    Some(PEAK_BYTES.load(Relaxed).max(EARLIER_BYTES.load(Relaxed)) as u64).filter(|&bytes| bytes > 0)
}

/// The most bytes of heap in use at once since the latest [`mark_heap`].
pub fn heap_peak_since_mark_bytes() -> Option<u64> {
    Some(PEAK_BYTES.load(Relaxed) as u64).filter(|&bytes| bytes > 0)
}

/// Begins a span of its own for [`heap_peak_since_mark_bytes`]; returns the peak of the one that ends.
pub fn mark_heap() -> Option<u64> {
    let ended = heap_peak_since_mark_bytes();
    EARLIER_BYTES.fetch_max(PEAK_BYTES.load(Relaxed), Relaxed);
    PEAK_BYTES.store(LIVE_BYTES.load(Relaxed), Relaxed);
    ended
}

fn resident_peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_of_this_process_is_read() {
        if std::path::Path::new("/proc/self/status").exists() {
            assert!(resident_peak_bytes().unwrap() > 1 << 20);
        }
    }
}
