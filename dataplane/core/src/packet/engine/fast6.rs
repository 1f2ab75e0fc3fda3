//! The same short way for plain IPv6: no extension headers.

use core::net::{IpAddr, Ipv6Addr};

use super::fast::{
    Burst, Look, expected, header_of, is_known, is_sound, tunnelled, word, write_sum,
};
use super::{Context, Engine, Verdict};
use crate::packet::checksum::Change;
use crate::packet::flow::{Direction, plain_hash6};
use crate::packet::frame::Frame;
use crate::packet::parse::{ETHERNET, ether};
use crate::packet::routes::NextHop;

// Places in a frame without tags.
const L3: usize = ETHERNET;
const HEADER: usize = 40;
const ADDRESSES: usize = L3 + 8;
const L4: usize = L3 + HEADER;
/// What is read of every frame: up to a TCP header's end. Shorter datagrams go the other way.
const READ: usize = L4 + 20;

/// The hash of a frame that may go this way.
#[inline]
pub(super) fn plain6(frame: &Frame<'_>, seeds: [u64; 2]) -> Option<u64> {
    let head: &[u8; READ] = frame.bytes().first_chunk()?;
    let kind = u16::from_be_bytes([head[12], head[13]]);
    let protocol = head[L3 + 6];
    if kind != ether::IPV6 || head[L3] >> 4 != 6 || !is_known(protocol) {
        return None;
    }
    Some(plain_hash6(head[ADDRESSES..].first_chunk()?, word(head, L4), protocol, seeds))
}

/// Whether an address of a cell is one of IPv4.
#[inline]
fn is_mapped(ip: &[u8; 16]) -> bool {
    ip[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]
}

impl Engine<'_> {
    /// Sends a frame on if it is as plain as it looked; else nothing has happened to it.
    #[inline(never)]
    pub(super) fn fast6(
        &mut self,
        frame: &mut Frame<'_>,
        look: &Look,
        burst: &Burst,
        cx: &Context<'_>,
    ) -> Option<Verdict> {
        self.way6(frame, look, burst, None, cx)
    }

    /// The same; `segment` is the payload of a super-packet's segments, none for one packet.
    #[inline(always)]
    pub(super) fn way6(
        &mut self,
        frame: &mut Frame<'_>,
        look: &Look,
        burst: &Burst,
        segment: Option<u16>,
        cx: &Context<'_>,
    ) -> Option<Verdict> {
        if !look.is_plain6() || frame.checksum != expected(segment) {
            return None;
        }
        let (length, room) = (frame.len(), frame.place().start);
        let head: &mut [u8; READ] = frame.bytes_mut().first_chunk_mut()?;
        let payload = usize::from(u16::from_be_bytes([head[L3 + 4], head[L3 + 5]]));
        let (number, hops) = (head[L3 + 6], head[L3 + 7]);
        let total = HEADER + payload;
        if L3 + total > length || hops <= 1 || !is_sound(head, L4, number, payload) {
            return None;
        }
        let ports = word(head, L4);
        let ends: [u8; 32] = *head[ADDRESSES..].first_chunk()?;
        let (direction, mut cell) = self.flows.plain6(look.guess, &ends, ports, number)?;
        if !burst.is_good(&cell, direction) {
            return None;
        }
        let rewritten = cell.is_rewritten();
        let new_ends = cell.ends(direction);
        let to = if rewritten { new_ends[1] } else { cell.backend() };
        // Packets that change their family are written anew.
        if is_mapped(&to) {
            return None;
        }
        let hop = self.hops.next_hop6(cx.snapshot.routes(), u128::from_be_bytes(to));
        let NextHop::Known(link, mac) = hop else { return None };
        let outer = if rewritten || cell.is_direct() {
            None
        } else if segment.is_some() {
            return None;
        } else {
            let (tunnel, to) = (cell.tunnel()?, IpAddr::from(Ipv6Addr::from(to)));
            // Flows are spread by the hash of what the client sends.
            if direction == Direction::Reply || tunnel.overhead(to) > room {
                return None;
            }
            Some((tunnel, (link.ipv6?.into(), to)))
        };
        let added = outer.map_or(0, |(tunnel, (_, to))| tunnel.overhead(to));
        let longest = match segment {
            Some(payload) => HEADER + header_of(head, L4, number) + usize::from(payload),
            None => total + added,
        };
        if longest > usize::from(link.mtu) {
            return None;
        }
        let lives = self.held.count(cell.backend_slot(), direction, total as u64)?;
        cell.note(burst.step + lives, total as u64);

        let new_ports = cell.ports(direction);
        let bytes: &mut [u8; READ] = frame.bytes_mut().first_chunk_mut()?;
        bytes[..6].copy_from_slice(&mac);
        bytes[6..12].copy_from_slice(&link.mac);
        bytes[L3 + 7] = hops - 1;
        if rewritten {
            let new: &[u8; 32] = new_ends.as_flattened().first_chunk()?;
            bytes[ADDRESSES..L4].copy_from_slice(new);
            bytes[L4..L4 + 4].copy_from_slice(&new_ports.to_be_bytes());
            let addresses = Change::NONE.array(&ends, new);
            let ports = Change::NONE.pair(ports, new_ports);
            write_sum(bytes, L4, number, (addresses, ports), segment);
        }
        frame.truncate(L3 + total);
        if let Some((tunnel, ends)) = outer {
            return Some(tunnelled(frame, false, tunnel, ends, look.hash, (link, mac)));
        }
        frame.tag = link.tag;
        Some(Verdict::Send(link.port))
    }
}
