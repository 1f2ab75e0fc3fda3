//! Packets in packets: IP in IP (RFC 2003, RFC 2473) and Generic UDP Encapsulation.

use core::net::IpAddr;

use super::checksum::pseudo_header;
use super::frame::Frame;
use super::header::IpHeader;
use super::parse::{Addresses, Packet, protocol};
use super::rewrite::{complete, lower_ttl};

/// UDP port of Generic UDP Encapsulation.
pub const GUE_PORT: u16 = 6080;
/// First of the source ports that flows are spread over (RFC 6335: dynamic ports).
const FIRST_PORT: u16 = 49_152;

/// How a packet is carried to its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tunnel {
    /// Directly in IP.
    Ipip,
    /// In UDP, variant 1: the inner packet follows the UDP header.
    Gue,
    /// In UDP, variant 0: a GUE header of four bytes is between them.
    GueWithHeader,
}

impl Tunnel {
    /// Bytes that it adds, in an outer packet of the family of `outer`.
    #[must_use]
    pub fn overhead(self, outer: IpAddr) -> usize {
        let ip = if outer.is_ipv4() { 20 } else { 40 };
        ip + match self {
            Self::Ipip => 0,
            Self::Gue => 8,
            Self::GueWithHeader => 12,
        }
    }
}

/// Puts the packet of a frame, whose time to live it lowers, into one as [`wrap`] does.
pub(super) fn encapsulate(
    frame: &mut Frame<'_>,
    packet: &Packet,
    tunnel: Tunnel,
    source: IpAddr,
    destination: IpAddr,
    hash: u64,
) -> bool {
    complete(frame, packet);
    lower_ttl(frame.bytes_mut(), packet);
    frame.narrow(packet.l3, packet.end);
    wrap(frame, matches!(packet.addresses, Addresses::V4(..)), tunnel, (source, destination), hash)
}

/// Puts the IP packet that a frame consists of into one from `source` to `destination`, both of one
/// family; `hash` spreads flows over source ports. False when the buffer has no room.
pub(super) fn wrap(
    frame: &mut Frame<'_>,
    is_v4: bool,
    tunnel: Tunnel,
    (source, destination): (IpAddr, IpAddr),
    hash: u64,
) -> bool {
    let inner = frame.len();
    let fields = frame.bytes();
    let number = match (tunnel, is_v4) {
        (Tunnel::Ipip, true) => protocol::IPIP,
        (Tunnel::Ipip, false) => protocol::IPV6,
        (Tunnel::Gue | Tunnel::GueWithHeader, _) => protocol::UDP,
    };
    let mut header = IpHeader::new(source, destination, number);
    // What the way may do with the inner packet it may do with the outer one.
    if is_v4 {
        header.class = fields[1];
        header.id = u16::from_be_bytes([fields[4], fields[5]]);
        header.may_fragment = fields[6] & 0x40 == 0;
    } else {
        header.class = (fields[0] << 4) | (fields[1] >> 4);
    }
    // It spreads flows where ports are not looked at (RFC 6438).
    header.label = hash as u32;
    let overhead = tunnel.overhead(destination);
    if inner + overhead > usize::from(u16::MAX) || !frame.grow_front(overhead) {
        return false;
    }
    let bytes = frame.bytes_mut();
    header.write(bytes);
    if tunnel == Tunnel::Ipip {
        return true;
    }
    let udp = &mut bytes[header.length()..];
    let port = FIRST_PORT | (hash >> 32) as u16;
    let length = udp.len() as u16;
    udp[..2].copy_from_slice(&port.to_be_bytes());
    udp[2..4].copy_from_slice(&GUE_PORT.to_be_bytes());
    udp[4..6].copy_from_slice(&length.to_be_bytes());
    udp[6..8].fill(0);
    if tunnel == Tunnel::GueWithHeader {
        // Version 0, a data message, no further words, no flags.
        let inner = if is_v4 { protocol::IPIP } else { protocol::IPV6 };
        udp[8..12].copy_from_slice(&[0, inner, 0, 0]);
    }
    // Over IPv4 zero says "none"; over IPv6 not every receiver takes that (RFC 6935).
    if let (IpAddr::V6(source), IpAddr::V6(destination)) = (source, destination) {
        let (source, destination) = (source.octets(), destination.octets());
        let sum = pseudo_header(&source, &destination, protocol::UDP, length.into());
        let checksum = match sum.bytes(udp).checksum() {
            0 => 0xffff,
            checksum => checksum,
        };
        udp[6..8].copy_from_slice(&checksum.to_be_bytes());
    }
    true
}
