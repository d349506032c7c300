//! The attacks that this crate has; others are made outside.

mod completion;
mod gradient;
mod inversion;

pub use completion::{Completion, MaskedCompletion};
pub use gradient::{LastGradient, ReleasedLabels};
pub use inversion::Inversion;
