//! Mode `cipher`: a network that was trained in the trusted part, answered on ciphertexts.
//!
//! `asymflow-cipher` is a program of its own ([`ModeSpec::evaluator`]), whose licences not everybody wants: client and server of it are one
//! process, so that ciphertexts and logits are real and the separation is not. What infers and trains here is the network itself.

use std::sync::Arc;

use asymflow_zoo::{Network, graph::cost};
use serde::{Deserialize, Serialize};

use super::{
    Asked, Evaluator, Facts, Guard, Losses, Macs, Mode, ModeError, ModeFamily, ModeSpec, Parts, Purpose, Serving,
    TrustedOnly,
};
use crate::memory::{MemoryError, MemoryPlan, Work};

#[derive(Debug)]
pub(super) struct Family;

impl ModeFamily for Family {
    fn names(&self) -> &'static [&'static str] {
        &["cipher"]
    }

    fn section(&self) -> Option<&'static str> {
        Some("cipher")
    }

    fn spec(&self, asked: &Asked<'_>) -> Result<Arc<dyn ModeSpec>, ModeError> {
        Ok(Arc::new(asked.sections.get::<CipherSpec>("cipher")?))
    }

    fn decode(&self, settings: &str) -> Result<Arc<dyn ModeSpec>, serde_json::Error> {
        serde_json::from_str::<CipherSpec>(settings).map(|spec| Arc::new(spec) as Arc<dyn ModeSpec>)
    }
}

/// What a query is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CipherPacking {
    /// One image, as soon as possible.
    #[default]
    Latency,
    /// Thousands of images.
    Throughput,
}

/// `[cipher]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CipherSpec {
    /// What a query is about.
    pub packing: CipherPacking,
    /// Test images that are asked about; all without it.
    pub images: Option<usize>,
    /// Bits of an input value.
    pub input_bits: u32,
    /// Bits of a weight, sign included.
    pub weight_bits: u32,
}

impl Default for CipherSpec {
    fn default() -> Self {
        Self { packing: CipherPacking::Latency, images: None, input_bits: 4, weight_bits: 6 }
    }
}

impl ModeSpec for CipherSpec {
    fn name(&self) -> &'static str {
        "cipher"
    }

    fn encode(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    fn needs_worker(&self) -> bool {
        false
    }

    fn is_whole(&self) -> bool {
        true
    }

    /// Refused before it is trained, not after; what else has no protocol, the program refuses.
    fn check(&self, facts: &Facts<'_>) -> Result<(), ModeError> {
        if cost::total_cost(facts.network)?.relus > 0 {
            let what = "a network that decides about no sign: put a quadratic in place of each ReLU (`cipher+react`)";
            return Err(ModeError::Settings { mode: "cipher", what });
        }
        self.stored_network(facts.network).map(drop)
    }

    fn evaluator(&self) -> Option<Evaluator> {
        let packing = match self.packing {
            CipherPacking::Latency => "latency",
            CipherPacking::Throughput => "throughput",
        };
        let bits = [("--input-bits", self.input_bits), ("--weight-bits", self.weight_bits)];
        let mut arguments = vec!["--packing".to_owned(), packing.to_owned()];
        arguments.extend(bits.into_iter().flat_map(|(name, bits)| [name.to_owned(), bits.to_string()]));
        arguments.extend(self.images.into_iter().flat_map(|images| ["--images".to_owned(), images.to_string()]));
        let build = "cargo build --release --manifest-path cipher/Cargo.toml";
        Some(Evaluator { program: "asymflow-cipher", build, arguments })
    }

    fn losses(&self, _facts: &Facts<'_>) -> Result<Losses, ModeError> {
        Ok(Losses::default())
    }

    fn guard(&self, _facts: &Facts<'_>) -> Result<Option<Guard>, ModeError> {
        Ok(None)
    }

    fn insecure(&self, _purpose: Purpose) -> Vec<String> {
        Vec::new()
    }

    fn serving(&self, _facts: &Facts<'_>) -> Result<Serving, ModeError> {
        Ok(Serving::Refused { what: "mode cipher".to_owned(), why: "`asymflow-cipher serve` answers it" })
    }

    fn macs(&self, network: &Network, _batch: usize) -> Result<Macs, ModeError> {
        Ok(Macs { trusted: 0, worker: Macs::of(network) })
    }

    fn memory(&self, work: &Work<'_>) -> Result<MemoryPlan, MemoryError> {
        work.whole_network()
    }

    fn build(&self, parts: Parts<'_>) -> Result<Box<dyn Mode>, ModeError> {
        Ok(Box::new(TrustedOnly::with_weights(parts.network, parts.weights, parts.par)?))
    }
}
