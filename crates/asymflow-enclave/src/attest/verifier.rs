//! Whether a server is the enclave that a policy accepts.

use dcap_qvl::quote::{AuthData, EnclaveReport, Quote};
use dcap_qvl::verify::QuoteVerifier as Dcap;
use rustls::ConnectionCommon;
use rustls::pki_types::CertificateDer;
use rustls::server::ParsedCertificate;
use serde::{Deserialize, Serialize};
use x509_cert::Certificate;
use x509_cert::der::{Decode, oid::ObjectIdentifier};

use super::collateral::Collateral;
use super::evidence::{Claims, Evidence, MAX_QUOTE_BYTES, SIMULATED_ROOT_PUBLIC_KEY, certificate_report_data, sha256};
use super::fresh::fresh_report_data;
use super::policy::{Policy, PolicyError};
use super::refusal::Refusal;
use super::tcb::TcbStatus;
use crate::Assurance;

const EVIDENCE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.5.4.9");
const DEBUG: u8 = 0b10;
/// Header and report of an SGX quote; the length of what follows is next, in four bytes.
const SIGNED_BYTES: usize = 48 + 384;
/// Both signatures, the attestation key, the quoting enclave's report, and the heads of two parts of any length.
const SIGNATURE_BYTES: usize = 64 + 64 + 384 + 64 + 2 + 2 + 4;

/// Which program runs in an enclave. In files, hashes are 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measurement {
    /// Hash of the program and how it is laid out.
    #[serde(with = "super::policy::hash")]
    pub mr_enclave: [u8; 32],
    /// Hash of the key that signed it.
    #[serde(with = "super::policy::hash")]
    pub mr_signer: [u8; 32],
    /// The signer's number for the product.
    pub isv_prod_id: u16,
    /// The signer's security version of it.
    pub isv_svn: u16,
}

/// What was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Attested, or simulated.
    pub assurance: Assurance,
    /// The program.
    pub measurement: Measurement,
    /// The platform's rating.
    pub tcb_status: TcbStatus,
    /// Intel's advisories that concern the platform.
    pub advisories: Vec<String>,
    /// The `tcbEvaluationDataNumber` by which it was rated.
    pub tcb_evaluation: u32,
    /// What the enclave promises.
    pub promise: Vec<u8>,
    /// SHA-256 of its claims.
    pub claims_sha256: [u8; 32],
    /// SHA-256 of its TLS key's DER SubjectPublicKeyInfo.
    pub public_key_sha256: [u8; 32],
}

/// Verifies quotes by a policy and Intel's collateral.
///
/// What passes was signed by a quoting enclave of a platform that Intel certified and rated as the policy accepts, at the time
/// given, and runs a program that the policy pins. What its report data mean, and who sent it, is for a [`Verifier`].
#[derive(Debug)]
pub struct QuoteVerifier {
    policy: Policy,
    collateral: Collateral,
    #[cfg(feature = "simulated")]
    simulated_root: Vec<u8>,
}

/// Verifies servers: their quotes as a [`QuoteVerifier`] does, and what these are bound to.
///
/// What passes vouched for the TLS key and the promise of its certificate. Who a server is called is not looked at, and neither are
/// the certificate's own dates: the quote says who it is.
#[derive(Debug)]
pub struct Verifier {
    quotes: QuoteVerifier,
    promise_sha256: Option<[u8; 32]>,
}

/// What was verified of a quote alone: everything but what its report data are bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedQuote {
    /// Attested, or simulated.
    pub assurance: Assurance,
    /// The program.
    pub measurement: Measurement,
    /// The platform's rating.
    pub tcb_status: TcbStatus,
    /// Intel's advisories that concern the platform.
    pub advisories: Vec<String>,
    /// The `tcbEvaluationDataNumber` by which it was rated.
    pub tcb_evaluation: u32,
    /// What the program had signed.
    pub report_data: [u8; 64],
}

impl Verifier {
    /// A verifier that accepts every promise: the caller looks at [`Verified::promise`].
    ///
    /// # Errors
    /// The policy cannot be used.
    pub fn new(policy: Policy, collateral: Collateral) -> Result<Self, PolicyError> {
        Ok(Self { quotes: QuoteVerifier::new(policy, collateral)?, promise_sha256: None })
    }

    /// Accepts the promise of this SHA-256 alone.
    #[must_use]
    pub fn with_promise(mut self, sha256: [u8; 32]) -> Self {
        self.promise_sha256 = Some(sha256);
        self
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.quotes.policy
    }

    /// Verifies a server's certificate (DER) at a time. That the server has the key is for the TLS handshake to prove.
    ///
    /// # Errors
    /// Why the server is refused.
    pub fn verify_certificate(&self, der: &[u8], now_unix_seconds: u64) -> Result<Verified, Refusal> {
        let public_key_sha256 = public_key_sha256(der)?;
        let evidence = Evidence::parse(&evidence_of(der)?)?;
        let claims = Claims::parse(&evidence.claims)?;
        let claims_sha256 = sha256(&evidence.claims);
        let checked = self.quotes.verify(&evidence.quote, now_unix_seconds)?;
        if checked.report_data != certificate_report_data(&claims_sha256) {
            let (quoted, _) = halves(&checked.report_data);
            return Err(Refusal::ClaimsNotBound { quoted, claims: claims_sha256 });
        }
        if claims.public_key_sha256 != public_key_sha256 {
            return Err(Refusal::KeyNotBound { claimed: claims.public_key_sha256, used: public_key_sha256 });
        }
        let found = sha256(&claims.promise);
        if let Some(accepted) = self.promise_sha256.filter(|accepted| *accepted != found) {
            return Err(Refusal::Promise { found, accepted });
        }
        let VerifiedQuote { assurance, measurement, tcb_status, advisories, tcb_evaluation, .. } = checked;
        Ok(Verified {
            assurance,
            measurement,
            tcb_status,
            advisories,
            tcb_evaluation,
            promise: claims.promise,
            claims_sha256,
            public_key_sha256,
        })
    }

    /// Verifies the other end of a session, once more after the handshake, to learn what was verified.
    ///
    /// # Errors
    /// Why the server is refused.
    pub fn verify_peer<Data>(
        &self,
        connection: &ConnectionCommon<Data>,
        now_unix_seconds: u64,
    ) -> Result<Verified, Refusal> {
        let chain = connection.peer_certificates().unwrap_or_default();
        self.verify_certificate(chain.first().ok_or(Refusal::NoEvidence)?, now_unix_seconds)
    }

    /// Verifies a quote that the server made for this session: the same enclave as the certificate's, the same key and promise, over
    /// the client's nonce and the [`session_exporter`](super::session_exporter).
    ///
    /// # Errors
    /// Why the server is refused.
    pub fn verify_fresh(
        &self,
        verified: &Verified,
        quote: &[u8],
        nonce: &[u8; 32],
        exporter: &[u8; 32],
        now_unix_seconds: u64,
    ) -> Result<(), Refusal> {
        let checked = self.quotes.verify(quote, now_unix_seconds)?;
        if checked.measurement != verified.measurement || checked.assurance != verified.assurance {
            let (found, expected) = (checked.measurement.mr_enclave, verified.measurement.mr_enclave);
            return Err(Refusal::OtherEnclave { found, expected });
        }
        let (quoted, found) = halves(&checked.report_data);
        if quoted != verified.claims_sha256 {
            return Err(Refusal::ClaimsNotBound { quoted, claims: verified.claims_sha256 });
        }
        let (_, expected) = halves(&fresh_report_data(&verified.claims_sha256, nonce, exporter));
        if found == expected { Ok(()) } else { Err(Refusal::NotFresh { found, expected }) }
    }
}

impl QuoteVerifier {
    /// A verifier.
    ///
    /// # Errors
    /// The policy cannot be used.
    pub fn new(policy: Policy, collateral: Collateral) -> Result<Self, PolicyError> {
        policy.check()?;
        Ok(Self {
            policy,
            collateral,
            // Without random numbers there is no root and no simulated quote verifies, which is the safe side.
            #[cfg(feature = "simulated")]
            simulated_root: super::simulated::simulated_root().unwrap_or_default(),
        })
    }

    /// Verifies a quote alone: chain, collateral, rating and program, as the policy has them. It says nothing of who sent it.
    ///
    /// # Errors
    /// Why the quote is refused.
    pub fn verify(&self, quote: &[u8], now_unix_seconds: u64) -> Result<VerifiedQuote, Refusal> {
        let parsed = parse_quote(quote)?;
        let simulated = is_simulated(&parsed);
        let verified = self
            .root(simulated)?
            .allow_debug(true)
            .verify(quote, self.collateral.as_dcap(), now_unix_seconds)
            .map_err(|error| unverified(format!("{error:#}"), now_unix_seconds))?;
        let report = verified.report.as_sgx().ok_or_else(|| not_sgx(&parsed))?;
        let tcb_status = TcbStatus::of_name(&verified.status)
            .ok_or_else(|| Refusal::Chain(format!("the unknown TCB status {}", verified.status)))?;
        let advisories = verified.advisory_ids;
        if !self.policy.tcb.accepts(tcb_status) {
            return Err(Refusal::Tcb { status: tcb_status, advisories });
        }
        let (tcb_evaluation, least) = (self.collateral.tcb_evaluation(), self.policy.tcb.min_evaluation);
        if tcb_evaluation < least {
            return Err(Refusal::TcbEvaluation { found: tcb_evaluation, least });
        }
        let measurement = self.check_report(report, simulated)?;
        let assurance = if simulated { Assurance::Simulated } else { Assurance::Attested };
        let report_data = report.report_data;
        Ok(VerifiedQuote { assurance, measurement, tcb_status, advisories, tcb_evaluation, report_data })
    }

    #[cfg(feature = "simulated")]
    fn root(&self, simulated: bool) -> Result<Dcap, Refusal> {
        match (simulated, self.policy.insecure_accept_simulated) {
            (false, _) => Ok(Dcap::new_prod()),
            (true, true) => Ok(Dcap::new(self.simulated_root.clone())),
            (true, false) => Err(Refusal::Simulated),
        }
    }

    #[cfg(not(feature = "simulated"))]
    fn root(&self, simulated: bool) -> Result<Dcap, Refusal> {
        if simulated { Err(Refusal::Simulated) } else { Ok(Dcap::new_prod()) }
    }

    fn check_report(&self, report: &EnclaveReport, simulated: bool) -> Result<Measurement, Refusal> {
        let policy = &self.policy;
        let [flags, ..] = report.attributes;
        if flags & DEBUG != 0 && !policy.insecure_allow_debug {
            return Err(Refusal::Debug);
        }
        if !policy.is_pinned() && !simulated {
            return Err(Refusal::Unpinned);
        }
        let EnclaveReport { mr_enclave, mr_signer, isv_prod_id, isv_svn, .. } = *report;
        if !policy.mr_enclave.is_empty() && !policy.mr_enclave.contains(&mr_enclave) {
            return Err(Refusal::MrEnclave { found: mr_enclave, accepted: policy.mr_enclave.clone() });
        }
        if !policy.mr_signer.is_empty() && !policy.mr_signer.contains(&mr_signer) {
            return Err(Refusal::MrSigner { found: mr_signer, accepted: policy.mr_signer.clone() });
        }
        if let Some(accepted) = policy.isv_prod_id.filter(|accepted| *accepted != isv_prod_id) {
            return Err(Refusal::Product { found: isv_prod_id, accepted });
        }
        if isv_svn < policy.min_isv_svn {
            return Err(Refusal::Svn { found: isv_svn, least: policy.min_isv_svn });
        }
        Ok(Measurement { mr_enclave, mr_signer, isv_prod_id, isv_svn })
    }
}

/// Hash of the key that TLS will verify the handshake with, by the very parser that it does so with.
fn public_key_sha256(der: &[u8]) -> Result<[u8; 32], Refusal> {
    let certificate = CertificateDer::from(der);
    let parsed = ParsedCertificate::try_from(&certificate).map_err(|error| Refusal::Certificate(error.to_string()))?;
    Ok(sha256(&parsed.subject_public_key_info()))
}

/// The content of the evidence extension, which has to be there once.
fn evidence_of(der: &[u8]) -> Result<Vec<u8>, Refusal> {
    let certificate = Certificate::from_der(der).map_err(|error| Refusal::Certificate(error.to_string()))?;
    let extensions = certificate.tbs_certificate().extensions().into_iter().flatten();
    let mut evidence = extensions.filter(|extension| extension.extn_id == EVIDENCE);
    match (evidence.next(), evidence.next()) {
        (None, _) => Err(Refusal::NoEvidence),
        (Some(extension), None) => Ok(extension.extn_value.as_bytes().to_vec()),
        (Some(_), Some(_)) => Err(Refusal::Certificate("the evidence extension is there twice".into())),
    }
}

/// Parses a quote that is as long as it says, with all its parts: nobody signs what follows.
fn parse_quote(quote: &[u8]) -> Result<Quote, Refusal> {
    let given = quote.len();
    if given > MAX_QUOTE_BYTES {
        return Err(Refusal::Quote(format!("{given} bytes; at most {MAX_QUOTE_BYTES} are read")));
    }
    let parsed = Quote::parse(quote).map_err(|error| Refusal::Quote(format!("{error:#}")))?;
    let AuthData::V3(signature) = &parsed.auth_data else { return Err(not_sgx(&parsed)) };
    if !parsed.header.is_sgx() {
        return Err(not_sgx(&parsed));
    }
    let told =
        quote.get(SIGNED_BYTES..).and_then(|rest| rest.first_chunk()).map_or(0, |told| u32::from_le_bytes(*told));
    let parts = SIGNATURE_BYTES + signature.qe_auth_data.data.len() + signature.certification_data.body.data.len();
    if given != SIGNED_BYTES + 4 + parts || u32::try_from(parts) != Ok(told) {
        return Err(Refusal::Quote(format!(
            "{given} bytes; its parts are {}, its signature {told} by its own account",
            SIGNED_BYTES + 4 + parts
        )));
    }
    Ok(parsed)
}

fn not_sgx(quote: &Quote) -> Refusal {
    Refusal::NotSgx(format!("TEE type {:#x}", quote.header.tee_type))
}

/// Whether a quote says that it comes from the simulated root. It decides only which root it is held against.
fn is_simulated(quote: &Quote) -> bool {
    let chain = dcap_qvl::intel::extract_cert_chain(quote).unwrap_or_default();
    let root = chain.last().and_then(|der| Certificate::from_der(der).ok());
    root.is_some_and(|root| {
        let key = &root.tbs_certificate().subject_public_key_info().subject_public_key;
        key.raw_bytes() == SIMULATED_ROOT_PUBLIC_KEY
    })
}

/// dcap-qvl gives reasons as text; a wrong guess here changes the wording and nothing else.
fn unverified(reason: String, now_unix_seconds: u64) -> Refusal {
    if reason.contains("TCB status is invalid: Revoked") {
        return Refusal::Tcb { status: TcbStatus::Revoked, advisories: Vec::new() };
    }
    let dated = ["expired", "Expired", "NotValidYet", "in the future"].iter().any(|word| reason.contains(word));
    if dated { Refusal::Expired { now_unix_seconds, reason } } else { Refusal::Chain(reason) }
}

fn halves(report_data: &[u8; 64]) -> ([u8; 32], [u8; 32]) {
    let mut halves = ([0; 32], [0; 32]);
    let (head, tail) = report_data.split_at(32);
    halves.0.copy_from_slice(head);
    halves.1.copy_from_slice(tail);
    halves
}
