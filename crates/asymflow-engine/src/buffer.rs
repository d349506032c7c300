//! Reused memory for activations: fresh pages from the system cost more than the layers that fill them.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use asymflow_zoo::network::Shape;
use rayon::prelude::*;

/// A vector is handed out again for as little as one over this of its length.
const REUSE: usize = 2;

/// A store of vectors that are handed out again when a [`Buffer`] is dropped: the shortest that is long enough, unless it
/// is more than twice as long. So batches of every size share their memory.
///
/// A [`Pool::measuring`] hands out lengths alone: it counts what a pass takes, and nothing is computed.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    store: Arc<Mutex<Store>>,
    is_measuring: bool,
}

#[derive(Debug, Default)]
struct Store {
    free: BTreeMap<usize, Vec<Vec<f32>>>,
    /// Values of all vectors, held or free, that belong to the pool.
    live: usize,
    most_live: usize,
    /// Values of those that are free.
    idle: usize,
    beside: usize,
    most_beside: usize,
}

impl Store {
    fn add(&mut self, values: usize) {
        self.live += values;
        self.most_live = self.most_live.max(self.live);
    }
}

/// A vector of a [`Pool`]. Its contents are arbitrary until written. One of a measuring pool has a length and no values.
#[derive(Debug)]
pub struct Buffer {
    data: Vec<f32>,
    /// Of the vector, so many values belong to this buffer.
    len: usize,
    /// Values of the vector.
    whole: usize,
    pool: Pool,
}

impl Pool {
    /// A pool of lengths without values.
    pub fn measuring() -> Self {
        Self { is_measuring: true, ..Self::default() }
    }

    /// Whether it hands out lengths alone.
    pub const fn is_measuring(&self) -> bool {
        self.is_measuring
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer of `len` values with arbitrary contents.
    pub fn take(&self, len: usize) -> Buffer {
        let mut store = self.store();
        let reused =
            store.free.range_mut(len..=REUSE * len).find_map(|(&whole, vectors)| Some((whole, vectors.pop()?)));
        if let Some((whole, data)) = reused {
            store.idle -= whole;
            return Buffer { data, len, whole, pool: self.clone() };
        }
        store.add(len);
        drop(store);
        let data = if self.is_measuring { Vec::new() } else { vec![0.0; len] };
        Buffer { data, len, whole: len, pool: self.clone() }
    }

    /// A buffer of zeros.
    pub fn zeros(&self, len: usize) -> Buffer {
        let mut buffer = self.take(len);
        buffer.fill(0.0);
        buffer
    }

    /// A buffer that owns `data`.
    pub fn adopt(&self, data: Vec<f32>) -> Buffer {
        let len = data.len();
        self.store().add(len);
        Buffer { data, len, whole: len, pool: self.clone() }
    }

    /// As [`Pool::adopt`], of a vector that is not there: what a measuring pool is told to count.
    pub fn adopt_length(&self, len: usize) -> Buffer {
        if !self.is_measuring {
            return self.adopt(vec![0.0; len]);
        }
        self.store().add(len);
        Buffer { data: Vec::new(), len, whole: len, pool: self.clone() }
    }

    /// A vector of `len` defaults that is no activation and is freed with its layer.
    pub(crate) fn beside<T: Clone + Default>(&self, len: usize) -> Beside<T> {
        let mut store = self.store();
        let bytes = len * size_of::<T>();
        store.beside += bytes;
        store.most_beside = store.most_beside.max(store.beside);
        drop(store);
        let values = if self.is_measuring { Vec::new() } else { vec![T::default(); len] };
        Beside { values, bytes, pool: self.clone() }
    }

    /// Bytes of the vectors that nobody holds.
    pub fn free_bytes(&self) -> usize {
        self.store().idle * size_of::<f32>()
    }

    /// Bytes of what is held: vectors, and what is beside them.
    pub fn held_bytes(&self) -> usize {
        let store = self.store();
        (store.live - store.idle) * size_of::<f32>() + store.beside
    }

    /// The most bytes that its vectors, held or free, have had.
    pub fn peak_bytes(&self) -> usize {
        self.store().most_live * size_of::<f32>()
    }

    /// The most bytes that there have been beside its vectors: indices of maxima and masks of dropout.
    pub fn peak_beside_bytes(&self) -> usize {
        self.store().most_beside
    }
}

impl Buffer {
    /// Values that belong to it.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no value.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Values of the vector behind it, which may be longer.
    pub const fn vector_len(&self) -> usize {
        self.whole
    }

    /// The vector itself; it does not return to the pool.
    pub fn into_vec(mut self) -> Vec<f32> {
        self.data.truncate(self.len);
        self.pool.store().live -= std::mem::take(&mut self.whole);
        std::mem::take(&mut self.data)
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.data.get(..self.len).unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.data.get_mut(..self.len).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.whole > 0 {
            let data = std::mem::take(&mut self.data);
            let mut store = self.pool.store();
            store.idle += self.whole;
            store.free.entry(self.whole).or_default().push(data);
        }
    }
}

/// Memory of a layer that is no activation, and counts as long as it lives.
#[derive(Debug)]
pub(crate) struct Beside<T> {
    pub values: Vec<T>,
    bytes: usize,
    pool: Pool,
}

impl<T> Drop for Beside<T> {
    fn drop(&mut self) {
        self.pool.store().beside -= self.bytes;
    }
}

/// A batch of activations inside the trusted part: `samples` of `shape`, row-major, shared cheaply.
#[derive(Clone, Debug)]
pub struct Activation {
    /// Samples in the batch.
    pub samples: usize,
    /// Shape of one sample.
    pub shape: Shape,
    /// The values.
    pub data: Arc<Buffer>,
}

impl Activation {
    /// An activation that owns `data`.
    pub fn new(samples: usize, shape: Shape, data: Buffer) -> Self {
        Self { samples, shape, data: Arc::new(data) }
    }

    /// The values as a buffer of their own; copied only where somebody else still holds them.
    pub fn into_buffer(self, pool: &Pool) -> Buffer {
        Arc::try_unwrap(self.data).unwrap_or_else(|shared| {
            let mut copy = pool.take(shared.len());
            copy.copy_from_slice(&shared);
            copy
        })
    }
}

/// a += b.
pub fn add_assign(a: &mut [f32], b: &[f32]) {
    combine(a, b, |a, b| a + b);
}

/// a = f(a, b), on all threads.
pub fn combine(a: &mut [f32], b: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    a.par_chunks_mut(1 << 14).zip(b.par_chunks(1 << 14)).for_each(|(a, b)| {
        a.iter_mut().zip(b).for_each(|(a, &b)| *a = f(*a, b));
    });
}
