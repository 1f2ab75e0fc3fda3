//! Flows with IPv4 addresses, found and changed by plain numbers: for packets that want no more.

use super::cells::Cell4;
use super::key::folded_plain;
use super::table::{FlowTable, Guess, REPLY, WIDE, index_of};
use super::{DSR, Direction, FULL_NAT, HEAD, MODE, NAT};

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

/// The cell of such a flow.
pub(in crate::packet) struct PlainCell<'t>(&'t mut Cell4);

impl FlowTable<'_> {
    /// Keys of the hash.
    #[inline]
    pub(in crate::packet) fn seeds(&self) -> [u64; 2] {
        self.header.seeds
    }

    /// The flow of that entry, if a packet between `ends`, from the first to the second port of
    /// `ports`, is its.
    #[inline]
    pub(in crate::packet) fn plain(
        &mut self,
        Guess(place): Guess,
        ends: [u32; 2],
        ports: u32,
        protocol: u8,
    ) -> Option<(Direction, PlainCell<'_>)> {
        if place & WIDE != 0 {
            return None;
        }
        let cell = self.cells4.get_mut(index_of(place))?;
        let (direction, source) = match place & REPLY {
            0 => (Direction::Forward, 0),
            _ => (Direction::Reply, 2),
        };
        let ip = |side: usize| u32::from_be_bytes(cell.addresses[side]);
        let same = [ip(source), ip(source + 1)] == ends
            && both(cell.common.ports[source], cell.common.ports[source + 1]) == ports
            && cell.common.protocol == protocol;
        same.then_some((direction, PlainCell(cell)))
    }
}

#[inline]
fn both(from: u16, to: u16) -> u32 {
    u32::from(from) << 16 | u32::from(to)
}

impl PlainCell<'_> {
    /// Whether its packets are rewritten, or only sent to another station.
    #[inline]
    pub(in crate::packet) fn is_plain(&self) -> bool {
        matches!(self.0.common.flags & (MODE | HEAD), NAT | FULL_NAT | DSR)
    }

    /// Whether they are only sent to another station.
    #[inline]
    pub(in crate::packet) fn is_direct(&self) -> bool {
        self.0.common.flags & MODE == DSR
    }

    /// Its backend's address.
    #[inline]
    pub(in crate::packet) fn backend(&self) -> u32 {
        u32::from_be_bytes(self.0.addresses[2])
    }

    #[inline]
    pub(in crate::packet) fn state(&self) -> u8 {
        self.0.common.state
    }

    #[inline]
    pub(in crate::packet) fn expires(&self) -> u32 {
        self.0.common.expires
    }

    #[inline]
    pub(in crate::packet) fn generation(&self) -> u32 {
        self.0.common.generation
    }

    /// The slot of its backend.
    #[inline]
    pub(in crate::packet) fn backend_slot(&self) -> u32 {
        self.0.common.backend_slot
    }

    /// Addresses and ports of its packets in `direction` as they leave here.
    #[inline]
    pub(in crate::packet) fn ends(&self, direction: Direction) -> ([u32; 2], u32) {
        let (source, destination) = match direction {
            Direction::Forward => (3, 2),
            Direction::Reply => (1, 0),
        };
        let ip = |side: usize| u32::from_be_bytes(self.0.addresses[side]);
        let ports = both(self.0.common.ports[source], self.0.common.ports[destination]);
        ([ip(source), ip(destination)], ports)
    }

    /// Notes a packet of `bytes`, after which the flow lives until a step of the wheel.
    #[inline]
    pub(in crate::packet) fn note(&mut self, expires: u32, bytes: u64) {
        self.0.common.expires = expires;
        self.0.common.bytes += bytes;
    }
}
