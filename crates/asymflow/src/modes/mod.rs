//! The modes of execution: what each says of itself ([`ModeSpec`]), and how it infers a batch and trains one step ([`Mode`]).
//!
//! One file or folder a mode, and one line in [`builtin`]. Nothing else in the workspace knows a mode by its name.

mod asymml;
mod clear;
pub mod delta;
mod error;
mod guard;
mod lesson;
mod mode;
mod naive_dp;
mod registry;
mod remote;
#[cfg(feature = "shares")]
mod shares;
mod spec;
mod trusted_only;

pub use asymml::{AsymMl, AsymMlParts, AsymMlSpec, SplitConv, open_link};
pub use clear::{Clear, ClearSpec};
pub use error::{ExecError, ModeError};
pub use guard::{GuardSpec, zcdp_sigma};
pub use lesson::Lesson;
pub use mode::{Answering, Mode, Phase, Records, Recovered, StepReport, TrainBatch, TrainState, Unkept};
pub use naive_dp::{NaiveDp, NaiveDpSpec};
pub use registry::{MakeDecomposer, MakeMechanism, NumberMechanism, Registry};
#[cfg(feature = "shares")]
pub use shares::{OnShares, RingBits, SharesError, SharesSpec};
pub use spec::{
    Asked, Charge, Explained, Facts, Guard, Losses, Macs, ModeFamily, ModeRef, ModeSpec, Parts, PrivacyTerms, Purpose,
    Sampling, Sections, Serving, SplitPromise, composed,
};
pub use trusted_only::{TrustedOnly, TrustedOnlySpec};

/// Every mode of this crate, in the order in which they are listed.
fn builtin() -> Vec<Box<dyn ModeFamily>> {
    vec![
        Box::new(clear::Family),
        Box::new(trusted_only::Family),
        Box::new(asymml::Family),
        Box::new(delta::Family),
        #[cfg(feature = "shares")]
        Box::new(shares::Family),
        Box::new(naive_dp::Family),
    ]
}
