//! ICMP errors: those that pass are translated with what they quote, those of our own are written
//! over the packet that they are about.

use core::net::{IpAddr, SocketAddr};

use super::checksum::{Change, Sum, pseudo_header};
use super::flow::Tuple;
use super::frame::Frame;
use super::parse::{Addresses, Packet, Transport, protocol};
use super::rewrite::complete;

/// Bytes of the header of an ICMP error.
const HEADER: usize = 8;
/// Largest ICMP error, in bytes (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4).
const LARGEST: [usize; 2] = [576, 1280];
const TTL: u8 = 64;

/// Errors that Fairway sends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Error {
    /// The packet is larger than this, with which it would fit.
    TooBig(u16),
    /// Its time to live is over.
    TimeExceeded,
}

impl Error {
    /// Type, code and the word after the checksum.
    fn fields(self, is_v4: bool) -> (u8, u8, u32) {
        match (self, is_v4) {
            (Self::TooBig(mtu), true) => (3, 4, mtu.into()),
            (Self::TooBig(mtu), false) => (2, 0, mtu.into()),
            (Self::TimeExceeded, true) => (11, 0, 0),
            (Self::TimeExceeded, false) => (3, 0, 0),
        }
    }
}

/// Whether a message is an error about another packet.
pub(super) fn is_error(packet: &Packet) -> bool {
    let Transport::Icmp { kind, .. } = packet.transport else { return false };
    match packet.protocol {
        // Unreachable, source quench, redirect, time exceeded, parameter problem.
        protocol::ICMP => matches!(kind, 3 | 4 | 5 | 11 | 12),
        _ => kind < 128,
    }
}

/// Whether a message says that nobody is where a packet was to go, or takes none there; a packet
/// that was too large says nothing of that.
pub(super) fn is_unreachable(packet: &Packet) -> bool {
    let Transport::Icmp { kind, code } = packet.transport else { return false };
    match packet.protocol {
        protocol::ICMP => kind == 3 && code != 4,
        _ => kind == 1,
    }
}

/// The packet that an error quotes; its end may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quoted {
    /// As it was on its way.
    pub(super) tuple: Tuple,
    l3: usize,
    pub(super) l4: usize,
}

/// Finds the packet that the error `packet` quotes; none when it has no ports.
pub(super) fn quoted(frame: &[u8], packet: &Packet) -> Option<Quoted> {
    let l3 = usize::from(packet.l4) + HEADER;
    let inner = frame.get(l3..usize::from(packet.end))?;
    let (addresses, number, length) = match packet.addresses {
        Addresses::V4(..) => {
            let header: &[u8; 20] = inner.first_chunk()?;
            let length = usize::from(header[0] & 0xf) * 4;
            let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
            if header[0] >> 4 != 4 || length < 20 || offset != 0 {
                return None;
            }
            let ip = |at: usize| <[u8; 4]>::try_from(&header[at..at + 4]).ok();
            (Addresses::V4(ip(12)?.into(), ip(16)?.into()), header[9], length)
        }
        Addresses::V6(..) => {
            let header: &[u8; 40] = inner.first_chunk()?;
            if header[0] >> 4 != 6 {
                return None;
            }
            let ip = |at: usize| <[u8; 16]>::try_from(&header[at..at + 16]).ok();
            (Addresses::V6(ip(8)?.into(), ip(24)?.into()), header[6], 40)
        }
    };
    if !matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP) {
        return None;
    }
    let ports: &[u8; 4] = inner.get(length..)?.first_chunk()?;
    let ports =
        (u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]]));
    Some(Quoted { tuple: Tuple { addresses, ports, protocol: number }, l3, l4: l3 + length })
}

/// Turns an error into one from `outer.0` to `outer.1` about a packet from `inner.0` to `inner.1`;
/// everything stays in its family.
pub(super) fn translate_error(
    frame: &mut Frame<'_>,
    packet: &Packet,
    quoted: &Quoted,
    inner: (SocketAddr, SocketAddr),
    outer: (IpAddr, IpAddr),
) {
    let end = usize::from(packet.end);
    let bytes = &mut frame.bytes_mut()[..end];
    let (l3, l4) = (quoted.l3, quoted.l4);
    let ips = match (inner.0.ip(), inner.1.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let new = [source.octets(), destination.octets()].concat_pair();
            let change = replace(bytes, l3 + 12, &new);
            put(bytes, l3 + 10, |old| change.apply(old));
            change
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let first = replace(bytes, l3 + 8, &source.octets());
            first.and(replace(bytes, l3 + 24, &destination.octets()))
        }
        _ => return,
    };
    let mut ports = [0; 4];
    ports[..2].copy_from_slice(&inner.0.port().to_be_bytes());
    ports[2..].copy_from_slice(&inner.1.port().to_be_bytes());
    let change = ips.and(replace(bytes, l4, &ports));
    // Hosts look at what is quoted; of a short quote the checksum is missing.
    match quoted.tuple.protocol {
        protocol::TCP if l4 + 18 <= end => put(bytes, l4 + 16, |old| change.apply(old)),
        protocol::UDP if l4 + 8 <= end => put(bytes, l4 + 6, |old| change.apply_udp(old)),
        _ => {}
    }
    address_outer(bytes, packet, outer);
}

/// Writes source and destination of an ICMP message, and sums it anew.
fn address_outer(bytes: &mut [u8], packet: &Packet, outer: (IpAddr, IpAddr)) {
    let (l3, l4) = (usize::from(packet.l3), usize::from(packet.l4));
    bytes[l4 + 2..l4 + 4].fill(0);
    let pseudo = match outer {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let new = [source.octets(), destination.octets()].concat_pair();
            let ttl = packet.ttl.saturating_sub(1);
            let old = u16::from_be_bytes([bytes[l3 + 8], bytes[l3 + 9]]);
            let change =
                replace(bytes, l3 + 12, &new).word(old, u16::from_be_bytes([ttl, bytes[l3 + 9]]));
            bytes[l3 + 8] = ttl;
            put(bytes, l3 + 10, |old| change.apply(old));
            Sum::ZERO
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            bytes[l3 + 7] = packet.ttl.saturating_sub(1);
            bytes[l3 + 8..l3 + 24].copy_from_slice(&source.octets());
            bytes[l3 + 24..l3 + 40].copy_from_slice(&destination.octets());
            let length = (bytes.len() - l4) as u32;
            pseudo_header(&source.octets(), &destination.octets(), protocol::ICMPV6, length)
        }
        _ => return,
    };
    let checksum = pseudo.bytes(&bytes[l4..]).checksum().to_be_bytes();
    bytes[l4 + 2..l4 + 4].copy_from_slice(&checksum);
}

/// Makes of a frame the IP packet of an error about its packet, from `source` to the packet's own
/// source. False when the buffer has no room.
pub(super) fn write_error(
    frame: &mut Frame<'_>,
    packet: &Packet,
    source: IpAddr,
    error: Error,
) -> bool {
    complete(frame, packet);
    let ip = if source.is_ipv4() { 20 } else { 40 };
    let largest = LARGEST[usize::from(!source.is_ipv4())];
    frame.truncate(usize::from(packet.end));
    frame.shrink_front(usize::from(packet.l3));
    frame.truncate(largest - ip - HEADER);
    if !frame.grow_front(ip + HEADER) {
        return false;
    }
    let bytes = frame.bytes_mut();
    let (kind, code, rest) = error.fields(source.is_ipv4());
    bytes[ip..ip + 4].copy_from_slice(&[kind, code, 0, 0]);
    bytes[ip + 4..ip + 8].copy_from_slice(&rest.to_be_bytes());
    let length = bytes.len() as u16;
    let pseudo = match (source, packet.addresses.source()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let length = length.to_be_bytes();
            bytes[..4].copy_from_slice(&[0x45, 0, length[0], length[1]]);
            bytes[4..12].copy_from_slice(&[0, 0, 0x40, 0, TTL, protocol::ICMP, 0, 0]);
            bytes[12..16].copy_from_slice(&source.octets());
            bytes[16..20].copy_from_slice(&destination.octets());
            let checksum = Sum::ZERO.bytes(&bytes[..20]).checksum().to_be_bytes();
            bytes[10..12].copy_from_slice(&checksum);
            Sum::ZERO
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let body = (length - 40).to_be_bytes();
            bytes[..8].copy_from_slice(&[0x60, 0, 0, 0, body[0], body[1], protocol::ICMPV6, TTL]);
            bytes[8..24].copy_from_slice(&source.octets());
            bytes[24..40].copy_from_slice(&destination.octets());
            let (source, destination) = (source.octets(), destination.octets());
            pseudo_header(&source, &destination, protocol::ICMPV6, u32::from(length) - 40)
        }
        _ => return false,
    };
    let checksum = pseudo.bytes(&bytes[ip..]).checksum().to_be_bytes();
    bytes[ip + 2..ip + 4].copy_from_slice(&checksum);
    true
}

/// Writes `new` at `at`, and says what that changes.
fn replace(bytes: &mut [u8], at: usize, new: &[u8]) -> Change {
    let field = &mut bytes[at..at + new.len()];
    let change = Change::NONE.replace(field, new);
    field.copy_from_slice(new);
    change
}

/// Writes the word at `at` anew.
fn put(bytes: &mut [u8], at: usize, new: impl Fn(u16) -> u16) {
    let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    bytes[at..at + 2].copy_from_slice(&new(old).to_be_bytes());
}

/// Two addresses, one behind the other.
trait ConcatPair {
    fn concat_pair(self) -> [u8; 8];
}

impl ConcatPair for [[u8; 4]; 2] {
    fn concat_pair(self) -> [u8; 8] {
        let [[a, b, c, d], [e, f, g, h]] = self;
        [a, b, c, d, e, f, g, h]
    }
}
