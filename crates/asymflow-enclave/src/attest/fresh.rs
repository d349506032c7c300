//! Quotes made for one session.

use rustls::ConnectionCommon;
use sha2::{Digest, Sha256};

/// Label of the TLS exporter that both ends bind a fresh quote to.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-asymflow-fresh-quote-v1";

const DOMAIN: &[u8] = b"asymflow fresh quote v1";

/// The report data of a fresh quote, 64 bytes: the certificate's claims, SHA-256, then
/// SHA-256(domain ‖ nonce ‖ exporter). So the quote is bound to key and promise, and to one question in one TLS session.
pub fn fresh_report_data(claims_sha256: &[u8; 32], nonce: &[u8; 32], exporter: &[u8; 32]) -> [u8; 64] {
    let session = Sha256::new().chain_update(DOMAIN).chain_update(nonce).chain_update(exporter).finalize();
    let mut data = [0; 64];
    let (head, tail) = data.split_at_mut(32);
    head.copy_from_slice(claims_sha256);
    tail.copy_from_slice(&session);
    data
}

/// 32 bytes that only the two ends of this TLS session know, the same at both.
///
/// # Errors
/// The handshake is not done.
pub fn session_exporter<Data>(connection: &ConnectionCommon<Data>) -> Result<[u8; 32], rustls::Error> {
    connection.export_keying_material([0; 32], EXPORTER_LABEL, None)
}
