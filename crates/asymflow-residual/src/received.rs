//! Numbers that arrive already released.

use asymflow_privacy::{
    InsecureNone, Payload, Precision, Private, Relation, ReleaseError, Released, Sensitivity, release,
};
#[cfg(any(feature = "backend", feature = "conformance"))]
use asymflow_privacy::{InsecureSign, PackedBits};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Gives numbers that their sender released the type that sessions take.
///
/// For the untrusted side only: nothing private exists there, so there is no loss to account for and
/// the receipt is spent. `InsecureNone` draws no randomness. Numbers that came in binary16 go back into it exactly.
///
/// # Errors
/// A value is not finite.
pub(crate) fn received(values: Vec<f32>, precision: Precision) -> Result<Released<Payload>, ReleaseError> {
    let sensitivity = Sensitivity::unbounded(Relation::Remove);
    let mut unused = StdRng::seed_from_u64(0);
    let (released, _spent) = release(Private::new(values), sensitivity, &InsecureNone, &mut unused)?;
    Ok(released.encode(precision))
}

/// As [`received`], for bits.
#[cfg(any(feature = "backend", feature = "conformance"))]
pub(crate) fn received_bits(bits: &PackedBits) -> Result<Released<PackedBits>, ReleaseError> {
    let mut signs = vec![0.0; bits.len()];
    bits.unpack_into(&mut signs, -1.0, 1.0);
    let sensitivity = Sensitivity::unbounded(Relation::Remove);
    let mut unused = StdRng::seed_from_u64(0);
    let (released, _spent) = release(Private::new(signs), sensitivity, &InsecureSign, &mut unused)?;
    Ok(released)
}
