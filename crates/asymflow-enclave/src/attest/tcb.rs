//! How Intel rates a platform.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Intel's rating of a platform's microcode, firmware and configuration (`tcbStatus` of its TCB info).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TcbStatus {
    /// Nothing known is open.
    UpToDate,
    /// A known weakness is closed only where the enclave's software is hardened against it.
    #[serde(rename = "SWHardeningNeeded")]
    SwHardeningNeeded,
    /// A setting of the platform, such as hyper-threading, is against advice.
    ConfigurationNeeded,
    /// Both.
    #[serde(rename = "ConfigurationAndSWHardeningNeeded")]
    ConfigurationAndSwHardeningNeeded,
    /// Known weaknesses are open.
    OutOfDate,
    /// Known weaknesses are open, and a setting is against advice.
    OutOfDateConfigurationNeeded,
    /// The platform's keys are no longer trusted. No policy accepts it.
    Revoked,
}

impl TcbStatus {
    /// Every status.
    pub const ALL: [Self; 7] = [
        Self::UpToDate,
        Self::SwHardeningNeeded,
        Self::ConfigurationNeeded,
        Self::ConfigurationAndSwHardeningNeeded,
        Self::OutOfDate,
        Self::OutOfDateConfigurationNeeded,
        Self::Revoked,
    ];

    /// Intel's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::UpToDate => "UpToDate",
            Self::SwHardeningNeeded => "SWHardeningNeeded",
            Self::ConfigurationNeeded => "ConfigurationNeeded",
            Self::ConfigurationAndSwHardeningNeeded => "ConfigurationAndSWHardeningNeeded",
            Self::OutOfDate => "OutOfDate",
            Self::OutOfDateConfigurationNeeded => "OutOfDateConfigurationNeeded",
            Self::Revoked => "Revoked",
        }
    }

    /// The status of Intel's name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }
}

impl fmt::Display for TcbStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
