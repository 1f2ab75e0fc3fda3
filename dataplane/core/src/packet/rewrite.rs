//! Changing packets in place: addresses, ports, time to live; each checksum by what changed.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::checksum::{Change, Sum, fill, pseudo_header, replace};
use super::frame::{Frame, TransportChecksum};
use super::header::IpHeader;
use super::parse::{Addresses, Packet, Transport, protocol, tcp_flags};
use crate::proxy_header::crc32c;

/// Source and destination as a packet has them, addresses and ports, each pair in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    V4 { addresses: [u8; 8], ports: [u16; 2] },
    V6 { addresses: [u8; 32], ports: [u16; 2] },
}

impl Ends {
    /// From one address and port to another; none when their families differ.
    pub(super) fn of(source: SocketAddr, destination: SocketAddr) -> Option<Self> {
        let ports = [source.port(), destination.port()];
        match (source.ip(), destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => Some(Self::v4(from.octets(), to.octets(), ports)),
            (IpAddr::V6(from), IpAddr::V6(to)) => Some(Self::v6(from.octets(), to.octets(), ports)),
            _ => None,
        }
    }

    /// Of IPv4 addresses and their ports.
    pub(super) fn v4(source: [u8; 4], destination: [u8; 4], ports: [u16; 2]) -> Self {
        let mut addresses = [0; 8];
        addresses[..4].copy_from_slice(&source);
        addresses[4..].copy_from_slice(&destination);
        Self::V4 { addresses, ports }
    }

    /// Of IPv6 addresses and their ports.
    pub(super) fn v6(source: [u8; 16], destination: [u8; 16], ports: [u16; 2]) -> Self {
        let mut addresses = [0; 32];
        addresses[..16].copy_from_slice(&source);
        addresses[16..].copy_from_slice(&destination);
        Self::V6 { addresses, ports }
    }

    /// In the family that they are of: IPv4 addresses may be mapped into IPv6.
    pub(super) fn canonical(self) -> Self {
        const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
        match self {
            Self::V6 { addresses, ports }
                if addresses[..12] == MAPPED && addresses[16..28] == MAPPED =>
            {
                let part = |at: usize| {
                    [addresses[at], addresses[at + 1], addresses[at + 2], addresses[at + 3]]
                };
                Self::v4(part(12), part(28), ports)
            }
            ends => ends,
        }
    }

    /// Source and destination port.
    pub(super) fn ports(&self) -> [u16; 2] {
        match self {
            Self::V4 { ports, .. } | Self::V6 { ports, .. } => *ports,
        }
    }

    /// The sum of the pseudo-header of an upper layer of `length` bytes between them.
    pub(super) fn pseudo_header(&self, protocol: u8, length: usize) -> Sum {
        let (source, destination) = match self {
            Self::V4 { addresses, .. } => addresses.split_at(4),
            Self::V6 { addresses, .. } => addresses.split_at(16),
        };
        pseudo_header(source, destination, protocol, length as u32)
    }

    /// A header between them.
    pub(super) fn header(&self, protocol: u8) -> IpHeader {
        IpHeader::new(self.source(), self.destination(), protocol)
    }

    /// From whom.
    pub(super) fn source(&self) -> IpAddr {
        match self {
            Self::V4 { addresses: [a, b, c, d, ..], .. } => Ipv4Addr::new(*a, *b, *c, *d).into(),
            Self::V6 { addresses, .. } => {
                let mut ip = [0; 16];
                ip.copy_from_slice(&addresses[..16]);
                Ipv6Addr::from(ip).into()
            }
        }
    }

    /// Whether they are of IPv4.
    pub(super) fn is_v4(&self) -> bool {
        matches!(self, Self::V4 { .. })
    }

    /// To whom.
    pub(super) fn destination(&self) -> IpAddr {
        match self {
            Self::V4 { addresses: [.., a, b, c, d], .. } => Ipv4Addr::new(*a, *b, *c, *d).into(),
            Self::V6 { addresses, .. } => {
                let mut ip = [0; 16];
                ip.copy_from_slice(&addresses[16..]);
                Ipv6Addr::from(ip).into()
            }
        }
    }
}

/// Writes another source and destination into a packet of the same family, and takes one off its
/// time to live. Of later fragments only addresses change: they have no ports.
///
/// Costs two incremental updates; SCTP whose ports change is summed anew, as a CRC cannot be
/// updated.
pub(super) fn translate(frame: &mut Frame<'_>, packet: &Packet, ends: &Ends) {
    complete(frame, packet);
    let bytes = frame.bytes_mut();
    let (l3, l4) = (usize::from(packet.l3), usize::from(packet.l4));
    let (addresses, ports) = match (packet.addresses, ends) {
        (Addresses::V4(..), Ends::V4 { addresses, ports }) => {
            let change = replace(bytes, l3 + 12, addresses);
            // The time to live and the addresses change the header's sum together.
            let old = u16::from_be_bytes([packet.ttl, packet.protocol]);
            let new = u16::from_be_bytes([packet.ttl - 1, packet.protocol]);
            bytes[l3 + 8] = packet.ttl - 1;
            change.word(old, new).write(bytes, l3 + 10);
            (change, *ports)
        }
        (Addresses::V6(..), Ends::V6 { addresses, ports }) => {
            let change = replace(bytes, l3 + 8, addresses);
            bytes[l3 + 7] = packet.ttl - 1;
            (change, *ports)
        }
        // Packets that change their family are written anew.
        _ => return,
    };
    let Some((old_source, old_destination)) = packet.transport.ports() else {
        if packet.protocol == protocol::ICMPV6 && packet.transport != Transport::Unseen {
            addresses.write(bytes, l4 + 2);
        }
        return;
    };
    let [source, destination] = ports;
    bytes[l4..l4 + 2].copy_from_slice(&source.to_be_bytes());
    bytes[l4 + 2..l4 + 4].copy_from_slice(&destination.to_be_bytes());
    let change = addresses.word(old_source, source).word(old_destination, destination);
    match packet.protocol {
        protocol::TCP => change.write(bytes, l4 + 16),
        protocol::UDP => change.write_udp(bytes, l4 + 6),
        protocol::SCTP if (source, destination) != (old_source, old_destination) => {
            sum_sctp(&mut bytes[l4..usize::from(packet.end)]);
        }
        _ => {}
    }
}

/// Takes one off the time to live, which is above one.
pub(super) fn lower_ttl(bytes: &mut [u8], packet: &Packet) {
    let l3 = usize::from(packet.l3);
    let ttl = packet.ttl - 1;
    match packet.addresses {
        Addresses::V4(..) => {
            let old = u16::from_be_bytes([packet.ttl, bytes[l3 + 9]]);
            let new = u16::from_be_bytes([ttl, bytes[l3 + 9]]);
            bytes[l3 + 8] = ttl;
            Change::NONE.word(old, new).write(bytes, l3 + 10);
        }
        Addresses::V6(..) => bytes[l3 + 7] = ttl,
    }
}

/// Whether the transport checksum of a TCP or UDP packet is right.
pub(super) fn is_summed(frame: &Frame<'_>, packet: &Packet) -> bool {
    let body = &frame.bytes()[usize::from(packet.l4)..usize::from(packet.end)];
    let pseudo = packet.addresses.pseudo_header(packet.protocol, body.len());
    pseudo.bytes(body).folded() == 0xffff
}

/// Fills in a transport checksum that its sender left to the port.
pub(super) fn complete(frame: &mut Frame<'_>, packet: &Packet) {
    if frame.checksum == TransportChecksum::Present {
        return;
    }
    frame.checksum = TransportChecksum::Present;
    let field = match packet.transport {
        Transport::Tcp { .. } => 16,
        Transport::Datagram { .. } if packet.protocol == protocol::UDP => 6,
        Transport::Datagram { .. } => {
            let (l4, end) = (usize::from(packet.l4), usize::from(packet.end));
            return sum_sctp(&mut frame.bytes_mut()[l4..end]);
        }
        _ => return,
    };
    let body = &mut frame.bytes_mut()[usize::from(packet.l4)..usize::from(packet.end)];
    // A datagram of IPv4 may have none, and a pseudo-header's sum is never zero.
    if body[field..field + 2] == [0, 0] && packet.protocol == protocol::UDP {
        return;
    }
    body[field..field + 2].fill(0);
    let pseudo = packet.addresses.pseudo_header(packet.protocol, body.len());
    let checksum = match pseudo.bytes(body).checksum() {
        0 if packet.protocol == protocol::UDP => 0xffff,
        checksum => checksum,
    };
    body[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Makes of a frame the IP packet of a TCP reset that answers its segment (RFC 9293, section
/// 3.10.7.1). False when its buffer has no room.
pub(super) fn write_reset(frame: &mut Frame<'_>, packet: &Packet) -> bool {
    const TCP: usize = 20;
    let l4 = usize::from(packet.l4);
    let Some(segment) = frame.bytes().get(l4..).and_then(|rest| rest.first_chunk::<TCP>()) else {
        return false;
    };
    let mut reset = [0; TCP];
    reset[..2].copy_from_slice(&segment[2..4]);
    reset[2..4].copy_from_slice(&segment[..2]);
    reset[12] = (TCP as u8 / 4) << 4;
    reset[13] = tcp_flags::RST;
    let flags = segment[13];
    if flags & tcp_flags::ACK != 0 {
        // It acknowledges something: that is where we would be.
        reset[4..8].copy_from_slice(&segment[8..12]);
    } else {
        let header = u16::from(segment[12] >> 4) * 4;
        let data = (packet.end - packet.l4).saturating_sub(header);
        let marks = (flags & (tcp_flags::SYN | tcp_flags::FIN)).count_ones();
        let number = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
        let next = number.wrapping_add(u32::from(data) + marks);
        reset[8..12].copy_from_slice(&next.to_be_bytes());
        reset[13] |= tcp_flags::ACK;
    }
    let (from, to) = (packet.addresses.destination(), packet.addresses.source());
    // Turned round, the addresses have the same sum.
    fill(&mut reset, 16, packet.addresses.pseudo_header(protocol::TCP, TCP));
    let mut whole = [0; 40 + TCP];
    let header = IpHeader::new(from, to, protocol::TCP);
    let length = header.length() + TCP;
    whole[header.length()..length].copy_from_slice(&reset);
    header.write(&mut whole[..length]);
    frame.replace(&whole[..length])
}

/// Sums an SCTP packet (RFC 9260, appendix A: CRC32c, little endian).
pub(super) fn sum_sctp(packet: &mut [u8]) {
    packet[8..12].fill(0);
    let sum = crc32c(packet.iter());
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
}

#[cfg(test)]
#[path = "rewrite_tests.rs"]
mod tests;
