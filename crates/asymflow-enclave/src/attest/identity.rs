//! The server's TLS identity, vouched for by a quote.

use std::fmt;
use std::sync::Arc;

use rcgen::{CertificateParams, CustomExtension, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use thiserror::Error;
use zeroize::Zeroize;

use super::evidence::{Claims, EVIDENCE_OID, Evidence, MAX_PROMISE_BYTES, certificate_report_data, sha256};
use super::fresh::fresh_report_data;
use super::quoter::{QuoteError, Quoter};

/// Why there is no identity.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The promise is too long.
    #[error("a promise of {bytes} bytes; at most {MAX_PROMISE_BYTES} fit")]
    Promise {
        /// Its length.
        bytes: usize,
    },
    /// No quote.
    #[error(transparent)]
    Quote(#[from] QuoteError),
    /// The key or the certificate could not be made.
    #[error("cannot make the TLS certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// rustls did not take them.
    #[error("cannot use the TLS certificate: {0}")]
    Tls(#[from] rustls::Error),
}

/// A fresh TLS key that never leaves this process, in a certificate whose quote vouches for the key and for a promise.
///
/// The key is P-256, as RA-TLS has it. Its encoding is wiped once rustls holds the key; what rustls holds lives as long as the
/// identity and its configurations.
pub struct AttestedIdentity {
    server: Arc<ServerConfig>,
    certificate: CertificateDer<'static>,
    claims_sha256: [u8; 32],
    public_key_sha256: [u8; 32],
}

impl fmt::Debug for AttestedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttestedIdentity").field("public_key_sha256", &self.public_key_sha256).finish_non_exhaustive()
    }
}

impl AttestedIdentity {
    /// Makes a key and asks for a quote over it and the promise, which is at most [`MAX_PROMISE_BYTES`] long.
    ///
    /// # Errors
    /// The promise is too long, or there is no quote.
    pub fn new(quoter: &dyn Quoter, promise: &[u8]) -> Result<Self, IdentityError> {
        if promise.len() > MAX_PROMISE_BYTES {
            return Err(IdentityError::Promise { bytes: promise.len() });
        }
        let mut key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let identity = Self::with_key(quoter, promise, &key);
        key.zeroize();
        identity
    }

    fn with_key(quoter: &dyn Quoter, promise: &[u8], key: &KeyPair) -> Result<Self, IdentityError> {
        let public_key_sha256 = sha256(&key.subject_public_key_info());
        let claims = Claims { public_key_sha256, promise: promise.to_vec() }.encode();
        let claims_sha256 = sha256(&claims);
        let quote = quoter.quote(certificate_report_data(&claims_sha256))?;
        let evidence = Evidence { quote, claims }.encode();

        // An enclave has no clock to trust, and the quote's age is the collateral's matter: no dates of our own.
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = Default::default();
        parameters.distinguished_name.push(DnType::CommonName, "asymflow enclave");
        parameters.custom_extensions.push(CustomExtension::from_oid_content(&EVIDENCE_OID, evidence));
        let certificate = parameters.self_signed(key)?.der().clone();

        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der()));
        let signer = ring::sign::any_supported_type(&private)?;
        let certified = CertifiedKey::new(vec![certificate.clone()], signer);
        let mut server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        server.send_tls13_tickets = 0;
        Ok(Self { server: Arc::new(server), certificate, claims_sha256, public_key_sha256 })
    }

    /// A server of this identity: TLS 1.3 only, no client certificates, no resumption, so that every session is verified.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// The certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of the DER SubjectPublicKeyInfo.
    pub fn public_key_hash(&self) -> &[u8; 32] {
        &self.public_key_sha256
    }

    /// A quote made now, for one session: over the claims of the certificate, the client's nonce and the
    /// [`session_exporter`](super::session_exporter).
    ///
    /// # Errors
    /// There is no quote.
    pub fn fresh_quote(
        &self,
        quoter: &dyn Quoter,
        nonce: &[u8; 32],
        exporter: &[u8; 32],
    ) -> Result<Vec<u8>, QuoteError> {
        quoter.quote(fresh_report_data(&self.claims_sha256, nonce, exporter))
    }
}
