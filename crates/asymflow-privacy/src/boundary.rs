//! Private and released data as types.

use std::fmt;

use zeroize::Zeroize;

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
    pub(crate) fn take(mut self) -> T {
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

/// Data that a [`Door`](crate::Door) let out and charged for. Nothing else makes it.
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
