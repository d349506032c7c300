//! Every state that an enclave and a platform can be in, under the simulated root.

use asymflow_enclave::Assurance;
use asymflow_enclave::attest::{
    AttestedIdentity, Claims, Evidence, EvidenceError, IdentityError, MAX_PROMISE_BYTES, Policy, QuoteVerifier, Quoter,
    Refusal, SimulatedMeasurement, TcbPolicy, TcbStatus, Verifier, simulated_collateral,
};
use rcgen::KeyPair;
use sha2::{Digest, Sha256};

use crate::common::{NOW, PROMISE, certificate, evidence, identity, policy, quoter, verifier};
use crate::real;

fn refused(change: impl FnOnce(&mut SimulatedMeasurement), policy: Policy) -> Refusal {
    let identity = AttestedIdentity::new(&quoter(change), PROMISE).unwrap();
    verifier(policy).verify_certificate(identity.certificate(), NOW).unwrap_err()
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[test]
fn what_was_verified_is_told() {
    let identity = identity();
    let verified = verifier(policy()).verify_certificate(identity.certificate(), NOW).unwrap();
    assert_eq!(verified.assurance, Assurance::Simulated);
    assert_eq!(verified.measurement.mr_enclave, sha256(b"program"));
    assert_eq!(verified.tcb_status, TcbStatus::UpToDate);
    assert_eq!(verified.promise, PROMISE);
    assert_eq!(&verified.public_key_sha256, identity.public_key_hash());
    assert_eq!(verified.claims_sha256, sha256(&evidence(identity.certificate()).claims));
    assert!(verified.advisories.is_empty());
}

#[test]
fn simulation_has_to_be_asked_for() {
    let policy = Policy { insecure_accept_simulated: false, ..policy() };
    let refusal = refused(|_| (), policy);
    assert_eq!(refusal, Refusal::Simulated);
    assert!(refusal.help().contains("insecure_accept_simulated"));
}

#[test]
fn the_two_roots_are_kept_apart() {
    // Intel's collateral says nothing of simulated platforms, whatever the policy.
    let policy = Policy { insecure_accept_simulated: true, ..real::policy() };
    let verifier = Verifier::new(policy, real::collateral()).unwrap();
    let refusal = verifier.verify_certificate(identity().certificate(), real::THEN).unwrap_err();
    assert!(matches!(refusal, Refusal::Chain(_)), "{refusal:?}");
    // The simulated authority says nothing of real ones.
    let quote = include_bytes!("../fixtures/sgx_quote");
    let refusal =
        QuoteVerifier::new(self::policy(), simulated_collateral(NOW).unwrap()).unwrap().verify(quote, NOW).unwrap_err();
    assert!(matches!(refusal, Refusal::Chain(_)), "{refusal:?}");
}

#[test]
fn collateral_ends() {
    let verifier = verifier(policy());
    let identity = identity();
    let day = 86400;
    assert!(verifier.verify_certificate(identity.certificate(), NOW + 29 * day).is_ok());
    for now in [NOW + 31 * day, NOW - 2 * day] {
        let refusal = verifier.verify_certificate(identity.certificate(), now).unwrap_err();
        assert!(matches!(refusal, Refusal::Expired { .. }), "{refusal:?}");
    }
}

#[test]
fn every_rating_is_told_and_accepted_only_where_allowed() {
    let allowed = |a, b, c| TcbPolicy {
        allow_sw_hardening_needed: a,
        allow_configuration_needed: b,
        insecure_allow_out_of_date: c,
        min_evaluation: 1,
    };
    for status in TcbStatus::ALL {
        let identity = AttestedIdentity::new(&quoter(|m| m.tcb_status = status), PROMISE).unwrap();
        for combination in 0..8 {
            let tcb = allowed(combination & 1 != 0, combination & 2 != 0, combination & 4 != 0);
            let outcome = verifier(Policy { tcb, ..policy() }).verify_certificate(identity.certificate(), NOW);
            match outcome {
                Ok(verified) => assert!(tcb.accepts(status) && verified.tcb_status == status, "{status} {tcb:?}"),
                Err(Refusal::Tcb { status: told, .. }) => assert!(!tcb.accepts(status) && told == status, "{status}"),
                Err(other) => panic!("{status}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_debug_enclave_is_refused() {
    assert_eq!(refused(|m| m.debug = true, policy()), Refusal::Debug);
    let identity = AttestedIdentity::new(&quoter(|m| m.debug = true), PROMISE).unwrap();
    let policy = Policy { insecure_allow_debug: true, ..policy() };
    assert!(verifier(policy).verify_certificate(identity.certificate(), NOW).is_ok());
}

#[test]
fn measurements_are_compared() {
    let refusal = refused(|m| m.mr_enclave = [9; 32], policy());
    assert!(matches!(refusal, Refusal::MrEnclave { found, .. } if found == [9; 32]), "{refusal}");
    let refusal = refused(|m| m.mr_signer = [9; 32], Policy { mr_signer: vec![[8; 32]], ..policy() });
    assert_eq!(refusal, Refusal::MrSigner { found: [9; 32], accepted: vec![[8; 32]] });
    let refusal = refused(|m| m.isv_prod_id = 5, Policy { isv_prod_id: Some(6), ..policy() });
    assert_eq!(refusal, Refusal::Product { found: 5, accepted: 6 });
    let refusal = refused(|m| m.isv_svn = 2, Policy { min_isv_svn: 3, ..policy() });
    assert_eq!(refusal, Refusal::Svn { found: 2, least: 3 });
    let met = Policy { mr_signer: vec![[8; 32], [9; 32]], isv_prod_id: Some(5), min_isv_svn: 2, ..policy() };
    let quoter = quoter(|m| (m.mr_signer, m.isv_prod_id, m.isv_svn) = ([9; 32], 5, 2));
    let identity = AttestedIdentity::new(&quoter, PROMISE).unwrap();
    assert!(verifier(met).verify_certificate(identity.certificate(), NOW).is_ok());
}

#[test]
fn the_promise_can_be_pinned() {
    let pinned = |promise: &[u8]| verifier(policy()).with_promise(sha256(promise));
    let identity = identity();
    assert!(pinned(PROMISE).verify_certificate(identity.certificate(), NOW).is_ok());
    let refusal = pinned(b"epsilon 2").verify_certificate(identity.certificate(), NOW).unwrap_err();
    assert_eq!(refusal, Refusal::Promise { found: sha256(PROMISE), accepted: sha256(b"epsilon 2") });
}

#[test]
fn a_promise_is_bounded() {
    let error = AttestedIdentity::new(&quoter(|_| ()), &vec![0; MAX_PROMISE_BYTES + 1]).unwrap_err();
    assert!(matches!(error, IdentityError::Promise { bytes } if bytes == MAX_PROMISE_BYTES + 1), "{error}");
    let identity = AttestedIdentity::new(&quoter(|_| ()), &vec![7; MAX_PROMISE_BYTES]).unwrap();
    let verified = verifier(policy()).verify_certificate(identity.certificate(), NOW).unwrap();
    assert_eq!(verified.promise.len(), MAX_PROMISE_BYTES);
}

#[test]
fn ordinary_tls_is_no_enclave() {
    let key = KeyPair::generate().unwrap();
    let refusal = verifier(policy()).verify_certificate(&certificate(&key, &[]), NOW).unwrap_err();
    assert_eq!(refusal, Refusal::NoEvidence);
    let refusal = verifier(policy()).verify_certificate(b"no certificate", NOW).unwrap_err();
    assert!(matches!(refusal, Refusal::Certificate(_)), "{refusal:?}");
}

#[test]
fn evidence_is_there_once_and_whole() {
    let key = KeyPair::generate().unwrap();
    let evidence = evidence(identity().certificate()).encode();
    let check =
        |evidence: &[Vec<u8>]| verifier(policy()).verify_certificate(&certificate(&key, evidence), NOW).unwrap_err();
    let refusal = check(&[evidence.clone(), evidence.clone()]);
    assert_eq!(refusal, Refusal::Certificate("the evidence extension is there twice".into()));
    let refusal = check(&[[evidence.as_slice(), b"x"].concat()]);
    assert_eq!(refusal, Refusal::Evidence(EvidenceError::Trailing { bytes: 1 }));
}

#[test]
fn evidence_does_not_serve_another_key() {
    let stolen = evidence(identity().certificate());
    let key = KeyPair::generate().unwrap();
    let refusal = verifier(policy()).verify_certificate(&certificate(&key, &[stolen.encode()]), NOW).unwrap_err();
    assert!(matches!(refusal, Refusal::KeyNotBound { .. }), "{refusal:?}");
}

#[test]
fn claims_cannot_be_rewritten() {
    let identity = identity();
    let stolen = evidence(identity.certificate());
    let key = KeyPair::generate().unwrap();
    let own_key = sha256(&rcgen::PublicKeyData::subject_public_key_info(&key));
    let rewritten = [(own_key, PROMISE), (*identity.public_key_hash(), b"epsilon 0".as_slice())];
    for (public_key_sha256, promise) in rewritten {
        let claims = Claims { public_key_sha256, promise: promise.to_vec() }.encode();
        let forged = Evidence { quote: stolen.quote.clone(), claims: claims.clone() }.encode();
        let refusal = verifier(policy()).verify_certificate(&certificate(&key, &[forged]), NOW).unwrap_err();
        let quoted = sha256(&stolen.claims);
        assert_eq!(refusal, Refusal::ClaimsNotBound { quoted, claims: sha256(&claims) });
    }
}

#[test]
fn a_fresh_quote_is_of_this_session_and_this_enclave() {
    let (quoter, verifier) = (quoter(|_| ()), verifier(policy()));
    let identity = AttestedIdentity::new(&quoter, PROMISE).unwrap();
    let verified = verifier.verify_certificate(identity.certificate(), NOW).unwrap();
    let (nonce, exporter) = ([1; 32], [2; 32]);
    let quote = identity.fresh_quote(&quoter, &nonce, &exporter).unwrap();
    verifier.verify_fresh(&verified, &quote, &nonce, &exporter, NOW).unwrap();

    for (nonce, exporter) in [([9; 32], exporter), (nonce, [9; 32]), (exporter, nonce)] {
        let refusal = verifier.verify_fresh(&verified, &quote, &nonce, &exporter, NOW).unwrap_err();
        assert!(matches!(refusal, Refusal::NotFresh { .. }), "{refusal:?}");
    }
    let old = evidence(identity.certificate()).quote;
    let refusal = verifier.verify_fresh(&verified, &old, &nonce, &exporter, NOW).unwrap_err();
    assert!(matches!(refusal, Refusal::NotFresh { found, .. } if found == [0; 32]), "{refusal:?}");

    let another = AttestedIdentity::new(&quoter, b"another promise").unwrap();
    let quote = another.fresh_quote(&quoter, &nonce, &exporter).unwrap();
    let refusal = verifier.verify_fresh(&verified, &quote, &nonce, &exporter, NOW).unwrap_err();
    assert!(matches!(refusal, Refusal::ClaimsNotBound { .. }), "{refusal:?}");
}

#[test]
fn a_fresh_quote_passes_the_policy_again() {
    let verifier = verifier(policy());
    let identity = identity();
    let verified = verifier.verify_certificate(identity.certificate(), NOW).unwrap();
    let fresh = |change: fn(&mut SimulatedMeasurement)| {
        let quote = identity.fresh_quote(&quoter(change), &[1; 32], &[2; 32]).unwrap();
        verifier.verify_fresh(&verified, &quote, &[1; 32], &[2; 32], NOW)
    };
    // A quote by another platform of the same program passes, which is what a live migration looks like.
    assert_eq!(fresh(|_| ()), Ok(()));
    assert_eq!(fresh(|m| m.debug = true), Err(Refusal::Debug));
    assert!(matches!(fresh(|m| m.isv_svn = 7), Err(Refusal::OtherEnclave { .. })));
    assert!(matches!(fresh(|m| m.tcb_status = TcbStatus::OutOfDate), Err(Refusal::Tcb { .. })));
}

#[test]
fn a_fresh_quote_makes_no_certificate() {
    let quoter = quoter(|_| ());
    let identity = AttestedIdentity::new(&quoter, PROMISE).unwrap();
    let key = KeyPair::generate().unwrap();
    let claims = evidence(identity.certificate()).claims;
    let quote = identity.fresh_quote(&quoter, &[1; 32], &[2; 32]).unwrap();
    let refusal = verifier(policy())
        .verify_certificate(&certificate(&key, &[Evidence { quote, claims }.encode()]), NOW)
        .unwrap_err();
    assert!(matches!(refusal, Refusal::ClaimsNotBound { .. }), "{refusal:?}");
}

#[test]
fn every_refusal_says_what_would_help() {
    assert!(quoter(|_| ()).is_simulated());
    let simulated = refused(|m| m.tcb_status = TcbStatus::OutOfDate, policy());
    assert_eq!(
        simulated.to_string(),
        "the platform is rated OutOfDate (SIMULATED-SA-00001), which the policy does not accept"
    );
    assert!(simulated.help().contains("update microcode"));
}
