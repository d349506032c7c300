//! Parameters of the scheme, held to the published tables.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Ring degree and most bits of the ciphertext modulus for 128 bits of classical security: Albrecht et al., "Homomorphic Encryption Standard"
/// (2018), table 1, for secrets that are uniform and ternary. Ours are centred binomial of variance 10, as errors are.
pub const SECURITY_TABLE: [(usize, u32); 3] = [(4096, 109), (8192, 218), (16384, 438)];

/// Primes below 2²⁰ that have all roots for batching at degree 8192.
const SHORT_PRIMES: [u64; 9] = [1_032_193, 786_433, 737_281, 638_977, 557_057, 163_841, 147_457, 114_689, 65_537];
/// Degree of all parameters here: at 16384 everything takes five times as long.
pub(crate) const DEGREE: usize = 8192;
/// Most bits of one wide plaintext modulus.
const WIDE_BITS: u32 = 40;

/// Parameters of BFV.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// Degree of the ring, and number of slots.
    pub degree: usize,
    /// Bits of the ciphertext's prime moduli, the widest first.
    pub moduli_bits: Vec<usize>,
    /// Plaintext moduli, each with ciphertexts of its own; a result is their Chinese remainder.
    pub plaintext_moduli: Vec<u64>,
}

/// Why parameters are refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParametersError {
    /// Not 128 bits of security.
    #[error("a modulus of {bits} bits at degree {degree} is not 128 bits of security: {most} bits are the most")]
    Insecure {
        /// Degree of the ring.
        degree: usize,
        /// Bits of the modulus.
        bits: usize,
        /// The table's.
        most: u32,
    },
    /// A number out of range.
    #[error("{0} is out of range")]
    Range(&'static str),
}

impl Parameters {
    pub(crate) const NONE: Self = Self { degree: 0, moduli_bits: Vec::new(), plaintext_moduli: Vec::new() };

    /// Checks security and form: for parameters from outside, and for our own.
    ///
    /// # Errors
    /// They are not in the table, or no parameters at all.
    pub fn check(&self) -> Result<(), ParametersError> {
        let found = SECURITY_TABLE.iter().find(|(degree, _)| *degree == self.degree);
        let &(degree, most) = found.ok_or(ParametersError::Range("degree"))?;
        let in_range = |bits: &usize| (20..=60).contains(bits);
        if self.moduli_bits.is_empty() || !self.moduli_bits.iter().all(in_range) || self.moduli_bits.len() > 10 {
            return Err(ParametersError::Range("width of a modulus"));
        }
        if self.moduli_bits.iter().any(|bits| *bits > self.moduli_bits[0]) {
            return Err(ParametersError::Range("order of the moduli"));
        }
        let bits = self.moduli_bits.iter().sum();
        if bits > most as usize {
            return Err(ParametersError::Insecure { degree, bits, most });
        }
        // A prime of so many bits is at least 2^(bits − 1).
        let widest = WIDE_BITS.min(self.moduli_bits[0] as u32 - 1);
        let is_modulus = |t: &u64| t % (2 * degree as u64) == 1 && t.ilog2() < widest;
        // Remainders are combined in 128 bits.
        let plaintext_bits: f64 = self.plaintext_moduli.iter().map(|t| (*t as f64).log2()).sum();
        let distinct = self.plaintext_moduli.iter().collect::<std::collections::BTreeSet<_>>();
        if !(1..=SHORT_PRIMES.len()).contains(&self.plaintext_moduli.len())
            || plaintext_bits > 125.0
            || distinct.len() != self.plaintext_moduli.len()
            || !self.plaintext_moduli.iter().all(is_modulus)
        {
            return Err(ParametersError::Range("plaintext modulus"));
        }
        Ok(())
    }

    /// Parameters that hold integers of `bound_bits` bits and a sign, the cheapest first.
    pub(crate) fn candidates(bound_bits: u32) -> Vec<Self> {
        let moduli: [&[usize]; 7] = [
            &[59, 59],
            &[50, 50, 50],
            &[52, 50, 50, 50],
            &[55, 55, 54, 54],
            &[44, 44, 44, 43, 43],
            &[37, 37, 36, 36, 36, 36],
            &[32, 31, 31, 31, 31, 31, 31],
        ];
        let mut all = Vec::new();
        for plaintext_moduli in (1..=SHORT_PRIMES.len()).filter_map(|count| primes(count, bound_bits)) {
            all.extend(moduli.map(|bits| Self {
                degree: DEGREE,
                moduli_bits: bits.to_vec(),
                plaintext_moduli: plaintext_moduli.clone(),
            }));
        }
        all.retain(|parameters: &Self| parameters.check().is_ok());
        all.sort_by_key(|parameters| parameters.plaintext_moduli.len() * parameters.moduli_bits.len());
        all
    }

    /// Whether the noise budget may be enough, by the least that squares (log t + 13 bits), turns (the widest modulus and 11) and products with
    /// slots (log t + 6) take: what this refuses need not be tried.
    pub(crate) fn may_hold(&self, depth: usize, turns_slots: bool, least_budget_bits: u32) -> bool {
        let plaintext = self.plaintext_moduli.iter().map(|t| t.ilog2() as usize).max().unwrap_or(0);
        let turned = if turns_slots { self.moduli_bits[0] + 11 + depth * (plaintext + 6) } else { 0 };
        let taken = plaintext + depth * (plaintext + 13) + turned + least_budget_bits as usize;
        taken <= self.moduli_bits.iter().sum()
    }

    /// Levels that can be dropped before a product with slots that is the last operation: twice the plaintext modulus and 45 bits hold what
    /// switching and that product add to the noise.
    pub(crate) fn levels_before_last(&self) -> usize {
        let plaintext = self.plaintext_moduli.iter().map(|t| t.ilog2() as usize + 1).max().unwrap_or(0);
        let mut bits = 0;
        let kept = self.moduli_bits.iter().take_while(|modulus| {
            let is_short = bits < 2 * plaintext + 45;
            bits += **modulus;
            is_short
        });
        self.moduli_bits.len() - kept.count()
    }

    /// The integer in (−T/2, T/2) with these remainders, T the product of the plaintext moduli.
    pub(crate) fn combined(&self, remainders: &[u64]) -> i128 {
        let (mut value, mut product) = (0_i128, 1_i128);
        for (&remainder, &modulus) in remainders.iter().zip(&self.plaintext_moduli) {
            let modulus = i128::from(modulus);
            // value + product · k ≡ remainder: both factors are below 2^40.
            let difference = (i128::from(remainder) - value).rem_euclid(modulus);
            let k = difference * inverse(product.rem_euclid(modulus), modulus) % modulus;
            value += product * k;
            product *= modulus;
        }
        if value > product / 2 { value - product } else { value }
    }
}

/// As many primes whose product is more than twice 2^bound_bits, as short as they can be: noise grows with the widest.
fn primes(count: usize, bound_bits: u32) -> Option<Vec<u64>> {
    let needed = f64::from(bound_bits) + 1.0;
    let is_enough = |primes: &[u64]| primes.iter().map(|prime| (*prime as f64).log2()).sum::<f64>() > needed;
    let short = SHORT_PRIMES.windows(count).rfind(|primes| is_enough(primes)).map(<[u64]>::to_vec);
    let wide = || {
        let bits = (needed / count as f64).floor() as u32 + 1;
        let mut below = 1 << bits;
        let next = |_| {
            below = fhe_math::zq::primes::generate_prime(bits as usize, 2 * DEGREE as u64, below)?;
            Some(below)
        };
        let primes: Vec<u64> = (21..=WIDE_BITS).contains(&bits).then(|| (0..count).map_while(next).collect())?;
        (primes.len() == count && is_enough(&primes)).then_some(primes)
    };
    short.or_else(wide)
}

/// x⁻¹ modulo a prime.
fn inverse(x: i128, modulus: i128) -> i128 {
    let (mut power, mut base, mut exponent) = (1, x, modulus - 2);
    while exponent > 0 {
        if exponent & 1 == 1 {
            power = power * base % modulus;
        }
        base = base * base % modulus;
        exponent >>= 1;
    }
    power
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn good() -> Parameters {
        Parameters { degree: 8192, moduli_bits: vec![52, 50, 50, 50], plaintext_moduli: vec![786_433, 65_537] }
    }

    #[test]
    fn candidates_are_secure_and_wide_enough() {
        for bound_bits in [10, 31, 33, 60, 68, 90] {
            let candidates = Parameters::candidates(bound_bits);
            assert!(candidates.len() > 6);
            for parameters in candidates {
                parameters.check().unwrap();
                let bits: f64 = parameters.plaintext_moduli.iter().map(|t| (*t as f64).log2()).sum();
                assert!(bits > f64::from(bound_bits + 1), "{parameters:?}");
            }
        }
    }

    #[test]
    fn what_is_not_in_the_table_is_refused() {
        let refused = |change: fn(&mut Parameters)| {
            let mut parameters = good();
            change(&mut parameters);
            parameters.check().unwrap_err().to_string()
        };
        good().check().unwrap();
        assert!(
            refused(|p| p.moduli_bits = vec![60; 4]).contains("240 bits at degree 8192 is not 128 bits of security")
        );
        assert!(refused(|p| p.degree = 4096).contains("109 bits are the most"));
        assert!(refused(|p| p.degree = 1 << 30).contains("degree"));
        assert!(refused(|p| p.moduli_bits = vec![50, 52]).contains("order"));
        assert!(refused(|p| p.plaintext_moduli = vec![65_539]).contains("plaintext modulus"));
        assert!(refused(|p| p.plaintext_moduli = vec![65_537; 2]).contains("plaintext modulus"));
        assert!(refused(|p| p.moduli_bits = vec![20; 6]).contains("plaintext modulus"));
    }

    proptest! {
        #[test]
        fn remainders_come_back(value in -(1_i128 << 60)..1 << 60) {
            let parameters = Parameters { plaintext_moduli: SHORT_PRIMES[..4].to_vec(), ..good() };
            let remainders: Vec<u64> =
                parameters.plaintext_moduli.iter().map(|t| value.rem_euclid(i128::from(*t)) as u64).collect();
            prop_assert_eq!(parameters.combined(&remainders), value);
        }
    }
}
