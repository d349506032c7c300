//! What a client accepts.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::tcb::TcbStatus;

/// Which quotes a client accepts. What is not said is strict; names that begin with `insecure` say what they are. In files, hashes
/// are 64 hexadecimal digits.
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
    /// Accepts quotes that anybody can make. They need the feature `simulated`, too. No file can ask for it: whoever runs the
    /// client does.
    #[serde(skip)]
    pub insecure_accept_simulated: bool,
}

/// Which ratings a platform may have besides up to date, and how old they may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TcbPolicy {
    /// A weakness is closed only by hardened software in the enclave.
    pub allow_sw_hardening_needed: bool,
    /// A setting, such as hyper-threading, is against advice.
    pub allow_configuration_needed: bool,
    /// Known weaknesses are open.
    pub insecure_allow_out_of_date: bool,
    /// The least `tcbEvaluationDataNumber` of the collateral that rates the platform. Intel raises it whenever weaknesses become
    /// known; until its `nextUpdate` older collateral is signed as well, and rates a platform as it was seen before.
    pub min_evaluation: u32,
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

    /// Names of what weakens it, to be told to whoever relies on it.
    pub fn insecure(&self) -> Vec<&'static str> {
        let Self { insecure_allow_debug, insecure_accept_simulated, tcb, .. } = self;
        let named = [
            (*insecure_allow_debug, "insecure_allow_debug"),
            (tcb.insecure_allow_out_of_date, "insecure_allow_out_of_date"),
            (*insecure_accept_simulated, "insecure_accept_simulated"),
        ];
        named.into_iter().filter_map(|(is_on, name)| is_on.then_some(name)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_comes_back_from_its_file() {
        let policy = Policy {
            mr_enclave: vec![[1; 32], [2; 32]],
            isv_prod_id: Some(3),
            tcb: TcbPolicy { allow_sw_hardening_needed: true, min_evaluation: 17, ..TcbPolicy::default() },
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

    /// Everything that weakens a policy has a name, and what makes it worthless is in no file.
    #[test]
    fn no_file_accepts_simulated_quotes_and_what_weakens_a_policy_is_named() {
        let refused = serde_json::from_str::<Policy>(r#"{"insecure_accept_simulated":true}"#).unwrap_err().to_string();
        assert!(refused.starts_with("unknown field `insecure_accept_simulated`"), "{refused}");
        let weak = Policy { insecure_accept_simulated: true, ..Policy::default() };
        assert!(!serde_json::to_string(&weak).unwrap().contains("simulated"));
        assert_eq!(weak.insecure(), ["insecure_accept_simulated"]);

        let written = serde_json::to_value(Policy::default()).unwrap();
        let nested = written["tcb"].as_object().unwrap();
        let named = written.as_object().unwrap().keys().chain(nested.keys()).filter(|key| key.starts_with("insecure"));
        for name in named {
            let mut json = written.clone();
            let place = if nested.contains_key(name) { &mut json["tcb"] } else { &mut json };
            place[name] = true.into();
            let policy: Policy = serde_json::from_value(json).unwrap();
            assert_eq!(policy.insecure(), [name.as_str()]);
        }
        assert!(Policy::default().insecure().is_empty());
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
                min_evaluation: 0,
            };
            assert_eq!(all.accepts(status), status != TcbStatus::Revoked);
        }
    }
}
