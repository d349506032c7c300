use std::fmt;

use serde::{Deserialize, Serialize};

/// How far a result can be trusted to come from an enclave. Printed beside every result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Assurance {
    /// An ordinary process: whoever owns the machine sees everything.
    Simulated,
    /// An enclave that nobody has verified.
    Isolated,
    /// An enclave that has proven what it is.
    Attested,
}

impl fmt::Display for Assurance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Simulated => "simulated",
            Self::Isolated => "isolated",
            Self::Attested => "attested",
        })
    }
}
