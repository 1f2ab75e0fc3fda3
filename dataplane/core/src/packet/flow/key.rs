//! What packets are matched by, and its hash.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::packet::parse::{Addresses, Packet};

/// A packet's addresses, ports and protocol, seen from its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// From where to where.
    pub addresses: Addresses,
    /// From which port to which.
    pub ports: (u16, u16),
    /// The transport protocol's number.
    pub protocol: u8,
}

impl Tuple {
    /// The tuple of packets from `source` to `destination`; None when their families differ.
    #[must_use]
    pub fn new(source: SocketAddr, destination: SocketAddr, protocol: u8) -> Option<Self> {
        let addresses = match (source.ip(), destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Addresses::V4(source, destination),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Addresses::V6(source, destination),
            _ => return None,
        };
        Some(Self { addresses, ports: (source.port(), destination.port()), protocol })
    }

    /// The tuple of a packet; None when it has no ports.
    #[must_use]
    #[inline]
    pub fn of(packet: &Packet) -> Option<Self> {
        let Packet { addresses, protocol, .. } = *packet;
        Some(Self { addresses, ports: packet.transport.ports()?, protocol })
    }

    /// The tuple of packets in the other direction.
    #[must_use]
    pub fn reversed(self) -> Self {
        let addresses = match self.addresses {
            Addresses::V4(source, destination) => Addresses::V4(destination, source),
            Addresses::V6(source, destination) => Addresses::V6(destination, source),
        };
        Self { addresses, ports: (self.ports.1, self.ports.0), protocol: self.protocol }
    }

    /// A hash that nobody outside can foretell: `seeds` are random. By 128-bit products folded in
    /// half, as wyhash and ahash do; a few cycles.
    pub(super) fn hash(&self, seeds: [u64; 2]) -> u64 {
        let rest =
            u64::from(self.ports.0) << 24 | u64::from(self.ports.1) << 8 | u64::from(self.protocol);
        match self.addresses {
            Addresses::V4(source, destination) => {
                let both = u64::from(u32::from(source)) << 32 | u64::from(u32::from(destination));
                folded_plain(both, rest, seeds)
            }
            Addresses::V6(source, destination) => {
                let halves = |ip: Ipv6Addr| {
                    let ip = u128::from(ip);
                    ((ip >> 64) as u64, ip as u64)
                };
                let ((a, b), (c, d)) = (halves(source), halves(destination));
                folded_wide([a, b, c, d], rest, seeds)
            }
        }
    }
}

/// The hash of an IPv4 tuple: both addresses; ports and protocol.
#[inline]
pub(super) fn folded_plain(addresses: u64, rest: u64, seeds: [u64; 2]) -> u64 {
    folded(folded(addresses ^ seeds[0], rest ^ seeds[1]), ODD ^ seeds[0])
}

/// The hash of an IPv6 tuple: the halves of both addresses; ports and protocol.
#[inline]
pub(super) fn folded_wide([a, b, c, d]: [u64; 4], rest: u64, seeds: [u64; 2]) -> u64 {
    let ips = folded(a ^ seeds[0], b ^ seeds[1]) ^ folded(c ^ seeds[1], d ^ !seeds[0]);
    folded(folded(ips ^ seeds[0], rest ^ seeds[1]), ODD ^ seeds[0])
}

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline]
fn folded(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// An address in the 16 bytes of a cell.
pub(super) fn mapped(ip: IpAddr) -> [u8; 16] {
    crate::hash::octets(ip)
}

/// The address that [`mapped`] made these bytes of.
pub(super) fn unmapped(bytes: [u8; 16]) -> IpAddr {
    IpAddr::V6(bytes.into()).to_canonical()
}

/// An IPv4 address of a cell.
pub(super) fn v4(bytes: [u8; 4]) -> IpAddr {
    Ipv4Addr::from(bytes).into()
}
