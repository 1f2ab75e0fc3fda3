//! In builds without DPDK.

use fairway_config::PacketPath;
use fairway_core::packet::Ports;

/// Says what is missing when DPDK is wanted.
pub(crate) fn start(packet: &PacketPath, _workers: usize) -> Result<Vec<Box<dyn Ports>>, String> {
    match packet.dpdk {
        None => Ok(Vec::new()),
        Some(_) => Err("`dataplane.packet.driver: dpdk` needs a build with DPDK: `cargo build \
                        --release --features dpdk`; `driver: raw` runs anywhere"
            .into()),
    }
}
