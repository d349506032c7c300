//! `cargo xtask enclave`: the manifest of an enclave, its signature and measurement, and starting it.

// One table and one set of probes for the crate and for this program, which may use none of our crates.
#[path = "../../crates/asymflow-enclave/src/codes.rs"]
pub mod codes;
mod plan;
#[path = "../../crates/asymflow-enclave/src/probe.rs"]
pub mod probe;

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};

use crate::binaries::{self, ENCLAVED};
use crate::doctor::trusted;
use crate::failure::{FAILED, Failure};
use crate::process;
use crate::workspace::Workspace;
use plan::Staged;
use probe::{Machine, Need};

/// The crate and the program that write manifests.
const ENCLAVE: &str = "asymflow-enclave";
const MANIFEST_WRITER: &str = "asymflow-manifest";
const HOST_TOOLS: &str = "host-tools";
/// The first argument of a program that answers clients, whose memory can be planned from its other arguments.
const SERVE: &str = "serve";
/// What a program for jobs, which come later, is planned to hold at once.
const JOB_PEAK_MIB: u64 = 1024;

/// How large an enclave has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    threads: usize,
    peak_bytes: u64,
}

/// Subcommands of `enclave`.
#[derive(Debug, Subcommand)]
pub enum EnclaveCommand {
    /// Build the enclave program and write its manifest template; needs no Gramine
    Manifest(PlanArgs),
    /// Fill in and sign the manifest that was written; needs Gramine, and no SGX
    Sign(SignArgs),
    /// Print MRENCLAVE and MRSIGNER of the signed manifest, for clients to pin
    Measure(FolderArgs),
    /// Build, write the manifest, sign it where that is needed, and start the enclave program
    Run(RunArgs),
}

/// Where everything of an enclave lies.
#[derive(Debug, Args)]
pub struct FolderArgs {
    /// Folder of the manifest and of everything it names
    #[arg(long, value_name = "DIR", default_value = "target/enclave")]
    folder: PathBuf,
}

/// How to run the enclave program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Runtime {
    /// An ordinary process: protects nothing
    Sim,
    /// Under Gramine without SGX: protects nothing
    GramineDirect,
    /// In an SGX enclave
    GramineSgx,
}

/// What is planned for the enclave.
#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// What the program runs under
    #[arg(long, value_enum, default_value = "gramine-sgx")]
    runtime: Runtime,
    /// Threads that compute; as many as the arguments plan without this, or all cores
    #[arg(long, value_name = "N")]
    threads: Option<u32>,
    /// Threads that wait for clients, the worker and the disk
    #[arg(long, value_name = "N", default_value_t = 16)]
    io_threads: u32,
    /// The most memory that the program holds at once, in MiB; without this what it plans for `serve` with these arguments,
    /// and 1024 for jobs
    #[arg(long, value_name = "MIB")]
    peak_mib: Option<u64>,
    /// Folder with data for jobs, every file of which is measured; may be given often
    #[arg(long, value_name = "DIR")]
    data: Vec<PathBuf>,
    /// Folder in which the program keeps sealed files, such as that of the runs for `trusted.seal`; may be given often
    #[arg(long, value_name = "DIR")]
    sealed: Vec<PathBuf>,
    /// Folder whose files Gramine encrypts; may be given often
    #[arg(long, value_name = "DIR")]
    encrypted: Vec<PathBuf>,
    /// Object in /dev/shm that the enclave shares with the host, as a worker's `--shm` names it
    #[arg(long, value_name = "NAME")]
    shared_memory: Vec<String>,
    /// Security version of the enclave
    #[arg(long, value_name = "N", default_value_t = 0)]
    isv_svn: u16,
    /// Give protection away by name: `debug-enclave`, or `fixed-key=HEX` for encrypted folders that whoever has the manifest
    /// can read
    #[arg(long, value_name = "OPTION")]
    insecure: Vec<String>,
    /// Arguments of the enclave program. A flag's value that names a file becomes a measured file, one that names a folder
    /// becomes a folder for sealed files, and both are given as they are called inside
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
}

/// Arguments of `sign`.
#[derive(Debug, Args)]
pub struct SignArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// RSA-3072 key of the signer; without it Gramine's, which `gramine-sgx-gen-private-key` makes
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    plan: PlanArgs,
    /// RSA-3072 key of the signer; without it Gramine's, which `gramine-sgx-gen-private-key` makes
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

pub fn run(workspace: &Workspace, command: &EnclaveCommand) -> Result<u8> {
    match command {
        EnclaveCommand::Manifest(args) => {
            if args.runtime == Runtime::Sim {
                bail!(Failure::Usage("sim needs no manifest\nhelp: `cargo xtask enclave run --runtime sim`".into()));
            }
            match write_manifest(workspace, args)? {
                // SGX's is filled in when it is signed.
                0 if args.runtime == Runtime::GramineDirect => {
                    require(&[Need::Sign])?;
                    fill_in(workspace, &args.folder)
                }
                code => Ok(code),
            }
        }
        EnclaveCommand::Sign(args) => sign(workspace, &args.folder, args.key.as_deref()),
        EnclaveCommand::Measure(args) => measure(workspace, args),
        EnclaveCommand::Run(args) => start(workspace, args),
    }
}

/// Fails with exit code 3 where something is missing for one of `needs`.
fn require(needs: &[Need]) -> Result<()> {
    match Machine::this().first_missing(needs) {
        Some(probe::Probe { what, detail, fix: Some(fix), .. }) => {
            bail!(Failure::Missing { what: format!("{what} is missing: {detail}"), fix: fix.to_owned() })
        }
        _ => Ok(()),
    }
}

fn folder(workspace: &Workspace, args: &FolderArgs) -> PathBuf {
    workspace.root().join(&args.folder)
}

fn manifest_name(extension: &str) -> String {
    format!("{ENCLAVED}.manifest{extension}")
}

/// Builds the program and the writer, stages what the manifest names, and writes the template.
fn write_manifest(workspace: &Workspace, args: &PlanArgs) -> Result<u8> {
    let Some(program) = build_program(workspace, args.runtime)? else { return Ok(FAILED) };
    let mut cargo = process::cargo();
    cargo.current_dir(workspace.root()).args(["build", "--release", "--package", ENCLAVE, "--bin", MANIFEST_WRITER]);
    if process::run(cargo.args(["--features", HOST_TOOLS]))? != 0 {
        return Ok(FAILED);
    }
    let folder = folder(workspace, &args.folder);
    let staged = Staged::stage(&folder, &program, &args.arguments)?;
    for (host, inside) in staged.mapped() {
        println!("{host} is {inside} inside");
    }
    let plan = staged.plan(args, &size(&program, args)?)?.to_string();
    let mut writer = Command::new(workspace.binary(MANIFEST_WRITER));
    let mut child = process::spawn(writer.current_dir(&folder).stdin(Stdio::piped()).stdout(Stdio::piped()))?;
    child.stdin.take().context("the writer has no standard input")?.write_all(plan.as_bytes())?;
    let mut template = String::new();
    child.stdout.take().context("the writer has no standard output")?.read_to_string(&mut template)?;
    let code = process::wait(&mut child)?;
    if code == 0 {
        let path = folder.join(manifest_name(".template"));
        std::fs::write(&path, template).with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(code)
}

/// What the program itself plans for `serve` with these arguments, unless a peak is given.
fn size(program: &Path, args: &PlanArgs) -> Result<Size> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let given = |peak_mib: u64| Size {
        threads: args.threads.map_or(cores, |threads| threads as usize),
        peak_bytes: peak_mib.saturating_mul(1 << 20),
    };
    let options = match (args.peak_mib, args.arguments.split_first()) {
        (None, Some((word, options))) if word == SERVE => options,
        (peak_mib, _) => return Ok(given(peak_mib.unwrap_or(JOB_PEAK_MIB))),
    };
    let mut planner = Command::new(program);
    planner.arg("plan").args(options);
    if let Some(threads) = args.threads {
        planner.arg(format!("--threads={threads}"));
    }
    let json = match process::output(&mut planner) {
        Ok(json) => json,
        // A sealed model is read inside alone.
        Err(error) => {
            eprintln!("not planned: {error:#}\ntaking {JOB_PEAK_MIB} MiB; --peak-mib says otherwise");
            return Ok(given(JOB_PEAK_MIB));
        }
    };
    let said: serde_json::Value = serde_json::from_str(&json).context("the program planned no JSON")?;
    let number = |value: &serde_json::Value| value.as_u64().context("the program planned no memory");
    let (threads, peak_bytes) = (number(&said["threads"])? as usize, number(&said["plan"]["peak_bytes"])?);
    println!("planned to hold {} MiB at most, with {threads} threads", peak_bytes.div_ceil(1 << 20));
    Ok(Size { threads, peak_bytes })
}

/// Builds the enclave program; the one for SGX, in a folder of its own, cannot simulate evidence.
fn build_program(workspace: &Workspace, runtime: Runtime) -> Result<Option<PathBuf>> {
    if runtime != Runtime::GramineSgx {
        return Ok((binaries::build(workspace, &[ENCLAVED], &[])? == 0).then(|| workspace.binary(ENCLAVED)));
    }
    let target = workspace.target_directory.join("sgx");
    let mut cargo = process::cargo();
    cargo.current_dir(workspace.root()).args(["build", "--release", "--no-default-features", "--package", ENCLAVED]);
    let built = process::run(cargo.arg("--target-dir").arg(&target))? == 0;
    Ok(built.then(|| target.join("release").join(ENCLAVED)))
}

/// Has Gramine fill in the template.
fn fill_in(workspace: &Workspace, args: &FolderArgs) -> Result<u8> {
    let folder = folder(workspace, args);
    let template = manifest_name(".template");
    if !folder.join(&template).is_file() {
        let what = format!("there is no {}", folder.join(template).display());
        bail!(Failure::Usage(format!("{what}\nhelp: `cargo xtask enclave manifest` writes it")));
    }
    let mut filler = Command::new("gramine-manifest");
    filler.current_dir(&folder).arg(format!("-Darch_libdir={}", arch_libdir()));
    gramine(filler.args([&template, &manifest_name("")]))
}

/// Where the system's libraries lie: Debian's folder for the architecture, or the one folder that others have.
fn arch_libdir() -> &'static str {
    const DEBIAN: &str = "/lib/x86_64-linux-gnu";
    if Path::new(DEBIAN).is_dir() { DEBIAN } else { "/lib64" }
}

fn sign(workspace: &Workspace, args: &FolderArgs, key: Option<&Path>) -> Result<u8> {
    require(&[Need::Sign])?;
    let key = key.map(std::path::absolute).transpose()?;
    match fill_in(workspace, args)? {
        0 => {}
        code => return Ok(code),
    }
    let mut signer = Command::new("gramine-sgx-sign");
    signer.current_dir(folder(workspace, args)).args(["--manifest", &manifest_name("")]);
    signer.args(["--output", &manifest_name(".sgx")]);
    if let Some(key) = key {
        signer.arg("--key").arg(key);
    }
    gramine(&mut signer)
}

fn measure(workspace: &Workspace, args: &FolderArgs) -> Result<u8> {
    require(&[Need::Sign])?;
    let signature = folder(workspace, args).join(format!("{ENCLAVED}.sig"));
    if !signature.is_file() {
        let what = format!("there is no {}", signature.display());
        bail!(Failure::Usage(format!("{what}\nhelp: `cargo xtask enclave sign` makes it")));
    }
    let mut view = Command::new("gramine-sgx-sigstruct-view");
    let json = process::output(view.args(["--output-format", "json"]).arg(&signature))?;
    print!("{}", measurements(&json)?);
    Ok(0)
}

/// What a client pins, from what `gramine-sgx-sigstruct-view` says.
fn measurements(json: &str) -> Result<String> {
    let said: serde_json::Value = serde_json::from_str(json).context("gramine-sgx-sigstruct-view printed no JSON")?;
    let mut text = String::new();
    for (name, key) in [("MRENCLAVE", "mr_enclave"), ("MRSIGNER", "mr_signer")] {
        let value = said[key].as_str().filter(|value| value.len() == 64);
        let value = value.with_context(|| format!("gramine-sgx-sigstruct-view did not say {key}"))?;
        text.push_str(&format!("{name}    {value}\n"));
    }
    for (name, key) in [("ISV product id", "isv_prod_id"), ("ISV SVN", "isv_svn"), ("debug", "debug_enclave")] {
        text.push_str(&format!("{name}  {}\n", said[key]));
    }
    Ok(text)
}

fn start(workspace: &Workspace, args: &RunArgs) -> Result<u8> {
    let plan = &args.plan;
    match plan.runtime {
        Runtime::Sim => {
            eprintln!("INSECURE sim: an ordinary process; whoever owns the machine sees everything");
            return match binaries::build(workspace, &[ENCLAVED], &[])? {
                0 => process::run(Command::new(workspace.binary(ENCLAVED)).args(&plan.arguments)),
                code => Ok(code),
            };
        }
        Runtime::GramineDirect => require(&[Need::Direct, Need::Sign])?,
        Runtime::GramineSgx => require(&[Need::Run, Need::Sign, Need::Attest])?,
    }
    match write_manifest(workspace, plan)? {
        0 => {}
        code => return Ok(code),
    }
    let (ready, program) = match plan.runtime {
        Runtime::GramineSgx => (sign(workspace, &plan.folder, args.key.as_deref())?, "gramine-sgx"),
        _ => (fill_in(workspace, &plan.folder)?, "gramine-direct"),
    };
    if ready != 0 {
        return Ok(ready);
    }
    if plan.runtime == Runtime::GramineDirect {
        eprintln!("INSECURE gramine-direct: no SGX; whoever owns the machine sees everything");
    }
    process::pass_on_as_termination();
    gramine(Command::new(program).current_dir(folder(workspace, &plan.folder)).arg(OsString::from(ENCLAVED)))
}

/// Runs one of Gramine's programs; where it fails, explains what it has said.
fn gramine(command: &mut Command) -> Result<u8> {
    let mut child = process::spawn(command.stderr(Stdio::piped()))?;
    let stderr = child.stderr.take().context("the child has no standard error")?;
    let mut explanation = None;
    for line in BufReader::new(stderr).split(b'\n') {
        let line = String::from_utf8_lossy(&line.context("cannot read the child's output")?).into_owned();
        eprintln!("{line}");
        if line.to_ascii_lowercase().contains("error") {
            explanation = explanation.or_else(|| codes::explain(&line));
        }
    }
    let code = process::wait(&mut child)?;
    if let Some(explanation) = explanation.filter(|_| code != 0) {
        eprint!("{}", trusted::shown(explanation));
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_are_read_from_what_gramine_says() {
        let (enclave, signer) = ("ab".repeat(32), "cd".repeat(32));
        let json = format!(
            r#"{{"mr_signer": "{signer}", "mr_enclave": "{enclave}", "isv_prod_id": 1, "isv_svn": 3, "debug_enclave": false}}"#
        );
        let text = measurements(&json).expect("it is whole");
        assert!(text.starts_with(&format!("MRENCLAVE    {enclave}\nMRSIGNER    {signer}\n")), "{text}");
        assert!(text.ends_with("ISV SVN  3\ndebug  false\n"), "{text}");
        assert!(measurements(r#"{"mr_enclave": "ab"}"#).is_err());
        assert!(measurements("MRENCLAVE: ab").is_err());
    }
}
