//! GPU adapters, and the worker feature that suits them.

use std::path::Path;
use std::process::Command;

use super::finding::Finding;
use super::probe::first_output;
use crate::process;

const ICD_FOLDERS: [&str; 3] = ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d"];

/// Drivers that compute on the CPU.
const SOFTWARE: [&str; 3] = ["lvp", "llvmpipe", "swiftshader"];

/// The feature to build the worker with, and what was found.
pub fn findings() -> (Option<&'static str>, Vec<Finding>) {
    let nvidia = nvidia();
    let drivers = vulkan_drivers();
    let feature = feature(nvidia.is_some(), process::find_program("nvcc").is_some() || has_nvrtc(), &drivers);
    let mut findings = vec![match nvidia {
        Some(adapters) => Finding::ok("NVIDIA GPU", adapters),
        None => Finding::missing(
            "NVIDIA GPU",
            "nvidia-smi does not answer",
            "nothing, unless this machine has one: install its driver",
        ),
    }];
    findings.push(vulkan(&drivers));
    (feature, findings)
}

/// `cuda` needs NVIDIA's runtime compiler; `vulkan` crashes software drivers, which take `wgpu`.
fn feature(has_nvidia: bool, has_nvrtc: bool, drivers: &[String]) -> Option<&'static str> {
    if has_nvidia && has_nvrtc {
        Some("cuda")
    } else if drivers.iter().any(|driver| !is_software(driver)) && (has_nvidia || has_render_node()) {
        Some("vulkan")
    } else if drivers.is_empty() {
        None
    } else {
        Some("wgpu")
    }
}

/// Whether Vulkan programs can run, on a GPU or in software.
pub fn has_vulkan_driver() -> bool {
    !vulkan_drivers().is_empty()
}

fn nvidia() -> Option<String> {
    let query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"];
    let adapters = first_output(Command::new("nvidia-smi").args(query))?;
    (!adapters.is_empty()).then(|| adapters.lines().collect::<Vec<_>>().join("; "))
}

fn has_nvrtc() -> bool {
    let cache = first_output(Command::new("ldconfig").arg("-p"));
    cache.is_some_and(|libraries| libraries.contains("libnvrtc.so"))
}

fn has_render_node() -> bool {
    std::fs::read_dir("/dev/dri")
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("renderD")))
}

/// Names of the Vulkan driver files, sorted; those that VK_DRIVER_FILES names when it is set.
fn vulkan_drivers() -> Vec<String> {
    let file_name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut drivers: Vec<String> = match std::env::var_os("VK_DRIVER_FILES") {
        Some(files) => {
            std::env::split_paths(&files).filter(|path| path.is_file()).filter_map(|p| file_name(&p)).collect()
        }
        None => ICD_FOLDERS
            .iter()
            .filter_map(|dir| std::fs::read_dir(dir).ok())
            .flat_map(|entries| entries.flatten())
            .filter_map(|entry| file_name(&entry.path()))
            .collect(),
    };
    drivers.sort();
    drivers.dedup();
    drivers
}

fn vulkan(drivers: &[String]) -> Finding {
    if drivers.is_empty() {
        return Finding::missing(
            "Vulkan",
            "no driver file found",
            "install the GPU's driver; a software driver for tests is in Debian's mesa-vulkan-drivers",
        );
    }
    let devices = first_output(Command::new("vulkaninfo").arg("--summary")).map(|summary| device_names(&summary));
    let mut detail = match devices {
        Some(devices) if !devices.is_empty() => devices.join("; "),
        _ => drivers.join(", "),
    };
    if drivers.iter().all(|driver| is_software(driver)) {
        detail.push_str(" (software rasteriser: correct, not fast)");
    }
    if !drivers.iter().all(|driver| is_software(driver)) && !has_render_node() && nvidia().is_none() {
        detail.push_str(" (drivers are installed, but there is no GPU device: software at best)");
    }
    Finding::ok("Vulkan", detail)
}

fn is_software(driver: &str) -> bool {
    let driver = driver.to_lowercase();
    SOFTWARE.iter().any(|name| driver.contains(name))
}

/// The device names in the output of `vulkaninfo --summary`.
fn device_names(summary: &str) -> Vec<String> {
    summary
        .lines()
        .filter_map(|line| line.trim().strip_prefix("deviceName")?.split_once('='))
        .map(|(_, name)| name.trim().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuda_needs_the_gpu_and_the_runtime_compiler() {
        assert_eq!(feature(true, true, &[]), Some("cuda"));
        assert_eq!(feature(true, false, &[]), None);
        assert_eq!(feature(true, false, &["nvidia_icd.json".into()]), Some("vulkan"));
    }

    #[test]
    fn a_software_driver_takes_wgpu_and_never_vulkan() {
        assert_eq!(feature(true, false, &["lvp_icd.x86_64.json".into()]), Some("wgpu"));
        assert_eq!(feature(false, false, &[]), None);
    }

    #[test]
    fn device_names_are_read_from_the_summary() {
        let summary =
            "GPU0:\n\tapiVersion         = 1.3\n\tdeviceName         = llvmpipe (LLVM 15)\n\tdriverName = x\n";
        assert_eq!(device_names(summary), ["llvmpipe (LLVM 15)"]);
    }
}
