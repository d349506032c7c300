//! What protects nothing and says so: signs without noise, and labels that are public by declaration.

use rand::CryptoRng;

use crate::bits::PackedBits;
use crate::boundary::{Receipt, Released};
use crate::loss::{Loss, Relation, Sensitivity};
use crate::mechanism::{Mechanism, MechanismError};

/// Lets the sign of every value out, without noise. It protects nothing and exists as a baseline: the 1-bit quantiser at
/// infinite ε.
#[derive(Clone, Copy, Debug, Default)]
pub struct InsecureSign;

impl Mechanism for InsecureSign {
    type Output = PackedBits;

    fn name(&self) -> &'static str {
        "insecure_sign"
    }

    fn loss(&self, _sensitivity: Sensitivity) -> Result<Loss, MechanismError> {
        Ok(Loss::Infinite)
    }

    fn apply(&self, x: Vec<f32>, _rng: &mut dyn CryptoRng) -> Result<Self::Output, MechanismError> {
        Ok(PackedBits::pack(&x))
    }
}

/// Labels that their owner has declared public. They never were [`Private`](crate::Private), so there is nothing to lose;
/// the receipt says in the ledger that they left.
pub fn disclose_labels(labels: Vec<u32>) -> (Released<Vec<u32>>, Receipt) {
    let nothing = Loss::Pure { epsilon: 0.0 };
    let receipt = Receipt::new("public_labels", nothing, Sensitivity::unbounded(Relation::Replace));
    (Released::new(labels), receipt)
}
