//! What everybody may know of a model.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::affine::CompileError;
use crate::layout::{Cost, Layout};
use crate::parameters::{DEGREE, Parameters};

/// Most bytes of a program, encoded.
const MOST_BYTES: usize = 4 << 20;
/// Bytes around polynomials.
const AROUND: usize = 4096;

/// What everybody may know: shapes, formats and parameters, and no weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// Name of the network.
    pub name: String,
    /// Values of an image.
    pub inputs: usize,
    /// Integers of an input value: value times `input_scale`, rounded, within `input_range`.
    pub input_scale: f64,
    /// Least and most.
    pub input_range: (i64, i64),
    pub(crate) layout: Layout,
    /// A logit is an integer divided by this.
    pub output_scale: f64,
    /// No logit's integer is larger in magnitude, whatever the image.
    pub bound_bits: u32,
    /// Of the scheme.
    pub parameters: Parameters,
    /// Levels that an answer drops, to be shorter.
    pub(crate) dropped_levels: usize,
}

impl Program {
    /// Identifies it in every message.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.to_bytes()).into()
    }

    /// As it travels.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Nothing in a program can fail to encode.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// Reads one of somebody else.
    ///
    /// # Errors
    /// It is none, or [`Program::check`] refuses it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CompileError> {
        if bytes.len() > MOST_BYTES {
            return Err(CompileError::Program("longer than 4 MiB"));
        }
        let program: Self = postcard::from_bytes(bytes).map_err(|_| CompileError::Program("does not decode"))?;
        program.check()?;
        Ok(program)
    }

    /// Holds it to the tables of security and to what fits: a client does so before it makes a key.
    ///
    /// # Errors
    /// It was not compiled by [`Model::compile`](crate::Model::compile).
    pub fn check(&self) -> Result<(), CompileError> {
        self.parameters.check().map_err(|error| CompileError::Range(error.to_string()))?;
        let is_scale = |scale: f64| scale.is_finite() && scale > 0.0;
        let (least, most) = self.input_range;
        let formats = is_scale(self.input_scale)
            && is_scale(self.output_scale)
            && least < most
            && least.unsigned_abs().max(most.unsigned_abs()) < 1 << 16
            && (1..=1 << 16).contains(&self.inputs)
            && self.dropped_levels < self.parameters.moduli_bits.len()
            && self.parameters.degree == DEGREE
            && self.name.len() <= 256;
        if formats { self.layout.arrange().check(self.inputs) } else { Err(CompileError::Program("formats")) }
    }

    /// Squares one after the other.
    pub fn depth(&self) -> usize {
        self.layout.arrange().cost().depth
    }

    /// Most images of a query.
    pub fn images(&self) -> usize {
        self.layout.arrange().cost().images
    }

    /// What a query takes.
    pub fn cost(&self) -> Cost {
        self.layout.arrange().cost().times(self.parameters.plaintext_moduli.len())
    }

    /// Most bytes of so many polynomials modulo the whole of the ciphertext modulus.
    pub(crate) fn polynomial_bytes(&self, polynomials: usize) -> usize {
        let bits: usize = self.parameters.moduli_bits.iter().sum();
        polynomials * self.parameters.degree * bits.div_ceil(8) + AROUND
    }

    /// Most bytes of evaluation keys: a server takes no more of a client.
    pub fn evaluation_key_bytes(&self) -> usize {
        // A key has two polynomials for each modulus.
        (1 + self.cost().turning_keys) * self.parameters.moduli_bits.len() * self.polynomial_bytes(2)
    }

    /// Most bytes of a query: a fresh ciphertext is a polynomial and a seed.
    pub fn query_bytes(&self) -> usize {
        self.cost().ciphertexts * self.polynomial_bytes(1)
    }

    /// Most bytes of an answer.
    pub fn answer_bytes(&self) -> usize {
        self.cost().answers * self.polynomial_bytes(3)
    }

    /// Bytes that a server has in memory while it computes: ciphertexts of one plaintext modulus, and the prepared weights of all.
    pub fn memory_bytes(&self) -> usize {
        let (cost, moduli) = (self.cost(), self.parameters.moduli_bits.len());
        8 * DEGREE * (cost.polynomials * moduli + cost.plaintexts * (moduli + 1))
    }

    /// The integers of an image.
    ///
    /// # Errors
    /// It has another length, or a value is no number.
    pub fn integers(&self, image: &[f32]) -> Result<Vec<i64>, CompileError> {
        if image.len() != self.inputs || image.iter().any(|value| !value.is_finite()) {
            let got = image.len();
            return Err(CompileError::Range(format!("{got} values, expected {} finite ones", self.inputs)));
        }
        let (least, most) = self.input_range;
        let one = |value: &f32| ((f64::from(*value) * self.input_scale).round() as i64).clamp(least, most);
        Ok(image.iter().map(one).collect())
    }

    /// Logits of the integers of an answer.
    pub fn logits(&self, integers: &[i128]) -> Vec<f64> {
        integers.iter().map(|&value| value as f64 / self.output_scale).collect()
    }
}
