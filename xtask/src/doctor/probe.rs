//! Processor, memory, disk, tools and data sets.

use std::path::Path;
use std::process::Command;

use super::finding::Finding;
use crate::data;
use crate::process;
use crate::workspace::Workspace;

const GIB: f64 = (1_u64 << 30) as f64;
/// Compiling burn on two cores takes about this much memory.
const MEMORY_NEEDED_GIB: f64 = 4.0;
/// A release build of the workspace takes about this much disk.
const DISK_NEEDED_GIB: f64 = 10.0;

/// What every experiment needs, and the data sets.
pub fn findings(workspace: &Workspace) -> Vec<Finding> {
    vec![cpu(), memory(), disk(&workspace.target_directory), rust(), c_compiler(), data_sets(workspace)]
}

/// The flags of the first processor in Linux's `cpuinfo`; empty elsewhere.
fn cpu_flags() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    field(&text, "flags").map(|flags| flags.split_whitespace().map(str::to_owned).collect()).unwrap_or_default()
}

/// The value of the first line `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

fn cpu() -> Finding {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = field(&text, "model name").unwrap_or(std::env::consts::ARCH);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let flags = cpu_flags();
    let simd: Vec<_> = [("avx2", "AVX2"), ("avx512f", "AVX-512")]
        .iter()
        .filter(|(flag, _)| flags.iter().any(|f| f == flag))
        .map(|(_, name)| *name)
        .collect();
    let simd = if simd.is_empty() { "neither AVX2 nor AVX-512 (slower)".to_owned() } else { simd.join(", ") };
    Finding::ok("CPU", format!("{name}; {cores} cores; {simd}"))
}

fn memory() -> Finding {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let gib = |name| {
        let kib = field(&text, name)?.split_whitespace().next()?.parse::<f64>().ok()?;
        Some(kib * 1024.0 / GIB)
    };
    match (gib("MemTotal"), gib("MemAvailable")) {
        (Some(total), Some(free)) if free < MEMORY_NEEDED_GIB => Finding::missing(
            "memory",
            format!("{total:.1} GiB, {free:.1} GiB free"),
            format!("free {MEMORY_NEEDED_GIB} GiB before the first build, or build with `--jobs 1`"),
        ),
        (Some(total), Some(free)) => Finding::ok("memory", format!("{total:.1} GiB, {free:.1} GiB free")),
        _ => Finding::ok("memory", "unknown on this system"),
    }
}

fn disk(target: &Path) -> Finding {
    let existing = target.ancestors().find(|path| path.exists()).unwrap_or(target);
    let Some(free) = free_gib(existing) else {
        return Finding::ok("disk", "unknown: `df` does not answer");
    };
    let detail = format!("{free:.1} GiB free for builds");
    if free < DISK_NEEDED_GIB {
        return Finding::missing("disk", detail, "point CARGO_TARGET_DIR at a disk with more room");
    }
    Finding::ok("disk", detail)
}

fn free_gib(path: &Path) -> Option<f64> {
    let text = first_output(Command::new("df").arg("-Pk").arg(path))?;
    let kib = text.lines().nth(1)?.split_whitespace().nth(3)?.parse::<f64>().ok()?;
    Some(kib * 1024.0 / GIB)
}

/// What `command` prints, when it starts and succeeds.
pub fn first_output(command: &mut Command) -> Option<String> {
    let output = process::captured(command.stderr(std::process::Stdio::null())).ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn rust() -> Finding {
    match first_output(Command::new("rustc").arg("--version")) {
        Some(version) => Finding::ok("Rust", version),
        None => Finding::required("Rust", "rustc does not run", "install Rust with rustup"),
    }
}

fn c_compiler() -> Finding {
    let named = std::env::var("CC").ok();
    match named.as_deref().into_iter().chain(["cc", "gcc", "clang"]).find(|name| process::find_program(name).is_some())
    {
        Some(name) => Finding::ok("C compiler", name),
        None => Finding::required("C compiler", "none of cc, gcc, clang on PATH", "install gcc or clang"),
    }
}

/// File or folder names by which a data set is recognised.
const DATA_SETS: [(&str, &[&str]); 3] = [
    ("CIFAR-10", &["cifar10.tar.xz", "cifar10", "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"]),
    ("CIFAR-100", &["cifar-100-binary.tar.gz", "cifar-100-python.tar.gz"]),
    ("MNIST", &["mnist"]),
];

fn data_sets(workspace: &Workspace) -> Finding {
    let Ok(dir) = data::find_dir(workspace, None) else {
        return Finding::missing(
            "data sets",
            "none found; the demo has its data built in",
            "set ASYMFLOW_DATA to a folder with CIFAR-10 or MNIST",
        );
    };
    let found = data_sets_in(&dir);
    if found.is_empty() {
        return Finding::missing(
            "data sets",
            format!("{} holds none that is known by name", dir.display()),
            "put cifar10.tar.xz, cifar-10-binary.tar.gz or mnist/ there",
        );
    }
    Finding::ok("data sets", format!("{} in {}", found.join(", "), dir.display()))
}

fn data_sets_in(dir: &Path) -> Vec<&'static str> {
    let is_there = |names: &[&str]| names.iter().any(|name| dir.join(name).exists());
    DATA_SETS.iter().filter(|(_, names)| is_there(names)).map(|(set, _)| *set).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "vmx flags\t: a\nflags\t\t: fpu avx2\nflags : other\n";
        assert_eq!(field(text, "flags"), Some("fpu avx2"));
        assert_eq!(field(text, "model name"), None);
    }
    #[test]
    fn data_sets_are_known_by_their_file_names() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(data_sets_in(dir.path()), [""; 0]);
        std::fs::create_dir(dir.path().join("mnist")).expect("it can be made");
        std::fs::write(dir.path().join("cifar-10-binary.tar.gz"), "").expect("it can be written");
        assert_eq!(data_sets_in(dir.path()), ["CIFAR-10", "MNIST"]);
    }
}
