//! What a client is shown by somebody who claims to be an enclave.

use std::hint::black_box;
use std::sync::LazyLock;

use asymflow_enclave::attest::{
    AttestedIdentity, Claims, Collateral, Evidence, Policy, QuoteVerifier, SimulatedMeasurement, SimulatedQuoter,
    Verifier, simulated_collateral,
};

/// When the simulated collateral is valid, in Unix seconds.
const NOW: u64 = 1_800_000_000;
/// When the real one was.
const THEN: u64 = 1_750_412_171;
const PROGRAM: &[u8] = b"program";
const REAL_QUOTE: &[u8] = include_bytes!("../../crates/asymflow-enclave/tests/fixtures/sgx_quote");
const REAL_COLLATERAL: &[u8] = include_bytes!("../../crates/asymflow-enclave/tests/fixtures/sgx_quote_collateral.json");
/// Pins the program of the real quote and accepts its platform.
const REAL_POLICY: &str = r#"{"mr_enclave":["33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb"],
    "tcb":{"allow_sw_hardening_needed":true,"allow_configuration_needed":true}}"#;

static SIMULATED: LazyLock<Verifier> = LazyLock::new(|| {
    let collateral = simulated_collateral(NOW).expect("simulated collateral");
    Verifier::new(simulated_policy(), collateral).expect("a verifier")
});
static SIMULATED_QUOTES: LazyLock<QuoteVerifier> = LazyLock::new(|| {
    let collateral = simulated_collateral(NOW).expect("simulated collateral");
    QuoteVerifier::new(simulated_policy(), collateral).expect("a verifier")
});
static REAL: LazyLock<QuoteVerifier> = LazyLock::new(|| {
    let collateral = Collateral::from_json(REAL_COLLATERAL).expect("the real collateral");
    QuoteVerifier::new(real_policy(), collateral).expect("a verifier")
});

fn simulated_policy() -> Policy {
    let mr_enclave = vec![SimulatedMeasurement::of_program(PROGRAM).mr_enclave];
    Policy { mr_enclave, insecure_accept_simulated: true, ..Policy::default() }
}

fn real_policy() -> Policy {
    serde_json::from_str(REAL_POLICY).expect("a policy")
}

/// Evidence and claims as they stand in a certificate.
pub fn evidence(input: &[u8]) {
    if let Ok(evidence) = Evidence::parse(input) {
        assert_eq!(Evidence::parse(&evidence.encode()), Ok(evidence));
    }
    if let Ok(claims) = Claims::parse(input) {
        assert_eq!(Claims::parse(&claims.encode()), Ok(claims));
    }
}

/// A whole certificate.
pub fn certificate(input: &[u8]) {
    if let Ok(verified) = SIMULATED.verify_certificate(input, NOW) {
        assert_eq!(verified.measurement.mr_enclave, SimulatedMeasurement::of_program(PROGRAM).mr_enclave);
    }
}

/// A quote, of whichever kind.
pub fn quote(input: &[u8]) {
    let _ = black_box(SIMULATED_QUOTES.verify(input, NOW));
    let _ = black_box(REAL.verify(input, THEN));
}

/// Collateral, held against a real quote and a simulated one; and a policy.
pub fn collateral(input: &[u8]) {
    static QUOTE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let quote = asymflow_enclave::attest::Quoter::quote(&quoter(), [0; 64]);
        quote.expect("a simulated quote")
    });
    if let Ok(collateral) = Collateral::from_json(input) {
        for (policy, quote, now) in [(real_policy(), REAL_QUOTE, THEN), (simulated_policy(), QUOTE.as_slice(), NOW)] {
            let verifier = QuoteVerifier::new(policy, collateral.clone()).expect("a verifier");
            let _ = black_box(verifier.verify(quote, now));
        }
    }
    if let Ok(policy) = serde_json::from_slice::<Policy>(input) {
        let _ = black_box(policy.check());
    }
}

fn quoter() -> SimulatedQuoter {
    SimulatedQuoter::new(SimulatedMeasurement::of_program(PROGRAM)).expect("a quoter")
}

/// A certificate, and collateral that goes with it, for the corpus.
///
/// # Panics
/// There are no random numbers.
pub fn files(promise: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let identity = AttestedIdentity::new(&quoter(), promise).expect("an identity");
    let collateral = simulated_collateral(NOW).expect("simulated collateral");
    (identity.certificate().to_vec(), collateral.to_json().expect("its JSON"))
}
