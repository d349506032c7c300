//! Why a client does not talk to a server.

use std::fmt;

use thiserror::Error;

use super::evidence::EvidenceError;
use super::tcb::TcbStatus;

/// Why a server is refused: one variant for each cause.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Not a certificate.
    #[error("the server's certificate cannot be read: {0}")]
    Certificate(String),
    /// Plain TLS.
    #[error("the server's certificate carries no attestation evidence: this is ordinary TLS")]
    NoEvidence,
    /// Evidence of another format.
    #[error("the attestation evidence is malformed: {0}")]
    Evidence(#[from] EvidenceError),
    /// Not a quote.
    #[error("the quote is malformed: {0}")]
    Quote(String),
    /// Another kind of enclave.
    #[error("the quote is of {0}, not of an SGX enclave")]
    NotSgx(String),
    /// Certificates, signatures or collateral.
    #[error("the quote does not verify: {0}")]
    Chain(String),
    /// Certificates or collateral out of their time.
    #[error("certificates or collateral are not valid at {now_unix_seconds} s: {reason}")]
    Expired {
        /// The time of the verification, seconds since 1970.
        now_unix_seconds: u64,
        /// What is not valid.
        reason: String,
    },
    /// The platform's rating.
    #[error("the platform is rated {status}{}, which the policy does not accept", Advisories(.advisories))]
    Tcb {
        /// The rating.
        status: TcbStatus,
        /// Intel's advisories.
        advisories: Vec<String>,
    },
    /// A rating by old collateral.
    #[error("the platform is rated by TCB evaluation {found}, the policy asks for at least {least}")]
    TcbEvaluation {
        /// The collateral's `tcbEvaluationDataNumber`.
        found: u32,
        /// The policy's.
        least: u32,
    },
    /// The debug bit.
    #[error("the enclave is a debug enclave, which its host can look into")]
    Debug,
    /// A genuine enclave, and a policy that pins none.
    #[error("the policy pins neither MRENCLAVE nor MRSIGNER, which only simulated enclaves get by with")]
    Unpinned,
    /// Another program.
    #[error("MRENCLAVE is {}, pinned is {}", Hex(.found), OneOf(.accepted))]
    MrEnclave {
        /// The enclave's.
        found: [u8; 32],
        /// The policy's.
        accepted: Vec<[u8; 32]>,
    },
    /// Another publisher.
    #[error("MRSIGNER is {}, pinned is {}", Hex(.found), OneOf(.accepted))]
    MrSigner {
        /// The enclave's.
        found: [u8; 32],
        /// The policy's.
        accepted: Vec<[u8; 32]>,
    },
    /// Another product of the publisher.
    #[error("ISVPRODID is {found}, pinned is {accepted}")]
    Product {
        /// The enclave's.
        found: u16,
        /// The policy's.
        accepted: u16,
    },
    /// An old version.
    #[error("ISVSVN is {found}, the policy asks for at least {least}")]
    Svn {
        /// The enclave's.
        found: u16,
        /// The policy's.
        least: u16,
    },
    /// The quote is of other claims.
    #[error("the quote vouches for claims {}, the certificate has {}", Hex(.quoted), Hex(.claims))]
    ClaimsNotBound {
        /// What the quote's report data say.
        quoted: [u8; 32],
        /// SHA-256 of the claims.
        claims: [u8; 32],
    },
    /// The claims are of another key.
    #[error("the enclave's TLS key is {}, the server uses {}", Hex(.claimed), Hex(.used))]
    KeyNotBound {
        /// What the claims say.
        claimed: [u8; 32],
        /// SHA-256 of the certificate's key.
        used: [u8; 32],
    },
    /// Another promise.
    #[error("SHA-256 of the promise is {}, pinned is {}", Hex(.found), Hex(.accepted))]
    Promise {
        /// The enclave's.
        found: [u8; 32],
        /// The policy's.
        accepted: [u8; 32],
    },
    /// A quote of another session.
    #[error("the quote was not made for this session: it is bound to {}, the session is {}", Hex(.found), Hex(.expected))]
    NotFresh {
        /// What the quote's report data say.
        found: [u8; 32],
        /// The hash of nonce and session.
        expected: [u8; 32],
    },
    /// A fresh quote of another enclave than the certificate's.
    #[error("the fresh quote is of another enclave than the certificate's (MRENCLAVE {}, not {})", Hex(.found), Hex(.expected))]
    OtherEnclave {
        /// MRENCLAVE of the fresh quote.
        found: [u8; 32],
        /// MRENCLAVE of the certificate.
        expected: [u8; 32],
    },
    /// Proves nothing.
    #[error("the quote is simulated: it proves nothing")]
    Simulated,
}

impl Refusal {
    /// What would help.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Certificate(_) | Self::NoEvidence | Self::Evidence(_) | Self::Quote(_) => {
                "check address and port: the server has to be an asymflow enclave of a version this client knows"
            }
            Self::NotSgx(_) => "only SGX enclaves are verified; ask the operator for a server in one",
            Self::Chain(_) => {
                "fetch collateral for this server's platform (its FMSPC); if it is right, somebody has changed the quote"
            }
            Self::Expired { .. } => {
                "fetch new collateral, which Intel renews every thirty days, and check this machine's clock"
            }
            Self::Tcb { .. } => {
                "the operator has to update microcode, firmware or settings; what remains by design is accepted under `tcb` of the policy"
            }
            Self::TcbEvaluation { .. } => {
                "fetch collateral of the newest TCB evaluation, which may rate the platform lower"
            }
            Self::Debug => {
                "the operator has to run a release enclave (sgx.debug = false); insecure_allow_debug is for tests"
            }
            Self::Unpinned => "pin the MRENCLAVE of the release, or the MRSIGNER of its publisher",
            Self::MrEnclave { .. } => {
                "another program or manifest runs there: compare with the release's MRENCLAVE and pin it only if it can be reproduced"
            }
            Self::MrSigner { .. } => {
                "somebody else signed the enclave: pin their key only if you trust all that they sign"
            }
            Self::Product { .. } => {
                "another product of the same publisher runs there: check the address, or isv_prod_id"
            }
            Self::Svn { .. } => {
                "the operator has to update the enclave; min_isv_svn is the least version that is accepted"
            }
            Self::ClaimsNotBound { .. } | Self::KeyNotBound { .. } => {
                "somebody shows the evidence of another server: do not send anything, and check the network path"
            }
            Self::Promise { .. } => {
                "the server promises other settings than were pinned: read its promise, then pin its hash"
            }
            Self::NotFresh { .. } | Self::OtherEnclave { .. } => {
                "somebody replays a quote, or the server restarted in between: connect again, and do not send anything until it passes"
            }
            Self::Simulated => {
                "for a trial set insecure_accept_simulated, in a client built with the feature \"simulated\"; data are not protected then"
            }
        }
    }
}

struct Hex<'a>(&'a [u8; 32]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

struct OneOf<'a>(&'a [[u8; 32]]);

impl fmt::Display for OneOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(hex::encode).collect::<Vec<_>>().join(" or "))
    }
}

struct Advisories<'a>(&'a [String]);

impl fmt::Display for Advisories<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " ({})", self.0.join(", ")) }
    }
}
