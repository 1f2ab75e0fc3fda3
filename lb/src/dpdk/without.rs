//! In builds without DPDK.

use fairway_config::PacketPath;

use super::Opened;

/// There are none.
pub(crate) enum Cards {}

impl Cards {
    /// Says what is missing when DPDK is wanted.
    pub(crate) fn start(
        _packet: &PacketPath,
        _workers: usize,
        _hash_seed: u64,
        _later: bool,
    ) -> Result<Self, String> {
        Err("`dataplane.packet.driver: dpdk` needs a build with DPDK: `cargo build --release \
             --features dpdk`; `driver: raw` runs anywhere"
            .into())
    }

    pub(crate) fn open(&mut self) -> Result<Opened, String> {
        match *self {}
    }

    pub(crate) fn look<'i>(&mut self, _interfaces: impl Iterator<Item = &'i str>) -> Vec<bool> {
        match *self {}
    }

    pub(crate) fn release(&mut self) -> Result<(), String> {
        match *self {}
    }
}
