//! What a packing asks of an encryption scheme with slots: the one seam below which all cryptography is somebody else's.

use thiserror::Error;

/// Why an operation failed.
#[derive(Debug, Error)]
pub enum SchemeError {
    /// The library below refuses.
    #[error("encryption: {0}")]
    Library(#[from] fhe::Error),
    /// Its arithmetic refuses.
    #[error("encryption: {0}")]
    Arithmetic(#[from] fhe_math::Error),
    /// There is no key for what was asked.
    #[error("no key to turn or to relinearise with")]
    Key,
    /// Parameters that are none.
    #[error(transparent)]
    Parameters(#[from] crate::parameters::ParametersError),
}

/// How slots are moved. They are two rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Turn {
    /// Both rows to the left, by so many places.
    Columns(usize),
    /// One row in the other's place.
    Rows,
}

/// A server's operations on ciphertexts.
pub trait Scheme: Sync {
    /// Encrypted slots.
    type Ciphertext: Clone + Send + Sync;
    /// Slots in the clear, to be added.
    type Summand: Send + Sync;
    /// Slots in the clear, to be multiplied with. Where all are the same number, noise grows by its magnitude alone.
    type Factor: Clone + Send + Sync;

    /// Prepares slots to be added to ciphertexts that dropped so many levels; values are below the plaintext modulus.
    ///
    /// # Errors
    /// There are more than slots, or fewer levels.
    fn summand(&self, slots: &[u64], levels: usize) -> Result<Self::Summand, SchemeError>;
    /// The same, to be multiplied with.
    ///
    /// # Errors
    /// As [`Scheme::summand`].
    fn factor(&self, slots: &[u64], levels: usize) -> Result<Self::Factor, SchemeError>;
    /// Σ ciphertext · factor, slot by slot, of ciphertexts with as many parts.
    ///
    /// # Errors
    /// There is no term.
    fn dot(&self, terms: &[(&Self::Ciphertext, &Self::Factor)]) -> Result<Self::Ciphertext, SchemeError>;
    /// Adds another ciphertext.
    fn add(&self, to: &mut Self::Ciphertext, other: &Self::Ciphertext);
    /// Adds slots in the clear.
    fn add_plain(&self, to: &mut Self::Ciphertext, other: &Self::Summand);
    /// The square of each slot, in three parts.
    fn square(&self, x: &Self::Ciphertext) -> Self::Ciphertext;
    /// Three parts to two.
    ///
    /// # Errors
    /// There are not three.
    fn relinearise(&self, x: &mut Self::Ciphertext) -> Result<(), SchemeError>;
    /// Moves slots.
    ///
    /// # Errors
    /// There is no key for that.
    fn turn(&self, x: &Self::Ciphertext, turn: Turn) -> Result<Self::Ciphertext, SchemeError>;
    /// Drops levels, so many in all: what is left is shorter and quicker to compute with, and cannot be turned or relinearised any more.
    ///
    /// # Errors
    /// There are not as many.
    fn shorten(&self, x: &mut Self::Ciphertext, levels: usize) -> Result<(), SchemeError>;
}
