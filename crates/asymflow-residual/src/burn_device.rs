//! Finding a burn device.

use burn::tensor::Device;

use crate::burn_backend::DeviceChoice;

/// The device and its description, or what is missing and how to get it.
pub(crate) fn find(choice: DeviceChoice) -> Result<(Device, String), (String, String)> {
    match choice {
        DeviceChoice::Flex => Ok((Device::flex(), "flex (CPU)".to_owned())),
        #[cfg(feature = "wgpu")]
        DeviceChoice::Wgpu(index) => nth(choice, index, burn::tensor::DeviceType::Wgpu),
        #[cfg(feature = "vulkan")]
        DeviceChoice::Vulkan(index) => nth(choice, index, burn::tensor::DeviceType::Vulkan),
        #[cfg(feature = "cuda")]
        DeviceChoice::Cuda(index) => nth(choice, index, burn::tensor::DeviceType::Cuda),
        #[cfg(feature = "remote")]
        DeviceChoice::Remote { key, address } => remote(choice, key.bytes(), address),
        #[cfg(not(all(feature = "wgpu", feature = "vulkan", feature = "cuda", feature = "remote")))]
        other => {
            let name = other.to_string();
            let feature = name.split(':').next().unwrap_or(&name);
            Err((
                format!("device {feature} is not built in"),
                format!("build it in with `--features {feature}`, or use the device flex"),
            ))
        }
    }
}

/// The first device of a host that is known by its key; the connection goes there and nowhere else.
#[cfg(feature = "remote")]
fn remote(
    choice: DeviceChoice,
    key: &[u8; 32],
    address: std::net::SocketAddr,
) -> Result<(Device, String), (String, String)> {
    use burn::remote::{EndpointId, IrohHost, IrohRelays, RemoteHost};
    let missing =
        |reason: String| (format!("device {choice}: {reason}"), "start its host, and check the key".to_owned());
    let key = EndpointId::from_bytes(key).map_err(|error| missing(error.to_string()))?;
    let host = IrohHost::new(key).with_relays(IrohRelays::Disabled).with_address(address);
    let device = Device::remote_options(&RemoteHost::iroh(host)).init().map_err(|error| missing(error.to_string()))?;
    Ok((device, choice.to_string()))
}

/// The `index`-th device of a kind. A rasteriser on the processor is named as software.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn nth(
    choice: DeviceChoice,
    index: usize,
    kind: burn::tensor::DeviceType,
) -> Result<(Device, String), (String, String)> {
    let devices = Device::enumerate(kind).into_vec();
    let found = devices.len();
    let device = devices.into_iter().nth(index).ok_or_else(|| {
        (format!("device {choice}: {found} found"), "check the driver, or use the device flex".to_owned())
    })?;
    let name = device.identity().map_or_else(|| "unnamed adapter".to_owned(), |identity| identity.name);
    let software = ["llvmpipe", "swiftshader", "lavapipe", "softpipe"];
    let lower = name.to_lowercase();
    let note = if software.iter().any(|s| lower.contains(s)) { " (software)" } else { "" };
    Ok((device, format!("{choice}: {name}{note}")))
}
