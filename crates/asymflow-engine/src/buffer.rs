//! Reused memory for activations: fresh pages from the system cost more than the layers that fill them.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use asymflow_zoo::Shape;

/// A vector is handed out again for as little as one over this of its length.
pub const REUSE: usize = 2;

type Free = Arc<Mutex<BTreeMap<usize, Vec<Vec<f32>>>>>;

/// A store of vectors that are handed out again when a [`Buffer`] is dropped: the shortest that is long enough, unless it
/// is more than twice as long. So batches of every size share their memory.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    free: Free,
}

/// A vector of a [`Pool`]. Its contents are arbitrary until written.
#[derive(Debug)]
pub struct Buffer {
    data: Vec<f32>,
    /// Of the vector, so many values belong to this buffer.
    len: usize,
    free: Free,
}

impl Pool {
    /// A buffer of `len` values with arbitrary contents.
    pub fn take(&self, len: usize) -> Buffer {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let reused = free.range_mut(len..=REUSE * len).find_map(|(_, vectors)| vectors.pop());
        drop(free);
        Buffer { data: reused.unwrap_or_else(|| vec![0.0; len]), len, free: Arc::clone(&self.free) }
    }

    /// Bytes of the vectors that nobody holds.
    pub fn free_bytes(&self) -> usize {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.iter().map(|(len, vectors)| len * vectors.len() * size_of::<f32>()).sum()
    }

    /// A buffer of zeros.
    pub fn zeros(&self, len: usize) -> Buffer {
        let mut buffer = self.take(len);
        buffer.fill(0.0);
        buffer
    }

    /// A buffer that owns `data`.
    pub fn adopt(&self, data: Vec<f32>) -> Buffer {
        Buffer { len: data.len(), data, free: Arc::clone(&self.free) }
    }
}

impl Buffer {
    /// The vector itself; it does not return to the pool.
    pub fn into_vec(mut self) -> Vec<f32> {
        self.data.truncate(self.len);
        std::mem::take(&mut self.data)
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.data.is_empty() {
            let data = std::mem::take(&mut self.data);
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            free.entry(data.len()).or_default().push(data);
        }
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
