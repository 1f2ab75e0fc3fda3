//! The way of most packets: plain IPv4, TCP or UDP, of an established flow that is rewritten, or goes
//! to its backend's station as it is.
//!
//! Everything that this way needs lies at places that are known beforehand, so that a packet is read
//! once and costs two cache lines of the table. What is not so plain goes the other way, from the
//! start; both make the same of a packet.

use super::{Context, Engine, Verdict};
use crate::packet::checksum::{Change, Sum};
use crate::packet::flow::{Direction, Guess, State, Tuple, plain_hash, step};
use crate::packet::frame::{Frame, TransportChecksum};
use crate::packet::parse::{ETHERNET, Parsed, ether, parse, protocol, tcp_flags};
use crate::packet::routes::NextHop;

// Places in a frame without tags and options.
const L3: usize = ETHERNET;
const ADDRESSES: usize = L3 + 12;
const L4: usize = L3 + 20;
/// What is read of every frame: up to a TCP header's end. Shorter datagrams go the other way.
const READ: usize = L4 + 20;
/// Flags that do more than go on.
const TELLING: u8 = tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST;

/// What the first look at a frame found.
#[derive(Clone, Copy)]
pub(super) struct Look {
    /// That of its tuple; zero when it has none.
    pub(super) hash: u64,
    /// The entry that is probably its flow's.
    pub(super) guess: Guess,
    /// It may go this way.
    plain: bool,
}

impl Look {
    pub(super) const NONE: Self = Self { hash: 0, guess: Guess::NONE, plain: false };
}

/// What is the same for all packets of a burst.
pub(super) struct Burst {
    step: u32,
    generation: u32,
}

impl Burst {
    pub(super) fn of(cx: &Context<'_>) -> Self {
        Self { step: step(cx.now), generation: cx.snapshot.generation as u32 }
    }
}

/// The hash of a frame that may go this way.
#[inline]
fn plain(frame: &Frame<'_>, seeds: [u64; 2]) -> Option<u64> {
    let head: &[u8; READ] = frame.bytes().first_chunk()?;
    // Ethernet's type, version and length of the header.
    let kind = u16::from_be_bytes([head[12], head[13]]);
    let parts = u16::from_be_bytes([head[L3 + 6], head[L3 + 7]]) & 0x3fff;
    let protocol = head[L3 + 9];
    let known = protocol == protocol::TCP || protocol == protocol::UDP;
    if kind != ether::IPV4 || head[L3] != 0x45 || parts != 0 || !known {
        return None;
    }
    let [from, to] = [word(head, ADDRESSES), word(head, ADDRESSES + 4)];
    Some(plain_hash(from, to, word(head, L4), protocol, seeds))
}

#[inline]
fn word(head: &[u8; READ], at: usize) -> u32 {
    u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

impl Engine<'_> {
    /// The first look at a frame.
    #[inline]
    pub(super) fn look(&self, frame: &Frame<'_>) -> Look {
        if let Some(hash) = plain(frame, self.flows.seeds()) {
            return Look { hash, guess: Guess::NONE, plain: true };
        }
        let Ok(Parsed::Ip(packet)) = parse(frame.bytes()) else { return Look::NONE };
        let hash = Tuple::of(&packet).map_or(0, |tuple| self.flows.hash(&tuple));
        Look { hash, guess: Guess::NONE, plain: false }
    }

    /// Sends a frame on if it is as plain as it looked; else nothing has happened to it.
    #[inline]
    pub(super) fn fast(
        &mut self,
        frame: &mut Frame<'_>,
        look: &Look,
        burst: &Burst,
        cx: &Context<'_>,
    ) -> Option<Verdict> {
        if !look.plain || frame.checksum != TransportChecksum::Present {
            return None;
        }
        let (length, checked) = (frame.len(), frame.header_checked);
        let head: &mut [u8; READ] = frame.bytes_mut().first_chunk_mut()?;
        let header: &[u8; 20] = head[L3..].first_chunk()?;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let ttl = header[8];
        let number = header[9];
        // The addresses are those of a flow, or it ends below: they were looked at when it began.
        let sound = checked || Sum::ZERO.array(header).folded() == 0xffff;
        if L3 + total > length || ttl <= 1 || !sound {
            return None;
        }
        let ports = word(head, L4);
        let ends = [word(head, ADDRESSES), word(head, ADDRESSES + 4)];
        let is_tcp = number == protocol::TCP;
        let sound = match is_tcp {
            true => {
                let header = usize::from(head[L4 + 12] >> 4) * 4;
                head[L4 + 13] & TELLING == 0 && header >= 20 && 20 + header <= total
            }
            false => {
                let said = usize::from(u16::from_be_bytes([head[L4 + 4], head[L4 + 5]]));
                said >= 8 && 20 + said <= total
            }
        };
        if !sound {
            return None;
        }
        let (direction, mut cell) = self.flows.plain(look.guess, ends, ports, number)?;
        let established = State::Established as u8;
        let plain = cell.is_plain()
            && cell.state() == established
            && cell.expires() >= burst.step
            && (direction == Direction::Reply || cell.generation() == burst.generation);
        if !plain {
            return None;
        }
        let ((new_ends, new_ports), to) = match cell.is_direct() {
            false => {
                let new = cell.ends(direction);
                (new, new.0[1])
            }
            true => ((ends, ports), cell.backend()),
        };
        let hop = self.hops.next_hop4(cx.snapshot.routes(), to);
        let NextHop::Known(link, mac) = hop else { return None };
        if total > usize::from(link.mtu) {
            return None;
        }
        let lives = self.held.count(cell.backend_slot(), direction, total as u64)?;
        cell.note(burst.step + lives, total as u64);

        let bytes: &mut [u8; READ] = frame.bytes_mut().first_chunk_mut()?;
        bytes[..6].copy_from_slice(&mac);
        bytes[6..12].copy_from_slice(&link.mac);
        let addresses = Change::NONE.pair(ends[0], new_ends[0]).pair(ends[1], new_ends[1]);
        bytes[ADDRESSES..ADDRESSES + 4].copy_from_slice(&new_ends[0].to_be_bytes());
        bytes[ADDRESSES + 4..L4].copy_from_slice(&new_ends[1].to_be_bytes());
        bytes[L3 + 8] = ttl - 1;
        let both = |ttl: u8| u16::from_be_bytes([ttl, number]);
        addresses.word(both(ttl), both(ttl - 1)).write(bytes, L3 + 10);
        let change = addresses.pair(ports, new_ports);
        bytes[L4..L4 + 4].copy_from_slice(&new_ports.to_be_bytes());
        match is_tcp {
            true => change.write(bytes, L4 + 16),
            false => change.write_udp(bytes, L4 + 6),
        }
        frame.truncate(L3 + total);
        frame.tag = link.tag;
        Some(Verdict::Send(link.port))
    }
}
