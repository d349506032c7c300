//! Whole TLS sessions over loopback.

use std::io::{Read, Write};
use std::sync::Arc;

use asymflow_enclave::attest::{
    AttestedIdentity, Clock, MAX_PROMISE_BYTES, Policy, Refusal, SimulatedMeasurement, TcbStatus, client_config,
    refusal_of, refusal_of_io, session_exporter, simulated_collateral,
};
use rcgen::KeyPair;
use rustls::{CertificateError, HandshakeKind, ProtocolVersion};

use crate::common::{
    Client, NOW, PROMISE, Server, certificate, client, evidence, genuine, handshake, identity, policy, quoter, server,
    verifier,
};

/// The refusal that a client ends a handshake with.
fn refused(config: Arc<rustls::ServerConfig>, policy: Policy) -> Refusal {
    let (client, server) = handshake(config, client(policy));
    assert!(server.is_err(), "the server took the client for content");
    let error = client.err().unwrap();
    let refusal = refusal_of_io(&error).unwrap_or_else(|| panic!("{error:?}")).clone();
    let inner = error.get_ref().unwrap().downcast_ref::<rustls::Error>().unwrap();
    assert_eq!(refusal_of(inner), Some(&refusal));
    refusal
}

fn session(identity: &AttestedIdentity) -> (Client, Server) {
    let (client, server) = handshake(identity.server_config(), client(policy()));
    (client.unwrap(), server.unwrap())
}

#[test]
fn a_verified_session_carries_data() {
    let identity = identity();
    let (mut client, mut server) = session(&identity);
    assert_eq!(client.conn.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(verifier(policy()).verify_peer(&client.conn, NOW).unwrap().promise, PROMISE);
    client.write_all(b"image").unwrap();
    let mut heard = [0; 5];
    server.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"image");
}

#[test]
fn the_longest_promise_fits_into_a_handshake() {
    let promise = vec![7; MAX_PROMISE_BYTES];
    let (client, _server) = session(&AttestedIdentity::new(&quoter(|_| ()), &promise).unwrap());
    assert_eq!(verifier(policy()).verify_peer(&client.conn, NOW).unwrap().promise, promise);
}

#[test]
fn each_refusal_comes_out_of_the_handshake() {
    let of = |change: fn(&mut SimulatedMeasurement)| {
        AttestedIdentity::new(&quoter(change), PROMISE).unwrap().server_config()
    };
    assert_eq!(refused(of(|m| m.debug = true), policy()), Refusal::Debug);
    assert!(matches!(refused(of(|m| m.mr_enclave = [0; 32]), policy()), Refusal::MrEnclave { .. }));
    let outdated = refused(of(|m| m.tcb_status = TcbStatus::OutOfDate), policy());
    assert!(matches!(outdated, Refusal::Tcb { status: TcbStatus::OutOfDate, .. }), "{outdated:?}");
    let signer = Policy { mr_signer: vec![[0; 32]], ..policy() };
    assert!(matches!(refused(of(|_| ()), signer), Refusal::MrSigner { .. }));
    let product = Policy { isv_prod_id: Some(2), ..policy() };
    assert_eq!(refused(of(|_| ()), product), Refusal::Product { found: 1, accepted: 2 });
    let newer = Policy { min_isv_svn: 2, ..policy() };
    assert_eq!(refused(of(|_| ()), newer), Refusal::Svn { found: 1, least: 2 });
    let other_promise = Arc::new(verifier(policy()).with_promise([0; 32]));
    let config = client_config(other_promise, Clock::Fixed(NOW)).unwrap();
    let error = handshake(of(|_| ()), config).0.err().unwrap();
    assert!(matches!(refusal_of_io(&error), Some(Refusal::Promise { .. })), "{error}");
    let real_only = Policy { insecure_accept_simulated: false, ..policy() };
    assert_eq!(refused(of(|_| ()), real_only), Refusal::Simulated);

    let key = KeyPair::generate().unwrap();
    assert_eq!(refused(server(certificate(&key, &[]), &key), policy()), Refusal::NoEvidence);
    let garbage = refused(server(certificate(&key, &[vec![1, 2, 3]]), &key), policy());
    assert!(matches!(garbage, Refusal::Evidence(_)), "{garbage:?}");
    let lifted = evidence(identity().certificate()).encode();
    let lifted = refused(server(certificate(&key, &[lifted]), &key), policy());
    assert!(matches!(lifted, Refusal::KeyNotBound { .. }), "{lifted:?}");
}

#[test]
fn the_clients_clock_is_the_one_given() {
    let late = Clock::Fixed(NOW + 60 * 86400);
    let config = client_config(Arc::new(verifier(policy())), late).unwrap();
    let error = handshake(identity().server_config(), config).0.err().unwrap();
    let refusal = refusal_of_io(&error).unwrap();
    assert!(matches!(refusal, Refusal::Expired { .. }), "{refusal:?}");
    assert!(Clock::System.now_unix_seconds() > NOW - 100 * 86400);
}

#[test]
fn a_certificate_without_its_key_is_of_no_use() {
    let stolen = identity().certificate().clone();
    let (client, _) = handshake(server(stolen, &KeyPair::generate().unwrap()), client(policy()));
    let error = client.err().unwrap();
    assert_eq!(refusal_of_io(&error), None);
    let inner = error.get_ref().unwrap().downcast_ref::<rustls::Error>().unwrap();
    assert_eq!(*inner, rustls::Error::InvalidCertificate(CertificateError::BadSignature));
}

#[test]
fn every_session_is_verified_anew() {
    // A genuine enclave whose server hands out tickets; a resumed session would show no certificate.
    let key = KeyPair::generate().unwrap();
    let config = server(genuine(&key), &key);
    let client = client(policy());
    for _ in 0..2 {
        let (there, here) = handshake(config.clone(), client.clone());
        let (mut there, mut here) = (there.unwrap(), here.unwrap());
        here.write_all(b"!").unwrap();
        there.read_exact(&mut [0]).unwrap();
        assert_eq!(there.conn.tls13_tickets_received(), 2);
        assert_eq!(there.conn.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn the_server_hands_out_no_tickets() {
    let (mut client, mut server) = session(&identity());
    server.write_all(b"!").unwrap();
    client.read_exact(&mut [0]).unwrap();
    assert_eq!(client.conn.tls13_tickets_received(), 0);
}

/// The server's answer to the client's nonce, over the session itself.
fn ask_for_fresh(client: &mut Client, server: &mut Server, identity: &AttestedIdentity, nonce: [u8; 32]) -> Vec<u8> {
    client.write_all(&nonce).unwrap();
    let mut asked = [0; 32];
    server.read_exact(&mut asked).unwrap();
    let exporter = session_exporter(&server.conn).unwrap();
    let quote = identity.fresh_quote(&quoter(|_| ()), &asked, &exporter).unwrap();
    server.write_all(&quote).unwrap();
    let mut answer = vec![0; quote.len()];
    client.read_exact(&mut answer).unwrap();
    answer
}

#[test]
fn a_fresh_quote_holds_for_its_session_only() {
    let identity = identity();
    let verifier = verifier(policy());
    let (mut client, mut server) = session(&identity);
    let nonce = [3; 32];
    let quote = ask_for_fresh(&mut client, &mut server, &identity, nonce);
    let verified = verifier.verify_peer(&client.conn, NOW).unwrap();
    let exporter = session_exporter(&client.conn).unwrap();
    verifier.verify_fresh(&verified, &quote, &nonce, &exporter, NOW).unwrap();

    // The same server, the same nonce, another session: a man in the middle with the old answer.
    let (client, _server) = session(&identity);
    let verified = verifier.verify_peer(&client.conn, NOW).unwrap();
    let exporter = session_exporter(&client.conn).unwrap();
    let refusal = verifier.verify_fresh(&verified, &quote, &nonce, &exporter, NOW).unwrap_err();
    assert!(matches!(refusal, Refusal::NotFresh { .. }), "{refusal:?}");
}

#[test]
fn collateral_is_made_for_dates_only() {
    assert!(simulated_collateral(u64::MAX).is_err());
}
