//! What this machine lacks for enclaves, and how to get it.
//!
//! `cargo xtask doctor` includes this file, so it uses the standard library and nothing else.

use std::ffi::OsString;
use std::path::PathBuf;

const AESM_SOCKET: &str = "var/run/aesmd/aesm.socket";
const PCCS_CONFIG: &str = "etc/sgx_default_qcnl.conf";
/// The first kernel with the driver, and the first that lets an enclave grow.
const LINUX_WITH_SGX: (u32, u32) = (5, 11);
const LINUX_WITH_EDMM: (u32, u32) = (6, 0);
const INSTALL_GRAMINE: &str =
    "install Gramine 1.9 from packages.gramineproject.io; docs/how-to/run-on-sgx.md has the commands";

/// What something is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To run an enclave.
    Run,
    /// To prove to a client what it is.
    Attest,
    /// To try the enclave program under Gramine, without SGX.
    Direct,
    /// To render and sign a manifest, which takes no SGX.
    Sign,
    /// To let an enclave take its memory bit by bit.
    Grow,
}

/// One thing, and whether it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Its name.
    pub what: &'static str,
    /// What it is needed for.
    pub need: Need,
    /// What was found or not found.
    pub detail: String,
    /// How to get it, where it is missing.
    pub fix: Option<&'static str>,
}

/// Where to look: the root of the file system, and the folders of PATH.
#[derive(Clone, Debug)]
pub struct Machine {
    /// `/`, or a folder that stands for it.
    pub root: PathBuf,
    /// The value of PATH.
    pub path: OsString,
}

impl Machine {
    /// The machine that this runs on.
    pub fn this() -> Self {
        Self { root: "/".into(), path: std::env::var_os("PATH").unwrap_or_default() }
    }

    /// Everything that an attested enclave needs, in the order in which it is best looked after.
    pub fn probe(&self) -> Vec<Probe> {
        vec![
            self.cpu(),
            self.launch_control(),
            self.device("SGX driver", "dev/sgx_enclave", Need::Run),
            self.kernel("Linux for SGX", LINUX_WITH_SGX, Need::Run, "use Linux 5.11 or later"),
            self.program("gramine-sgx", Need::Run),
            self.program("gramine-direct", Need::Direct),
            self.program("gramine-manifest", Need::Sign),
            self.program("gramine-sgx-sign", Need::Sign),
            self.program("gramine-sgx-sigstruct-view", Need::Sign),
            self.device("SGX provisioning", "dev/sgx_provision", Need::Attest),
            self.aesm(),
            self.pccs(),
            self.kernel(
                "Linux for EDMM",
                LINUX_WITH_EDMM,
                Need::Grow,
                "use Linux 6.0 or later, or leave sgx.edmm_enable off",
            ),
        ]
    }

    /// The first thing that is missing for one of `needs`.
    pub fn first_missing(&self, needs: &[Need]) -> Option<Probe> {
        self.probe().into_iter().find(|probe| probe.fix.is_some() && needs.contains(&probe.need))
    }

    fn cpu(&self) -> Probe {
        let fix = "use a processor with SGX, and switch SGX on in the firmware";
        probe("SGX", Need::Run, self.has_cpu_flag("sgx"), "CPU flag sgx", "the CPU does not offer it", fix)
    }

    fn launch_control(&self) -> Probe {
        let fix = "switch SGX launch control to unlocked in the firmware; Linux's driver takes no processor without it";
        probe(
            "SGX launch control",
            Need::Run,
            self.has_cpu_flag("sgx_lc"),
            "CPU flag sgx_lc",
            "the CPU does not offer it",
            fix,
        )
    }

    fn device(&self, what: &'static str, path: &str, need: Need) -> Probe {
        let fix = "use Linux 5.11 or later with CONFIG_X86_SGX, and map the device into the container if this is one";
        self.file(what, path, need, fix)
    }

    fn aesm(&self) -> Probe {
        self.file("AESM", AESM_SOCKET, Need::Attest, "start aesmd (package sgx-aesm-service); quotes need it")
    }

    fn pccs(&self) -> Probe {
        let fix = "install libsgx-dcap-default-qpl and name a PCCS in this file; quotes need its certificates";
        self.file("PCCS", PCCS_CONFIG, Need::Attest, fix)
    }

    fn kernel(&self, what: &'static str, least: (u32, u32), need: Need, fix: &'static str) -> Probe {
        let release = std::fs::read_to_string(self.root.join("proc/sys/kernel/osrelease")).unwrap_or_default();
        let found = format!("Linux {}", release.trim());
        probe(what, need, version(&release) >= Some(least), &found, &found, fix)
    }

    fn program(&self, name: &'static str, need: Need) -> Probe {
        let found = std::env::split_paths(&self.path).map(|folder| folder.join(name)).find(|path| path.is_file());
        let shown = found.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        probe(name, need, found.is_some(), &shown, "not on PATH", INSTALL_GRAMINE)
    }

    fn file(&self, what: &'static str, path: &str, need: Need, fix: &'static str) -> Probe {
        let is_there = self.root.join(path).exists();
        probe(what, need, is_there, &format!("/{path}"), &format!("no /{path}"), fix)
    }

    fn has_cpu_flag(&self, wanted: &str) -> bool {
        let text = std::fs::read_to_string(self.root.join("proc/cpuinfo")).unwrap_or_default();
        let flags = text.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| name.trim() == "flags");
        flags.is_some_and(|(_, flags)| flags.split_whitespace().any(|flag| flag == wanted))
    }
}

fn probe(what: &'static str, need: Need, is_there: bool, found: &str, not_found: &str, fix: &'static str) -> Probe {
    let detail = if is_there { found } else { not_found };
    Probe { what, need, detail: detail.to_owned(), fix: (!is_there).then_some(fix) }
}

/// The first two numbers of a release such as `6.1.0-13-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &std::path::Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// What is missing in a made-up machine.
    fn missing(files: &[(&str, &str)]) -> Vec<&'static str> {
        let root = tempfile::tempdir().unwrap();
        files.iter().for_each(|(path, text)| write(root.path(), path, text));
        let machine = Machine { root: root.path().to_owned(), path: root.path().join("bin").into() };
        machine.probe().into_iter().filter(|probe| probe.fix.is_some()).map(|probe| probe.what).collect()
    }

    const WHOLE: [(&str, &str); 11] = [
        ("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu sgx sgx_lc\n"),
        ("proc/sys/kernel/osrelease", "6.1.0-13-amd64\n"),
        ("dev/sgx_enclave", ""),
        ("dev/sgx_provision", ""),
        ("bin/gramine-sgx", ""),
        ("bin/gramine-direct", ""),
        ("bin/gramine-manifest", ""),
        ("bin/gramine-sgx-sign", ""),
        ("bin/gramine-sgx-sigstruct-view", ""),
        ("var/run/aesmd/aesm.socket", ""),
        ("etc/sgx_default_qcnl.conf", "{}"),
    ];

    #[test]
    fn a_whole_machine_lacks_nothing_and_each_file_is_missed() {
        assert_eq!(missing(&WHOLE), [""; 0]);
        for (index, (path, _)) in WHOLE.iter().enumerate() {
            let without: Vec<_> =
                WHOLE.iter().enumerate().filter(|(i, _)| *i != index).map(|(_, file)| *file).collect();
            assert!(!missing(&without).is_empty(), "{path}");
        }
        assert_eq!(missing(&WHOLE[1..]), ["SGX", "SGX launch control"]);
        assert_eq!(missing(&WHOLE[..10]), ["PCCS"]);
    }

    #[test]
    fn old_kernels_are_told_apart() {
        let with = |release: &'static str| {
            let mut files = WHOLE;
            files[1].1 = release;
            missing(&files)
        };
        assert_eq!(with("5.10.0-8-amd64"), ["Linux for SGX", "Linux for EDMM"]);
        assert_eq!(with("5.15.0"), ["Linux for EDMM"]);
        assert_eq!(with("6.18.44-fc-v657"), [""; 0]);
        assert_eq!(with("what"), ["Linux for SGX", "Linux for EDMM"]);
    }

    #[test]
    fn what_is_needed_first_is_named_first() {
        let machine = Machine { root: "no-such-folder".into(), path: OsString::new() };
        assert_eq!(machine.first_missing(&[Need::Run]).unwrap().what, "SGX");
        assert_eq!(machine.first_missing(&[Need::Direct]).unwrap().what, "gramine-direct");
        assert_eq!(machine.first_missing(&[]), None);
    }
}
