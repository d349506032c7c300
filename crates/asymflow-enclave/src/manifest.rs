//! Gramine's manifest, written from what is planned for the enclave.
//!
//! The text is a template for Gramine 1.9's `gramine-manifest`, which fills in where Gramine and the system's libraries lie
//! (`{{ … }}`). Everything else is settled here, so that nobody has to guess sizes and counts. Paths of the host are written
//! as they are given; relative ones are relative to the folder of the manifest, and only with those does the measurement
//! not depend on where that folder lies.
//!
//! ```rust
//! use asymflow_enclave::manifest::ManifestSpec;
//!
//! // Four threads compute, three wait, and 600 MiB are planned: an enclave of 2 GiB with eleven threads.
//! let manifest = ManifestSpec::new("asymflow-enclaved", 4, 3, 600 << 20).render().unwrap();
//! assert!(manifest.text().contains("sgx.enclave_size = \"2048M\"\nsgx.max_threads = 11\n"));
//! assert!(manifest.insecure().is_empty());
//! ```

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Threads that Gramine needs for itself: for interprocess messages, asynchronous events and its TLS handshakes.
const GRAMINE_THREADS: u32 = 3;
/// What Gramine and the libraries take besides the program's plan: an estimate, not yet measured on SGX.
const FIXED_BYTES: u64 = 128 << 20;
/// Stack, state save area and allocator of one thread: 2 MiB of stack and as much again.
const THREAD_BYTES: u64 = 4 << 20;
const ENCLAVE_MIN_BYTES: u64 = 256 << 20;
const ENCLAVE_MAX_BYTES: u64 = 1 << 40;
const THREADS_MAX: u32 = 4096;
/// Where the program lies inside.
const PROGRAM_FOLDER: &str = "/app";

/// The environment variable that tells the program which folders outlive it, separated by colons. What it writes anywhere else is
/// lost with the enclave.
pub const FOLDERS: &str = "ASYMFLOW_FOLDERS";

/// What the manifest is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ManifestFor {
    /// `gramine-sgx`.
    #[default]
    GramineSgx,
    /// `gramine-direct`, which protects nothing.
    GramineDirect,
}

/// Something that gives protection away. Only what is asked for by name is written, and whoever starts the enclave is told. In a
/// plan, the name: `debug-enclave`, or `fixed-key=` and the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum InsecureOption {
    /// Encrypted folders under a key in the manifest, 16 bytes as hexadecimal digits. Everybody who has the manifest can
    /// read them. `gramine-direct` has no other key.
    FixedKey(String),
    /// An enclave that a debugger can read.
    DebugEnclave,
}

impl TryFrom<String> for InsecureOption {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("fixed-key", key)) => Ok(Self::FixedKey(key.to_owned())),
            None if text == "debug-enclave" => Ok(Self::DebugEnclave),
            _ => Err(format!("{text:?} is no insecure option: there are debug-enclave and fixed-key=HEX")),
        }
    }
}

impl From<InsecureOption> for String {
    fn from(option: InsecureOption) -> Self {
        match option {
            InsecureOption::FixedKey(key) => format!("fixed-key={key}"),
            InsecureOption::DebugEnclave => "debug-enclave".to_owned(),
        }
    }
}

/// A file or folder of the host, and where it is inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Path on the host.
    pub host: String,
    /// Absolute path inside.
    pub path: String,
}

/// A file that the enclave refuses when it is not the measured one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustedFile {
    /// Where it is.
    #[serde(flatten)]
    pub mount: Mount,
    /// SHA-256 as hexadecimal digits; signing computes it where there is none.
    #[serde(default)]
    pub sha256: Option<String>,
}

/// What is planned for an enclave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestSpec {
    /// What the manifest is for.
    #[serde(default)]
    pub runtime: ManifestFor,
    /// The enclave program: its path on the host, and its hash.
    pub program: String,
    /// SHA-256 of the program as hexadecimal digits; signing computes it where there is none.
    #[serde(default)]
    pub program_sha256: Option<String>,
    /// Its arguments, without its name. They are measured.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// Its environment, besides what is always set. It is measured; nothing of the host's is passed on.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Threads that compute.
    pub compute_threads: u32,
    /// Threads that wait for clients, the worker and the disk.
    pub io_threads: u32,
    /// The most memory that the program is planned to hold at once, in bytes.
    pub peak_bytes: u64,
    /// How much more than planned it may need: 1.5 is half as much again.
    #[serde(default = "default_headroom")]
    pub headroom: f64,
    /// Files that are measured, such as the model.
    #[serde(default)]
    pub trusted_files: Vec<TrustedFile>,
    /// Folders whose files are all measured, such as data sets.
    #[serde(default)]
    pub trusted_folders: Vec<Mount>,
    /// Folders whose files the program seals itself. Gramine passes them through.
    #[serde(default)]
    pub sealed_folders: Vec<Mount>,
    /// Folders whose files Gramine encrypts, under the key of the signer. A program that mounts one seals its own files under
    /// the key of the enclave: one key must not serve both.
    #[serde(default)]
    pub encrypted_folders: Vec<Mount>,
    /// Names of objects in `/dev/shm` that are shared with the host.
    #[serde(default)]
    pub shared_memory: Vec<String>,
    /// Which product of the signer it is.
    #[serde(default)]
    pub isv_prod_id: u16,
    /// Its security version; a client can ask for at least so much.
    #[serde(default)]
    pub isv_svn: u16,
    /// Whether it can make DCAP quotes.
    #[serde(default = "default_attestation")]
    pub attestation: bool,
    /// What gives protection away.
    #[serde(default)]
    pub insecure: Vec<InsecureOption>,
}

fn default_headroom() -> f64 {
    1.5
}

fn default_attestation() -> bool {
    true
}

/// A plan that makes no manifest.
#[derive(Debug, PartialEq, Error)]
pub enum ManifestError {
    /// A path that has to be absolute and is not, or that leaves its folder.
    #[error("{path:?} is no absolute path without `..`")]
    Path {
        /// The path.
        path: String,
    },
    /// Two things at one place inside.
    #[error("two things are mounted at {path:?}")]
    Twice {
        /// The place.
        path: String,
    },
    /// A file that is to be measured, in a folder whose files are not.
    #[error("{file:?} lies in {folder:?}, whose files the host may change")]
    Unmeasured {
        /// The folder.
        folder: String,
        /// The file.
        file: String,
    },
    /// A name that is no name of a program, a variable or a shared object.
    #[error("{name:?} is no {what}")]
    Name {
        /// What it should name.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A character that no path, argument or variable can hold.
    #[error("{text:?} contains a zero character")]
    Zero {
        /// The text.
        text: String,
    },
    /// Something that is no hexadecimal number of the right length.
    #[error("{what} {text:?} is not {digits} hexadecimal digits")]
    Hex {
        /// What it should be.
        what: &'static str,
        /// The text.
        text: String,
        /// How many digits it should have.
        digits: usize,
    },
    /// A headroom that is none.
    #[error("headroom {0} is not between 1 and 16")]
    Headroom(f64),
    /// An enclave that nothing can hold.
    #[error("an enclave for {peak_bytes} bytes is larger than {limit_bytes}")]
    TooLarge {
        /// What is planned.
        peak_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// More threads than make sense, or none that compute.
    #[error("{found} threads are not between 1 and {limit}")]
    Threads {
        /// How many there would be.
        found: u64,
        /// The limit.
        limit: u32,
    },
    /// `gramine-direct` has no key for an encrypted folder.
    #[error("gramine-direct has no key of its own for encrypted folders; ask for the insecure option fixed-key")]
    NoKey,
}

/// A manifest template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    text: String,
    insecure: Vec<&'static str>,
}

impl Manifest {
    /// The text of the template.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What gives protection away, to be told to whoever starts the enclave. Empty where nothing was asked for.
    pub fn insecure(&self) -> &[&'static str] {
        &self.insecure
    }
}

impl ManifestSpec {
    /// A plan with the defaults for the rest.
    pub fn new(program: impl Into<String>, compute_threads: u32, io_threads: u32, peak_bytes: u64) -> Self {
        Self {
            runtime: ManifestFor::default(),
            program: program.into(),
            program_sha256: None,
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            compute_threads,
            io_threads,
            peak_bytes,
            headroom: default_headroom(),
            trusted_files: Vec::new(),
            trusted_folders: Vec::new(),
            sealed_folders: Vec::new(),
            encrypted_folders: Vec::new(),
            shared_memory: Vec::new(),
            isv_prod_id: 0,
            isv_svn: 0,
            attestation: default_attestation(),
            insecure: Vec::new(),
        }
    }

    /// The template.
    ///
    /// # Errors
    /// The plan contradicts itself, or names something that cannot be.
    pub fn render(&self) -> Result<Manifest, ManifestError> {
        self.check()?;
        let program = self.program_path()?;
        let mut text = String::from("# Written by asymflow for gramine-manifest 1.9.\n");
        self.write_loader(&mut text, &program);
        self.write_files(&mut text, &program)?;
        self.write_enclave(&mut text, &program)?;
        let insecure = self.insecure.iter().map(|option| match option {
            InsecureOption::FixedKey(_) => "fixed-key: whoever has the manifest can read the encrypted folders",
            InsecureOption::DebugEnclave => "debug-enclave: the host can read the enclave's memory",
        });
        Ok(Manifest { text, insecure: insecure.collect() })
    }

    /// Bytes of the enclave: a power of two, as SGX wants it.
    ///
    /// # Errors
    /// The headroom is none, or the enclave would be larger than anything can hold.
    pub fn enclave_bytes(&self) -> Result<u64, ManifestError> {
        if !(1.0..=16.0).contains(&self.headroom) {
            return Err(ManifestError::Headroom(self.headroom));
        }
        let too_large = ManifestError::TooLarge { peak_bytes: self.peak_bytes, limit_bytes: ENCLAVE_MAX_BYTES };
        if self.peak_bytes > ENCLAVE_MAX_BYTES {
            return Err(too_large);
        }
        let planned = (self.peak_bytes as f64 * self.headroom).ceil() as u64;
        let bytes = planned + FIXED_BYTES + u64::from(self.threads()?) * THREAD_BYTES;
        let bytes = bytes.next_power_of_two().max(ENCLAVE_MIN_BYTES);
        if bytes > ENCLAVE_MAX_BYTES { Err(too_large) } else { Ok(bytes) }
    }

    /// All threads in the enclave: the main one, Gramine's, and those of the program.
    ///
    /// # Errors
    /// None computes, or there are too many.
    pub fn threads(&self) -> Result<u32, ManifestError> {
        let found = 1 + u64::from(GRAMINE_THREADS) + u64::from(self.compute_threads) + u64::from(self.io_threads);
        match u32::try_from(found) {
            Ok(threads) if threads <= THREADS_MAX && self.compute_threads > 0 => Ok(threads),
            _ => Err(ManifestError::Threads { found, limit: THREADS_MAX }),
        }
    }

    fn program_path(&self) -> Result<String, ManifestError> {
        let name = self.program.rsplit('/').next().unwrap_or_default();
        match name {
            "" | "." | ".." => Err(ManifestError::Name { what: "program", name: self.program.clone() }),
            name => Ok(format!("{PROGRAM_FOLDER}/{name}")),
        }
    }

    fn mounts(&self) -> impl Iterator<Item = &Mount> {
        let files = self.trusted_files.iter().map(|file| &file.mount);
        files.chain(&self.trusted_folders).chain(&self.sealed_folders).chain(&self.encrypted_folders)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let mut taken = vec![self.program_path()?, "/tmp".into(), "/lib".into()];
        for mount in self.mounts() {
            let mut parts = mount.path.split('/');
            let is_absolute =
                mount.path.len() > 1 && parts.next() == Some("") && parts.all(|part| !matches!(part, "" | "." | ".."));
            if !is_absolute || mount.host.is_empty() {
                return Err(ManifestError::Path { path: mount.path.clone() });
            }
            if taken.contains(&mount.path) {
                return Err(ManifestError::Twice { path: mount.path.clone() });
            }
            taken.push(mount.path.clone());
        }
        self.check_overlap()?;
        let is_word = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        if let Some(name) = self.environment.keys().find(|name| !is_word(name)) {
            return Err(ManifestError::Name { what: "variable", name: name.clone() });
        }
        let is_object = |name: &str| !matches!(name, "" | "." | "..") && !name.contains('/');
        if let Some(name) = self.shared_memory.iter().find(|name| !is_object(name)) {
            return Err(ManifestError::Name { what: "shared memory object", name: name.clone() });
        }
        let texts = self.arguments.iter().chain(self.environment.values()).chain(&self.shared_memory);
        let paths = self.mounts().flat_map(|mount| [&mount.host, &mount.path]);
        match texts.chain(paths).chain([&self.program]).find(|text| text.contains('\0')) {
            Some(text) => Err(ManifestError::Zero { text: text.clone() }),
            None => self.check_hex(),
        }
    }

    /// What lies in a folder that is passed through is not measured, so nothing that is to be measured may lie there.
    fn check_overlap(&self) -> Result<(), ManifestError> {
        for folder in &self.sealed_folders {
            let above = folder.host.trim_end_matches('/').trim_start_matches("./");
            let folders = self.trusted_folders.iter().map(|folder| &folder.host);
            let mut files =
                self.trusted_files.iter().map(|file| &file.mount.host).chain(folders).chain([&self.program]);
            let lies_in = |file: &&String| {
                file.trim_start_matches("./").strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
            };
            let file = match above {
                "" | "." | ".." => Some(&self.program),
                _ => files.find(lies_in),
            };
            if let Some(file) = file {
                return Err(ManifestError::Unmeasured { folder: folder.host.clone(), file: file.clone() });
            }
        }
        Ok(())
    }

    fn check_hex(&self) -> Result<(), ManifestError> {
        let is_hex = |text: &str, digits| text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let hashes = self.trusted_files.iter().map(|file| &file.sha256).chain([&self.program_sha256]).flatten();
        let mut hashes = hashes.filter(|text| !is_hex(text, 64));
        if let Some(text) = hashes.next() {
            return Err(ManifestError::Hex { what: "SHA-256", text: text.clone(), digits: 64 });
        }
        match self.fixed_key().filter(|key| !is_hex(key, 32)) {
            Some(key) => Err(ManifestError::Hex { what: "key", text: key.to_owned(), digits: 32 }),
            None => Ok(()),
        }
    }

    fn fixed_key(&self) -> Option<&str> {
        self.insecure.iter().find_map(|option| match option {
            InsecureOption::FixedKey(key) => Some(key.as_str()),
            InsecureOption::DebugEnclave => None,
        })
    }

    fn write_loader(&self, text: &mut String, program: &str) {
        let name = program.rsplit('/').next().unwrap_or_default();
        let arguments = std::iter::once(name).chain(self.arguments.iter().map(String::as_str)).map(quoted);
        line(text, "loader.entrypoint.uri", r#""file:{{ gramine.libos }}""#);
        line(text, "libos.entrypoint", &quoted(program));
        line(text, "loader.argv", &format!("[{}]", arguments.collect::<Vec<_>>().join(", ")));
        let mut environment = BTreeMap::from([
            ("LD_LIBRARY_PATH", r#""/lib:{{ arch_libdir }}""#.to_owned()),
            // One arena: glibc reserves 64 MiB for every further one, and enclave memory is committed.
            ("MALLOC_ARENA_MAX", quoted("1")),
            ("RAYON_NUM_THREADS", quoted(&self.compute_threads.to_string())),
        ]);
        let kept: Vec<&str> =
            self.sealed_folders.iter().chain(&self.encrypted_folders).map(|m| m.path.as_str()).collect();
        if !kept.is_empty() {
            environment.insert(FOLDERS, quoted(&kept.join(":")));
        }
        environment.extend(self.environment.iter().map(|(name, value)| (name.as_str(), quoted(value))));
        environment.iter().for_each(|(name, value)| line(text, &format!("loader.env.{name}"), value));
        // More would tell the host what the program does.
        line(text, "loader.log_level", &quoted("error"));
        line(text, "sys.stack.size", &quoted("2M"));
        line(text, "sys.disallow_subprocesses", "true");
        line(text, "sys.enable_sigterm_injection", "true");
    }

    fn write_files(&self, text: &mut String, program: &str) -> Result<(), ManifestError> {
        let key = match (self.fixed_key(), self.runtime) {
            _ if self.encrypted_folders.is_empty() => "",
            (Some(_), _) => "default",
            (None, ManifestFor::GramineSgx) => "_sgx_mrsigner",
            (None, ManifestFor::GramineDirect) => return Err(ManifestError::NoKey),
        };
        let mount = |host: &str, path: &str| format!("{{ path = {}, uri = {} }}", quoted(path), uri(host));
        let mut mounts = vec![
            r#"{ path = "/lib", uri = "file:{{ gramine.runtimedir() }}" }"#.to_owned(),
            r#"{ path = "{{ arch_libdir }}", uri = "file:{{ arch_libdir }}" }"#.to_owned(),
            mount(&self.program, program),
            r#"{ type = "tmpfs", path = "/tmp" }"#.to_owned(),
        ];
        mounts.extend(self.trusted_files.iter().map(|file| mount(&file.mount.host, &file.mount.path)));
        mounts.extend(self.trusted_folders.iter().map(|folder| mount(&folder.host, &folder.path)));
        mounts.extend(self.sealed_folders.iter().map(|folder| mount(&folder.host, &folder.path)));
        mounts.extend(self.encrypted_folders.iter().map(|folder| {
            let (path, uri, key) = (quoted(&folder.path), uri(&folder.host), quoted(key));
            format!(r#"{{ type = "encrypted", path = {path}, uri = {uri}, key_name = {key} }}"#)
        }));
        if !self.shared_memory.is_empty() {
            mounts.push(r#"{ type = "untrusted_shm", path = "/dev/shm", uri = "dev:/dev/shm" }"#.to_owned());
        }
        // Without this Gramine shows the folder of the manifest.
        line(text, "fs.root", r#"{ type = "tmpfs" }"#);
        list(text, "fs.mounts", &mounts);
        if let Some(key) = self.fixed_key() {
            line(text, "fs.insecure__keys.default", &quoted(&key.to_lowercase()));
        }
        Ok(())
    }

    fn write_enclave(&self, text: &mut String, program: &str) -> Result<(), ManifestError> {
        line(text, "sgx.enclave_size", &quoted(&format!("{}M", self.enclave_bytes()? >> 20)));
        line(text, "sgx.max_threads", &self.threads()?.to_string());
        line(text, "sgx.debug", &self.insecure.contains(&InsecureOption::DebugEnclave).to_string());
        line(text, "sgx.isvprodid", &self.isv_prod_id.to_string());
        line(text, "sgx.isvsvn", &self.isv_svn.to_string());
        if self.attestation && self.runtime == ManifestFor::GramineSgx {
            line(text, "sgx.remote_attestation", &quoted("dcap"));
        }
        line(text, "sgx.file_check_policy", &quoted("strict"));
        let program = TrustedFile {
            mount: Mount { host: self.program.clone(), path: program.to_owned() },
            sha256: self.program_sha256.clone(),
        };
        let mut trusted: Vec<String> =
            ["libos }}", "runtimedir() }}/"].map(|at| format!(r#""file:{{{{ gramine.{at}""#)).into();
        trusted.push(r#""file:{{ arch_libdir }}/libgcc_s.so.1""#.to_owned());
        trusted.extend(std::iter::once(&program).chain(&self.trusted_files).map(trusted_file));
        let folder_uri = |folder: &Mount| uri(&format!("{}/", folder.host.trim_end_matches('/')));
        trusted.extend(self.trusted_folders.iter().map(folder_uri));
        list(text, "sgx.trusted_files", &trusted);
        let folders = self.sealed_folders.iter().map(folder_uri);
        let objects = self.shared_memory.iter().map(|name| quoted(&format!("dev:/dev/shm/{name}")));
        let allowed: Vec<String> = folders.chain(objects).collect();
        if !allowed.is_empty() {
            list(text, "sgx.allowed_files", &allowed);
        }
        Ok(())
    }
}

fn trusted_file(file: &TrustedFile) -> String {
    let uri = uri(&file.mount.host);
    match &file.sha256 {
        Some(hash) => format!("{{ uri = {uri}, sha256 = {} }}", quoted(&hash.to_lowercase())),
        None => uri,
    }
}

fn uri(host: &str) -> String {
    quoted(&format!("file:{host}"))
}

fn line(text: &mut String, key: &str, value: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{key} = {value}");
}

fn list(text: &mut String, key: &str, items: &[String]) {
    let items: String = items.iter().map(|item| format!("  {item},\n")).collect();
    line(text, key, &format!("[\n{items}]"));
}

/// A TOML string. Braces, `%` and `#` are escaped as well: the template engine must not see an instruction in a file name.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' | '{' | '}' | '%' | '#' => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out + "\""
}
