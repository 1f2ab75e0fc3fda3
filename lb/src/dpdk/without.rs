//! In builds without DPDK.

use fairway_config::PacketPath;

use super::Started;

/// There are none.
#[derive(Default)]
pub(crate) struct Cards(());

impl Cards {
    /// Nothing to look at.
    pub(crate) fn look<'i>(&self, _interfaces: impl Iterator<Item = &'i str>) -> Vec<bool> {
        Vec::new()
    }
}

/// Says what is missing when DPDK is wanted.
pub(crate) fn start(
    packet: &PacketPath,
    _workers: usize,
    _hash_seed: u64,
) -> Result<Started, String> {
    match packet.dpdk {
        None => Ok(Started::default()),
        Some(_) => Err("`dataplane.packet.driver: dpdk` needs a build with DPDK: `cargo build \
                        --release --features dpdk`; `driver: raw` runs anywhere"
            .into()),
    }
}
