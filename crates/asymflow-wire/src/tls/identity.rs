//! A process' key and certificate, kept over restarts so that others go on recognising it.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

use super::mutual::AnyIdentity;
use super::pin::{Fingerprint, pinned};

/// A private key with its self-signed certificate. `Debug` shows the fingerprint alone.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.fingerprint()).finish()
    }
}

/// Why there is no identity.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// No certificate could be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The file cannot be read or written.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file holds no certificate and key in PEM.
    #[error("{path}: not a certificate and its key in PEM: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The certificate and key cannot be used for TLS.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

impl Identity {
    /// A fresh identity.
    ///
    /// # Errors
    /// No certificate could be made.
    pub fn generate() -> Result<Self, IdentityError> {
        Ok(Self::make()?.0)
    }

    /// Reads the identity in `path`, or makes one and writes it there, readable by its owner only.
    ///
    /// # Errors
    /// A file that cannot be read, written or understood.
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        let file = |error| IdentityError::File { path: path.to_owned(), error };
        match std::fs::read(path) {
            Ok(pem) => {
                let format = |e: rustls::pki_types::pem::Error| IdentityError::Format {
                    path: path.to_owned(),
                    reason: e.to_string(),
                };
                let certificate = CertificateDer::from_pem_slice(&pem).map_err(format)?;
                Ok(Self { certificate, key: PrivateKeyDer::from_pem_slice(&pem).map_err(format)? })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (identity, pem) = Self::make()?;
                let mut options = OpenOptions::new();
                let created = options.write(true).create_new(true).mode(0o600).open(path);
                created.and_then(|mut f| f.write_all(pem.as_bytes())).map_err(file)?;
                Ok(identity)
            }
            Err(error) => Err(file(error)),
        }
    }

    fn make() -> Result<(Self, String), rcgen::Error> {
        let made = rcgen::generate_simple_self_signed(vec!["asymflow-worker".to_owned()])?;
        let pem = made.cert.pem() + &made.signing_key.serialize_pem();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        Ok((Self { certificate: made.cert.der().clone(), key }, pem))
    }

    /// Fingerprint of the certificate, for clients to pin.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// A client that shows this identity to the one process with the fingerprint `pin`, TLS 1.3 only.
    ///
    /// # Errors
    /// The certificate and key cannot be used for TLS.
    pub fn client_config(&self, pin: Fingerprint) -> Result<Arc<rustls::ClientConfig>, IdentityError> {
        let (certificate, key) = (self.certificate.clone(), self.key.clone_key());
        Ok(Arc::new(pinned(pin)?.with_client_auth_cert(vec![certificate], key)?))
    }

    /// A server of this identity to whom clients may show theirs: whose it is, the caller finds with [`Fingerprint::of`].
    ///
    /// # Errors
    /// The certificate and key cannot be used for TLS.
    pub fn mutual_server_config(&self) -> Result<Arc<rustls::ServerConfig>, IdentityError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Arc::new(AnyIdentity::new(Arc::clone(&provider)));
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())?;
        // A resumed session would not show its certificate again.
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// A server of this identity that does not ask clients who they are.
    ///
    /// # Errors
    /// The certificate and key cannot be used for TLS.
    pub fn server_config(&self) -> Result<Arc<rustls::ServerConfig>, IdentityError> {
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())?;
        Ok(Arc::new(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_outlives_the_process_that_made_it() {
        let folder = std::env::temp_dir().join(format!("asymflow-identity-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("worker.pem");
        let made = Identity::load_or_create(&path).unwrap();
        let read = Identity::load_or_create(&path).unwrap();
        assert_eq!(made.fingerprint(), read.fingerprint());
        read.server_config().unwrap();
        std::fs::write(&path, "-----BEGIN NOTHING-----").unwrap();
        assert!(matches!(Identity::load_or_create(&path), Err(IdentityError::Format { .. })));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
