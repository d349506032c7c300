//! Loops over tasks on a few threads of the current rayon pool, and memory they share.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

/// Calls `run(worker, task)` for every task, with `worker < workers`; no two calls of one worker overlap.
pub(crate) fn for_each(workers: usize, tasks: usize, run: impl Fn(usize, usize) + Sync) {
    if workers <= 1 || tasks <= 1 {
        return (0..tasks).for_each(|task| run(0, task));
    }
    let next = AtomicUsize::new(0);
    (0..workers.min(tasks)).into_par_iter().with_max_len(1).for_each(|worker| {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            run(worker, task);
        }
    });
}

/// A buffer that the tasks of a loop write in disjoint places.
#[derive(Clone, Copy)]
pub(crate) struct Shared {
    start: *mut f32,
    len: usize,
}

// SAFETY: the pointer is only dereferenced in unsafe code, which vouches for disjoint writes.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(crate) fn new(values: &mut [f32]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len() }
    }

    /// The buffer for uninitialised memory: to be written before it is read.
    pub(crate) fn uninit(values: &mut [std::mem::MaybeUninit<f32>]) -> Self {
        Self { start: values.as_mut_ptr().cast(), len: values.len() }
    }

    /// Part `index` of consecutive parts of `len` values from `start`.
    pub(crate) fn part(self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.len, "part {start}+{len} of {}", self.len);
        // SAFETY: the part lies inside the buffer, as just checked.
        Self { start: unsafe { self.start.add(start) }, len }
    }

    pub(crate) fn ptr(self) -> *mut f32 {
        self.start
    }

    pub(crate) fn at(self, offset: usize) -> *mut f32 {
        debug_assert!(offset <= self.len, "offset {offset} of {}", self.len);
        // SAFETY: offsets lie inside the buffer or one past its end.
        unsafe { self.start.add(offset) }
    }
}
