//! What a frame is: offsets and fields, found once, every length checked.
//!
//! Nothing after this module looks for a header again, or doubts that it lies in the frame.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::{Sum, pseudo_header};
use super::reason::DropReason;

/// Bytes of an Ethernet header without tags.
pub const ETHERNET: usize = 14;
/// Bytes of a VLAN tag.
const TAG: usize = 4;
/// Most tags of a frame: 802.1Q within 802.1ad.
const MOST_TAGS: usize = 2;
/// Most IPv6 extension headers that are followed.
const MOST_EXTENSIONS: usize = 6;

/// Ethernet types.
pub mod ether {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// A VLAN tag (802.1Q).
    pub const VLAN: u16 = 0x8100;
    /// An outer VLAN tag (802.1ad).
    pub const SERVICE_VLAN: u16 = 0x88a8;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// IP protocol numbers.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;

    pub(crate) const HOP_BY_HOP: u8 = 0;
    pub(crate) const ROUTING: u8 = 43;
    pub(crate) const FRAGMENT: u8 = 44;
    pub(crate) const DESTINATION: u8 = 60;
}

/// Bits of a TCP header's flags.
pub mod tcp_flags {
    /// The sender has finished.
    pub const FIN: u8 = 0x01;
    /// A connection begins.
    pub const SYN: u8 = 0x02;
    /// A connection is cut.
    pub const RST: u8 = 0x04;
    /// What was sent so far is to be handed up.
    pub const PSH: u8 = 0x08;
    /// Its acknowledgement number counts.
    pub const ACK: u8 = 0x10;
    /// The sender has slowed down (RFC 3168).
    pub const CWR: u8 = 0x80;
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// An IP packet.
    Ip(Packet),
    /// ARP, from this offset on.
    Arp(u16),
    /// Something else, by its Ethernet type.
    Other(u16),
}

/// An IP packet of a frame. All offsets count from the frame's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Of the IP header.
    pub l3: u16,
    /// Of the transport header; of the payload in later fragments.
    pub l4: u16,
    /// Behind the packet's last byte; padding follows.
    pub end: u16,
    /// Who sends it to whom.
    pub addresses: Addresses,
    /// The transport protocol.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// What its transport header says; not looked at in later fragments.
    pub transport: Transport,
    /// Set in fragments.
    pub fragment: Option<Fragment>,
}

/// Source and destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Addresses {
    /// Of an IPv4 packet.
    V4(Ipv4Addr, Ipv4Addr),
    /// Of an IPv6 packet.
    V6(Ipv6Addr, Ipv6Addr),
}

impl Addresses {
    /// Who sends.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        match *self {
            Self::V4(source, _) => source.into(),
            Self::V6(source, _) => source.into(),
        }
    }

    /// The sum of the pseudo-header of an upper layer of `length` bytes between them.
    #[must_use]
    pub fn pseudo_header(&self, protocol: u8, length: usize) -> Sum {
        let length = length as u32;
        match self {
            Self::V4(from, to) => pseudo_header(&from.octets(), &to.octets(), protocol, length),
            Self::V6(from, to) => pseudo_header(&from.octets(), &to.octets(), protocol, length),
        }
    }

    /// To whom.
    #[must_use]
    pub fn destination(&self) -> IpAddr {
        match *self {
            Self::V4(_, destination) => destination.into(),
            Self::V6(_, destination) => destination.into(),
        }
    }
}

/// A transport header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// Source and destination port.
        ports: (u16, u16),
        /// Its flags.
        flags: u8,
        /// Bytes of its header.
        header: u8,
    },
    /// UDP or SCTP.
    Datagram {
        /// Source and destination port.
        ports: (u16, u16),
    },
    /// ICMP or ICMPv6.
    Icmp {
        /// Its type.
        kind: u8,
        /// Its code.
        code: u8,
    },
    /// Of a protocol that has no services, or of a later fragment.
    Unseen,
}

impl Transport {
    /// Source and destination port, where there are some.
    #[must_use]
    pub fn ports(&self) -> Option<(u16, u16)> {
        match *self {
            Self::Tcp { ports, .. } | Self::Datagram { ports } => Some(ports),
            Self::Icmp { .. } | Self::Unseen => None,
        }
    }
}

/// A part of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// What its packet's fragments have in common.
    pub id: u32,
    /// Where it starts, in bytes.
    pub offset: u16,
    /// Whether others follow.
    pub more: bool,
}

impl Fragment {
    /// Whether it has the transport header.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.offset == 0
    }
}

/// Reads a frame. Costs a few loads a header.
pub fn parse(frame: &[u8]) -> Result<Parsed, DropReason> {
    let mut at = ETHERNET;
    let mut kind = word(frame, at - 2)?;
    for _ in 0..MOST_TAGS {
        if kind != ether::VLAN && kind != ether::SERVICE_VLAN {
            break;
        }
        at += TAG;
        kind = word(frame, at - 2)?;
    }
    match kind {
        ether::IPV4 => ipv4(frame, at).map(Parsed::Ip),
        ether::IPV6 => ipv6(frame, at).map(Parsed::Ip),
        ether::ARP => Ok(Parsed::Arp(at as u16)),
        other => Ok(Parsed::Other(other)),
    }
}

/// Reads the IP packet of either family at `at`; nothing before it is looked at.
pub fn parse_ip(frame: &[u8], at: usize) -> Result<Packet, DropReason> {
    match frame.get(at).map(|first| first >> 4) {
        Some(4) => ipv4(frame, at),
        Some(6) => ipv6(frame, at),
        Some(_) => Err(DropReason::BadIp),
        None => Err(DropReason::Truncated),
    }
}

fn ipv4(frame: &[u8], at: usize) -> Result<Packet, DropReason> {
    let header: &[u8; 20] = array(frame, at)?;
    let length = usize::from(header[0] & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] >> 4 != 4 || length < 20 || total < length {
        return Err(DropReason::BadIp);
    }
    let end = at + total;
    if end > frame.len() || end > usize::from(u16::MAX) {
        return Err(DropReason::Truncated);
    }
    let options = &frame[at + 20..at + length];
    if Sum::ZERO.array(header).bytes(options).folded() != 0xffff {
        return Err(DropReason::BadIp);
    }
    let [source, destination]: [&[u8; 4]; 2] = [array(header, 12)?, array(header, 16)?];
    let (source, destination) = (Ipv4Addr::from(*source), Ipv4Addr::from(*destination));
    if unicast4(source).is_none() || destination.is_loopback() || destination.is_unspecified() {
        return Err(DropReason::BadAddress);
    }
    let bits = u16::from_be_bytes([header[6], header[7]]);
    // More fragments, or an offset in units of eight bytes.
    let fragment = (bits & 0x3fff != 0).then(|| Fragment {
        id: u16::from_be_bytes([header[4], header[5]]).into(),
        offset: (bits & 0x1fff) << 3,
        more: bits & 0x2000 != 0,
    });
    let l4 = at + length;
    let transport = transport(&frame[..end], l4, header[9], protocol::ICMP, fragment)?;
    Ok(Packet {
        l3: at as u16,
        l4: l4 as u16,
        end: end as u16,
        addresses: Addresses::V4(source, destination),
        protocol: header[9],
        ttl: header[8],
        transport,
        fragment,
    })
}

fn ipv6(frame: &[u8], at: usize) -> Result<Packet, DropReason> {
    let header: &[u8; 40] = array(frame, at)?;
    if header[0] >> 4 != 6 {
        return Err(DropReason::BadIp);
    }
    let end = at + 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    if end > frame.len() || end > usize::from(u16::MAX) {
        return Err(DropReason::Truncated);
    }
    let frame = &frame[..end];
    let [source, destination]: [&[u8; 16]; 2] = [array(header, 8)?, array(header, 24)?];
    let (source, destination) = (Ipv6Addr::from(*source), Ipv6Addr::from(*destination));
    // IPv4-mapped addresses are for programs, and on no wire (RFC 4291, section 2.5.5.2).
    let mapped = |ip: Ipv6Addr| ip.to_ipv4_mapped().is_some();
    if source.is_multicast()
        || source.is_loopback()
        || destination.is_loopback()
        || mapped(source)
        || mapped(destination)
    {
        return Err(DropReason::BadAddress);
    }
    let (mut next, mut l4, mut fragment) = (header[6], at + 40, None);
    let mut left = MOST_EXTENSIONS;
    loop {
        match next {
            protocol::HOP_BY_HOP | protocol::DESTINATION | protocol::ROUTING => {
                let extension: &[u8; 4] = array(frame, l4)?;
                // With segments left, the destination is but a stop on the way.
                if next == protocol::ROUTING && extension[3] != 0 {
                    return Err(DropReason::BadExtension);
                }
                (next, l4) = (extension[0], l4 + (usize::from(extension[1]) + 1) * 8);
            }
            protocol::FRAGMENT => {
                let extension: &[u8; 8] = array(frame, l4)?;
                let bits = u16::from_be_bytes([extension[2], extension[3]]);
                let id =
                    u32::from_be_bytes([extension[4], extension[5], extension[6], extension[7]]);
                (next, l4) = (extension[0], l4 + 8);
                let part = Fragment { id, offset: bits & 0xfff8, more: bits & 1 != 0 };
                // A whole packet with a fragment header is no fragment (RFC 6946).
                fragment = (part.more || part.offset > 0).then_some(part);
                if !part.is_first() {
                    break;
                }
            }
            _ => break,
        }
        left -= 1;
        if left == 0 {
            return Err(DropReason::BadExtension);
        }
    }
    if l4 > end {
        return Err(DropReason::Truncated);
    }
    let transport = transport(frame, l4, next, protocol::ICMPV6, fragment)?;
    Ok(Packet {
        l3: at as u16,
        l4: l4 as u16,
        end: end as u16,
        addresses: Addresses::V6(source, destination),
        protocol: next,
        ttl: header[7],
        transport,
        fragment,
    })
}

/// `ip`, if a packet on a wire may come from it.
fn unicast4(ip: Ipv4Addr) -> Option<Ipv4Addr> {
    (!ip.is_multicast() && !ip.is_broadcast() && !ip.is_loopback()).then_some(ip)
}

/// Reads the transport header at `at`; `packet` ends where the IP packet ends.
fn transport(
    packet: &[u8],
    at: usize,
    number: u8,
    icmp: u8,
    fragment: Option<Fragment>,
) -> Result<Transport, DropReason> {
    if fragment.is_some_and(|fragment| !fragment.is_first()) {
        return Ok(Transport::Unseen);
    }
    let short = |_: DropReason| match fragment {
        Some(_) => DropReason::TinyFragment,
        None => DropReason::Truncated,
    };
    match number {
        protocol::TCP => {
            let tcp: &[u8; 20] = array(packet, at).map_err(short)?;
            let header = (tcp[12] >> 4) * 4;
            if header < 20 {
                return Err(DropReason::BadTransport);
            }
            if at + usize::from(header) > packet.len() {
                return Err(short(DropReason::Truncated));
            }
            Ok(Transport::Tcp { ports: ports(tcp), flags: tcp[13], header })
        }
        protocol::UDP => {
            let udp: &[u8; 8] = array(packet, at).map_err(short)?;
            let length = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
            if length < 8 || (fragment.is_none() && at + length > packet.len()) {
                return Err(DropReason::BadTransport);
            }
            Ok(Transport::Datagram { ports: ports(udp) })
        }
        protocol::SCTP => {
            let sctp: &[u8; 12] = array(packet, at).map_err(short)?;
            Ok(Transport::Datagram { ports: ports(sctp) })
        }
        number if number == icmp => {
            let header: &[u8; 8] = array(packet, at).map_err(short)?;
            Ok(Transport::Icmp { kind: header[0], code: header[1] })
        }
        _ => Ok(Transport::Unseen),
    }
}

fn ports(header: &[u8]) -> (u16, u16) {
    (u16::from_be_bytes([header[0], header[1]]), u16::from_be_bytes([header[2], header[3]]))
}

fn word(bytes: &[u8], at: usize) -> Result<u16, DropReason> {
    array(bytes, at).map(|word: &[u8; 2]| u16::from_be_bytes(*word))
}

/// The `N` bytes at `at`.
fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<&[u8; N], DropReason> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or(DropReason::Truncated)
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
