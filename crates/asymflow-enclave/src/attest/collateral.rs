//! What Intel says of platforms, as of some day.

use std::fmt;

use dcap_qvl::QuoteCollateralV3;
use thiserror::Error;

/// The longest collateral that is read, in bytes. Intel's is under 32 KiB.
pub const MAX_COLLATERAL_BYTES: usize = 1 << 20;

/// Why bytes are no collateral.
#[derive(Debug, Error)]
pub enum CollateralError {
    /// Too long.
    #[error("collateral of {bytes} bytes; at most {MAX_COLLATERAL_BYTES} are read")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Not the JSON of dcap-qvl.
    #[error("collateral is not a JSON object as dcap-qvl writes it: {0}")]
    Json(#[from] serde_json::Error),
}

/// Intel's ratings of a kind of platform (TCB info), the identity of its quoting enclave, the lists of revoked certificates, and
/// the certificates that sign them. Whoever serves them is not trusted: all of it is signed.
///
/// It is the JSON object of dcap-qvl's `QuoteCollateralV3`: `tcb_info` and `qe_identity` as Intel signed them, their signatures
/// and both revocation lists in hexadecimal, the three issuer chains in PEM. Nothing is fetched here. Whoever has a quote of the
/// platform gets collateral from Intel or from a caching service (PCCS), for instance by dcap-qvl's Python package:
///
/// ```python
/// collateral = await dcap_qvl.get_collateral("https://api.trustedservices.intel.com", quote)
/// open("collateral.json", "w").write(collateral.to_json())
/// ```
///
/// or part by part, for the FMSPC in the quote's certificate: `/sgx/certification/v4/tcb`, `…/qe/identity`, `…/pckcrl` and
/// `…/rootcacrl`, whose issuer chains are response headers. It serves every platform of that kind until its `nextUpdate`, thirty
/// days with Intel. A platform's own certificate (`pck_certificate_chain`) is passed over: each quote brings its own, so the
/// platform needs Intel's quote provider library set up.
#[derive(Clone)]
pub struct Collateral(QuoteCollateralV3);

impl Collateral {
    /// Reads collateral. Nothing in it is verified before a quote is.
    ///
    /// # Errors
    /// More than [`MAX_COLLATERAL_BYTES`], or not that JSON object.
    pub fn from_json(bytes: &[u8]) -> Result<Self, CollateralError> {
        if bytes.len() > MAX_COLLATERAL_BYTES {
            return Err(CollateralError::TooLong { bytes: bytes.len() });
        }
        Ok(Self::from(serde_json::from_slice::<QuoteCollateralV3>(bytes)?))
    }

    /// The JSON object.
    ///
    /// # Errors
    /// Never in practice: it is made of strings and bytes.
    pub fn to_json(&self) -> Result<Vec<u8>, CollateralError> {
        Ok(serde_json::to_vec(&self.0)?)
    }

    /// The lower `tcbEvaluationDataNumber` of TCB info and quoting enclave's identity; 0 where either says none, which Intel's
    /// never do. Verifying a quote verifies their signatures.
    pub(super) fn tcb_evaluation(&self) -> u32 {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Numbered {
            tcb_evaluation_data_number: u32,
        }
        let number = |json: &str| {
            serde_json::from_str::<Numbered>(json).map_or(0, |numbered| numbered.tcb_evaluation_data_number)
        };
        number(&self.0.tcb_info).min(number(&self.0.qe_identity))
    }

    pub(crate) fn as_dcap(&self) -> &QuoteCollateralV3 {
        &self.0
    }
}

impl From<QuoteCollateralV3> for Collateral {
    fn from(mut collateral: QuoteCollateralV3) -> Self {
        collateral.pck_certificate_chain = None;
        Self(collateral)
    }
}

impl fmt::Debug for Collateral {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collateral").field("tcb_info_bytes", &self.0.tcb_info.len()).finish_non_exhaustive()
    }
}
