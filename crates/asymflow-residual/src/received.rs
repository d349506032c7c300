//! What arrives already released.

use asymflow_privacy::{
    Door, Private, Released,
    accountants::Relation,
    door::{Gate, ReleaseError, Source},
    mechanisms::{InsecureNone, Mechanism},
    payload::{Payload, Precision},
    records::{Flow, RecordAccountant},
};
#[cfg(any(feature = "serve", feature = "conformance"))]
use asymflow_privacy::{mechanisms::InsecureSign, payload::PackedBits};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// A door of the untrusted side, where nothing private exists: there is no loss to account for, so its accountant is
/// dropped with it, and what passes draws no randomness.
fn door() -> Door {
    Door::new(RecordAccountant::new(1), StdRng::seed_from_u64(0))
}

fn through<O>(mechanism: impl Mechanism<Output = O> + 'static, values: Vec<f32>) -> Result<Released<O>, ReleaseError> {
    let gate = Gate::new(Box::new(mechanism), None, Relation::Remove)?;
    let source = Source { layer: "received", flow: Flow::Residual };
    door().release(&gate, source, &[0], Private::new(values))
}

/// Gives numbers that their sender released the type that sessions take. Numbers that came in binary16 go back into it
/// exactly.
///
/// # Errors
/// A value is not finite.
pub(crate) fn received(values: Vec<f32>, precision: Precision) -> Result<Released<Payload>, ReleaseError> {
    Ok(through(InsecureNone, values)?.encode(precision))
}

/// As [`received`], for bits.
#[cfg(any(feature = "serve", feature = "conformance"))]
pub(crate) fn received_bits(bits: &PackedBits) -> Result<Released<PackedBits>, ReleaseError> {
    let mut signs = vec![0.0; bits.len()];
    bits.unpack_into(&mut signs, -1.0, 1.0);
    through(InsecureSign, signs)
}

/// As [`received`], for labels.
#[cfg(any(feature = "serve", feature = "conformance"))]
pub(crate) fn received_labels(labels: Vec<u32>) -> Result<Released<Vec<u32>>, ReleaseError> {
    door().disclose_labels(&vec![0; labels.len()], labels)
}
