//! SGX and Gramine: what an attested enclave needs; without it the enclave is simulated.

use super::finding::Finding;
use crate::enclave::codes;
use crate::enclave::probe::{Machine, Need, Probe};
use crate::failure::Failure;

/// Everything that an attested enclave needs.
pub fn findings() -> Vec<Finding> {
    Machine::this().probe().into_iter().map(finding).collect()
}

fn finding(probe: Probe) -> Finding {
    match probe.fix {
        None => Finding::ok(probe.what, probe.detail),
        Some(fix) => {
            let need = match probe.need {
                Need::Run => "an SGX enclave",
                Need::Attest => "quotes",
                Need::Direct => "Gramine without SGX",
                Need::Sign => "manifests and signatures",
                Need::Grow => "sgx.edmm_enable",
            };
            Finding::missing(probe.what, format!("{}; needed for {need}", probe.detail), fix)
        }
    }
}

/// What an error code or message of SGX means, and what to do about it.
pub fn explain(text: &str) -> Result<String, Failure> {
    match codes::explain(text) {
        Some(code) => Ok(shown(code)),
        None => Err(Failure::Usage(format!(
            "{text:?} is no code or message that is known here\n\
             help: give a number such as 0xe01c or 57372, a name such as SGX_QL_ENCLAVE_LOST, or the whole line"
        ))),
    }
}

/// A code as two lines.
pub fn shown(code: &codes::Code) -> String {
    let number = match code.number {
        ..0 => String::new(),
        number => format!(" ({number:#x}, {number})"),
    };
    format!("{}{number}: {}\nhelp: {}\n", code.name, code.sentence, code.fix)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    #[test]
    fn what_is_missing_says_what_it_is_needed_for() {
        let probe = Probe { what: "PCCS", need: Need::Attest, detail: "no file".into(), fix: Some("make one") };
        let finding = finding(probe);
        assert_eq!((finding.status, finding.detail.as_str()), (Status::Missing, "no file; needed for quotes"));
        assert_eq!(finding.fix.as_deref(), Some("make one"));
    }

    #[test]
    fn a_code_is_explained_in_two_lines() {
        let text = explain("57372").expect("it is known");
        assert!(text.starts_with("SGX_QL_QUOTE_CERTIFICATION_DATA_UNSUPPORTED (0xe01c, 57372): the quote"), "{text}");
        assert!(text.contains("\nhelp: name a reachable PCCS"), "{text}");
        assert!(matches!(explain("0xdead"), Err(Failure::Usage(_))));
    }
}
