//! What a service promises to do with a client's image, in a form that an enclave can attest.

use asymflow_privacy::accountants::Relation;
use asymflow_zoo::data::Resize;
use asymflow_zoo::network::Shape;
use asymflow_zoo::network::limits::MAX_VALUES;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Service, ServiceSettings};
use crate::modes::{Guard, Purpose, SplitPromise};

/// Largest encoded promise.
pub const MAX_PROMISE_BYTES: usize = 1 << 16;

/// What the worker sees, what noise guards it, and what a client loses at most.
///
/// Its bytes are hashed into the quote: a service with other settings is another service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// Version of this promise.
    pub schema: u32,
    /// Name and version of the program.
    pub program: String,
    /// The runtime that the program was told it runs in; the quote, not this, proves it.
    pub runtime: String,
    /// How the network is executed.
    pub mode: String,
    /// Name of the network.
    pub network: String,
    /// SHA-256 of the model file, in hex.
    pub model_sha256: String,
    /// Shape of an image.
    pub input: Shape,
    /// How many classes there are.
    pub classes: usize,
    /// Names of the classes, where they have any.
    pub class_names: Vec<String>,
    /// How an image is resized before it is asked about; stretched bilinearly to the shape without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize: Option<Resize>,
    /// What guards releases; absent where nothing is released.
    pub release: Option<ReleasePromise>,
    /// Records of every message to the worker.
    pub batch: usize,
    /// Settings that are no guarantee.
    pub insecure: Vec<String>,
}

/// What guards releases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleasePromise {
    /// The mechanism.
    pub mechanism: String,
    /// Standard deviation of the noise on every released value, before it is cut to one bit where it is.
    pub sigma: Option<f64>,
    /// C, the l2 norm to which what is released of a record is clipped.
    pub clip: Option<f64>,
    /// r, t, t' of Delta's split.
    pub split: Option<SplitPromise>,
    /// The relation for which ε holds.
    pub relation: Relation,
    /// δ of both ε.
    pub delta: f64,
    /// ε of one answer; absent where it is infinite.
    pub answer_epsilon: Option<f64>,
    /// ε of all answers to one client; absent where there is no limit.
    pub client_epsilon: Option<f64>,
}

/// Bytes that are no promise.
#[derive(Debug, Error)]
pub enum PromiseError {
    /// Too long.
    #[error("a promise of {got} bytes exceeds the limit of {MAX_PROMISE_BYTES}")]
    TooLong {
        /// Its length.
        got: usize,
    },
    /// An image that no network takes: clients would make room for it.
    #[error("a promise about images of {input}, expected from 1 to {MAX_VALUES} values")]
    Input {
        /// The shape.
        input: Shape,
    },
    /// Not ours.
    #[error("not a promise this version understands: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl Promise {
    /// What `service` promises under `settings`, of the model file with that hash, in `runtime`.
    pub fn of(service: &Service, settings: &ServiceSettings, model_sha256: &str, runtime: &str) -> Self {
        let model = service.model();
        let mut insecure = service.mode().insecure(Purpose::Serving);
        if service.answer_epsilon().is_some() && settings.budget_epsilon.is_none() {
            insecure.push("insecure_unlimited_answers".to_owned());
        }
        Self {
            schema: 1,
            program: concat!("asymflow ", env!("CARGO_PKG_VERSION")).to_owned(),
            runtime: runtime.to_owned(),
            mode: model.mode.name.clone(),
            network: model.network.name.clone(),
            model_sha256: model_sha256.to_owned(),
            input: model.network.input,
            classes: model.network.classes,
            class_names: model.class_names.clone(),
            resize: model.resize,
            release: service.answer_epsilon().map(|epsilon| release(service, settings, epsilon)),
            batch: settings.batch,
            insecure,
        }
    }

    /// The bytes that are attested.
    ///
    /// # Errors
    /// Serialisation failed.
    pub fn encode(&self) -> Result<Vec<u8>, PromiseError> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Inverse of [`Promise::encode`].
    ///
    /// # Errors
    /// Bytes of another form; a promise with unknown parts is none, and neither is one about images beyond the limits.
    pub fn decode(bytes: &[u8]) -> Result<Self, PromiseError> {
        if bytes.len() > MAX_PROMISE_BYTES {
            return Err(PromiseError::TooLong { got: bytes.len() });
        }
        let promise: Self = serde_json::from_slice(bytes)?;
        match promise.input.checked_len() {
            Some(1..=MAX_VALUES) => Ok(promise),
            _ => Err(PromiseError::Input { input: promise.input }),
        }
    }
}

fn release(service: &Service, settings: &ServiceSettings, epsilon: f64) -> ReleasePromise {
    let terms = &service.model().terms;
    let Guard { mechanism, sigma, clip, split, .. } = service.guard().cloned().unwrap_or_default();
    ReleasePromise {
        mechanism,
        sigma,
        clip,
        split,
        relation: terms.relation,
        delta: terms.delta,
        answer_epsilon: Some(epsilon).filter(|e| e.is_finite()),
        client_epsilon: settings.budget_epsilon,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promise(input: Shape) -> Promise {
        Promise {
            schema: 1,
            program: String::new(),
            runtime: String::new(),
            mode: "trusted-only".to_owned(),
            network: String::new(),
            model_sha256: String::new(),
            input,
            classes: 2,
            class_names: Vec::new(),
            resize: None,
            release: None,
            batch: 1,
            insecure: Vec::new(),
        }
    }

    #[test]
    fn a_promise_about_images_that_nobody_has_room_for_is_none() {
        let fits = promise(Shape::new(3, 32, 32));
        assert_eq!(Promise::decode(&fits.encode().unwrap()).unwrap(), fits);
        for input in [Shape::new(0, 32, 32), Shape::new(3, 1 << 20, 1 << 20), Shape::new(usize::MAX, 2, 2)] {
            let bytes = promise(input).encode().unwrap();
            assert!(matches!(Promise::decode(&bytes), Err(PromiseError::Input { .. })), "{input:?}");
        }
    }
}
