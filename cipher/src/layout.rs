//! Where values are: what client and server both know of a packing.

use serde::{Deserialize, Serialize};

use crate::affine::CompileError;
use crate::batch::Batch;
use crate::blocks::Blocks;
use crate::grid::Grid;
use crate::model::Model;
use crate::scheme::{Scheme, SchemeError, Turn};

/// What a query is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// One image, answered as soon as possible.
    #[default]
    Latency,
    /// Thousands of images, one a slot.
    Throughput,
}

/// What a query takes, by its structure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Images of a query, at most.
    pub images: usize,
    /// Turns of a ciphertext.
    pub turns: usize,
    /// Products of a ciphertext with slots in the clear.
    pub plain_products: usize,
    /// Polynomials in these: a ciphertext has two, or three after a square.
    pub polynomial_products: usize,
    /// Squares.
    pub squares: usize,
    /// Squares that are brought back to two polynomials.
    pub relinearisations: usize,
    /// Squares one after the other.
    pub depth: usize,
    /// Ciphertexts of a query.
    pub ciphertexts: usize,
    /// Ciphertexts of an answer.
    pub answers: usize,
    /// Keys to turn with; they serve all plaintext moduli.
    pub turning_keys: usize,
    /// Plaintexts that a server keeps ready.
    pub plaintexts: usize,
    /// Polynomials of ciphertexts that are in memory at a time.
    pub polynomials: usize,
}

impl Cost {
    /// Of so many plaintext moduli, one after the other.
    pub(crate) const fn times(self, moduli: usize) -> Self {
        Self {
            turns: moduli * self.turns,
            plain_products: moduli * self.plain_products,
            polynomial_products: moduli * self.polynomial_products,
            squares: moduli * self.squares,
            relinearisations: moduli * self.relinearisations,
            ciphertexts: moduli * self.ciphertexts,
            answers: moduli * self.answers,
            plaintexts: moduli * self.plaintexts,
            ..self
        }
    }
}

/// A packing of one program, as everybody may know it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Layout {
    Blocks(Blocks),
    Grid(Grid),
    Batch(Batch),
}

/// What client and server ask a layout. All numbers are those of one plaintext modulus.
pub(crate) trait Arrange: Sync {
    /// Whether it fits the slots, and reads nothing beyond an image's values: layouts come from outside too.
    fn check(&self, inputs: usize) -> Result<(), CompileError>;
    /// What it takes; the ciphertexts of a query and of an answer with it.
    fn cost(&self) -> Cost;
    /// All turns that there must be a key for.
    fn turns(&self) -> Vec<Turn>;
    /// The slots of ciphertext `index` of a query.
    fn slots(&self, images: &[Vec<i64>], index: usize, modulus: u64) -> Vec<u64>;
    /// For every image its outputs below the modulus, of an answer's slots.
    fn outputs(&self, slots: &[Vec<u64>], images: usize, modulus: u64) -> Vec<Vec<u64>>;
}

/// A model's weights, ready for a scheme with one plaintext modulus.
pub(crate) trait Prepared<S: Scheme>: Send + Sync {
    /// Computes on a query.
    fn answer(&self, scheme: &S, query: &[S::Ciphertext]) -> Result<Vec<S::Ciphertext>, SchemeError>;
}

impl Layout {
    pub(crate) fn arrange(&self) -> &dyn Arrange {
        match self {
            Self::Blocks(layout) => layout,
            Self::Grid(layout) => layout,
            Self::Batch(layout) => layout,
        }
    }

    pub(crate) fn prepare<S: Scheme + 'static>(
        &self,
        model: &Model,
        scheme: &S,
        modulus: u64,
    ) -> Result<Box<dyn Prepared<S>>, SchemeError> {
        Ok(match self {
            Self::Blocks(layout) => Box::new(crate::blocks::Weights::new(layout, model, scheme, modulus)?),
            Self::Grid(layout) => Box::new(crate::grid::Weights::new(layout, model, scheme, modulus)?),
            Self::Batch(layout) => Box::new(crate::batch::Weights::new(layout, model, scheme, modulus)?),
        })
    }
}

/// value modulo `modulus`, not negative.
pub(crate) fn residue(value: i128, modulus: u64) -> u64 {
    value.rem_euclid(i128::from(modulus)) as u64
}

/// Random slots below the modulus; those that `sums` lists for an output add up to its offset.
pub(crate) fn mask(sums: &[Vec<usize>], offsets: &[u64], modulus: u64) -> Vec<u64> {
    use rand::Rng;
    let mut rng = rand::rng();
    let mut slots: Vec<u64> = (0..crate::parameters::DEGREE).map(|_| rng.random_range(0..modulus)).collect();
    for (sum, offset) in sums.iter().zip(offsets) {
        let Some((&first, rest)) = sum.split_first() else { continue };
        slots[first] = (offset + modulus - total(rest.iter().map(|&slot| slots[slot]), modulus)) % modulus;
    }
    slots
}

/// A sum modulo `modulus`.
pub(crate) fn total(values: impl Iterator<Item = u64>, modulus: u64) -> u64 {
    (values.fold(0_u128, |total, value| total + u128::from(value)) % u128::from(modulus)) as u64
}
