//! Who the client is, said to a backend that does not see its address: before the client's first
//! byte, or in an option of its first segments.
//!
//! What is put before the first byte moves the client's sequence numbers from there on; the
//! backend's acknowledgements move back.

use core::net::{IpAddr, SocketAddr};

use super::checksum::{Change, fill};
use super::frame::Frame;
use super::parse::{Addresses, Packet, Transport, protocol};
use super::rewrite::{complete, is_summed};
use crate::proxy_header::{V2_MOST, v2_length, write_v2};

/// Where TCP has its numbers, and most of its header.
pub(super) const SEQUENCE: usize = 4;
const ACKNOWLEDGEMENT: usize = 8;
const SUM: usize = 16;
const URGENT: usize = 18;
const MOST: u8 = 60;
/// The option of a client's address, its port first: an experimental number (RFC 4727) that the
/// kernel modules for it have in common.
const TOA: u8 = 254;
/// Selective acknowledgements (RFC 2018).
const SACK: u8 = 5;
const MSS: u8 = 2;

/// How a backend is told who its client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Head {
    /// A header of version 2 of the PROXY protocol before the client's first byte.
    Proxy {
        /// With a checksum.
        crc32c: bool,
    },
    /// The TCP option "TOA" in the first segments.
    Toa,
}

impl Head {
    /// Bytes that it adds to a segment.
    pub(super) fn length(self, client: IpAddr) -> usize {
        match (self, client.is_ipv4()) {
            (Self::Proxy { crc32c }, is_v4) => v2_length(is_v4, crc32c),
            (Self::Toa, true) => 8,
            (Self::Toa, false) => 20,
        }
    }

    /// Bytes by which it moves the client's sequence numbers.
    pub(super) fn moves(self, client: IpAddr) -> u32 {
        match self {
            Self::Proxy { .. } => self.length(client) as u32,
            Self::Toa => 0,
        }
    }

    /// Puts it into a whole segment of `client` to `vip`; what the packet is then. None when the
    /// segment's checksum is wrong, or there is no room.
    pub(super) fn put(
        self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        (client, vip): (SocketAddr, SocketAddr),
    ) -> Option<Packet> {
        let Transport::Tcp { header, .. } = packet.transport else { return None };
        let mut bytes = [0; V2_MOST];
        let at = usize::from(packet.l4) + usize::from(header);
        match self {
            Self::Proxy { crc32c } => {
                let length = write_v2(&mut bytes, Some((client, vip)), None, crc32c);
                insert(frame, packet, at, &bytes[..length], 0)
            }
            Self::Toa => {
                let length = self.length(client.ip());
                // Segments with so many options go without it.
                if usize::from(header) + length > usize::from(MOST) {
                    return Some(*packet);
                }
                bytes[..2].copy_from_slice(&[TOA, length as u8]);
                bytes[2..4].copy_from_slice(&client.port().to_be_bytes());
                match client.ip() {
                    IpAddr::V4(ip) => bytes[4..8].copy_from_slice(&ip.octets()),
                    IpAddr::V6(ip) => bytes[4..20].copy_from_slice(&ip.octets()),
                }
                // Behind the fixed part: a list of options may be ended before its room is.
                let at = usize::from(packet.l4) + 20;
                insert(frame, packet, at, &bytes[..length], length as u8)
            }
        }
    }
}

/// Puts `bytes` into a segment at `at`, of which `options` bytes lengthen its header.
fn insert(
    frame: &mut Frame<'_>,
    packet: &Packet,
    at: usize,
    bytes: &[u8],
    options: u8,
) -> Option<Packet> {
    complete(frame, packet);
    let n = bytes.len();
    let whole = usize::from(packet.end - packet.l3) + n <= usize::from(u16::MAX);
    frame.truncate(packet.end.into());
    if !whole || !is_summed(frame, packet) || !frame.grow_front(n) {
        return None;
    }
    let frame = frame.bytes_mut();
    frame.copy_within(n..n + at, 0);
    frame[at..at + n].copy_from_slice(bytes);
    let l4 = usize::from(packet.l4);
    if options > 0 {
        frame[l4 + 12] += (options / 4) << 4;
    } else if frame[l4 + URGENT..l4 + URGENT + 2] != [0, 0] {
        add(frame, l4 + URGENT, n as u16);
    }
    Some(resized(frame, packet, packet.end + n as u16, options))
}

/// Takes the payload off a first segment: its client sends it again.
pub(super) fn take_payload(frame: &mut Frame<'_>, packet: &Packet) -> Option<Packet> {
    let Transport::Tcp { header, .. } = packet.transport else { return None };
    complete(frame, packet);
    if !is_summed(frame, packet) {
        return None;
    }
    let end = packet.l4 + u16::from(header);
    frame.truncate(end.into());
    Some(resized(frame.bytes_mut(), packet, end, 0))
}

/// Writes the lengths and checksums of a segment that ends at `end` now.
fn resized(frame: &mut [u8], packet: &Packet, end: u16, options: u8) -> Packet {
    let (l3, l4) = (usize::from(packet.l3), usize::from(packet.l4));
    match packet.addresses {
        Addresses::V4(..) => {
            let length = end - packet.l3;
            let old = u16::from_be_bytes([frame[l3 + 2], frame[l3 + 3]]);
            frame[l3 + 2..l3 + 4].copy_from_slice(&length.to_be_bytes());
            Change::NONE.word(old, length).write(frame, l3 + 10);
        }
        Addresses::V6(..) => {
            let length = end - packet.l3 - 40;
            frame[l3 + 4..l3 + 6].copy_from_slice(&length.to_be_bytes());
        }
    }
    let body = &mut frame[l4..usize::from(end)];
    fill(body, SUM, packet.addresses.pseudo_header(protocol::TCP, body.len()));
    let transport = match packet.transport {
        Transport::Tcp { ports, flags, header } => {
            Transport::Tcp { ports, flags, header: header + options }
        }
        other => other,
    };
    Packet { end, transport, ..*packet }
}

fn add(bytes: &mut [u8], at: usize, n: u16) {
    let sum = u16::from_be_bytes([bytes[at], bytes[at + 1]]).saturating_add(n);
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// The sequence number of a segment.
pub(super) fn sequence(frame: &Frame<'_>, packet: &Packet) -> u32 {
    number(frame.bytes(), usize::from(packet.l4) + SEQUENCE)
}

/// What a segment acknowledges.
pub(super) fn acknowledgement(frame: &Frame<'_>, packet: &Packet) -> u32 {
    number(frame.bytes(), usize::from(packet.l4) + ACKNOWLEDGEMENT)
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Moves a segment's sequence number on.
pub(super) fn move_sequence(frame: &mut Frame<'_>, packet: &Packet, by: u32) {
    complete(frame, packet);
    let l4 = usize::from(packet.l4);
    let bytes = frame.bytes_mut();
    set(bytes, l4, SEQUENCE, number(bytes, l4 + SEQUENCE).wrapping_add(by));
}

/// Changes what a segment acknowledges, selectively too, by `change`.
pub(super) fn change_acknowledged(
    frame: &mut Frame<'_>,
    packet: &Packet,
    change: impl Fn(u32) -> u32,
) {
    complete(frame, packet);
    let l4 = usize::from(packet.l4);
    let bytes = frame.bytes_mut();
    set(bytes, l4, ACKNOWLEDGEMENT, change(number(bytes, l4 + ACKNOWLEDGEMENT)));
    if let Some((at, length)) = option(bytes, packet, SACK) {
        for at in (at + 2..at + length).step_by(4).filter(|edge| edge + 4 <= at + length) {
            set(bytes, l4, at - l4, change(number(bytes, at)));
        }
    }
}

/// Changes the largest segment that a TCP header offers to take, if it says one.
pub(super) fn change_mss(frame: &mut Frame<'_>, packet: &Packet, change: impl Fn(u16) -> u16) {
    complete(frame, packet);
    let l4 = usize::from(packet.l4);
    let bytes = frame.bytes_mut();
    let Some((at, 4)) = option(bytes, packet, MSS) else { return };
    let offered = u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]);
    set_bytes(bytes, l4, at + 2 - l4, change(offered).to_be_bytes());
}

/// Where an option of a TCP header is, and how long.
fn option(bytes: &[u8], packet: &Packet, wanted: u8) -> Option<(usize, usize)> {
    let Transport::Tcp { header, .. } = packet.transport else { return None };
    let l4 = usize::from(packet.l4);
    let (mut at, end) = (l4 + 20, l4 + usize::from(header));
    while at + 2 <= end {
        let length = match (bytes[at], bytes[at + 1]) {
            (0, _) => return None,
            (1, _) => 1,
            (kind, length) => {
                let length = usize::from(length.max(2));
                if kind == wanted {
                    return (at + length <= end).then_some((at, length));
                }
                length
            }
        };
        at += length;
    }
    None
}

fn set(bytes: &mut [u8], l4: usize, at: usize, to: u32) {
    set_bytes(bytes, l4, at, to.to_be_bytes());
}

/// Writes at `at` of a TCP header; its checksum by what changed.
fn set_bytes<const N: usize>(bytes: &mut [u8], l4: usize, at: usize, to: [u8; N]) {
    let mut change = Change::NONE;
    for (n, new) in to.into_iter().enumerate() {
        let old = core::mem::replace(&mut bytes[l4 + at + n], new);
        // A byte's worth depends on whether it is the upper or the lower of its word.
        let word = |byte: u8| u16::from(byte) << if (at + n).is_multiple_of(2) { 8 } else { 0 };
        change = change.word(word(old), word(new));
    }
    change.write(bytes, l4 + SUM);
}
