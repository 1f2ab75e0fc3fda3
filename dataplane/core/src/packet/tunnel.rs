//! Packets in packets: IP in IP (RFC 2003, RFC 2473) and Generic UDP Encapsulation.

use core::net::IpAddr;

use super::checksum::{Sum, pseudo_header};
use super::frame::Frame;
use super::parse::{Addresses, Packet, protocol};
use super::rewrite::{complete, lower_ttl};

/// UDP port of Generic UDP Encapsulation.
pub const GUE_PORT: u16 = 6080;
/// Time to live of the outer header.
const TTL: u8 = 64;
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

/// Puts the packet of a frame, without its Ethernet header, into one from `source` to
/// `destination`, both of one family; `hash` spreads flows over source ports. False when the
/// buffer has no room.
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
    frame.truncate(usize::from(packet.end));
    frame.shrink_front(usize::from(packet.l3));
    let inner = frame.len();
    let (is_v4, fields) = (matches!(packet.addresses, Addresses::V4(..)), frame.bytes());
    // What the way may do with the inner packet it may do with the outer one.
    let (class, id, fragment_bits) = match is_v4 {
        true => (fields[1], [fields[4], fields[5]], fields[6] & 0x40),
        false => ((fields[0] << 4) | (fields[1] >> 4), [0, 0], 0x40),
    };
    let overhead = tunnel.overhead(destination);
    if inner + overhead > usize::from(u16::MAX) || !frame.grow_front(overhead) {
        return false;
    }
    let payload = (inner + overhead) as u16;
    let number = match (tunnel, is_v4) {
        (Tunnel::Ipip, true) => protocol::IPIP,
        (Tunnel::Ipip, false) => protocol::IPV6,
        (Tunnel::Gue | Tunnel::GueWithHeader, _) => protocol::UDP,
    };
    let bytes = frame.bytes_mut();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let length = payload.to_be_bytes();
            bytes[..4].copy_from_slice(&[0x45, class, length[0], length[1]]);
            bytes[4..12].copy_from_slice(&[id[0], id[1], fragment_bits, 0, TTL, number, 0, 0]);
            bytes[12..16].copy_from_slice(&source.octets());
            bytes[16..20].copy_from_slice(&destination.octets());
            let checksum = Sum::ZERO.bytes(&bytes[..20]).checksum().to_be_bytes();
            bytes[10..12].copy_from_slice(&checksum);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let length = (payload - 40).to_be_bytes();
            // The flow label spreads flows where ports are not looked at (RFC 6438).
            let label = (hash as u32 & 0xf_ffff).to_be_bytes();
            bytes[0] = 0x60 | (class >> 4);
            bytes[1] = (class << 4) | (label[1] & 0xf);
            bytes[2..4].copy_from_slice(&label[2..]);
            bytes[4..8].copy_from_slice(&[length[0], length[1], number, TTL]);
            bytes[8..24].copy_from_slice(&source.octets());
            bytes[24..40].copy_from_slice(&destination.octets());
        }
        _ => return false,
    }
    if tunnel == Tunnel::Ipip {
        return true;
    }
    let udp = if destination.is_ipv4() { 20 } else { 40 };
    let port = FIRST_PORT | (hash >> 32) as u16;
    let length = payload - udp as u16;
    bytes[udp..udp + 2].copy_from_slice(&port.to_be_bytes());
    bytes[udp + 2..udp + 4].copy_from_slice(&GUE_PORT.to_be_bytes());
    bytes[udp + 4..udp + 6].copy_from_slice(&length.to_be_bytes());
    bytes[udp + 6..udp + 8].fill(0);
    if tunnel == Tunnel::GueWithHeader {
        // Version 0, a data message, no further words, no flags.
        let inner = if is_v4 { protocol::IPIP } else { protocol::IPV6 };
        bytes[udp + 8..udp + 12].copy_from_slice(&[0, inner, 0, 0]);
    }
    // Over IPv4 zero says "none"; over IPv6 not every receiver takes that (RFC 6935).
    if let (IpAddr::V6(source), IpAddr::V6(destination)) = (source, destination) {
        let (source, destination) = (source.octets(), destination.octets());
        let sum = pseudo_header(&source, &destination, protocol::UDP, length.into());
        let checksum = match sum.bytes(&bytes[udp..]).checksum() {
            0 => 0xffff,
            checksum => checksum,
        };
        bytes[udp + 6..udp + 8].copy_from_slice(&checksum.to_be_bytes());
    }
    true
}
