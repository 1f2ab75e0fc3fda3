//! Packets that change their family (RFC 7915): the header is written anew, the payload stays.
//!
//! Options and extension headers go, as the RFC has it; what cannot be said in the other family is
//! refused.

use super::checksum::{Change, Sum, fill};
use super::frame::Frame;
use super::icmp::Quoted;
use super::parse::{Addresses, Packet, parse_ip, protocol};
use super::rewrite::{Ends, complete};

/// Bytes of the headers.
const IPV4: usize = 20;
const IPV6: usize = 40;
pub(super) const FRAGMENT: usize = 8;
/// IPv4 packets up to this size may be fragmented on their way (RFC 7915, section 5.1).
const SMALL: usize = 1260;
/// Largest ICMP errors (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4).
const LARGEST: [usize; 2] = [576, 1280];

/// Bytes of the header that a packet gets in the other family.
pub(super) fn header_after(packet: &Packet) -> usize {
    match packet.addresses {
        Addresses::V4(..) => IPV6 + if packet.fragment.is_some() { FRAGMENT } else { 0 },
        Addresses::V6(..) => IPV4,
    }
}

/// What an upper layer's checksum becomes when its pseudo-header does.
fn change(packet: &Packet, length: usize, ends: &Ends) -> Change {
    let before = packet.addresses.pseudo_header(packet.protocol, length).folded();
    let after = ends.pseudo_header(packet.protocol, length).folded();
    Change::NONE.word(before, after)
}

/// Makes of a frame the same packet in the other family, between `ends`, without its Ethernet
/// header, and takes one off its time to live. False when it cannot be said there, or there is no
/// room.
pub(super) fn cross(frame: &mut Frame<'_>, packet: &Packet, ends: &Ends) -> bool {
    complete(frame, packet);
    let l3 = usize::from(packet.l3);
    let fields: [u8; 8] = match frame.bytes().get(l3..).and_then(|rest| rest.first_chunk()) {
        Some(fields) => *fields,
        None => return false,
    };
    frame.narrow(packet.l4, packet.end);
    let length = frame.len();
    let Some(change) = ports(frame.bytes_mut(), packet, ends, change(packet, length, ends)) else {
        return false;
    };
    if !sum(frame.bytes_mut(), packet, ends, change) {
        return false;
    }
    let extends = packet.fragment.is_some() && !ends.is_v4();
    let mut header = ends.header(if extends { protocol::FRAGMENT } else { packet.protocol });
    header.ttl = packet.ttl - 1;
    match packet.addresses {
        Addresses::V4(..) => {
            header.class = fields[1];
            if let Some(fragment) = packet.fragment {
                if !frame.grow_front(FRAGMENT) {
                    return false;
                }
                let extension = &mut frame.bytes_mut()[..FRAGMENT];
                extension[..2].copy_from_slice(&[packet.protocol, 0]);
                let place = fragment.offset | u16::from(fragment.more);
                extension[2..4].copy_from_slice(&place.to_be_bytes());
                extension[4..].copy_from_slice(&fragment.id.to_be_bytes());
            }
        }
        Addresses::V6(..) => {
            header.class = fields[0] << 4 | fields[1] >> 4;
            header.may_fragment = packet.fragment.is_some() || length + IPV4 <= SMALL;
            if let Some(fragment) = packet.fragment {
                header.id = fragment.id as u16;
                header.place = fragment.offset >> 3 | if fragment.more { 0x2000 } else { 0 };
            } else if header.may_fragment {
                // Any will do that seldom comes again: the transport's checksum.
                header.id = change.apply(length as u16);
            }
        }
    }
    if !frame.grow_front(header.length()) || frame.len() > usize::from(u16::MAX) {
        return false;
    }
    header.write(frame.bytes_mut());
    true
}

/// Writes the ports, where there are some, and adds that to the change.
fn ports(body: &mut [u8], packet: &Packet, ends: &Ends, change: Change) -> Option<Change> {
    let Some((from, to)) = packet.transport.ports() else { return Some(change) };
    let [source, destination] = ends.ports();
    let ports = body.first_chunk_mut::<4>()?;
    ports[..2].copy_from_slice(&source.to_be_bytes());
    ports[2..].copy_from_slice(&destination.to_be_bytes());
    Some(change.word(from, source).word(to, destination))
}

/// Brings the checksum of a transport header up to date; false when it has none and needs one.
fn sum(body: &mut [u8], packet: &Packet, ends: &Ends, change: Change) -> bool {
    if packet.transport.ports().is_none() {
        return true;
    }
    match packet.protocol {
        protocol::TCP => change.write(body, 16),
        protocol::UDP if body[6..8] == [0, 0] && !ends.is_v4() => {
            // IPv4 knows datagrams without a checksum, IPv6 does not.
            if packet.fragment.is_some() {
                return false;
            }
            let pseudo = ends.pseudo_header(protocol::UDP, body.len());
            fill(body, 6, pseudo);
            if body[6..8] == [0, 0] {
                body[6..8].fill(0xff);
            }
        }
        protocol::UDP => change.write_udp(body, 6),
        protocol::SCTP => super::rewrite::sum_sctp(body),
        _ => {}
    }
    true
}

/// Type, code and the word behind the checksum of an error in the other family; none when it has no
/// like there. A size is that of packets there.
fn said(is_v4: bool, kind: u8, code: u8, rest: u32) -> Option<(u8, u8, u32)> {
    /// Where an IPv6 header has what an IPv4 header has at a place, and the other way round.
    const FIELDS: [(u32, u32); 8] =
        [(0, 0), (1, 1), (2, 4), (3, 4), (8, 7), (9, 6), (12, 8), (16, 24)];
    let grown = IPV6 as u32 - IPV4 as u32;
    Some(if is_v4 {
        match (kind, code) {
            (3, 4) => {
                let mtu = match rest & 0xffff {
                    0 => 1280,
                    mtu => mtu + grown,
                };
                (2, 0, mtu.max(1280))
            }
            (3, 2) => (4, 1, 6),
            (3, 3) => (1, 4, 0),
            (3, 9 | 10 | 13 | 15) => (1, 1, 0),
            (3, 0 | 1 | 5..=8 | 11 | 12) => (1, 0, 0),
            (11, code) => (3, code, 0),
            (12, 0 | 2) => {
                let (_, field) = FIELDS.iter().find(|(v4, _)| *v4 == rest >> 24)?;
                (4, 0, *field)
            }
            _ => return None,
        }
    } else {
        match (kind, code) {
            (2, _) => (3, 4, rest.saturating_sub(grown).clamp(68, 0xffff)),
            (1, 4) => (3, 3, 0),
            (1, 1) => (3, 10, 0),
            (1, 0 | 2 | 3) => (3, 1, 0),
            (3, code) => (11, code, 0),
            (4, 1) => (3, 2, 0),
            (4, 0) => {
                let (field, _) = FIELDS.iter().find(|(_, v6)| *v6 == rest)?;
                (12, 0, field << 24)
            }
            _ => return None,
        }
    })
}

/// Makes of a frame the IP packet of the same error in the other family: from and to the addresses
/// of `outer`, about a packet between those of `inner`. False when it cannot be said there.
pub(super) fn cross_error(
    frame: &mut Frame<'_>,
    packet: &Packet,
    quoted: &Quoted,
    inner: &Ends,
    outer: &Ends,
) -> bool {
    let was_v4 = matches!(packet.addresses, Addresses::V4(..));
    let l4 = usize::from(packet.l4);
    let Some([kind, code, _, _, a, b, c, d]) =
        frame.bytes().get(l4..).and_then(|rest| rest.first_chunk::<8>()).copied()
    else {
        return false;
    };
    let rest = u32::from_be_bytes([a, b, c, d]);
    let Some((kind, code, rest)) = said(was_v4, kind, code, rest) else { return false };
    let mut whole = [0; LARGEST[1]];
    let most = LARGEST[usize::from(was_v4)];
    let [outer_ip, inner_ip] = if was_v4 { [IPV6; 2] } else { [IPV4; 2] };
    let start = outer_ip + 8 + inner_ip;
    let Some(body) = frame.bytes().get(quoted.l4..usize::from(packet.end)) else { return false };
    let body = &body[..body.len().min(most - start)];
    let end = start + body.len();
    whole[start..end].copy_from_slice(body);
    // The quoted header's own word of its length: of the quote the end may be missing.
    let Some(length) = quoted.body(frame.bytes()) else { return false };
    let mut header = inner.header(quoted.tuple.protocol);
    header.ttl = quoted.ttl(frame.bytes());
    header.write_for(&mut whole[start - inner_ip..end], inner_ip + length);
    let [source, destination] = inner.ports();
    whole[start..start + 2].copy_from_slice(&source.to_be_bytes());
    whole[start + 2..start + 4].copy_from_slice(&destination.to_be_bytes());
    let message = &mut whole[outer_ip..end];
    message[..2].copy_from_slice(&[kind, code]);
    message[4..8].copy_from_slice(&rest.to_be_bytes());
    let number = if was_v4 { protocol::ICMPV6 } else { protocol::ICMP };
    let pseudo = match was_v4 {
        true => outer.pseudo_header(number, message.len()),
        false => Sum::ZERO,
    };
    fill(message, 2, pseudo);
    let mut header = outer.header(number);
    header.ttl = packet.ttl - 1;
    header.write(&mut whole[..end]);
    debug_assert!(parse_ip(&whole[..end], 0).is_ok());
    frame.replace(&whole[..end])
}
