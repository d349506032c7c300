//! Bytes of an attacker: whatever they are, nothing panics and nothing else is accepted.

use std::sync::LazyLock;

use asymflow_enclave::attest::{Claims, Collateral, Evidence, QuoteVerifier, Verified, Verifier, simulated_collateral};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use rcgen::KeyPair;

use crate::common::{NOW, certificate, evidence, identity, policy, verifier};

static CERTIFICATE: LazyLock<Vec<u8>> = LazyLock::new(|| identity().certificate().to_vec());
static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| verifier(policy()));
static QUOTES: LazyLock<QuoteVerifier> =
    LazyLock::new(|| QuoteVerifier::new(policy(), simulated_collateral(NOW).unwrap()).unwrap());
static VERIFIED: LazyLock<Verified> = LazyLock::new(|| VERIFIER.verify_certificate(&CERTIFICATE, NOW).unwrap());
static EVIDENCE: LazyLock<Evidence> = LazyLock::new(|| evidence(&CERTIFICATE));
static COLLATERAL: LazyLock<Vec<u8>> = LazyLock::new(|| simulated_collateral(NOW).unwrap().to_json().unwrap());
static KEY: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate().unwrap());

#[derive(Clone, Debug)]
enum Change {
    Set(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Remove(Index),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        8 => (any::<Index>(), any::<u8>()).prop_map(|(at, to)| Change::Set(at, to)),
        1 => any::<Index>().prop_map(Change::Cut),
        1 => (any::<Index>(), vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        1 => any::<Index>().prop_map(Change::Remove),
    ];
    vec(change, 1..6)
}

fn changed(bytes: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for change in changes {
        let length = bytes.len() + 1;
        match change {
            Change::Set(at, to) => {
                if let Some(byte) = bytes.get_mut(at.index(length)) {
                    *byte = *to;
                }
            }
            Change::Cut(at) => bytes.truncate(at.index(length)),
            Change::Insert(at, new) => {
                let at = at.index(length);
                bytes.splice(at..at, new.iter().copied());
            }
            Change::Remove(at) => drop((at.index(length) < bytes.len()).then(|| bytes.remove(at.index(length)))),
        }
    }
    bytes
}

proptest! {
    #[test]
    fn any_bytes(bytes in vec(any::<u8>(), 0..600)) {
        prop_assert!(VERIFIER.verify_certificate(&bytes, NOW).is_err());
        prop_assert!(QUOTES.verify(&bytes, NOW).is_err());
        prop_assert!(Collateral::from_json(&bytes).is_err());
        // What is read comes back as it was read.
        if let Ok(evidence) = Evidence::parse(&bytes) {
            prop_assert_eq!(Evidence::parse(&evidence.encode()), Ok(evidence));
        }
        if let Ok(claims) = Claims::parse(&bytes) {
            prop_assert_eq!(Claims::parse(&claims.encode()), Ok(claims));
        }
    }

    #[test]
    fn evidence_comes_back(quote in vec(any::<u8>(), 0..300), promise in vec(any::<u8>(), 0..300), key: [u8; 32]) {
        let claims = Claims { public_key_sha256: key, promise };
        let evidence = Evidence { quote, claims: claims.encode() };
        prop_assert_eq!(Claims::parse(&evidence.claims), Ok(claims));
        prop_assert_eq!(Evidence::parse(&evidence.encode()), Ok(evidence));
    }

    /// Name, dates and the self-signature may differ; what is verified may not.
    #[test]
    fn a_changed_certificate(changes in changes()) {
        if let Ok(verified) = VERIFIER.verify_certificate(&changed(&CERTIFICATE, &changes), NOW) {
            prop_assert_eq!(&verified, &*VERIFIED);
        }
    }

    #[test]
    fn changed_evidence(changes in changes()) {
        let bytes = changed(&EVIDENCE.encode(), &changes);
        prop_assert!(VERIFIER.verify_certificate(&certificate(&KEY, &[bytes]), NOW).is_err());
    }

    #[test]
    fn changed_claims(changes in changes()) {
        let claims = changed(&EVIDENCE.claims, &changes);
        prop_assume!(claims != EVIDENCE.claims);
        let bytes = Evidence { quote: EVIDENCE.quote.clone(), claims }.encode();
        prop_assert!(VERIFIER.verify_certificate(&certificate(&KEY, &[bytes]), NOW).is_err());
    }

    #[test]
    fn a_changed_quote(changes in changes()) {
        if let Ok(quote) = QUOTES.verify(&changed(&EVIDENCE.quote, &changes), NOW) {
            prop_assert_eq!(quote.measurement, VERIFIED.measurement);
            prop_assert_eq!(&quote.report_data[..32], &VERIFIED.claims_sha256);
            prop_assert_eq!(quote.tcb_status, VERIFIED.tcb_status);
        }
    }

    /// Whoever serves collateral is not trusted either.
    #[test]
    fn changed_collateral(changes in changes()) {
        let Ok(collateral) = Collateral::from_json(&changed(&COLLATERAL, &changes)) else { return Ok(()) };
        let verifier = Verifier::new(policy(), collateral).unwrap();
        if let Ok(verified) = verifier.verify_certificate(&CERTIFICATE, NOW) {
            prop_assert_eq!(&verified, &*VERIFIED);
        }
    }
}
