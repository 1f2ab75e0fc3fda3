//! Flows found and changed by plain numbers: for packets that want no more.

use super::cells::{Cell4, Cell6, Common};
use super::key::{folded_plain, folded_wide};
use super::table::{FlowTable, Guess, REPLY, WIDE, index_of};
use super::{DSR, Direction, FULL_NAT, GUE, GUE_WITH_HEADER, HEAD, IPIP, MODE, NAT};
use crate::packet::tunnel::Tunnel;

/// The hash of a tuple of IPv4 addresses and ports in network order, as [`super::Tuple`]'s.
#[inline]
pub(in crate::packet) fn plain_hash(
    from: u32,
    to: u32,
    ports: u32,
    protocol: u8,
    seeds: [u64; 2],
) -> u64 {
    folded_plain(
        u64::from(from) << 32 | u64::from(to),
        u64::from(ports) << 8 | u64::from(protocol),
        seeds,
    )
}

/// The same for both IPv6 addresses of a packet.
#[inline]
pub(in crate::packet) fn plain_hash6(
    addresses: &[u8; 32],
    ports: u32,
    protocol: u8,
    seeds: [u64; 2],
) -> u64 {
    let half = |n: usize| u64::from_be_bytes(core::array::from_fn(|at| addresses[8 * n + at]));
    let rest = u64::from(ports) << 8 | u64::from(protocol);
    folded_wide([half(0), half(1), half(2), half(3)], rest, seeds)
}

/// The cell of such a flow.
pub(in crate::packet) struct PlainCell<'t, C>(&'t mut C);

/// What cells of both kinds have.
pub(in crate::packet) trait Cell {
    fn common(&self) -> &Common;
    fn common_mut(&mut self) -> &mut Common;
}

impl Cell for Cell4 {
    #[inline(always)]
    fn common(&self) -> &Common {
        &self.common
    }

    #[inline(always)]
    fn common_mut(&mut self) -> &mut Common {
        &mut self.common
    }
}

impl Cell for Cell6 {
    #[inline(always)]
    fn common(&self) -> &Common {
        &self.common
    }

    #[inline(always)]
    fn common_mut(&mut self) -> &mut Common {
        &mut self.common
    }
}

impl FlowTable<'_> {
    /// Keys of the hash.
    #[inline(always)]
    pub(in crate::packet) fn seeds(&self) -> [u64; 2] {
        self.header.seeds
    }

    /// The flow of that entry, if a packet between `ends`, from the first to the second port of
    /// `ports`, is its.
    #[inline(always)]
    pub(in crate::packet) fn plain(
        &mut self,
        Guess(place): Guess,
        ends: [u32; 2],
        ports: u32,
        protocol: u8,
    ) -> Option<(Direction, PlainCell<'_, Cell4>)> {
        if place & WIDE != 0 {
            return None;
        }
        let cell = self.cells4.get_mut(index_of(place))?;
        let (direction, source) = side(place);
        let ip = |side: usize| u32::from_be_bytes(cell.addresses[side]);
        let same = [ip(source), ip(source + 1)] == ends;
        let cell = PlainCell(cell);
        (same && cell.is_of(source, ports, protocol)).then_some((direction, cell))
    }

    /// The same for both IPv6 addresses of a packet.
    #[inline(always)]
    pub(in crate::packet) fn plain6(
        &mut self,
        Guess(place): Guess,
        ends: &[u8; 32],
        ports: u32,
        protocol: u8,
    ) -> Option<(Direction, PlainCell<'_, Cell6>)> {
        if place & WIDE == 0 {
            return None;
        }
        let cell = self.cells6.get_mut(index_of(place))?;
        let (direction, source) = side(place);
        let same = cell.addresses[source..source + 2].as_flattened() == ends;
        let cell = PlainCell(cell);
        (same && cell.is_of(source, ports, protocol)).then_some((direction, cell))
    }
}

/// The direction of an entry, and which address of a cell its packets come from.
#[inline(always)]
fn side(place: u32) -> (Direction, usize) {
    match place & REPLY {
        0 => (Direction::Forward, 0),
        _ => (Direction::Reply, 2),
    }
}

/// The addresses of packets in a direction, as they leave here, by their number in a cell.
#[inline(always)]
fn leaving(direction: Direction) -> (usize, usize) {
    match direction {
        Direction::Forward => (3, 2),
        Direction::Reply => (1, 0),
    }
}

#[inline]
fn both(from: u16, to: u16) -> u32 {
    u32::from(from) << 16 | u32::from(to)
}

impl PlainCell<'_, Cell4> {
    /// Its backend's address.
    #[inline(always)]
    pub(in crate::packet) fn backend(&self) -> u32 {
        u32::from_be_bytes(self.0.addresses[2])
    }

    /// Addresses of its packets in `direction` as they leave here.
    #[inline(always)]
    pub(in crate::packet) fn ends(&self, direction: Direction) -> [u32; 2] {
        let (source, destination) = leaving(direction);
        [source, destination].map(|side| u32::from_be_bytes(self.0.addresses[side]))
    }
}

impl PlainCell<'_, Cell6> {
    /// Its backend's address.
    #[inline(always)]
    pub(in crate::packet) fn backend(&self) -> [u8; 16] {
        self.0.addresses[2]
    }

    /// Addresses of its packets in `direction` as they leave here.
    #[inline(always)]
    pub(in crate::packet) fn ends(&self, direction: Direction) -> [[u8; 16]; 2] {
        let (source, destination) = leaving(direction);
        [self.0.addresses[source], self.0.addresses[destination]]
    }
}

impl<C: Cell> PlainCell<'_, C> {
    #[inline(always)]
    fn is_of(&self, source: usize, ports: u32, protocol: u8) -> bool {
        let own = &self.0.common().ports;
        both(own[source], own[source + 1]) == ports && self.0.common().protocol == protocol
    }

    /// Whether its packets get other addresses and ports, and nothing more.
    #[inline(always)]
    pub(in crate::packet) fn is_rewritten(&self) -> bool {
        matches!(self.0.common().flags & (MODE | HEAD), NAT | FULL_NAT)
    }

    /// Whether they go to another station as they are.
    #[inline(always)]
    pub(in crate::packet) fn is_direct(&self) -> bool {
        self.0.common().flags & (MODE | HEAD) == DSR
    }

    /// What they are put into, if they are.
    pub(in crate::packet) fn tunnel(&self) -> Option<Tunnel> {
        match self.0.common().flags & (MODE | HEAD) {
            IPIP => Some(Tunnel::Ipip),
            GUE => Some(Tunnel::Gue),
            GUE_WITH_HEADER => Some(Tunnel::GueWithHeader),
            _ => None,
        }
    }

    #[inline(always)]
    pub(in crate::packet) fn state(&self) -> u8 {
        self.0.common().state
    }

    #[inline(always)]
    pub(in crate::packet) fn expires(&self) -> u32 {
        self.0.common().expires
    }

    #[inline(always)]
    pub(in crate::packet) fn generation(&self) -> u32 {
        self.0.common().generation
    }

    /// The slot of its backend.
    #[inline(always)]
    pub(in crate::packet) fn backend_slot(&self) -> u32 {
        self.0.common().backend_slot
    }

    /// Ports of its packets in `direction` as they leave here.
    #[inline(always)]
    pub(in crate::packet) fn ports(&self, direction: Direction) -> u32 {
        let (source, destination) = leaving(direction);
        both(self.0.common().ports[source], self.0.common().ports[destination])
    }

    /// Notes a packet of `bytes`, after which the flow lives until a step of the wheel.
    #[inline(always)]
    pub(in crate::packet) fn note(&mut self, expires: u32, bytes: u64) {
        let common = self.0.common_mut();
        common.expires = expires;
        common.bytes += bytes;
    }
}
