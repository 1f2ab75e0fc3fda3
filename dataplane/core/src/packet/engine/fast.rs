//! The way of most packets: plain IP, TCP or UDP, of an established flow.
//!
//! Everything that this way needs lies at places that are known beforehand, so that a packet is read
//! once and costs two cache lines of the table. What is not so plain goes the other way, from the
//! start; both make the same of a packet.

use core::net::{IpAddr, Ipv4Addr};

use super::fast6::plain6;
use super::{Context, Engine, Verdict};
use crate::packet::checksum::{Change, Sum};
use crate::packet::flow::{
    Cell, Cell4, Direction, Guess, PlainCell, State, Tuple, plain_hash, step,
};
use crate::packet::frame::{Frame, TransportChecksum};
use crate::packet::held::Held;
use crate::packet::parse::{ETHERNET, Parsed, ether, parse, protocol, tcp_flags};
use crate::packet::reason::DropReason;
use crate::packet::routes::{HopCache, Link, Mac, NextHop, address};
use crate::packet::tunnel::{Tunnel, wrap};

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
    /// Whether it may go this way.
    plain: Plain,
}

/// As what a frame may go this way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plain {
    No,
    V4,
    V6,
}

impl Look {
    /// Whether it may go the short way of IPv6.
    #[inline]
    pub(super) fn is_plain6(&self) -> bool {
        self.plain == Plain::V6
    }

    pub(super) const NONE: Self = Self { hash: 0, guess: Guess::NONE, plain: Plain::No };
}

/// What is the same for all packets of a burst.
pub(super) struct Burst {
    pub(super) step: u32,
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
    if kind != ether::IPV4 || head[L3] != 0x45 || parts != 0 || !is_known(protocol) {
        return None;
    }
    let [from, to] = [word(head, ADDRESSES), word(head, ADDRESSES + 4)];
    Some(plain_hash(from, to, word(head, L4), protocol, seeds))
}

/// Whether this way is for packets of a protocol.
#[inline]
pub(super) fn is_known(number: u8) -> bool {
    number == protocol::TCP || number == protocol::UDP
}

#[inline]
pub(super) fn word<const N: usize>(head: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

/// Whether a TCP or UDP header at `at` fits into `length` bytes and says nothing but that the flow goes
/// on.
#[inline]
pub(super) fn is_sound<const N: usize>(
    head: &[u8; N],
    at: usize,
    number: u8,
    length: usize,
) -> bool {
    if number == protocol::TCP {
        let header = header_of(head, at, number);
        head[at + 13] & TELLING == 0 && header >= 20 && header <= length
    } else {
        let said = usize::from(u16::from_be_bytes([head[at + 4], head[at + 5]]));
        said >= 8 && said <= length
    }
}

/// The checksum with which a frame may go this way: that of segments is left to the port that cuts them.
#[inline(always)]
pub(super) fn expected(segment: Option<u16>) -> TransportChecksum {
    match segment {
        Some(_) => TransportChecksum::Partial,
        None => TransportChecksum::Present,
    }
}

/// Bytes of the TCP or UDP header at `at`.
#[inline]
pub(super) fn header_of<const N: usize>(head: &[u8; N], at: usize, number: u8) -> usize {
    match number {
        protocol::TCP => usize::from(head[at + 12] >> 4) * 4,
        _ => 8,
    }
}

/// Writes the checksum of a TCP or UDP header at `at` after addresses and ports have changed. A partial
/// one, that of segments to be, is of addresses alone.
#[inline(always)]
pub(super) fn write_sum<const N: usize>(
    bytes: &mut [u8; N],
    at: usize,
    number: u8,
    (addresses, ports): (Change, Change),
    segment: Option<u16>,
) {
    let field = at + if number == protocol::TCP { 16 } else { 6 };
    if segment.is_some() {
        return addresses.write_partial(bytes, field);
    }
    let change = addresses.and(ports);
    match number {
        protocol::TCP => change.write(bytes, field),
        _ => change.write_udp(bytes, field),
    }
}

impl Burst {
    /// Whether a packet's flow goes on, and its backend is still good.
    #[inline]
    pub(super) fn is_good<C: Cell>(&self, cell: &PlainCell<'_, C>, direction: Direction) -> bool {
        cell.state() == State::Established as u8
            && cell.expires() >= self.step
            && (direction == Direction::Reply || cell.generation() == self.generation)
    }
}

/// Puts a frame, whose IP packet begins behind Ethernet's header and is good to go, into a tunnel. There
/// is room for that.
pub(super) fn tunnelled(
    frame: &mut Frame<'_>,
    is_v4: bool,
    tunnel: Tunnel,
    ends: (IpAddr, IpAddr),
    hash: u64,
    (link, mac): (&Link, Mac),
) -> Verdict {
    frame.shrink_front(L3);
    match wrap(frame, is_v4, tunnel, ends, hash) && address(frame, link, mac) {
        true => Verdict::Send(link.port),
        false => Verdict::Drop(DropReason::NoRoom),
    }
}

impl Engine<'_> {
    /// The first look at a frame.
    #[inline(always)]
    pub(super) fn look(&self, frame: &Frame<'_>) -> Look {
        let seeds = self.flows.seeds();
        if let Some(hash) = plain(frame, seeds) {
            return Look { hash, guess: Guess::NONE, plain: Plain::V4 };
        }
        self.look6(frame, seeds)
    }

    /// The same for one that is no plain IPv4.
    #[inline(never)]
    fn look6(&self, frame: &Frame<'_>, seeds: [u64; 2]) -> Look {
        if let Some(hash) = plain6(frame, seeds) {
            return Look { hash, guess: Guess::NONE, plain: Plain::V6 };
        }
        let Ok(Parsed::Ip(packet)) = parse(frame.bytes()) else { return Look::NONE };
        let hash = Tuple::of(&packet).map_or(0, |tuple| self.flows.hash(&tuple));
        Look { hash, guess: Guess::NONE, plain: Plain::No }
    }

    /// Sends a frame on if it is as plain as it looked; else nothing has happened to it. `segment` is the
    /// payload of a super-packet's segments, none for one packet.
    #[inline(always)]
    pub(super) fn fast(
        &mut self,
        frame: &mut Frame<'_>,
        look: &Look,
        burst: &Burst,
        segment: Option<u16>,
        cx: &Context<'_>,
    ) -> Option<Verdict> {
        if look.plain != Plain::V4 || frame.checksum != expected(segment) {
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
        if L3 + total > length || ttl <= 1 || total < 20 || !sound {
            return None;
        }
        let ports = word(head, L4);
        let ends = [word(head, ADDRESSES), word(head, ADDRESSES + 4)];
        if !is_sound(head, L4, number, total - 20) {
            return None;
        }
        let (direction, mut cell) = self.flows.plain(look.guess, ends, ports, number)?;
        if !burst.is_good(&cell, direction) {
            return None;
        }
        let ((new_ends, new_ports), to) = if cell.is_rewritten() {
            let new = cell.ends(direction);
            ((new, cell.ports(direction)), new[1])
        } else if cell.is_direct() {
            ((ends, ports), cell.backend())
        } else if segment.is_some() {
            return None;
        } else {
            let (hops, held) = (&mut self.hops, &mut self.held);
            return tunnel4(frame, (look.hash, total), (direction, cell), burst, (hops, held), cx);
        };
        let hop = self.hops.next_hop4(cx.snapshot.routes(), to);
        let NextHop::Known(link, mac) = hop else { return None };
        let longest = match segment {
            Some(payload) => L4 - L3 + header_of(head, L4, number) + usize::from(payload),
            None => total,
        };
        if longest > usize::from(link.mtu) {
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
        bytes[L4..L4 + 4].copy_from_slice(&new_ports.to_be_bytes());
        let ports = Change::NONE.pair(ports, new_ports);
        write_sum(bytes, L4, number, (addresses, ports), segment);
        frame.truncate(L3 + total);
        frame.tag = link.tag;
        Some(Verdict::Send(link.port))
    }
}

/// Sends a frame on in its flow's tunnel, if there is one and it is of its client; it is plain, and its IP
/// packet has `total` bytes. Apart, so that it costs other packets nothing.
#[inline(never)]
fn tunnel4(
    frame: &mut Frame<'_>,
    (hash, total): (u64, usize),
    (direction, mut cell): (Direction, PlainCell<'_, Cell4>),
    burst: &Burst,
    (hops, held): (&mut HopCache, &mut Held),
    cx: &Context<'_>,
) -> Option<Verdict> {
    let (tunnel, to) = (cell.tunnel()?, cell.backend());
    let hop = hops.next_hop4(cx.snapshot.routes(), to);
    let NextHop::Known(link, mac) = hop else { return None };
    let to: IpAddr = Ipv4Addr::from(to).into();
    let (from, overhead) = (link.ipv4?.into(), tunnel.overhead(to));
    let fits = total + overhead <= usize::from(link.mtu) && overhead <= frame.place().start;
    // Flows are spread by the hash of what the client sends.
    if !fits || direction == Direction::Reply {
        return None;
    }
    let lives = held.count(cell.backend_slot(), direction, total as u64)?;
    cell.note(burst.step + lives, total as u64);
    let bytes: &mut [u8; READ] = frame.bytes_mut().first_chunk_mut()?;
    let [ttl, number] = [bytes[L3 + 8], bytes[L3 + 9]];
    bytes[L3 + 8] = ttl - 1;
    let both = |ttl: u8| u16::from_be_bytes([ttl, number]);
    Change::NONE.word(both(ttl), both(ttl - 1)).write(bytes, L3 + 10);
    frame.truncate(L3 + total);
    Some(tunnelled(frame, true, tunnel, (from, to), hash, (link, mac)))
}
