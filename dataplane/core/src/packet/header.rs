//! IP headers of packets of our own, and of those around others.

use core::net::IpAddr;

use super::checksum::{Sum, fill};

/// Time to live, unless it is said.
const TTL: u8 = 64;

/// A header without options or extensions. Both addresses are of one family.
#[derive(Debug, Clone, Copy)]
pub(super) struct IpHeader {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    pub(super) ttl: u8,
    /// Traffic class.
    pub(super) class: u8,
    /// IPv4: what fragments have in common.
    pub(super) id: u16,
    /// IPv4: it may be fragmented on its way.
    pub(super) may_fragment: bool,
    /// IPv4: where it is among fragments, and whether more follow, as the header has it.
    pub(super) place: u16,
    /// IPv6: what routers may tell flows by.
    pub(super) label: u32,
}

impl IpHeader {
    /// Of a packet that is not to be fragmented.
    pub(super) fn new(source: IpAddr, destination: IpAddr, protocol: u8) -> Self {
        Self {
            source,
            destination,
            protocol,
            ttl: TTL,
            class: 0,
            id: 0,
            may_fragment: false,
            place: 0,
            label: 0,
        }
    }

    /// Bytes of it.
    pub(super) fn length(&self) -> usize {
        if self.destination.is_ipv4() { 20 } else { 40 }
    }

    /// Writes it before the payload of `packet`, which has room for it and at most 65535 bytes.
    pub(super) fn write(&self, packet: &mut [u8]) {
        self.write_for(packet, packet.len());
    }

    /// The same for a packet of `length` bytes, of which the end may be missing.
    pub(super) fn write_for(&self, packet: &mut [u8], length: usize) {
        let length = length as u16;
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let [high, low] = length.to_be_bytes();
                let [id_high, id_low] = self.id.to_be_bytes();
                let flags = if self.may_fragment { 0 } else { 0x4000 };
                let [place_high, place_low] = (flags | self.place).to_be_bytes();
                let header = &mut packet[..20];
                header[..4].copy_from_slice(&[0x45, self.class, high, low]);
                header[4..8].copy_from_slice(&[id_high, id_low, place_high, place_low]);
                header[8..12].copy_from_slice(&[self.ttl, self.protocol, 0, 0]);
                header[12..16].copy_from_slice(&source.octets());
                header[16..20].copy_from_slice(&destination.octets());
                fill(header, 10, Sum::ZERO);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let [high, low] = length.saturating_sub(40).to_be_bytes();
                let first = 6 << 28 | u32::from(self.class) << 20 | (self.label & 0xf_ffff);
                packet[..4].copy_from_slice(&first.to_be_bytes());
                packet[4..8].copy_from_slice(&[high, low, self.protocol, self.ttl]);
                packet[8..24].copy_from_slice(&source.octets());
                packet[24..40].copy_from_slice(&destination.octets());
            }
            _ => debug_assert!(false, "addresses of two families"),
        }
    }
}
