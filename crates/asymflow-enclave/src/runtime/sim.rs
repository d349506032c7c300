//! The simulated runtime: an ordinary child process.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::gramine::Session;
use super::launch::{Availability, EnclaveSpec, LaunchError, TrustedRuntime, TrustedSession};
use crate::Assurance;

/// Runs the enclave program as a child process, with its standard input and output as the streams.
///
/// It has the same interface, memory layout and messages as an enclave and none of the protection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sim;

impl TrustedRuntime for Sim {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn probe(&self) -> Availability {
        Availability::Ready
    }

    fn assurance(&self) -> Assurance {
        Assurance::Simulated
    }

    fn launch(&self, spec: &EnclaveSpec) -> Result<Box<dyn TrustedSession>, LaunchError> {
        let child = Command::new(&spec.program)
            .args(&spec.arguments)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .envs(spec.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A Ctrl-C at the terminal is for the host, which tells the program to stop in its own words.
            .process_group(0)
            .spawn()
            .map_err(|error| LaunchError::Start { program: spec.program.clone(), error })?;
        Ok(Box::new(Session { child, listener: None }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named() {
        let error = Sim.launch(&EnclaveSpec::new("no-such-enclave-program")).unwrap_err();
        assert!(error.to_string().starts_with("cannot start no-such-enclave-program: "), "{error}");
    }

    #[test]
    fn the_host_environment_stays_outside() {
        let mut spec = EnclaveSpec::new("env");
        spec.environment.push(("GIVEN".into(), "1".into()));
        let mut session = Sim.launch(&spec).unwrap();
        let (_, mut from) = session.streams().unwrap();
        let mut heard = String::new();
        std::io::Read::read_to_string(&mut from, &mut heard).unwrap();
        let mut names: Vec<_> = heard.lines().filter_map(|l| l.split('=').next()).collect();
        names.sort_unstable();
        assert_eq!(names, ["GIVEN", "PATH"]);
    }
}
