//! Simulated servers and their clients.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use asymflow_enclave::attest::{
    AttestedIdentity, Claims, Clock, EVIDENCE_OID, Evidence, Policy, Quoter, SimulatedMeasurement, SimulatedQuoter,
    Verifier, client_config, simulated_collateral,
};
use rcgen::{CertificateParams, CustomExtension, KeyPair, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};
use sha2::{Digest, Sha256};

pub const NOW: u64 = 1_800_000_000;
pub const PROGRAM: &[u8] = b"program";
pub const PROMISE: &[u8] = b"epsilon 1";

pub type Client = StreamOwned<ClientConnection, TcpStream>;
pub type Server = StreamOwned<ServerConnection, TcpStream>;

pub fn quoter(change: impl FnOnce(&mut SimulatedMeasurement)) -> SimulatedQuoter {
    let mut measurement = SimulatedMeasurement::of_program(PROGRAM);
    change(&mut measurement);
    SimulatedQuoter::new(measurement).unwrap()
}

pub fn identity() -> AttestedIdentity {
    AttestedIdentity::new(&quoter(|_| ()), PROMISE).unwrap()
}

pub fn policy() -> Policy {
    Policy {
        mr_enclave: vec![SimulatedMeasurement::of_program(PROGRAM).mr_enclave],
        insecure_accept_simulated: true,
        ..Policy::default()
    }
}

pub fn verifier(policy: Policy) -> Verifier {
    Verifier::new(policy, simulated_collateral(NOW).unwrap()).unwrap()
}

pub fn client(policy: Policy) -> Arc<ClientConfig> {
    client_config(Arc::new(verifier(policy)), Clock::Fixed(NOW)).unwrap()
}

/// A self-signed certificate with whatever evidence.
pub fn certificate(key: &KeyPair, evidence: &[Vec<u8>]) -> CertificateDer<'static> {
    let mut parameters = CertificateParams::default();
    for evidence in evidence {
        parameters.custom_extensions.push(CustomExtension::from_oid_content(&EVIDENCE_OID, evidence.clone()));
    }
    parameters.self_signed(key).unwrap().der().clone()
}

/// What `AttestedIdentity` makes, for a key of the test's.
pub fn genuine(key: &KeyPair) -> CertificateDer<'static> {
    let public_key_sha256 = Sha256::digest(key.subject_public_key_info()).into();
    let claims = Claims { public_key_sha256, promise: PROMISE.to_vec() }.encode();
    let mut report_data = [0; 64];
    report_data[..32].copy_from_slice(&Sha256::digest(&claims));
    let quote = quoter(|_| ()).quote(report_data).unwrap();
    certificate(key, &[Evidence { quote, claims }.encode()])
}

/// The evidence in a certificate, found by the bytes of its identifier.
pub fn evidence(certificate: &[u8]) -> Evidence {
    let oid = [6, 6, 0x67, 0x81, 5, 5, 4, 9];
    let at = certificate.windows(oid.len()).position(|window| window == oid).unwrap() + oid.len();
    // OCTET STRING with a length in two bytes.
    let [4, 0x82, high, low] = certificate[at..at + 4] else { panic!("another encoding") };
    let length = usize::from(u16::from_be_bytes([high, low]));
    Evidence::parse(&certificate[at + 4..at + 4 + length]).unwrap()
}

/// A server with any certificate and any key.
pub fn server(certificate: CertificateDer<'static>, key: &KeyPair) -> Arc<ServerConfig> {
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der()));
    let key = rustls::crypto::ring::sign::any_supported_type(&private).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key))));
    Arc::new(config)
}

/// A handshake over loopback TCP; the errors of the two ends.
pub fn handshake(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> (io::Result<Client>, io::Result<Server>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serving = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept()?;
        let mut connection = ServerConnection::new(server).unwrap();
        connection.complete_io(&mut socket)?;
        Ok(StreamOwned::new(connection, socket))
    });
    let connect = || {
        let mut socket = TcpStream::connect(address)?;
        let mut connection = ClientConnection::new(client, "enclave.invalid".try_into().unwrap()).unwrap();
        connection.complete_io(&mut socket)?;
        Ok(StreamOwned::new(connection, socket))
    };
    (connect(), serving.join().unwrap())
}
