//! ICMP errors: those that pass are translated with what they quote, those of our own are written
//! over the packet that they are about.

use core::net::IpAddr;

use super::checksum::{Sum, fill, pseudo_header, replace};
use super::flow::Tuple;
use super::frame::Frame;
use super::header::IpHeader;
use super::parse::{Addresses, Packet, Transport, protocol};
use super::rewrite::{Ends, complete, lower_ttl};
use super::tunnel::GUE_PORT;

/// Bytes of the header of an ICMP error.
const HEADER: usize = 8;
/// Largest ICMP error, in bytes (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4).
const LARGEST: [usize; 2] = [576, 1280];

/// Extension headers that are passed over in a quoted packet.
const EXTENSIONS: usize = 4;

/// Errors that Fairway sends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Error {
    /// The packet is larger than this, with which it would fit.
    TooBig(u16),
    /// Its time to live is over.
    TimeExceeded,
    /// Nobody serves there.
    NoPort,
    /// Nobody is there.
    NoHost,
}

impl Error {
    /// Type, code and the word after the checksum.
    fn fields(self, is_v4: bool) -> (u8, u8, u32) {
        match (self, is_v4) {
            (Self::TooBig(mtu), true) => (3, 4, mtu.into()),
            (Self::TooBig(mtu), false) => (2, 0, mtu.into()),
            (Self::TimeExceeded, true) => (11, 0, 0),
            (Self::TimeExceeded, false) => (3, 0, 0),
            (Self::NoPort, true) => (3, 3, 0),
            (Self::NoPort, false) => (1, 4, 0),
            (Self::NoHost, true) => (3, 1, 0),
            (Self::NoHost, false) => (1, 3, 0),
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

impl Quoted {
    /// Bytes behind its IP header, by its own word.
    pub(super) fn body(&self, frame: &[u8]) -> Option<usize> {
        let word = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
        Some(match self.tuple.addresses {
            Addresses::V4(..) => usize::from(word(self.l3 + 2)?).saturating_sub(self.l4 - self.l3),
            Addresses::V6(..) => word(self.l3 + 4)?.into(),
        })
    }

    /// Its time to live.
    pub(super) fn ttl(&self, frame: &[u8]) -> u8 {
        let at = match self.tuple.addresses {
            Addresses::V4(..) => 8,
            Addresses::V6(..) => 7,
        };
        frame.get(self.l3 + at).copied().unwrap_or(0)
    }
}

/// Finds the packet that the error `packet` quotes; none when it has no ports.
pub(super) fn quoted(frame: &[u8], packet: &Packet) -> Option<Quoted> {
    let l3 = usize::from(packet.l4) + HEADER;
    let inner = frame.get(l3..usize::from(packet.end))?;
    let (addresses, number, length) = addresses(inner)?;
    // An error speaks of packets of its own family.
    let same = matches!(
        (packet.addresses, addresses),
        (Addresses::V4(..), Addresses::V4(..)) | (Addresses::V6(..), Addresses::V6(..))
    );
    if !same {
        return None;
    }
    if !matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP) {
        return None;
    }
    let ports: &[u8; 4] = inner.get(length..)?.first_chunk()?;
    let ports =
        (u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]]));
    Some(Quoted { tuple: Tuple { addresses, ports, protocol: number }, l3, l4: l3 + length })
}

/// A packet that was in a tunnel of ours when somebody found it too large.
pub(super) struct Carried {
    /// The packet, as far as the error quotes it.
    pub(super) tuple: Tuple,
    /// Where it starts.
    pub(super) l3: u16,
    /// What its sender is to be told.
    pub(super) error: Error,
}

/// Finds the packet that was in the tunnel's packet which the error `packet` quotes. Whatever is
/// wrong on the tunnel's way, to the sender of what is in it nobody is there (RFC 2003, section 4);
/// but a size it can mend.
pub(super) fn carried(frame: &[u8], packet: &Packet) -> Option<Carried> {
    let l4 = usize::from(packet.l4);
    let message: &[u8; HEADER] = frame.get(l4..)?.first_chunk()?;
    let mtu = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
    let outer = frame.get(l4 + HEADER..usize::from(packet.end))?;
    let sized = match (packet.addresses, message[0], message[1]) {
        (Addresses::V4(..), 3, 4) | (Addresses::V6(..), 2, _) => true,
        // Unreachable, and time exceeded.
        (Addresses::V4(..), 3 | 11, _) | (Addresses::V6(..), 1 | 3, _) => false,
        _ => return None,
    };
    let (number, mut overhead) = match packet.addresses {
        Addresses::V4(..) => (*outer.get(9)?, usize::from(*outer.first()? & 0xf) * 4),
        Addresses::V6(..) => (*outer.get(6)?, 40),
    };
    match number {
        protocol::IPIP | protocol::IPV6 => {}
        protocol::UDP => {
            let udp: &[u8; 9] = outer.get(overhead..)?.first_chunk()?;
            if udp[2..4] != GUE_PORT.to_be_bytes() {
                return None;
            }
            // Variant 0 has a header of its own.
            overhead += if udp[8] >> 6 == 0 { 12 } else { 8 };
        }
        _ => return None,
    }
    let inner = outer.get(overhead..)?;
    let (addresses, number, length) = addresses(inner)?;
    let ports: &[u8; 4] = inner.get(length..)?.first_chunk()?;
    let [from, to] = [[ports[0], ports[1]], [ports[2], ports[3]]].map(u16::from_be_bytes);
    let tuple = Tuple { addresses, ports: (from, to), protocol: number };
    let error = match sized {
        true => Error::TooBig(u16::try_from(mtu & 0xffff).ok()?.checked_sub(overhead as u16)?),
        false => Error::NoHost,
    };
    Some(Carried { tuple, l3: (l4 + HEADER + overhead) as u16, error })
}

/// Addresses, transport protocol and length of the IP header of a packet of which the end may be
/// missing; none for later fragments.
fn addresses(packet: &[u8]) -> Option<(Addresses, u8, usize)> {
    if packet.first()? >> 4 == 4 {
        let header: &[u8; 20] = packet.first_chunk()?;
        let length = usize::from(header[0] & 0xf) * 4;
        let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
        let ip = |at: usize| <[u8; 4]>::try_from(&header[at..at + 4]).ok();
        let addresses = Addresses::V4(ip(12)?.into(), ip(16)?.into());
        return (length >= 20 && offset == 0).then_some((addresses, header[9], length));
    }
    let header: &[u8; 40] = packet.first_chunk()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let ip = |at: usize| <[u8; 16]>::try_from(&header[at..at + 16]).ok();
    let (mut number, mut length) = (header[6], 40);
    for _ in 0..EXTENSIONS {
        let extension = packet.get(length..)?;
        match number {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION => {
                (number, length) =
                    (*extension.first()?, length + (usize::from(*extension.get(1)?) + 1) * 8);
            }
            protocol::FRAGMENT => {
                let first = u16::from_be_bytes([*extension.get(2)?, *extension.get(3)?]) >> 3 == 0;
                (number, length) = (*extension.first().filter(|_| first)?, length + 8);
            }
            _ => break,
        }
    }
    Some((Addresses::V6(ip(8)?.into(), ip(24)?.into()), number, length))
}

/// Turns an error into one with the addresses of `outer` about a packet with those of `inner`;
/// everything stays in its family.
pub(super) fn translate_error(
    frame: &mut Frame<'_>,
    packet: &Packet,
    quoted: &Quoted,
    inner: &Ends,
    outer: &Ends,
) {
    let end = usize::from(packet.end);
    let bytes = &mut frame.bytes_mut()[..end];
    let (l3, l4) = (quoted.l3, quoted.l4);
    let (ips, [source, destination]) = match inner {
        Ends::V4 { addresses, ports } => {
            let change = replace(bytes, l3 + 12, addresses);
            change.write(bytes, l3 + 10);
            (change, *ports)
        }
        Ends::V6 { addresses, ports } => (replace(bytes, l3 + 8, addresses), *ports),
    };
    let [[a, b], [c, d]] = [source.to_be_bytes(), destination.to_be_bytes()];
    let change = ips.and(replace(bytes, l4, &[a, b, c, d]));
    // Hosts look at what is quoted; of a short quote the checksum is missing.
    match quoted.tuple.protocol {
        protocol::TCP if l4 + 18 <= end => change.write(bytes, l4 + 16),
        protocol::UDP if l4 + 8 <= end => change.write_udp(bytes, l4 + 6),
        _ => {}
    }
    address_outer(bytes, packet, outer);
}

/// Writes source and destination of an ICMP message, takes one off its time to live, and sums it
/// anew.
fn address_outer(bytes: &mut [u8], packet: &Packet, outer: &Ends) {
    let (l3, l4) = (usize::from(packet.l3), usize::from(packet.l4));
    lower_ttl(bytes, packet);
    let pseudo = match outer {
        Ends::V4 { addresses, .. } => {
            replace(bytes, l3 + 12, addresses).write(bytes, l3 + 10);
            Sum::ZERO
        }
        Ends::V6 { addresses, .. } => {
            replace(bytes, l3 + 8, addresses);
            let (source, destination) = addresses.split_at(16);
            pseudo_header(source, destination, protocol::ICMPV6, (bytes.len() - l4) as u32)
        }
    };
    fill(&mut bytes[l4..], 2, pseudo);
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
    frame.narrow(packet.l3, packet.end);
    write_about(frame, source, packet.addresses.source(), error)
}

/// Makes of a frame that is a packet, or the beginning of one, the IP packet of an error about it.
/// False when the buffer has no room.
pub(super) fn write_about(frame: &mut Frame<'_>, source: IpAddr, to: IpAddr, error: Error) -> bool {
    let number = if source.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
    let header = IpHeader::new(source, to, number);
    let ip = header.length();
    frame.truncate(LARGEST[usize::from(!source.is_ipv4())] - ip - HEADER);
    if source.is_ipv4() != to.is_ipv4() || !frame.grow_front(ip + HEADER) {
        return false;
    }
    let bytes = frame.bytes_mut();
    let (kind, code, rest) = error.fields(source.is_ipv4());
    bytes[ip..ip + 4].copy_from_slice(&[kind, code, 0, 0]);
    bytes[ip + 4..ip + 8].copy_from_slice(&rest.to_be_bytes());
    let body = &mut bytes[ip..];
    let pseudo = match (source, to) {
        (IpAddr::V6(source), IpAddr::V6(to)) => {
            pseudo_header(&source.octets(), &to.octets(), protocol::ICMPV6, body.len() as u32)
        }
        // ICMP of IPv4 has none.
        _ => Sum::ZERO,
    };
    fill(body, 2, pseudo);
    header.write(bytes);
    true
}
