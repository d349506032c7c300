//! What SGX's error codes mean, and what to do about them.
//!
//! The numbers and names are those of Intel's public headers `sgx_error.h` and `sgx_ql_lib_common.h`; the phrases are those
//! that Gramine 1.9 prints. Nothing is listed that those do not establish. `cargo xtask doctor` includes this file, so it
//! uses the standard library and nothing else.

/// One error, its meaning and its remedy.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// Its name in the header, or what the message is about.
    pub name: &'static str,
    /// Its numbers; -1 for a message without one.
    pub number: i64,
    /// What a program prints that means it.
    pub phrases: &'static [&'static str],
    /// What happened.
    pub sentence: &'static str,
    /// What to do.
    pub fix: &'static str,
}

/// Stands for a message that has no number.
const NO_NUMBER: i64 = -1;

const PCCS: &str = "name a reachable PCCS in /etc/sgx_default_qcnl.conf, restart aesmd, and read `journalctl -u aesmd`";
const REGISTER: &str = "register the platform with Intel (PCKIDRetrievalTool, or mpa_registration on a multi-socket machine), \
                        then let the PCCS fetch its certificates";
const PLATFORM_UPDATE: &str = "update firmware and microcode of the machine, or widen the client's policy knowingly";
const REFRESH: &str = "fetch fresh collateral from the PCCS, and check the clock of the machine that verifies";
const AESM: &str =
    "start aesmd (`sudo systemctl start aesmd`, package sgx-aesm-service) and map its socket into the container";
const PROVISION: &str = "add the user of aesmd to the group sgx_prv, which owns /dev/sgx_provision, and restart aesmd";
const DEVICE: &str =
    "switch SGX on in the firmware, use Linux 5.11 or later, and map /dev/sgx_enclave into the container";
const EPC: &str =
    "end other enclaves, ask for less in the manifest (sgx.enclave_size), or give SGX more memory in the firmware";
const RESTART: &str = "start the enclave again; where it stays, restart aesmd (`sudo systemctl restart aesmd`)";
const MATCHING: &str = "install matching versions of all SGX packages (PSW and DCAP of one release)";
const COLLATERAL: &str = "take quote and collateral of one platform, from the same PCCS";

const fn code(name: &'static str, number: i64, sentence: &'static str, fix: &'static str) -> Code {
    Code { name, number, phrases: &[], sentence, fix }
}

const fn said(name: &'static str, phrases: &'static [&'static str], sentence: &'static str, fix: &'static str) -> Code {
    Code { name, number: NO_NUMBER, phrases, sentence, fix }
}

/// Messages first: they say more than a code within them.
pub static CODES: &[Code] = &[
    said(
        "no SGX device",
        &["Cannot open /dev/sgx_enclave", "Cannot open device /dev/sgx_enclave", "Cannot open device /dev/sgx/enclave"],
        "the driver's device is not there or not open to this user",
        DEVICE,
    ),
    said(
        "no AESM",
        &["Cannot connect to AESM service", "Cannot communicate with AESM service"],
        "aesmd does not answer",
        AESM,
    ),
    said(
        "AESM 46",
        &["AESM service returned error 46", "aesm_service returned error: 46"],
        "aesmd has lost its quoting enclave (SGX_QL_ENCLAVE_LOST)",
        RESTART,
    ),
    said(
        "no DCAP",
        &["infrastructure for the DCAP attestation requested by Gramine is missing"],
        "aesmd cannot make DCAP quotes on this machine",
        "install libsgx-aesm-ecdsa-plugin and libsgx-dcap-default-qpl, name a PCCS in /etc/sgx_default_qcnl.conf, restart aesmd",
    ),
    said(
        "no FSGSBASE",
        &["requires support for FSGSBASE CPU instructions"],
        "the kernel does not let programs set their segment bases",
        "use Linux 5.9 or later; SGX asks for 5.11",
    ),
    code(
        "MBEDTLS_ERR_X509_FATAL_ERROR",
        -12288,
        "a verifier on Mbed TLS, such as Gramine's RA-TLS, refused the certificate: most often the quote in it",
        "read the quote verifier's message before this one; asymflow's own client names the check that failed",
    ),
    code(
        "SGX_QL_QUOTE_CERTIFICATION_DATA_UNSUPPORTED",
        0xe01c,
        "the quote carries no certificate chain of its platform, so nobody can verify it: when it was made, no certificate \
         was to be had",
        PCCS,
    ),
    code(
        "SGX_QL_ERROR_UNEXPECTED",
        0xe001,
        "the quoting library failed and does not say why",
        "look for SGX's devices with `cargo xtask doctor`; where they are there, add aesmd's user to the group sgx_prv and restart aesmd",
    ),
    code("SGX_QL_ERROR_INVALID_PARAMETER", 0xe002, "the quoting library was called with a bad argument", MATCHING),
    code("SGX_QL_ERROR_OUT_OF_MEMORY", 0xe003, "the quoting library found no memory", "free memory on the host"),
    code("SGX_QL_FILE_ACCESS_ERROR", 0xe006, "the stored attestation key cannot be read or written", RESTART),
    code("SGX_QL_ERROR_STORED_KEY", 0xe007, "the stored attestation key is not valid", RESTART),
    code("SGX_QL_ATT_KEY_BLOB_ERROR", 0xe00a, "the stored attestation key is damaged", RESTART),
    code(
        "SGX_QL_UNSUPPORTED_ATT_KEY_ID",
        0xe00b,
        "aesmd cannot make the kind of quote that was asked for",
        "install libsgx-aesm-ecdsa-plugin; where it is installed, add aesmd's user to the group sgx_prv, and restart aesmd",
    ),
    code("SGX_QL_INTERFACE_UNAVAILABLE", 0xe00d, "the provisioning enclave cannot be loaded", PROVISION),
    code(
        "SGX_QL_PLATFORM_LIB_UNAVAILABLE",
        0xe00e,
        "the library that fetches certificates is missing",
        "install libsgx-dcap-default-qpl and restart aesmd",
    ),
    code("SGX_QL_ATT_KEY_NOT_INITIALIZED", 0xe00f, "there is no certified attestation key yet", PCCS),
    code("SGX_QL_ATT_KEY_CERT_DATA_INVALID", 0xe010, "the platform's certificates are not valid", PCCS),
    code("SGX_QL_NO_PLATFORM_CERT_DATA", 0xe011, "nobody has certificates for this platform", REGISTER),
    code("SGX_QL_OUT_OF_EPC", 0xe012, "the protected memory is full", EPC),
    code("SGX_QL_ERROR_REPORT", 0xe013, "the enclave's report does not verify", MATCHING),
    code("SGX_QL_ENCLAVE_LOST", 0xe014, "the machine slept or was moved, and its enclaves are gone", RESTART),
    code("SGX_QL_INVALID_REPORT", 0xe015, "the enclave's report does not verify", MATCHING),
    code(
        "SGX_QL_ENCLAVE_LOAD_ERROR",
        0xe016,
        "the quoting enclave cannot be loaded, or this machine has no SGX",
        DEVICE,
    ),
    code("SGX_QL_KEY_CERTIFCATION_ERROR", 0xe018, "the PCCS answered for a newer platform than this one is", PCCS),
    code("SGX_QL_NETWORK_ERROR", 0xe019, "the PCCS cannot be reached", PCCS),
    code("SGX_QL_MESSAGE_ERROR", 0xe01a, "the PCCS answered something that is no certificate", PCCS),
    code("SGX_QL_NO_QUOTE_COLLATERAL_DATA", 0xe01b, "there is no collateral to verify the quote with", PCCS),
    code("SGX_QL_QUOTE_FORMAT_UNSUPPORTED", 0xe01d, "the bytes are no quote that the verifier reads", MATCHING),
    code(
        "SGX_QL_QE_REPORT_INVALID_SIGNATURE",
        0xe01f,
        "the signature on the quoting enclave's report is wrong",
        COLLATERAL,
    ),
    code("SGX_QL_PCK_CERT_CHAIN_ERROR", 0xe022, "the platform's certificate chain does not verify", COLLATERAL),
    code("SGX_QL_TCBINFO_MISMATCH", 0xe024, "quote and TCB info are of different platforms", COLLATERAL),
    code("SGX_QL_QEIDENTITY_MISMATCH", 0xe026, "the quoting enclave is not the one that Intel names", COLLATERAL),
    code("SGX_QL_TCB_OUT_OF_DATE", 0xe027, "the platform lacks security updates", PLATFORM_UPDATE),
    code(
        "SGX_QL_TCB_OUT_OF_DATE_CONFIGURATION_NEEDED",
        0xe028,
        "the platform lacks security updates and a safer configuration",
        PLATFORM_UPDATE,
    ),
    code("SGX_QL_SGX_TCB_INFO_EXPIRED", 0xe02c, "the TCB info has expired", REFRESH),
    code("SGX_QL_SGX_PCK_CERT_CHAIN_EXPIRED", 0xe02d, "the platform's certificate chain has expired", REFRESH),
    code("SGX_QL_SGX_CRL_EXPIRED", 0xe02e, "a revocation list has expired", REFRESH),
    code(
        "SGX_QL_SGX_SIGNING_CERT_CHAIN_EXPIRED",
        0xe02f,
        "the certificate chain of the collateral has expired",
        REFRESH,
    ),
    code("SGX_QL_SGX_ENCLAVE_IDENTITY_EXPIRED", 0xe030, "the quoting enclave's identity has expired", REFRESH),
    code("SGX_QL_PCK_REVOKED", 0xe031, "Intel has revoked the platform's certificate", "do not trust this platform"),
    code(
        "SGX_QL_TCB_REVOKED",
        0xe032,
        "Intel has revoked the platform's level",
        "do not trust this platform before it is updated",
    ),
    code(
        "SGX_QL_TCB_CONFIGURATION_NEEDED",
        0xe033,
        "the platform is up to date and configured less safely than Intel advises",
        "change the firmware's settings as the advisory says, or widen the client's policy knowingly",
    ),
    code("SGX_QL_UNABLE_TO_GET_COLLATERAL", 0xe034, "the collateral cannot be fetched", PCCS),
    code("SGX_QL_ERROR_INVALID_PRIVILEGE", 0xe035, "the user may not do this", PROVISION),
    code(
        "SGX_QL_TCB_SW_HARDENING_NEEDED",
        0xe03c,
        "the platform is up to date, and programs on it have to defend themselves against a known attack",
        "read the advisory and widen the client's policy knowingly",
    ),
    code(
        "SGX_QL_UNSUPPORTED_MODE",
        0xe03e,
        "the platform makes quotes in another process than the one that was asked",
        AESM,
    ),
    code("SGX_QL_NO_DEVICE", 0xe03f, "aesmd cannot open the SGX device", DEVICE),
    code("SGX_QL_SERVICE_UNAVAILABLE", 0xe040, "aesmd does not answer, or does not offer this", AESM),
    code("SGX_QL_NETWORK_FAILURE", 0xe041, "aesmd cannot reach the network", PCCS),
    code("SGX_QL_SERVICE_TIMEOUT", 0xe042, "aesmd did not answer in time", AESM),
    code("SGX_QL_ERROR_BUSY", 0xe043, "the service is busy", "try again"),
    code("SGX_QL_UNKNOWN_MESSAGE_RESPONSE", 0xe044, "the PCCS answered something unexpected", PCCS),
    code("SGX_QL_ERROR_MESSAGE_PARSING_ERROR", 0xe046, "the PCCS answered something that cannot be read", PCCS),
    code("SGX_QL_PLATFORM_UNKNOWN", 0xe047, "the PCCS does not know this platform", REGISTER),
    code("SGX_QL_UNKNOWN_API_VERSION", 0xe048, "the configured version of Intel's service is not known", PCCS),
    code("SGX_QL_CERTS_UNAVAILABLE", 0xe049, "Intel has no certificates for this platform", REGISTER),
    code(
        "SGX_QL_ROOT_CA_UNTRUSTED",
        0xe065,
        "the certificate of the PCCS is not trusted",
        "set `use_secure_cert` to false for a \
         PCCS with a certificate of its own on this machine, or install its certificate",
    ),
    code("SGX_QL_TCB_NOT_SUPPORTED", 0xe066, "the TCB info knows no level of this platform", REFRESH),
    code(
        "SGX_QL_CONFIG_INVALID_JSON",
        0xe067,
        "/etc/sgx_default_qcnl.conf is no valid JSON",
        "repair it, then restart aesmd",
    ),
    code("SGX_ERROR_ENCLAVE_LOST", 0x0004, "the machine slept or was moved, and its enclaves are gone", RESTART),
    code("SGX_ERROR_MEMORY_MAP_FAILURE", 0x000a, "no room in the address space for the enclave", EPC),
    code(
        "SGX_ERROR_OUT_OF_TCS",
        0x1003,
        "the enclave has more threads than it has room for",
        "render the manifest again with the true number of threads (sgx.max_threads)",
    ),
    code(
        "SGX_ERROR_ENCLAVE_CRASHED",
        0x1006,
        "the enclave crashed",
        "look for what it printed last, then start it again",
    ),
    code(
        "SGX_ERROR_INVALID_SIGNATURE",
        0x2003,
        "the enclave's signature is wrong",
        "sign it again: `cargo xtask enclave sign`",
    ),
    code(
        "SGX_ERROR_NDEBUG_ENCLAVE",
        0x2004,
        "a production enclave was started for debugging",
        "start it without a debugger",
    ),
    code("SGX_ERROR_OUT_OF_EPC", 0x2005, "the protected memory is full", EPC),
    code("SGX_ERROR_NO_DEVICE", 0x2006, "the SGX device cannot be opened", DEVICE),
    code("SGX_ERROR_DEVICE_BUSY", 0x200c, "the SGX device is busy", "try again"),
    code(
        "SGX_ERROR_MAC_MISMATCH",
        0x3001,
        "a report or sealed data do not verify",
        "use the machine and signer that made them",
    ),
    code("SGX_ERROR_INVALID_ATTRIBUTE", 0x3002, "the enclave may not have what it asks for", PROVISION),
    code("SGX_ERROR_SERVICE_UNAVAILABLE", 0x4001, "aesmd does not answer, or does not offer this", AESM),
    code("SGX_ERROR_SERVICE_TIMEOUT", 0x4002, "aesmd did not answer in time", AESM),
    code(
        "SGX_ERROR_SERVICE_INVALID_PRIVILEGE",
        0x4004,
        "an enclave that provisions may not open /dev/sgx_provision",
        PROVISION,
    ),
    code("SGX_ERROR_UPDATE_NEEDED", 0x4006, "the platform needs an update", PLATFORM_UPDATE),
    code("SGX_ERROR_NETWORK_FAILURE", 0x4007, "aesmd cannot reach the network", PCCS),
    code("SGX_ERROR_BUSY", 0x400a, "aesmd is busy", "try again"),
    code("SGX_ERROR_NO_PRIVILEGE", 0x5002, "the user may not do this", PROVISION),
    code("SGX_ERROR_UNSUPPORTED_ATT_KEY_ID", 0x8001, "aesmd cannot make the kind of quote that was asked for", PCCS),
    code("SGX_ERROR_ATT_KEY_CERTIFICATION_FAILURE", 0x8002, "the attestation key was not certified", PCCS),
    code("SGX_ERROR_ATT_KEY_UNINITIALIZED", 0x8003, "there is no certified attestation key yet", PCCS),
    code("SGX_ERROR_PLATFORM_CERT_UNAVAILABLE", 0x8005, "nobody has certificates for this platform", REGISTER),
];

/// What `text` means: a code as `0xe01c`, `57372` or `-12288`, a name with or without its prefix, or whatever a program has
/// printed.
pub fn explain(text: &str) -> Option<&'static Code> {
    let text = text.trim();
    if let Some(number) = number(text) {
        return CODES.iter().find(|code| code.number == number && number != NO_NUMBER);
    }
    if let Some(code) = CODES.iter().find(|code| code.phrases.iter().any(|phrase| text.contains(phrase))) {
        return Some(code);
    }
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-').find_map(explain_word)
}

/// Within other text a small number may be anything, so there only what looks like a code counts.
fn explain_word(word: &str) -> Option<&'static Code> {
    let named = |code: &&Code| {
        let name = code.name.strip_prefix("SGX_").unwrap_or(code.name);
        let bare = name.strip_prefix("QL_").or_else(|| name.strip_prefix("ERROR_")).unwrap_or(name);
        code.number != NO_NUMBER && [code.name, name, bare].iter().any(|known| known.eq_ignore_ascii_case(word))
    };
    let number = number(word).filter(|number| word.starts_with("0x") || number.abs() > 0xfff);
    let numbered = |code: &&Code| Some(code.number) == number;
    CODES.iter().find(|code| named(code) || numbered(code))
}

fn number(text: &str) -> Option<i64> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let hex = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let parsed = hex.map_or_else(|| digits.parse::<u32>().ok(), |hex| u32::from_str_radix(hex, 16).ok());
    parsed.map(|number| sign * i64::from(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> &'static str {
        explain(text).map_or("nothing", |code| code.name)
    }

    #[test]
    fn a_code_is_known_in_every_spelling() {
        for text in [
            "0xe01c",
            "0XE01C",
            "57372",
            " 57372\n",
            "quote failed 0xe01c.",
            "SGX_QL_QUOTE_CERTIFICATION_DATA_UNSUPPORTED",
        ] {
            assert_eq!(name(text), "SGX_QL_QUOTE_CERTIFICATION_DATA_UNSUPPORTED", "{text}");
        }
        assert_eq!(name("-12288"), "MBEDTLS_ERR_X509_FATAL_ERROR");
        assert_eq!(name("-0x3000"), "MBEDTLS_ERR_X509_FATAL_ERROR");
        assert_eq!(name("Last error was: -12288 - X509"), "MBEDTLS_ERR_X509_FATAL_ERROR");
        assert_eq!(name("enclave_lost"), "SGX_QL_ENCLAVE_LOST");
        assert_eq!(name("SGX_ERROR_ENCLAVE_LOST"), "SGX_ERROR_ENCLAVE_LOST");
        assert_eq!(name("0x4001"), "SGX_ERROR_SERVICE_UNAVAILABLE");
        assert_eq!(name("4"), "SGX_ERROR_ENCLAVE_LOST");
    }

    #[test]
    fn what_gramine_prints_is_known() {
        assert_eq!(name("error: Cannot open /dev/sgx_enclave. Please make sure"), "no SGX device");
        assert_eq!(name("error: AESM service returned error 46"), "AESM 46");
        let dcap = "error: AESM service returned error 44; this may indicate that infrastructure for the DCAP attestation \
                    requested by Gramine is missing on this machine";
        assert_eq!(name(dcap), "no DCAP");
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        for text in ["", "-1", "0", "0xe0ff", "0xffffffffff", "error 4 in line 10", "no DCAP", "-", "- 12288x"] {
            assert_eq!(name(text), "nothing", "{text}");
        }
    }

    #[test]
    fn every_entry_is_whole_and_found_by_its_number() {
        for code in CODES {
            assert!(!code.sentence.is_empty() && !code.fix.is_empty(), "{code:?}");
            assert_eq!(code.number == NO_NUMBER, !code.phrases.is_empty(), "{code:?}");
            match code.phrases.first() {
                Some(phrase) => assert_eq!(explain(phrase), Some(code)),
                None => assert_eq!(explain(&code.number.to_string()), Some(code)),
            }
        }
    }
}
