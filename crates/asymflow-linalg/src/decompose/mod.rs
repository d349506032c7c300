//! Decompositions X = X_main + X_res of a batch of activations, X_main of low rank.

mod alternating;
mod batch;
mod decomposer;
mod exact;
mod gram;
mod gram_matrix;
mod orthonormal;
mod project;
mod range;
mod sampled;
mod shared;
mod subspace;
#[cfg(test)]
mod tests;

pub use alternating::{Alternating, Initialisation};
pub use decomposer::{BatchShape, BatchToSplit, DecomposeError, Decomposer, LowRank};
pub use exact::ExactSvd;
pub use gram::Gram;
pub use project::project;
pub use range::RandomRange;
pub use sampled::Sampled;
pub use shared::{Fixed, SharedBasis};
#[cfg(test)]
pub(crate) use subspace::fill_uniform;

/// Name of the decomposer used unless another is asked for.
pub const DEFAULT: &str = "per-sample";

/// Names that [`by_name`] knows.
pub const NAMES: [&str; 7] =
    ["per-sample", "fixed", "gram", "shared-basis", "alternating", "random-range", "exact-svd"];

/// The decomposer of that name with sensible settings; `None` for a name not in [`NAMES`].
pub fn by_name(name: &str) -> Option<Box<dyn Decomposer>> {
    Some(match name {
        "per-sample" => Box::new(Sampled::default()),
        "fixed" => Box::new(Fixed::default()),
        "gram" => Box::new(Gram::default()),
        "shared-basis" => Box::new(SharedBasis::default()),
        "alternating" => Box::new(Alternating::default()),
        "random-range" => Box::new(RandomRange::default()),
        "exact-svd" => Box::new(ExactSvd),
        _ => return None,
    })
}
