//! SGX and Gramine.

use std::path::Path;

use super::Finding;
use super::probe::cpu_flags;
use crate::process;

const AESM_SOCKET: &str = "/var/run/aesmd/aesm.socket";
const SGX_DEVICES: [&str; 2] = ["/dev/sgx_enclave", "/dev/sgx/enclave"];

/// What an attested enclave needs; without it the enclave is simulated.
pub fn findings() -> Vec<Finding> {
    vec![sgx(), aesm(), gramine()]
}

fn sgx() -> Finding {
    let device = SGX_DEVICES.iter().find(|path| Path::new(path).exists());
    sgx_finding(cpu_flags().iter().any(|flag| flag == "sgx"), device.copied())
}

fn sgx_finding(has_flag: bool, device: Option<&str>) -> Finding {
    match (has_flag, device) {
        (true, Some(device)) => Finding::ok("SGX", format!("CPU flag and {device}")),
        (true, None) => Finding::missing(
            "SGX",
            "the CPU has it, but there is no /dev/sgx_enclave",
            "use Linux 5.11 or later, and map the device into the container if this is one",
        ),
        (false, _) => Finding::missing(
            "SGX",
            "the CPU does not offer it: the enclave is simulated",
            "use a machine with SGX, switched on in the firmware, for attested results",
        ),
    }
}

fn aesm() -> Finding {
    if Path::new(AESM_SOCKET).exists() {
        return Finding::ok("AESM", AESM_SOCKET);
    }
    Finding::missing("AESM", format!("no {AESM_SOCKET}"), "start aesmd (package sgx-aesm-service); quotes need it")
}

fn gramine() -> Finding {
    match process::find_program("gramine-sgx").or_else(|| process::find_program("gramine-direct")) {
        Some(path) => Finding::ok("Gramine", path.display().to_string()),
        None => Finding::missing(
            "Gramine",
            "gramine-sgx is not on PATH",
            "install Gramine 1.8 or later; without it the enclave is simulated",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn sgx_needs_the_processor_and_the_driver() {
        assert_eq!(sgx_finding(true, Some("/dev/sgx_enclave")).status, Status::Ok);
        assert!(sgx_finding(true, None).fix.is_some_and(|fix| fix.contains("5.11")));
        assert!(sgx_finding(false, None).fix.is_some_and(|fix| fix.contains("firmware")));
    }
}
