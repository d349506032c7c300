//! The modes of execution: what each says of itself ([`ModeSpec`]), and how it infers a batch and trains one step ([`Mode`]).
//!
//! One file or folder a mode, and one line in [`Registry::default`]. Nothing else in the workspace knows a mode by its name.

mod asymml;
mod cipher;
mod clear;
pub mod delta;
mod dp_sgd;
mod error;
mod guard;
mod lesson;
mod mode;
mod naive_dp;
mod registry;
mod remote;
mod sampled;
#[cfg(feature = "shares")]
mod shares;
mod spec;
mod trusted_only;

use asymflow_privacy::mechanisms::{DiscreteGaussian, InsecureFloatNoise, InsecureNone, MechanismError, ResidualNoise};

pub use asymml::{AsymMl, AsymMlParts, AsymMlSpec, SizedNoise, SplitConv, VerifyError, open_link};
pub use cipher::{CipherPacking, CipherSpec};
pub use clear::{Clear, ClearSpec};
pub use dp_sgd::{DpSgd, DpSgdSpec};
#[cfg(feature = "shares")]
pub use error::SharesError;
pub use error::{ExecError, ModeError};
pub use guard::GuardSpec;
pub use lesson::Lesson;
pub(crate) use mode::secret_rng;
pub use mode::{Answering, Mode, Phase, Records, Recovered, StepReport, TrainBatch, TrainState, Unkept};
pub use naive_dp::{NaiveDp, NaiveDpSpec};
pub use registry::{MakeDecomposer, MakeMechanism, NumberMechanism, Registry};
pub use sampled::DpTerms;
#[cfg(feature = "shares")]
pub use shares::{OnShares, RingBits, SharesSpec};
pub use spec::{
    Asked, Charge, Evaluator, Explained, Facts, Guard, Losses, Macs, ModeFamily, ModeRef, ModeSpec, Parts,
    PrivacyTerms, Purpose, Sampling, Sections, Serving, SplitPromise, composed,
};
pub use trusted_only::{TrustedOnly, TrustedOnlySpec};

impl Default for Registry {
    /// What this crate knows, its modes in the order in which they are listed.
    fn default() -> Self {
        let registry = Self::empty()
            .with_mode(Box::new(clear::Family))
            .with_mode(Box::new(trusted_only::Family))
            .with_mode(Box::new(dp_sgd::Family))
            .with_mode(Box::new(asymml::Family))
            .with_mode(Box::new(delta::Family));
        #[cfg(feature = "shares")]
        let registry = registry.with_mode(Box::new(shares::Family));
        registry
            .with_mode(Box::new(cipher::Family))
            .with_mode(Box::new(naive_dp::Family))
            .with_mechanism("discrete_gaussian", |sigma| Ok(Box::new(DiscreteGaussian::fine(given(sigma)?)?)))
            .with_mechanism("insecure_float_noise", |sigma| Ok(Box::new(InsecureFloatNoise::new(given(sigma)?)?)))
            .with_mechanism("insecure_none", |_| Ok(Box::new(InsecureNone)))
            .with_mechanism(ResidualNoise::NAME, |sigma| Ok(Box::new(ResidualNoise::new(given(sigma)?)?)))
    }
}

fn given(sigma: Option<f64>) -> Result<f64, MechanismError> {
    sigma.ok_or(MechanismError::Sigma { sigma: f64::NAN })
}
