//! Delta: one private flow, one public flow (Niu et al., CVPR 2024, "All Rivers Run to the Sea").
//!
//! The backbone's features are split once a sample. The low-rank, low-frequency part goes through a small trusted
//! network, the residual leaves clipped, noised and cut to one bit a value, and the logits of both are added inside.

mod cache;
mod compact;
mod crossing;
mod family;
mod gates;
mod mode;
mod orthogonality;
mod section;
mod spec;
mod split;

pub use cache::ReleasedCache;
pub(super) use family::Family;
pub use gates::Noise;
pub use mode::{Delta, DeltaParts};
pub use section::{DeltaSection, LabelPolicy, WeightPolicy};
pub use spec::{Codebook, DeltaSpec, Feed, Labels, Variant};
pub use split::{FeatureSplit, SplitError};
