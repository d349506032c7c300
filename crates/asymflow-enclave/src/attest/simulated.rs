//! Quotes that prove nothing: a DCAP v3 quoting identity under a root whose private key is published here.

mod authority;

use std::fmt;

use rcgen::KeyPair;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

use super::evidence::sha256;
use super::quoter::{QuoteError, Quoter};
use super::tcb::TcbStatus;

pub use authority::{SIMULATED_ROOT_KEY_PEM, simulated_root};

#[cfg(feature = "verify")]
pub use authority::simulated_collateral;

/// Intel's name for its own quoting enclaves, in every DCAP quote.
const QE_VENDOR: [u8; 16] = *b"\x93\x9a\x72\x33\xf7\x9c\x4c\xa9\x94\x0a\x0d\xb3\x95\x7f\x06\x07";
const QE_MR_SIGNER: [u8; 32] = [0x51; 32];
const QE_SVN: u16 = 8;
/// Enclave attributes INIT and MODE64BIT, and DEBUG.
const INITIALISED_64_BIT: u8 = 0b101;
const DEBUG: u8 = 0b10;
const PCK_CHAIN: u16 = 5;

/// Why the simulated authority failed.
#[derive(Debug, thiserror::Error)]
#[error("the simulated authority failed: {0}")]
pub struct SimulationError(String);

impl From<rcgen::Error> for SimulationError {
    fn from(error: rcgen::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<ring::error::Unspecified> for SimulationError {
    fn from(_: ring::error::Unspecified) -> Self {
        Self("no random numbers".into())
    }
}

impl From<ring::error::KeyRejected> for SimulationError {
    fn from(error: ring::error::KeyRejected) -> Self {
        Self(error.to_string())
    }
}

/// What a simulated quote says of its enclave and platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimulatedMeasurement {
    /// MRENCLAVE.
    pub mr_enclave: [u8; 32],
    /// MRSIGNER.
    pub mr_signer: [u8; 32],
    /// ISVPRODID.
    pub isv_prod_id: u16,
    /// ISVSVN.
    pub isv_svn: u16,
    /// The debug bit.
    pub debug: bool,
    /// How [`simulated_collateral`] rates the platform.
    pub tcb_status: TcbStatus,
}

impl SimulatedMeasurement {
    /// A release enclave on an up-to-date platform, whose MRENCLAVE is SHA-256 of the program's bytes.
    pub fn of_program(program: &[u8]) -> Self {
        Self {
            mr_enclave: sha256(program),
            mr_signer: sha256(b"asymflow simulated signer"),
            isv_prod_id: 1,
            isv_svn: 1,
            debug: false,
            tcb_status: TcbStatus::UpToDate,
        }
    }
}

/// Signs quotes that pass every check of DCAP under the simulated root, for whatever measurement it is told.
pub struct SimulatedQuoter {
    measurement: SimulatedMeasurement,
    attestation_key: Key,
    qe_report: [u8; 384],
    qe_signature: Vec<u8>,
    pck_chain: String,
}

impl fmt::Debug for SimulatedQuoter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedQuoter").field("measurement", &self.measurement).finish_non_exhaustive()
    }
}

impl SimulatedQuoter {
    /// Makes an attestation key and a platform certificate for it.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn new(measurement: SimulatedMeasurement) -> Result<Self, SimulationError> {
        let (attestation_key, pck) = (Key::generate()?, Key::generate()?);
        let pck_chain = authority::pck_chain(&pck.certified, measurement.tcb_status)?;
        let qe = Report {
            attributes: INITIALISED_64_BIT,
            mr_enclave: sha256(b"asymflow simulated quoting enclave"),
            mr_signer: QE_MR_SIGNER,
            isv_prod_id: 1,
            isv_svn: QE_SVN,
        };
        let mut bound = attestation_key.point().to_vec();
        bound.extend(QE_AUTHENTICATION);
        let mut data = [0; 64];
        let (head, _) = data.split_at_mut(32);
        head.copy_from_slice(&sha256(&bound));
        let qe_report = qe.encode(&data);
        let qe_signature = pck.sign(&qe_report)?;
        Ok(Self { measurement, attestation_key, qe_report, qe_signature, pck_chain })
    }

    fn try_quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, SimulationError> {
        let SimulatedMeasurement { mr_enclave, mr_signer, isv_prod_id, isv_svn, debug, .. } = self.measurement;
        let attributes = INITIALISED_64_BIT | if debug { DEBUG } else { 0 };
        // Version 3, ECDSA P-256, SGX, SVNs of QE and PCE, vendor, user data.
        let mut quote = [[3, 0], [2, 0], [0, 0], [0, 0], QE_SVN.to_le_bytes(), [13, 0]].concat();
        quote.extend(QE_VENDOR);
        quote.extend([0; 20]);
        quote.extend(Report { attributes, mr_enclave, mr_signer, isv_prod_id, isv_svn }.encode(report_data));

        let mut signature = self.attestation_key.sign(&quote)?;
        signature.extend(self.attestation_key.point());
        signature.extend(self.qe_report);
        signature.extend(&self.qe_signature);
        signature.extend((QE_AUTHENTICATION.len() as u16).to_le_bytes());
        signature.extend(QE_AUTHENTICATION);
        signature.extend(PCK_CHAIN.to_le_bytes());
        signature.extend((self.pck_chain.len() as u32).to_le_bytes());
        signature.extend(self.pck_chain.as_bytes());
        quote.extend((signature.len() as u32).to_le_bytes());
        quote.extend(signature);
        Ok(quote)
    }
}

const QE_AUTHENTICATION: [u8; 32] = *b"asymflow simulated quoting......";

impl Quoter for SimulatedQuoter {
    fn quote(&self, report_data: [u8; 64]) -> Result<Vec<u8>, QuoteError> {
        self.try_quote(&report_data).map_err(|error| QuoteError::Simulated(error.0))
    }

    fn is_simulated(&self) -> bool {
        true
    }
}

/// What differs between the reports of simulated enclaves.
struct Report {
    attributes: u8,
    mr_enclave: [u8; 32],
    mr_signer: [u8; 32],
    isv_prod_id: u16,
    isv_svn: u16,
}

impl Report {
    /// The report body of the SGX architecture: CPUSVN 16, MISCSELECT 4, reserved 28, ATTRIBUTES 16, MRENCLAVE 32, reserved 32,
    /// MRSIGNER 32, reserved 96, ISVPRODID 2, ISVSVN 2, reserved 60, report data 64 bytes.
    fn encode(&self, report_data: &[u8; 64]) -> [u8; 384] {
        let mut report = [0; 384];
        let (prod_id, svn) = (self.isv_prod_id.to_le_bytes(), self.isv_svn.to_le_bytes());
        let fields: [(usize, &[u8]); 6] = [
            (48, &[self.attributes]),
            (64, &self.mr_enclave),
            (128, &self.mr_signer),
            (256, &prod_id),
            (258, &svn),
            (320, report_data),
        ];
        for (at, field) in fields {
            for (to, from) in report.iter_mut().skip(at).zip(field) {
                *to = *from;
            }
        }
        report
    }
}

/// A P-256 key that signs as DCAP has it (r ‖ s) and can be put into a certificate.
struct Key {
    signing: EcdsaKeyPair,
    certified: KeyPair,
}

impl Key {
    fn generate() -> Result<Self, SimulationError> {
        let certified = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let signing = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            certified.serialized_der(),
            &SystemRandom::new(),
        )?;
        Ok(Self { signing, certified })
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SimulationError> {
        Ok(self.signing.sign(&SystemRandom::new(), message)?.as_ref().to_vec())
    }

    /// x ‖ y, 64 bytes.
    fn point(&self) -> &[u8] {
        self.signing.public_key().as_ref().get(1..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::PublicKeyData;

    use super::*;

    #[test]
    fn the_published_key_is_that_of_the_root() {
        let key = KeyPair::from_pem(SIMULATED_ROOT_KEY_PEM).unwrap();
        assert_eq!(key.der_bytes(), super::super::evidence::SIMULATED_ROOT_PUBLIC_KEY);
    }

    #[test]
    fn the_attestation_key_is_no_other_than_the_certified_one() {
        let key = Key::generate().unwrap();
        assert_eq!(&key.certified.der_bytes()[1..], key.point());
        assert_eq!(key.point().len(), 64);
    }
}
