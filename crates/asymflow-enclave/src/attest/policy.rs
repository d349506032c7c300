//! What a client accepts.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::tcb::TcbStatus;

/// What a client accepts. What is not said is strict; names that begin with `insecure` say what they are. In files, hashes are
/// 64 hexadecimal digits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Accepted MRENCLAVEs, one for each release of the program. None: not pinned.
    #[serde(with = "hashes")]
    pub mr_enclave: Vec<[u8; 32]>,
    /// Accepted MRSIGNERs. None: not pinned. Where both are pinned both must be met. A signer alone vouches for whatever it
    /// signs, so pin product and version with it.
    #[serde(with = "hashes")]
    pub mr_signer: Vec<[u8; 32]>,
    /// The accepted ISVPRODID. None: any.
    pub isv_prod_id: Option<u16>,
    /// The least ISVSVN.
    pub min_isv_svn: u16,
    /// Accepts enclaves that their host can look into.
    pub insecure_allow_debug: bool,
    /// Accepted platforms.
    pub tcb: TcbPolicy,
    /// SHA-256 of the accepted promise. None: the caller looks at the promise itself.
    #[serde(with = "optional_hash")]
    pub promise_sha256: Option<[u8; 32]>,
    /// Whether a session needs a quote made for it. Whoever runs the session asks for it and calls
    /// [`Verifier::verify_fresh`](super::Verifier::verify_fresh).
    pub require_fresh: bool,
    /// Accepts quotes that anybody can make. They need the feature `simulated`, too.
    pub insecure_accept_simulated: bool,
}

/// Which ratings a platform may have besides up to date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TcbPolicy {
    /// A weakness is closed only by hardened software in the enclave.
    pub allow_sw_hardening_needed: bool,
    /// A setting, such as hyper-threading, is against advice.
    pub allow_configuration_needed: bool,
    /// Known weaknesses are open.
    pub insecure_allow_out_of_date: bool,
}

impl TcbPolicy {
    /// Whether a rating will do. One that combines two is accepted where both are; a revoked platform never is.
    pub fn accepts(self, status: TcbStatus) -> bool {
        let (hardening, setting, outdated) =
            (self.allow_sw_hardening_needed, self.allow_configuration_needed, self.insecure_allow_out_of_date);
        match status {
            TcbStatus::UpToDate => true,
            TcbStatus::SwHardeningNeeded => hardening,
            TcbStatus::ConfigurationNeeded => setting,
            TcbStatus::ConfigurationAndSwHardeningNeeded => hardening && setting,
            TcbStatus::OutOfDate => outdated,
            TcbStatus::OutOfDateConfigurationNeeded => outdated && setting,
            TcbStatus::Revoked => false,
        }
    }
}

/// Why a policy cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// It accepts every enclave.
    #[error(
        "neither mr_enclave nor mr_signer is pinned: any program in any genuine enclave would be accepted, also one that an \
         attacker wrote; pin the MRENCLAVE of the release, or the MRSIGNER of its publisher with isv_prod_id and min_isv_svn"
    )]
    Unpinned,
    /// This program cannot verify simulated quotes.
    #[error("insecure_accept_simulated is set, but this program is built without the feature \"simulated\"")]
    NotCompiled,
}

impl Policy {
    /// Whether it pins an enclave.
    pub fn is_pinned(&self) -> bool {
        !(self.mr_enclave.is_empty() && self.mr_signer.is_empty())
    }

    /// Whether it can be used.
    ///
    /// # Errors
    /// It pins nothing and yet accepts no simulated enclave, or it accepts what this program cannot verify.
    pub fn check(&self) -> Result<(), PolicyError> {
        if self.insecure_accept_simulated && cfg!(not(feature = "simulated")) {
            return Err(PolicyError::NotCompiled);
        }
        if self.is_pinned() || self.insecure_accept_simulated { Ok(()) } else { Err(PolicyError::Unpinned) }
    }
}

fn parse<E: serde::de::Error>(text: &str) -> Result<[u8; 32], E> {
    let mut hash = [0; 32];
    hex::decode_to_slice(text, &mut hash)
        .map_err(|error| E::custom(format!("not 64 hexadecimal digits ({error}): {:.80}", text)))?;
    Ok(hash)
}

pub(super) mod hash {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(hash: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(hash))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        super::parse(&String::deserialize(deserializer)?)
    }
}

mod hashes {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(hashes: &[[u8; 32]], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(hashes.iter().map(hex::encode))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<[u8; 32]>, D::Error> {
        Vec::<String>::deserialize(deserializer)?.iter().map(|text| super::parse(text)).collect()
    }
}

mod optional_hash {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(hash: &Option<[u8; 32]>, serializer: S) -> Result<S::Ok, S::Error> {
        hash.map(hex::encode).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<[u8; 32]>, D::Error> {
        Option::<String>::deserialize(deserializer)?.map(|text| super::parse(&text)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_comes_back_from_its_file() {
        let policy = Policy {
            mr_enclave: vec![[1; 32], [2; 32]],
            isv_prod_id: Some(3),
            tcb: TcbPolicy { allow_sw_hardening_needed: true, ..TcbPolicy::default() },
            promise_sha256: Some([4; 32]),
            ..Policy::default()
        };
        let text = serde_json::to_string(&policy).unwrap();
        assert!(text.contains(&format!("\"mr_enclave\":[\"{}\"", "01".repeat(32))), "{text}");
        assert_eq!(serde_json::from_str::<Policy>(&text).unwrap(), policy);
        assert_eq!(serde_json::from_str::<Policy>("{}").unwrap(), Policy::default());
    }

    #[test]
    fn what_a_policy_does_not_know_is_refused() {
        let text = |json: &str| serde_json::from_str::<Policy>(json).unwrap_err().to_string();
        assert!(text(r#"{"mrenclave":[]}"#).starts_with("unknown field `mrenclave`"));
        assert!(text(r#"{"tcb":{"allow_all":true}}"#).starts_with("unknown field `allow_all`"));
        assert!(text(r#"{"mr_signer":["12"]}"#).starts_with("not 64 hexadecimal digits (Invalid string length): 12"));
    }

    #[test]
    fn a_policy_pins_an_enclave() {
        assert_eq!(Policy::default().check(), Err(PolicyError::Unpinned));
        assert_eq!(Policy { mr_signer: vec![[0; 32]], ..Policy::default() }.check(), Ok(()));
        let simulated = Policy { insecure_accept_simulated: true, ..Policy::default() }.check();
        let expected = if cfg!(feature = "simulated") { Ok(()) } else { Err(PolicyError::NotCompiled) };
        assert_eq!(simulated, expected);
    }

    #[test]
    fn strict_takes_up_to_date_only_and_nothing_takes_revoked() {
        for status in TcbStatus::ALL {
            assert_eq!(TcbPolicy::default().accepts(status), status == TcbStatus::UpToDate);
            let all = TcbPolicy {
                allow_sw_hardening_needed: true,
                allow_configuration_needed: true,
                insecure_allow_out_of_date: true,
            };
            assert_eq!(all.accepts(status), status != TcbStatus::Revoked);
        }
    }
}
