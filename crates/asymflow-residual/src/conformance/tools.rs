//! What every rule is checked with.

use std::fmt;

use asymflow_privacy::{
    Released,
    payload::{Payload, Precision},
};
use thiserror::Error;

use crate::backend::{Batch, CollectError, ResidualBackend, ResidualModel, ResidualTraining, Ticket, Unit};

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{check}: {detail}")]
pub struct Nonconformance {
    /// Where it shows.
    pub check: String,
    /// How.
    pub detail: String,
}

pub(super) fn wrong(check: impl fmt::Display, detail: impl fmt::Display) -> Nonconformance {
    Nonconformance { check: check.to_string(), detail: detail.to_string() }
}

pub(super) fn ok<T, E: fmt::Display>(check: &str, result: Result<T, E>) -> Result<T, Nonconformance> {
    result.map_err(|error| wrong(check, error))
}

/// A backend, and how many times the tolerances of binary32 it is allowed.
pub(super) struct Subject<'a> {
    pub backend: &'a dyn ResidualBackend,
    pub slack: f64,
}

/// A session of these units.
pub(super) fn open(subject: &Subject<'_>, units: Vec<Unit>) -> Result<Box<dyn ResidualTraining>, Nonconformance> {
    ok("open", subject.backend.open(&ResidualModel { units }))
}

/// Whether `got` is what was to be expected, by its `Debug` form's beginning.
pub(super) fn refused<T: fmt::Debug, E: fmt::Debug>(
    check: &str,
    got: Result<T, E>,
    variant: &str,
) -> Result<(), Nonconformance> {
    match got {
        Err(error) if format!("{error:?}").starts_with(variant) => Ok(()),
        other => Err(wrong(check, format_args!("expected {variant}, got {other:?}"))),
    }
}

/// Numbers in [-1, 1) that look random and depend only on `seed`.
pub(super) fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

pub(super) fn released(values: Vec<f32>, precision: Precision) -> Result<Released<Payload>, Nonconformance> {
    ok("release", crate::received::received(values, precision))
}

impl Subject<'_> {
    /// Largest error relative to the largest expected value must be within `tolerance`.
    pub(super) fn close(
        &self,
        check: &str,
        got: &[f32],
        expected: &[f64],
        tolerance: f64,
    ) -> Result<(), Nonconformance> {
        if got.len() != expected.len() {
            return Err(wrong(check, format_args!("{} values, expected {}", got.len(), expected.len())));
        }
        let tolerance = tolerance * self.slack;
        let scale = expected.iter().fold(1e-6f64, |m, v| m.max(v.abs()));
        for (index, (&got, &expected)) in got.iter().zip(expected).enumerate() {
            let error = (f64::from(got) - expected).abs() / scale;
            if error.is_nan() || error > tolerance {
                return Err(wrong(check, format_args!("value {index} is {got}, expected {expected} (scale {scale})")));
            }
        }
        Ok(())
    }
}

pub(super) fn outputs(
    check: &str,
    session: &mut dyn ResidualTraining,
    ticket: Ticket,
) -> Result<Vec<f32>, Nonconformance> {
    match ok(check, session.collect(ticket))? {
        Batch::Outputs(values) => Ok(values),
        Batch::Gradients { .. } => Err(wrong(check, "gradients where outputs belong")),
    }
}

pub(super) fn gradients(
    check: &str,
    session: &mut dyn ResidualTraining,
    ticket: Ticket,
) -> Result<(Vec<f32>, Vec<f32>), Nonconformance> {
    match ok(check, session.collect(ticket))? {
        Batch::Gradients { input, weights } => Ok((input, weights)),
        Batch::Outputs(_) => Err(wrong(check, "outputs where gradients belong")),
    }
}

pub(super) fn spent(check: &str, session: &mut dyn ResidualTraining, ticket: Ticket) -> Result<(), Nonconformance> {
    match session.collect(ticket) {
        Err(CollectError::Ticket(got)) if got == ticket => Ok(()),
        other => Err(wrong(check, format_args!("a spent ticket gave {other:?}"))),
    }
}

pub(super) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}
