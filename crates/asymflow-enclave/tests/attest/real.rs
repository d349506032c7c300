//! A quote of real hardware, published with dcap-qvl, and what Intel said of its platform then.

use asymflow_enclave::Assurance;
use asymflow_enclave::attest::{
    Collateral, CollateralError, MAX_COLLATERAL_BYTES, Measurement, Policy, PolicyError, Refusal,
};
use asymflow_enclave::attest::{QuoteVerifier, TcbPolicy, TcbStatus};

/// 2025-06-20, when the collateral was valid.
pub const THEN: u64 = 1_750_412_171;
const QUOTE: &[u8] = include_bytes!("../fixtures/sgx_quote");
const COLLATERAL: &[u8] = include_bytes!("../fixtures/sgx_quote_collateral.json");
/// From `SimulatedQuoter`, so that a verifier built without the feature can be shown one.
const SIMULATED_QUOTE: &[u8] = include_bytes!("../fixtures/simulated_quote");
const MR_ENCLAVE: &str = "33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb";

pub fn collateral() -> Collateral {
    Collateral::from_json(COLLATERAL).unwrap()
}

pub fn policy() -> Policy {
    let json = format!(
        r#"{{"mr_enclave":["{MR_ENCLAVE}"],"tcb":{{"allow_sw_hardening_needed":true,"allow_configuration_needed":true}}}}"#
    );
    serde_json::from_str(&json).unwrap()
}

fn refused(policy: Policy, now: u64) -> Refusal {
    QuoteVerifier::new(policy, collateral()).unwrap().verify(QUOTE, now).unwrap_err()
}

#[test]
fn a_real_quote_is_verified() {
    let verified = QuoteVerifier::new(policy(), collateral()).unwrap().verify(QUOTE, THEN).unwrap();
    assert_eq!(verified.assurance, Assurance::Attested);
    assert_eq!(verified.tcb_status, TcbStatus::ConfigurationAndSwHardeningNeeded);
    assert_eq!(verified.advisories, ["INTEL-SA-00289", "INTEL-SA-00615"]);
    assert!(verified.report_data.starts_with(b"Hello, world!"));
    assert_eq!(verified.measurement.mr_enclave, policy().mr_enclave[0]);
    let json = serde_json::to_string(&verified.measurement).unwrap();
    assert!(json.starts_with(&format!(r#"{{"mr_enclave":"{MR_ENCLAVE}","#)), "{json}");
    assert_eq!(serde_json::from_str::<Measurement>(&json).unwrap(), verified.measurement);
}

/// What nobody signs is of no consequence: how the certificates' text is broken into lines, and the copy of the root at its end,
/// for which the verifier has its own.
#[test]
fn every_signed_byte_of_a_real_quote_counts() {
    let verifier = QuoteVerifier::new(policy(), collateral()).unwrap();
    let verified = verifier.verify(QUOTE, THEN).unwrap();
    let starts: Vec<_> = (0..QUOTE.len()).filter(|at| QUOTE[*at..].starts_with(b"-----BEGIN")).collect();
    let [platform, _, root] = starts[..] else { panic!("another chain") };
    let signed = |at: usize| at < platform || at < root && QUOTE[at] != b'\n';
    let check = |from: usize| {
        let mut quote = QUOTE.to_vec();
        for (at, bits) in (from..quote.len()).step_by(2).flat_map(|at| [(at, 1 << (at / 2 % 8)), (at, 0xff)]) {
            quote[at] ^= bits;
            if let Ok(changed) = verifier.verify(&quote, THEN) {
                assert!(!signed(at) && changed == verified, "byte {at} ^ {bits:#x}");
            }
            quote[at] ^= bits;
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| check(1));
        check(0);
    });
}

#[test]
fn a_quote_ends_where_it_says() {
    let verifier = QuoteVerifier::new(policy(), collateral()).unwrap();
    let longer = [QUOTE, b"x"].concat();
    let error = verifier.verify(&longer, THEN).unwrap_err().to_string();
    assert_eq!(error, "the quote is malformed: 4601 bytes; its parts are 4600, its signature 4164 by its own account");
    for length in [0, 3, 431, 435, 436, 1000, QUOTE.len() - 1] {
        let error = verifier.verify(&QUOTE[..length], THEN).unwrap_err();
        assert!(matches!(error, Refusal::Quote(_)), "{length}: {error}");
    }
}

#[test]
fn time_is_kept() {
    for now in [THEN + 365 * 86400, THEN - 365 * 86400, 0, u64::MAX] {
        let refusal = refused(policy(), now);
        assert!(
            matches!(&refusal, Refusal::Expired { now_unix_seconds, .. } if *now_unix_seconds == now),
            "{refusal:?}"
        );
        assert!(refusal.help().starts_with("fetch new collateral"));
    }
}

#[test]
fn the_platforms_rating_counts() {
    for tcb in [TcbPolicy::default(), TcbPolicy { allow_sw_hardening_needed: true, ..TcbPolicy::default() }] {
        let refusal = refused(Policy { tcb, ..policy() }, THEN);
        assert_eq!(
            refusal.to_string(),
            "the platform is rated ConfigurationAndSWHardeningNeeded (INTEL-SA-00289, INTEL-SA-00615), which the policy does \
             not accept"
        );
    }
}

#[test]
fn old_ratings_are_refused_where_newer_ones_are_asked_for() {
    let at_least = |min_evaluation| Policy { tcb: TcbPolicy { min_evaluation, ..policy().tcb }, ..policy() };
    assert_eq!(refused(at_least(18), THEN), Refusal::TcbEvaluation { found: 17, least: 18 });
    let verified = QuoteVerifier::new(at_least(17), collateral()).unwrap().verify(QUOTE, THEN).unwrap();
    assert_eq!(verified.tcb_evaluation, 17);
}

#[test]
fn another_program_is_refused() {
    let refusal = refused(Policy { mr_enclave: vec![[1; 32], [2; 32]], ..policy() }, THEN);
    let (one, two) = ("01".repeat(32), "02".repeat(32));
    assert_eq!(refusal.to_string(), format!("MRENCLAVE is {MR_ENCLAVE}, pinned is {one} or {two}"));
    let refusal = refused(Policy { mr_signer: vec![[1; 32]], ..policy() }, THEN);
    assert!(refusal.to_string().starts_with("MRSIGNER is 815f42f1"), "{refusal}");
    let refusal = refused(Policy { isv_prod_id: Some(7), ..policy() }, THEN);
    assert_eq!(refusal, Refusal::Product { found: 0, accepted: 7 });
    let refusal = refused(Policy { min_isv_svn: 9, ..policy() }, THEN);
    assert_eq!(refusal.to_string(), "ISVSVN is 0, the policy asks for at least 9");
}

#[test]
fn changed_collateral_is_refused() {
    let text = std::str::from_utf8(COLLATERAL).unwrap();
    let changed = text.replace(r#"ConfigurationAndSWHardeningNeeded"#, "UpToDate");
    assert_ne!(text, changed);
    let verifier = QuoteVerifier::new(policy(), Collateral::from_json(changed.as_bytes()).unwrap()).unwrap();
    let refusal = verifier.verify(QUOTE, THEN).unwrap_err();
    assert_eq!(refusal.to_string(), "the quote does not verify: Signature is invalid for tcb_info in quote_collateral");
}

#[test]
fn collateral_is_bounded() {
    assert!(matches!(Collateral::from_json(b"{}"), Err(CollateralError::Json(_))));
    let long = vec![b' '; MAX_COLLATERAL_BYTES + 1];
    let error = Collateral::from_json(&long).unwrap_err();
    assert_eq!(error.to_string(), "collateral of 1048577 bytes; at most 1048576 are read");
    let again = Collateral::from_json(&collateral().to_json().unwrap()).unwrap();
    QuoteVerifier::new(policy(), again).unwrap().verify(QUOTE, THEN).unwrap();
}

#[test]
fn each_quote_brings_its_own_platform_certificate() {
    let mut json: serde_json::Value = serde_json::from_slice(COLLATERAL).unwrap();
    json["pck_certificate_chain"] = json["tcb_info_issuer_chain"].clone();
    let collateral = Collateral::from_json(json.to_string().as_bytes()).unwrap();
    QuoteVerifier::new(policy(), collateral).unwrap().verify(QUOTE, THEN).unwrap();
}

#[test]
fn another_kind_of_enclave_is_refused() {
    let verifier = QuoteVerifier::new(policy(), collateral()).unwrap();
    let refusal = verifier.verify(include_bytes!("../fixtures/tdx_quote"), THEN).unwrap_err();
    assert_eq!(refusal.to_string(), "the quote is of TEE type 0x81, not of an SGX enclave");
}

#[test]
fn a_simulated_quote_is_named_by_every_verifier() {
    let verifier = QuoteVerifier::new(policy(), collateral()).unwrap();
    assert_eq!(verifier.verify(SIMULATED_QUOTE, THEN), Err(Refusal::Simulated));
}

#[test]
fn a_policy_that_pins_nothing_takes_no_real_enclave() {
    let open = Policy { mr_enclave: Vec::new(), ..policy() };
    assert_eq!(QuoteVerifier::new(open.clone(), collateral()).unwrap_err(), PolicyError::Unpinned);
    let simulated = Policy { insecure_accept_simulated: true, ..open };
    match QuoteVerifier::new(simulated, collateral()) {
        Ok(verifier) => assert_eq!(verifier.verify(QUOTE, THEN), Err(Refusal::Unpinned)),
        Err(error) => assert_eq!((error, cfg!(feature = "simulated")), (PolicyError::NotCompiled, false)),
    }
}
