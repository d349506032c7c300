//! Stands in for Gramine in tests: `gramine-manifest` and `gramine-direct`, by the name it is called with.
//!
//! It protects nothing and emulates what programs stumble over: standard error goes to standard output, nothing is visible but what
//! the manifest mounts and what Gramine itself shows, there is no resolver, no link, linkat and renameat2, memory shared with the host
//! is a character device (`gramine_shm.rs`), and of all signals that ask a program to end SIGTERM alone reaches it. It needs a kernel that lets it make a mount namespace; `gramine-direct --probe` says
//! whether this one does.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is spoken to over its standard streams")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, chroot, getgid, getuid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use serde::Deserialize;

/// Where everything is mounted before it becomes the root: a folder that every machine has.
const ROOT: &str = "/mnt";
/// Where the program finds what is loaded into it.
const PRELOADED: &str = "/dev/gramine_shm.so";
/// Signals that the program does not hear.
const SILENT: [i32; 5] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

#[derive(Deserialize)]
struct Manifest {
    loader: Loader,
    libos: Libos,
    fs: FileSystem,
    #[serde(default)]
    sgx: Sgx,
}

#[derive(Deserialize)]
struct Loader {
    argv: Vec<String>,
    env: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Libos {
    entrypoint: PathBuf,
}

#[derive(Deserialize)]
struct FileSystem {
    mounts: Vec<Mount>,
    root: Option<Mount>,
}

#[derive(Deserialize)]
struct Mount {
    #[serde(default)]
    path: PathBuf,
    uri: Option<String>,
    r#type: Option<String>,
}

#[derive(Default, Deserialize)]
struct Sgx {
    #[serde(default)]
    allowed_files: Vec<String>,
}

fn main() -> ExitCode {
    let mut words = std::env::args();
    let called = words.next().unwrap_or_default();
    let words: Vec<String> = words.collect();
    let done = match (called.rsplit('/').next(), words.as_slice()) {
        (Some("gramine-manifest"), [defined, template, output]) => fill_in(defined, template, output),
        (Some("gramine-direct"), [flag]) if flag == "--probe" => namespace(),
        (Some("gramine-direct"), [app]) => run(app),
        (Some("checks"), []) => checks(),
        (_, words) => Err(anyhow::anyhow!("no stand-in for {called} {words:?}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What a program finds inside, on one line each.
fn checks() -> Result<()> {
    use std::net::ToSocketAddrs;

    eprintln!("standard error");
    fs::write("/state/kept/file", "kept")?;
    println!("link: {:?}", fs::hard_link("/state/kept/file", "/state/kept/link").map_err(|error| error.kind()));
    println!("rename: {:?}", fs::rename("/state/kept/file", "/state/kept/renamed").map_err(|error| error.kind()));
    println!("localhost: {}", ("localhost", 80).to_socket_addrs().is_ok());
    let is_device =
        |entry: io::Result<fs::DirEntry>| Ok::<_, io::Error>(entry?.metadata()?.file_type().is_char_device());
    let devices = fs::read_dir("/dev/shm")?.map(is_device).filter(|is_device| matches!(is_device, Ok(true))).count();
    println!("shared memory: {}", devices > 0);
    println!("own files: {:?}", fs::write("/app/checks", "").map_err(|error| error.kind()));
    let mut seen: Vec<_> =
        fs::read_dir("/")?.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<_, _>>()?;
    seen.sort();
    println!("root: {seen:?}");
    std::thread::sleep(std::time::Duration::from_secs(60));
    Ok(())
}

/// Puts the folders of this machine into a template.
fn fill_in(defined: &str, template: &str, output: &str) -> Result<()> {
    let libraries = defined.strip_prefix("-Darch_libdir=").context("no -Darch_libdir")?;
    // The folder of Gramine's own libraries, in which the machine's are mounted.
    let runtime = std::path::absolute("gramine-runtime")?;
    fs::create_dir_all(runtime.join(Path::new(libraries).file_name().unwrap_or_default()))?;
    let mut text = fs::read_to_string(template)?;
    for (name, value) in [
        ("{{ gramine.libos }}", "/gramine/libsysdb.so"),
        ("{{ gramine.runtimedir() }}", runtime.to_str().context("not UTF-8")?),
        ("{{ arch_libdir }}", libraries),
    ] {
        text = text.replace(name, value);
    }
    if text.contains("{{") {
        bail!("{template} asks for more than arch_libdir and where Gramine lies");
    }
    Ok(fs::write(output, text)?)
}

/// Runs the program of a manifest in this process.
fn run(app: &str) -> Result<()> {
    let manifest: Manifest = toml::from_str(&fs::read_to_string(format!("{app}.manifest"))?)?;
    let program = &manifest.libos.entrypoint;
    namespace()?;
    let folder = std::env::current_dir()?;
    mount_type("tmpfs", Path::new(ROOT))?;
    gramine_shows(program)?;
    for one in &manifest.fs.mounts {
        let writable = one.uri.as_ref().is_some_and(|uri| {
            one.r#type.as_deref() == Some("encrypted") || manifest.sgx.allowed_files.contains(&format!("{uri}/"))
        });
        bind_one(&folder, one, writable).with_context(|| format!("cannot mount {}", one.path.display()))?;
    }
    bind(&std::env::current_exe()?.with_file_name("libgramine_shm.so"), Path::new(PRELOADED), false)?;
    chroot(ROOT)?;
    chdir("/")?;
    if manifest.fs.root.and_then(|root| root.r#type).as_deref() != Some("tmpfs") {
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, "/", None::<&str>, read_only, None::<&str>).context("cannot close the root")?;
    }
    filter()?;
    let mut argv = manifest.loader.argv.into_iter();
    let mut command = Command::new(program);
    command
        .arg0(argv.next().unwrap_or_default())
        .args(argv)
        .env_clear()
        .envs(manifest.loader.env)
        .env("LD_PRELOAD", PRELOADED);
    // What the program says on standard error comes out of the host's standard output.
    command.stderr(Stdio::from(io::stdout().as_fd().try_clone_to_owned()?));
    Err(command.exec().into())
}

/// A mount namespace of our own, by way of a user namespace where we are not root.
fn namespace() -> Result<()> {
    let (user, group) = (getuid(), getgid());
    let mut flags = CloneFlags::CLONE_NEWNS;
    if !user.is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags).context("this kernel gives no mount namespace")?;
    if !user.is_root() {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
    }
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("this kernel takes no private mounts")?;
    Ok(())
}

fn mount_type(kind: &str, at: &Path) -> Result<()> {
    Ok(mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)?)
}

/// Where `path` of the program is for now.
fn below(path: &Path) -> PathBuf {
    Path::new(ROOT).join(path.strip_prefix("/").unwrap_or(path))
}

/// Mounts what is at `host`, folder or file.
fn bind(host: &Path, inside: &Path, writable: bool) -> Result<()> {
    let at = below(inside);
    if host.is_dir() {
        fs::create_dir_all(&at)?;
    } else {
        fs::create_dir_all(at.parent().context("no folder")?)?;
        File::options().create(true).append(true).open(&at)?;
    }
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(host), &at, None::<&str>, flags, None::<&str>).with_context(|| host.display().to_string())?;
    if !writable {
        let flags =
            MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(None::<&str>, &at, None::<&str>, flags, None::<&str>).context("cannot make it read-only")?;
    }
    Ok(())
}

fn bind_one(folder: &Path, one: &Mount, writable: bool) -> Result<()> {
    match (one.r#type.as_deref(), &one.uri) {
        (Some("tmpfs"), _) => {
            fs::create_dir_all(below(&one.path))?;
            mount_type("tmpfs", &below(&one.path))
        }
        (Some("untrusted_shm"), _) => bind(Path::new("/dev/shm"), &one.path, true),
        (None | Some("encrypted" | "chroot"), Some(uri)) => {
            bind(&folder.join(uri.strip_prefix("file:").context("no file:")?), &one.path, writable)
        }
        (kind, _) => bail!("a mount of type {kind:?}"),
    }
}

/// What Gramine has of its own: some devices, its attestation folder without SGX, and a small /proc.
fn gramine_shows(program: &Path) -> Result<()> {
    for device in ["null", "zero", "random", "urandom"] {
        let path = Path::new("/dev").join(device);
        bind(&path, &path, true)?;
    }
    fs::create_dir_all(below(Path::new("/dev/attestation")))?;
    let own = below(Path::new("/proc/self"));
    fs::create_dir_all(&own)?;
    symlink(program, own.join("exe"))?;
    fs::write(own.join("status"), "VmPeak:\t    4096 kB\n")?;
    fs::write(own.join("statm"), "2048 1024 0 0 0 0 0\n")?;
    for file in ["meminfo", "cpuinfo"] {
        let path = Path::new("/proc").join(file);
        fs::write(below(&path), fs::read(&path)?)?;
    }
    // The dynamic linker, which Gramine brings along.
    let linker = Path::new("/lib64");
    if linker.is_dir() { bind(&linker.canonicalize()?, linker, false) } else { Ok(()) }
}

/// Calls that Gramine does not have, and signals that it keeps to itself.
fn filter() -> Result<()> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    #[cfg(target_arch = "x86_64")]
    let missing = [libc::SYS_link, libc::SYS_linkat, libc::SYS_renameat2];
    #[cfg(not(target_arch = "x86_64"))]
    let missing = [libc::SYS_linkat, libc::SYS_renameat2];
    let missing = missing.into_iter().map(|call| (call, Vec::new())).collect();
    let silent = SILENT.map(|signal| {
        let is_it = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, signal as u64)?;
        SeccompRule::new(vec![is_it])
    });
    let silent = silent.into_iter().collect::<Result<Vec<_>, _>>()?;
    let silent = [(libc::SYS_rt_sigaction, silent)].into();
    // An error of 0 is success, and nothing is done.
    for (rules, errno) in [(missing, libc::ENOSYS as u32), (silent, 0)] {
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno), arch)?;
        let filter: BpfProgram = filter.try_into()?;
        seccompiler::apply_filter(&filter)?;
    }
    Ok(())
}
