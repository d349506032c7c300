//! What an exchange with the worker takes in the trusted part.

use asymflow_privacy::payload::Precision;

/// Bodies up to this size are read into memory of exactly their size (`asymflow_wire::read_frame`).
const EXACT_BYTES: usize = 64 << 20;

/// An answer as it comes in and as it is read.
pub(super) fn answer_bytes(values: usize, weight_values: usize, precision: Precision) -> usize {
    let body = body_bytes(values * precision.bytes() + weight_values * 4);
    let read = match precision {
        Precision::F32 => values * 4,
        Precision::F16 => values * 6,
    };
    body + read + weight_values * 4
}

/// Memory of a body of `len` bytes: it doubles as they come in.
fn body_bytes(len: usize) -> usize {
    let mut bytes = len.min(EXACT_BYTES);
    while bytes < len {
        bytes *= 2;
    }
    bytes
}
