//! Memory that another process writes at any time. All of the crate's unsafe code is here.
//!
//! The mapping is only reached through raw pointers and no reference into it ever exists, because what another process
//! changes while it is borrowed is no Rust slice. Bytes cross by copies; what a copy catches of a concurrent write is
//! any mixture of old and new bytes, which is a value like any other for a `u8`.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{Ordering, fence};

use memmap2::{MmapOptions, MmapRaw};
use rayon::prelude::*;

/// Numbers that are read at a time, and bytes that a thread copies at a time.
const PIECE: usize = 1 << 13;
const RUN: usize = 1 << 18;

/// A shared mapping of a file.
#[derive(Debug)]
pub(super) struct Memory {
    map: MmapRaw,
}

impl Memory {
    /// Maps the first `bytes` of `file`, which must be that long: beyond its end lies a SIGBUS.
    pub fn map(file: &File, bytes: usize) -> io::Result<Self> {
        Ok(Self { map: MmapOptions::new().len(bytes).map_raw(file)? })
    }

    /// Whether `bytes` from `at` lie inside the mapping.
    fn holds(&self, at: usize, bytes: usize) -> bool {
        at.checked_add(bytes).is_some_and(|end| end <= self.map.len())
    }

    /// A private copy of `bytes` from `at` on; `None` outside of the mapping.
    pub fn read(&self, at: usize, bytes: usize) -> Option<Vec<u8>> {
        if !self.holds(at, bytes) {
            return None;
        }
        let mut copy = Vec::with_capacity(bytes);
        fence(Ordering::Acquire);
        // SAFETY: `at..at + bytes` lies inside the mapping, which lives as long as `self` and which nothing in this
        // process borrows; `copy` has capacity for `bytes` and is fresh, so the two do not overlap. The source may
        // change during the copy. It does so from outside of this program, which copies bytes and assumes nothing of
        // their values: every `u8` is valid, so all `bytes` of `copy` are initialised whatever was read.
        unsafe {
            ptr::copy_nonoverlapping(self.map.as_ptr().add(at), copy.as_mut_ptr(), bytes);
            copy.set_len(bytes);
        }
        Some(copy)
    }

    /// `len` private numbers of `width` bytes each from `at` on; `None` outside of the mapping. `widen` makes them out of private
    /// copies of a few at a time, on all threads, so that each number is written once.
    pub fn read_numbers(
        &self,
        at: usize,
        len: usize,
        width: usize,
        widen: impl Fn(&[u8], &mut [f32]) + Sync,
    ) -> Option<Vec<f32>> {
        if !self.holds(at, len.checked_mul(width)?) {
            return None;
        }
        let mut numbers: Vec<f32> = Vec::with_capacity(len);
        fence(Ordering::Acquire);
        numbers.spare_capacity_mut().get_mut(..len)?.par_chunks_mut(PIECE).enumerate().with_min_len(8).try_for_each(
            |(index, to)| {
                let copy = self.read(at + index * PIECE * width, to.len() * width)?;
                to.fill(MaybeUninit::new(0.0));
                // SAFETY: all of `to` was written just now.
                widen(&copy, unsafe { to.assume_init_mut() });
                Some(())
            },
        )?;
        // SAFETY: every number below `len` was written above.
        unsafe { numbers.set_len(len) };
        Some(numbers)
    }

    /// Copies `from` to `at`; `None` outside of the mapping.
    pub fn write(&self, at: usize, from: &[u8]) -> Option<()> {
        if !self.holds(at, from.len()) {
            return None;
        }
        from.par_chunks(RUN).enumerate().for_each(|(index, run)| {
            // SAFETY: the target lies inside the mapping, which is writable and lives as long as `self`; no reference into
            // it exists in this process, so `from` is private memory and does not overlap it, and runs do not overlap each
            // other. Another process that reads or writes there at the same time is outside of this program and gets, or
            // leaves, some mixture of bytes.
            unsafe { ptr::copy_nonoverlapping(run.as_ptr(), self.map.as_mut_ptr().add(at + index * RUN), run.len()) };
        });
        fence(Ordering::Release);
        Some(())
    }
}
