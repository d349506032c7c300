//! The certificates and ratings that Intel issues, issued by anybody who reads this file.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};

use super::{SimulationError, TcbStatus};

/// The private key of the simulated root. It is public so that nobody takes what it signs for a proof.
pub const SIMULATED_ROOT_KEY_PEM: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgWqOuJApIHJIbNlio
6u10XuAuw1WiPW6rqY3VXwEgKNKhRANCAASd30r0V3/xefOAgevdZgABS/5NNTBj
c1WKOLM+Gs0YgaM2hTnD/HpYCSEMFf1AuG4SmTQ5Y0KHgk2mw2nNoR6q
-----END PRIVATE KEY-----
";

/// The object identifier of Intel's SGX extension of a platform certificate, 1.2.840.113741.1.13.1.
const SGX_EXTENSION: [u64; 7] = [1, 2, 840, 113741, 1, 13, 1];
const SGX_EXTENSION_DER: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01];
const FMSPC: [u8; 6] = *b"\x00asym\x00";
const PCE_SVN: u8 = 13;

/// The security version that all sixteen components of a platform have, for each rating it shall get.
const LEVELS: [(TcbStatus, u8); 7] = [
    (TcbStatus::UpToDate, 12),
    (TcbStatus::SwHardeningNeeded, 10),
    (TcbStatus::ConfigurationNeeded, 8),
    (TcbStatus::ConfigurationAndSwHardeningNeeded, 6),
    (TcbStatus::OutOfDate, 4),
    (TcbStatus::OutOfDateConfigurationNeeded, 2),
    (TcbStatus::Revoked, 1),
];

struct Root(Issuer<'static, KeyPair>, CertificateParams);

fn root() -> Result<Root, SimulationError> {
    let key = KeyPair::from_pem(SIMULATED_ROOT_KEY_PEM)?;
    let mut parameters = parameters("asymflow SIMULATED root (proves nothing)");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(Root(Issuer::new(parameters.clone(), key), parameters))
}

/// A certificate of the simulated root, DER. Its signature differs from call to call, name and key do not.
///
/// # Errors
/// There are no random numbers.
pub fn simulated_root() -> Result<Vec<u8>, SimulationError> {
    let Root(issuer, parameters) = root()?;
    Ok(parameters.self_signed(issuer.key())?.der().to_vec())
}

/// A platform certificate and the root, PEM.
pub(super) fn pck_chain(key: &KeyPair, status: TcbStatus) -> Result<String, SimulationError> {
    let Root(issuer, root) = root()?;
    let mut pck = parameters("asymflow simulated platform");
    pck.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    pck.use_authority_key_identifier_extension = true;
    pck.custom_extensions.push(CustomExtension::from_oid_content(&SGX_EXTENSION, sgx_extension(status)));
    Ok(pck.signed_by(key, &issuer)?.pem() + &root.self_signed(issuer.key())?.pem())
}

fn parameters(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = Default::default();
    parameters.distinguished_name.push(DnType::CommonName, name);
    (parameters.not_before, parameters.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2120, 1, 1));
    parameters
}

/// PPID, TCB (sixteen components, PCESVN, CPUSVN), PCEID, FMSPC and type of a simulated platform, DER.
fn sgx_extension(status: TcbStatus) -> Vec<u8> {
    let svn = LEVELS.iter().find(|(rated, _)| *rated == status).map_or(0, |(_, svn)| *svn);
    let mut tcb: Vec<u8> = (1..=16).flat_map(|component| entry(&[2, component], 2, &[svn])).collect();
    tcb.extend(entry(&[2, 17], 2, &[PCE_SVN]));
    tcb.extend(entry(&[2, 18], 4, &[svn; 16]));
    let fields = [
        entry(&[1], 4, &[0; 16]),
        entry(&[2], 0x30, &tcb),
        entry(&[3], 4, &[0; 2]),
        entry(&[4], 4, &FMSPC),
        entry(&[5], 10, &[0]),
    ];
    der(0x30, &fields.concat())
}

/// A sequence of an object identifier below the SGX extension's and a value.
fn entry(under: &[u8], tag: u8, value: &[u8]) -> Vec<u8> {
    let name = der(6, &[&SGX_EXTENSION_DER, under].concat());
    der(0x30, &[name, der(tag, value)].concat())
}

/// Tag, length, value; what is written here is shorter than 64 KiB.
fn der(tag: u8, value: &[u8]) -> Vec<u8> {
    let [high, low] = (value.len() as u16).to_be_bytes();
    let head = match value.len() {
        0..=127 => vec![tag, low],
        128..=255 => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    [&head, value].concat()
}

#[cfg(feature = "verify")]
pub use ratings::simulated_collateral;

#[cfg(feature = "verify")]
mod ratings {
    use dcap_qvl::QuoteCollateralV3;
    use rcgen::{CertificateRevocationListParams, KeyIdMethod, SerialNumber};
    use time::{Duration, OffsetDateTime};

    use super::super::{Key, QE_MR_SIGNER, QE_SVN};
    use super::*;
    use crate::attest::Collateral;

    /// What Intel publishes of a platform, for simulated ones: rated as each [`SimulatedMeasurement`](super::super::SimulatedMeasurement) says,
    /// valid from a day before `now_unix_seconds` until 30 days after.
    ///
    /// ```rust
    /// use asymflow_enclave::Assurance;
    /// use asymflow_enclave::attest::{
    ///     AttestedIdentity, Policy, Refusal, SimulatedMeasurement, SimulatedQuoter, Verifier, simulated_collateral,
    /// };
    ///
    /// // In an enclave this is `GramineQuoter::default()`.
    /// let measurement = SimulatedMeasurement::of_program(b"the bytes of the program");
    /// let quoter = SimulatedQuoter::new(measurement.clone()).unwrap();
    /// let identity = AttestedIdentity::new(&quoter, b"mode delta, epsilon 1").unwrap();
    ///
    /// // Collateral comes from Intel, by way of a caching service; see `Collateral`.
    /// let now_unix_seconds = 1_800_000_000;
    /// let collateral = simulated_collateral(now_unix_seconds).unwrap();
    /// let policy = Policy { mr_enclave: vec![measurement.mr_enclave], ..Policy::default() };
    ///
    /// let strict = Verifier::new(policy.clone(), collateral.clone()).unwrap();
    /// let refusal = strict.verify_certificate(identity.certificate(), now_unix_seconds).unwrap_err();
    /// assert_eq!(refusal, Refusal::Simulated);
    ///
    /// let trial = Verifier::new(Policy { insecure_accept_simulated: true, ..policy }, collateral).unwrap();
    /// let verified = trial.verify_certificate(identity.certificate(), now_unix_seconds).unwrap();
    /// assert_eq!(verified.assurance, Assurance::Simulated);
    /// assert_eq!(verified.promise, b"mode delta, epsilon 1");
    /// ```
    ///
    /// # Errors
    /// The time is past the year 9999, or there are no random numbers.
    pub fn simulated_collateral(now_unix_seconds: u64) -> Result<Collateral, SimulationError> {
        let now = i64::try_from(now_unix_seconds).ok().and_then(|now| OffsetDateTime::from_unix_timestamp(now).ok());
        let window = now.and_then(|now| Some((now.checked_sub(Duration::DAY)?, now.checked_add(Duration::DAY * 30)?)));
        let (from, until) = window.ok_or_else(|| SimulationError(format!("no date at {now_unix_seconds} s")))?;
        let Root(issuer, root) = root()?;
        let root = root.self_signed(issuer.key())?.pem();

        let signer = Key::generate()?;
        let mut signing = parameters("asymflow simulated TCB signing");
        signing.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        signing.use_authority_key_identifier_extension = true;
        let signing_chain = signing.signed_by(&signer.certified, &issuer)?.pem() + &root;

        let crl = CertificateRevocationListParams {
            this_update: from,
            next_update: until,
            crl_number: SerialNumber::from_slice(&[1]),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let crl = crl.signed_by(&issuer)?.der().to_vec();
        let (tcb_info, qe_identity) = (tcb_info(from, until), qe_identity(from, until));
        Ok(Collateral::from(QuoteCollateralV3 {
            pck_crl_issuer_chain: root,
            // The root issues the platform certificates itself, so its list serves for both.
            root_ca_crl: crl.clone(),
            pck_crl: crl,
            tcb_info_issuer_chain: signing_chain.clone(),
            tcb_info_signature: signer.sign(tcb_info.as_bytes())?,
            tcb_info,
            qe_identity_issuer_chain: signing_chain,
            qe_identity_signature: signer.sign(qe_identity.as_bytes())?,
            qe_identity,
            pck_certificate_chain: None,
        }))
    }

    fn rfc3339(at: OffsetDateTime) -> String {
        let ((year, month, day), (hour, minute, second)) = (at.date().to_calendar_date(), at.time().as_hms());
        let month = u8::from(month);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }

    fn tcb_info(from: OffsetDateTime, until: OffsetDateTime) -> String {
        let levels: Vec<_> = LEVELS
            .iter()
            .map(|(status, svn)| {
                let components = vec![format!(r#"{{"svn":{svn}}}"#); 16].join(",");
                let advisories = if *status == TcbStatus::UpToDate { "" } else { r#""SIMULATED-SA-00001""# };
                format!(
                    r#"{{"tcb":{{"sgxtcbcomponents":[{components}],"pcesvn":{PCE_SVN}}},"tcbDate":"2020-01-01T00:00:00Z","tcbStatus":"{status}","advisoryIDs":[{advisories}]}}"#
                )
            })
            .collect();
        let fmspc: String = FMSPC.iter().map(|byte| format!("{byte:02X}")).collect();
        let (from, until, levels) = (rfc3339(from), rfc3339(until), levels.join(","));
        format!(
            r#"{{"id":"SGX","version":3,"issueDate":"{from}","nextUpdate":"{until}","fmspc":"{fmspc}","pceId":"0000","tcbType":0,"tcbEvaluationDataNumber":1,"tcbLevels":[{levels}]}}"#
        )
    }

    fn qe_identity(from: OffsetDateTime, until: OffsetDateTime) -> String {
        let signer: String = QE_MR_SIGNER.iter().map(|byte| format!("{byte:02X}")).collect();
        let (from, until, zeros, ones) = (rfc3339(from), rfc3339(until), "00".repeat(14), "FF".repeat(8));
        format!(
            r#"{{"id":"QE","version":2,"issueDate":"{from}","nextUpdate":"{until}","tcbEvaluationDataNumber":1,"miscselect":"00000000","miscselectMask":"FFFFFFFF","attributes":"0500{zeros}","attributesMask":"{ones}0000000000000000","mrsigner":"{signer}","isvprodid":1,"tcbLevels":[{{"tcb":{{"isvsvn":{QE_SVN}}},"tcbDate":"2020-01-01T00:00:00Z","tcbStatus":"UpToDate"}}]}}"#
        )
    }
}
