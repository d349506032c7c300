//! Private and released data as types, and the one door between them.

use std::fmt;

use rand::CryptoRng;
use serde::Serialize;
use thiserror::Error;
use zeroize::Zeroize;

use crate::loss::{Loss, Sensitivity};
use crate::mechanism::{Mechanism, MechanismError};

/// Data that must not leave the trusted side.
///
/// It is neither `Clone`, `Deref`, `Display` nor `Serialize`; `Debug` is redacted and the memory is
/// zeroised on drop. Trusted code reads it through [`Private::expose`], which is easy to search for.
pub struct Private<T: Zeroize>(T);

impl<T: Zeroize> Private<T> {
    /// Marks `value` as private.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value, for computation inside the trusted part.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize + Default> Private<T> {
    /// Takes the value out for a mechanism of this crate; what remains is empty.
    fn take(mut self) -> T {
        std::mem::take(&mut self.0)
    }
}

impl<T: Zeroize> fmt::Debug for Private<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Private(..)")
    }
}

impl<T: Zeroize> Drop for Private<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Data that a mechanism let out. Only [`release`] and [`release_labels`](crate::release_labels) make it.
#[derive(Debug)]
pub struct Released<T> {
    value: T,
}

impl<T> Released<T> {
    /// What a mechanism of this crate made. Private to the crate.
    pub(crate) const fn new(value: T) -> Self {
        Self { value }
    }

    /// The released value.
    pub const fn get(&self) -> &T {
        &self.value
    }

    /// The released value, by move.
    pub fn into_inner(self) -> T {
        self.value
    }

    /// A fixed function of released data. Private to the crate: a closure from outside could capture
    /// private data and smuggle it out.
    pub(crate) fn post_process<U>(self, f: impl FnOnce(T) -> U) -> Released<U> {
        Released { value: f(self.value) }
    }
}

/// The privacy loss of one release. It must be absorbed by an [`Accountant`](crate::Accountant).
#[must_use = "a receipt must be absorbed by an accountant, or the release goes uncounted"]
#[derive(Debug, PartialEq, Serialize)]
pub struct Receipt {
    mechanism: &'static str,
    loss: Loss,
    sensitivity: Sensitivity,
}

impl Receipt {
    /// Private to the crate: whoever makes a receipt states a privacy loss.
    pub(crate) const fn new(mechanism: &'static str, loss: Loss, sensitivity: Sensitivity) -> Self {
        Self { mechanism, loss, sensitivity }
    }

    /// Name of the mechanism.
    pub const fn mechanism(&self) -> &'static str {
        self.mechanism
    }

    /// Its privacy loss for one record.
    pub const fn loss(&self) -> Loss {
        self.loss
    }

    /// The sensitivity it was computed for.
    pub const fn sensitivity(&self) -> Sensitivity {
        self.sensitivity
    }
}

/// Why nothing was released.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ReleaseError {
    /// The input holds NaN or an infinity; no noise hides that.
    #[error("value {index} is not finite")]
    NonFinite {
        /// Index of the first such value.
        index: usize,
    },
    /// The mechanism refused.
    #[error(transparent)]
    Mechanism(#[from] MechanismError),
}

/// Releases private numbers through `mechanism`: the one door out of the trusted part.
///
/// # Guarantee
/// What the receipt's [`Loss`] states, for neighbouring inputs that differ by at most `sensitivity`.
/// The caller bounds the sensitivity (by clipping); the mechanism adds the noise.
///
/// # Errors
/// Non-finite input, or a mechanism whose parameters do not fit; then nothing leaves.
pub fn release<M: Mechanism + ?Sized>(
    x: Private<Vec<f32>>,
    sensitivity: Sensitivity,
    mechanism: &M,
    rng: &mut dyn CryptoRng,
) -> Result<(Released<M::Output>, Receipt), ReleaseError> {
    if let Some(index) = x.expose().iter().position(|v| !v.is_finite()) {
        return Err(ReleaseError::NonFinite { index });
    }
    let loss = mechanism.loss(sensitivity)?.checked();
    let value = mechanism.apply(x.take(), rng)?;
    Ok((Released::new(value), Receipt::new(mechanism.name(), loss, sensitivity)))
}
