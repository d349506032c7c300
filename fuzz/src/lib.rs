#![doc = include_str!("../README.md")]
#![expect(clippy::expect_used, reason = "a target that cannot be set up has to fail")]

mod attestation;
mod data;
pub mod memory;
mod models;
mod protocols;
mod sealing;
mod shares;

/// One parser, or a few that read the same bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name of the target and of its folder in the corpus.
    pub name: &'static str,
    /// Most bytes that may be live at any moment of one execution.
    pub limit_bytes: usize,
    /// Parses an input. Whatever the input is, it must not panic.
    pub run: fn(&[u8]),
}

const MIB: usize = 1 << 20;

/// A target for a format that may ask for some memory at once, whatever the input is: the first allocation of a frame's
/// body is 64 MiB.
const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, limit_bytes: 256 * MIB, run }
}

/// Every target.
pub const TARGETS: [Target; 28] = [
    target("archive", data::archive),
    target("arrays", data::arrays),
    target("bits", protocols::bits),
    target("certificate", attestation::certificate),
    target("checkpoint", models::checkpoint),
    target("cifar_binary", data::cifar_binary),
    target("collateral", attestation::collateral),
    target("evidence", attestation::evidence),
    target("guard", sealing::guard),
    target("idx", data::idx),
    // One image may take 384 MiB, decoded, turned and in planes.
    Target { name: "image", limit_bytes: 2048 * MIB, run: data::image },
    target("index", models::index),
    target("job", protocols::job),
    target("ledgers", models::ledgers),
    target("model", models::model),
    target("onnx", models::onnx),
    target("pickle", data::pickle),
    target("promise", models::promise),
    target("quote", attestation::quote),
    target("released_cache", models::released_cache),
    target("sealed", sealing::sealed),
    target("service", protocols::service),
    target("share_frames", shares::share_frames),
    target("shares", shares::shares),
    target("table", data::table),
    target("weight_share", shares::weight_share),
    target("weights", models::weights),
    target("worker", protocols::worker),
];

pub use attestation::files as attestation_files;
pub use sealing::files as sealed_files;
pub use shares::files as share_files;

/// The network whose weights and models are in the corpus.
pub fn small_network() -> &'static asymflow_zoo::Network {
    &models::NETWORK
}

/// The target called `name`.
pub fn by_name(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
