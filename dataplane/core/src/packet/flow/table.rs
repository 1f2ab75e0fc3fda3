//! The table over its memory.

use core::net::{IpAddr, SocketAddr};

use zerocopy::FromBytes;

use super::cells::{Bucket, Cell4, Cell6, Common, Header, NONE, WAYS};
use super::index::REACH;
use super::key::{mapped, unmapped, v4};
use super::room::SLOTS;
use super::{
    Direction, Flow, FlowView, HEAD, PAID, SYNS, State, TRACKED, Tuple, backend_id, flags_of,
    mode_of, step, tick,
};
use crate::hash::mixed;
use crate::packet::prefetch::prefetch;
use crate::packet::rewrite::Ends;
use crate::{Mode, ServiceId, Tick};

const MAGIC: [u8; 8] = *b"FWYFLOWS";
/// Of the layout; memory of another one is not gone on with.
const VERSION: u32 = 1;
/// Cells of a family: their numbers have 30 bits.
const MOST: u32 = 1 << 30;

pub(super) const WIDE: u32 = 1 << 31;
pub(super) const REPLY: u32 = 1 << 30;

/// How many flows a table has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Flows with IPv4 addresses alone.
    pub ipv4: u32,
    /// Flows with an IPv6 address.
    pub ipv6: u32,
}

impl Shape {
    /// Two entries a flow, and buckets four sevenths full at most: one in ten passes entries on.
    fn buckets(self) -> u32 {
        let entries = 2 * (u64::from(self.ipv4) + u64::from(self.ipv6));
        let buckets = entries.div_ceil(WAYS as u64 * 2 / 3);
        u32::try_from(buckets).unwrap_or(u32::MAX).max(8)
    }

    /// Bytes of memory that it needs.
    #[must_use]
    pub fn bytes(self) -> usize {
        size_of::<Header>()
            + self.buckets() as usize * size_of::<Bucket>()
            + self.ipv4 as usize * size_of::<Cell4>()
            + self.ipv6 as usize * size_of::<Cell6>()
            + SLOTS * size_of::<u32>()
    }
}

/// Memory that no table can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    /// Too little.
    #[error("the flow table needs {0} bytes of memory")]
    TooSmall(usize),
    /// It starts at no cache line.
    #[error("the memory of the flow table must start at a multiple of 64")]
    Misaligned,
    /// Too many flows.
    #[error("a flow table has at most {MOST} flows of a family")]
    TooMany,
}

/// A flow of the table, until it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle(pub(super) u32);

#[cfg(test)]
impl Handle {
    /// Any handle.
    pub(in crate::packet) fn of_number(n: u32) -> Self {
        Self(n)
    }
}

/// A packet's flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Which one.
    pub handle: Handle,
    /// Which way the packet goes.
    pub direction: Direction,
}

/// An entry that a packet probably belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::packet) struct Guess(pub(super) u32);

impl Guess {
    /// There is none.
    pub(in crate::packet) const NONE: Self = Self(NONE);
}

/// What is looked at of a flow for each of its packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::packet) struct Brief {
    pub(in crate::packet) mode: Mode,
    pub(in crate::packet) state: State,
    pub(in crate::packet) service: ServiceId,
    pub(in crate::packet) backend_slot: u32,
    pub(in crate::packet) generation: u32,
    pub(in crate::packet) expires: u32,
    /// Something goes, or went, before the client's first byte.
    pub(in crate::packet) headed: bool,
}

/// Why a flow is no longer in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ended {
    /// Nothing moved for as long as its state allows.
    Expired,
    /// It made room for another one.
    Evicted,
}

/// Flows of one worker.
pub struct FlowTable<'r> {
    pub(super) header: &'r mut Header,
    pub(super) buckets: &'r mut [Bucket],
    pub(super) cells4: &'r mut [Cell4],
    pub(super) cells6: &'r mut [Cell6],
    pub(super) wheel: &'r mut [u32],
    /// Where a cell that can go was looked for last.
    pub(super) hands: [u32; 2],
}

impl<'r> FlowTable<'r> {
    /// Makes a table of `region`, which starts at a multiple of 64. With `keep`, flows that are in
    /// it already stay, if they were put there by a table of the same shape and version; else it
    /// is empty, and `seeds`, two random numbers, key its hash. Writes every byte of it then.
    pub fn open(
        region: &'r mut [u8],
        shape: Shape,
        seeds: [u64; 2],
        keep: bool,
    ) -> Result<Self, RegionError> {
        if shape.ipv4 >= MOST || shape.ipv6 >= MOST {
            return Err(RegionError::TooMany);
        }
        let small = || RegionError::TooSmall(shape.bytes());
        let (region, _) = region.split_at_mut_checked(shape.bytes()).ok_or_else(small)?;
        let (header, rest) =
            Header::mut_from_prefix(region).map_err(|_| RegionError::Misaligned)?;
        let (buckets, rest) = take::<Bucket>(rest, shape.buckets())?;
        let (cells4, rest) = take::<Cell4>(rest, shape.ipv4)?;
        let (cells6, rest) = take::<Cell6>(rest, shape.ipv6)?;
        let (wheel, _) = take::<u32>(rest, SLOTS as u32)?;
        let same = header.magic == MAGIC
            && header.version == VERSION
            && (header.buckets, header.cells4, header.cells6)
                == (shape.buckets(), shape.ipv4, shape.ipv6);
        let mut table = Self { header, buckets, cells4, cells6, wheel, hands: [0, 0] };
        if !(keep && same) {
            table.clear(shape, seeds);
        }
        Ok(table)
    }

    /// The table that another process has left in `region`, whatever its shape; None when there is none of
    /// this version. Nothing of it is trusted: see [`FlowTable::import`].
    #[must_use]
    pub fn left(region: &'r mut [u8]) -> Option<Self> {
        let (header, _) = Header::ref_from_prefix(region).ok()?;
        let Header { magic, version, cells4, cells6, seeds, .. } = *header;
        let shape = Shape { ipv4: cells4, ipv6: cells6 };
        let fits = shape.ipv4 < MOST && shape.ipv6 < MOST && header.buckets == shape.buckets();
        if magic != MAGIC || version != VERSION || !fits {
            return None;
        }
        // It is of this shape: nothing of it is cleared.
        Self::open(region, shape, seeds, true).ok()
    }

    /// Takes over the flows of a table that another process has left, perhaps in the middle of a change:
    /// its cells alone are read. `wanted` has something for each that is wanted, which `taken` gets when
    /// there was room for it; returns how many came.
    pub fn import<T>(
        &mut self,
        left: &FlowTable<'_>,
        now: Tick,
        mut wanted: impl FnMut(&FlowView) -> Option<T>,
        mut taken: impl FnMut(&FlowView, T),
    ) -> usize {
        let mut count = 0;
        for handle in (0..left.cells()).filter_map(|n| left.at(n)) {
            let view = left.view(handle);
            if view.flow.mode == Mode::Proxy || view.expires <= now {
                continue;
            }
            let Some(thing) = wanted(&view) else { continue };
            let Some(place) = self.insert(&view.flow, now, view.expires, |_, _| {}) else {
                continue;
            };
            let (from, to) = (*left.common(handle.0), self.common_mut(place.0));
            (to.state, to.flags, to.bytes, to.began) =
                (from.state, from.flags, from.bytes, from.began);
            // It is asked anew whether its backend is good.
            to.generation = 0;
            taken(&view, thing);
            count += 1;
        }
        count
    }

    fn clear(&mut self, shape: Shape, seeds: [u64; 2]) {
        let empty = Bucket { tags: [0; WAYS], overflowed: 0, places: [NONE; WAYS], unused: 0 };
        self.buckets.fill(empty);
        self.wheel.fill(NONE);
        let free = |n: usize, of: u32| Common {
            next: if n as u32 + 1 < of { n as u32 + 1 } else { NONE },
            ..Common::default()
        };
        for (n, cell) in self.cells4.iter_mut().enumerate() {
            *cell = Cell4 { addresses: [[0; 4]; 4], common: free(n, shape.ipv4) };
        }
        for (n, cell) in self.cells6.iter_mut().enumerate() {
            let common = free(n, shape.ipv6);
            *cell = Cell6 { addresses: [[0; 16]; 4], common, unused: [0; 16] };
        }
        *self.header = Header {
            magic: MAGIC,
            version: VERSION,
            buckets: shape.buckets(),
            cells4: shape.ipv4,
            cells6: shape.ipv6,
            free4: if shape.ipv4 > 0 { 0 } else { NONE },
            free6: if shape.ipv6 > 0 { 0 } else { NONE },
            used4: 0,
            used6: 0,
            turned: 0,
            unused: 0,
            // The hash wants seeds without pattern, whatever it is given.
            seeds: seeds.map(mixed),
        };
    }

    /// Number of flows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.header.used4 as usize + self.header.used6 as usize
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The hash by which `tuple` is looked up.
    #[must_use]
    #[inline]
    pub fn hash(&self, tuple: &Tuple) -> u64 {
        tuple.hash(self.header.seeds)
    }

    /// Fetches what [`FlowTable::find`] reads first.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        prefetch(&self.buckets[self.home(hash)]);
    }

    /// Looks for the entry that a packet with this hash probably belongs to, and fetches its cell.
    #[must_use]
    #[inline]
    pub(in crate::packet) fn guess(&self, hash: u64) -> Guess {
        let bucket = &self.buckets[self.home(hash)];
        let tag = tag_of(hash);
        let mut found = 0_u32;
        for way in 0..WAYS {
            found |= u32::from(bucket.tags[way] == tag) << way;
        }
        if found == 0 {
            return Guess::NONE;
        }
        let place = bucket.places[found.trailing_zeros() as usize];
        self.prefetch_cell(place);
        Guess(place)
    }

    /// Has a cell fetched, if there is one in that place.
    #[inline]
    pub(super) fn prefetch_cell(&self, place: u32) {
        if place & WIDE != 0 {
            if let Some(cell) = self.cells6.get(index_of(place)) {
                // Two lines.
                prefetch(&cell.addresses);
                prefetch(&cell.common);
            }
        } else if let Some(cell) = self.cells4.get(index_of(place)) {
            prefetch(cell);
        }
    }

    /// The flow that packets with `tuple`, whose hash is `hash`, belong to. Reads a bucket and a
    /// cell, rarely more.
    #[must_use]
    #[inline]
    pub fn find(&self, tuple: &Tuple, hash: u64) -> Option<Found> {
        let tag = tag_of(hash);
        let mut at = self.home(hash);
        for _ in 0..REACH {
            let bucket = &self.buckets[at];
            for way in 0..WAYS {
                if bucket.tags[way] == tag && self.belongs(bucket.places[way], tuple) {
                    return Some(found(bucket.places[way]));
                }
            }
            if bucket.overflowed == 0 {
                return None;
            }
            at = self.after(at);
        }
        None
    }

    /// Whether packets with `tuple` are of the flow at a place, and that is still there.
    #[inline]
    fn belongs(&self, place: u32, tuple: &Tuple) -> bool {
        self.matches(place, tuple) && self.common(place).state != State::Free as u8
    }

    /// Puts `flow` into the table until `expires`; a cell of a flow that never came about, or is
    /// over, is taken when there is no free one, and `ended` is told of it. None when the table is
    /// full, or when one of its tuples is a flow's already.
    pub fn insert(
        &mut self,
        flow: &Flow,
        now: Tick,
        expires: Tick,
        ended: impl FnOnce(&FlowView, Ended),
    ) -> Option<Handle> {
        let forward = flow.forward()?;
        let reply = if flow.mode.is_two_way() { Some(flow.reply()?) } else { None };
        let taken = |tuple: &Tuple| self.find(tuple, self.hash(tuple)).is_some();
        if taken(&forward) || reply.as_ref().is_some_and(taken) {
            return None;
        }
        let hashes = (self.hash(&forward), reply.map(|reply| self.hash(&reply)));
        self.insert_new(flow, hashes, now, expires, ended)
    }

    /// The same for a flow whose tuples, with these hashes, are nobody's.
    pub(in crate::packet) fn insert_new(
        &mut self,
        flow: &Flow,
        (forward, reply): (u64, Option<u64>),
        now: Tick,
        expires: Tick,
        ended: impl FnOnce(&FlowView, Ended),
    ) -> Option<Handle> {
        let wide = !(flow.client.is_ipv4() && flow.backend.is_ipv4());
        let (index, linked) = self.take_cell(wide, ended)?;
        let place = index | if wide { WIDE } else { 0 };
        let entered = self.enter(forward, place)
            && reply.is_none_or(|reply| {
                let both = self.enter(reply, place | REPLY);
                if !both {
                    self.leave(forward, place);
                }
                both
            });
        if !entered {
            if linked {
                // It is in the wheel and goes from there to the free ones.
                self.common_mut(place).state = State::Free as u8;
            } else {
                self.give_back(place);
            }
            return None;
        }
        self.write(place, flow, now, expires);
        if !linked {
            self.link(place, step(expires));
        }
        let used = if wide { &mut self.header.used6 } else { &mut self.header.used4 };
        *used += 1;
        Some(Handle(place))
    }

    /// Takes a flow out. Its cell is used again when the wheel comes to it, or when it is needed.
    pub fn remove(&mut self, handle: Handle) {
        self.forget(handle.0);
    }

    /// The flow itself.
    #[must_use]
    pub fn flow(&self, handle: Handle) -> Flow {
        let common = self.common(handle.0);
        let side = |n: usize| SocketAddr::new(self.address(handle.0, n), common.ports[n]);
        Flow {
            client: side(0),
            vip: side(1),
            backend: side(2),
            local: side(3),
            protocol: common.protocol,
            mode: mode_of(common.flags),
            tracked: common.flags & TRACKED != 0,
            service: ServiceId(common.service),
            id: backend_id(common.backend_slot, common.backend_epoch),
        }
    }

    /// The flow and how it stands.
    #[must_use]
    pub fn view(&self, handle: Handle) -> FlowView {
        let common = self.common(handle.0);
        FlowView {
            flow: self.flow(handle),
            state: State::from_byte(common.state),
            began: tick(common.began),
            expires: tick(common.expires),
            bytes: common.counted(),
            paid: common.flags & PAID != 0,
        }
    }

    /// What is looked at for each packet.
    #[inline]
    pub(in crate::packet) fn brief(&self, handle: Handle) -> Brief {
        let common = self.common(handle.0);
        Brief {
            mode: mode_of(common.flags),
            state: State::from_byte(common.state),
            service: ServiceId(common.service),
            backend_slot: common.backend_slot,
            generation: common.generation,
            expires: common.expires,
            headed: common.flags & HEAD != 0,
        }
    }

    /// Source and destination of packets in `direction` as they leave here.
    #[inline]
    pub(in crate::packet) fn ends(&self, handle: Handle, direction: Direction) -> Ends {
        let (source, destination) = match direction {
            Direction::Forward => (3, 2),
            Direction::Reply => (1, 0),
        };
        let ports = self.common(handle.0).ports;
        let ports = [ports[source], ports[destination]];
        if handle.0 & WIDE == 0 {
            let sides = &self.cells4[index_of(handle.0)].addresses;
            Ends::v4(sides[source], sides[destination], ports)
        } else {
            let sides = &self.cells6[index_of(handle.0)].addresses;
            Ends::v6(sides[source], sides[destination], ports).canonical()
        }
    }

    /// Counts a first segment of a flow that is not answered here; returns how many there were.
    pub(in crate::packet) fn count_syn(&mut self, handle: Handle) -> u16 {
        let common = self.common_mut(handle.0);
        let count = (((common.flags & SYNS) >> SYNS.trailing_zeros()) + 1).min(3);
        common.flags = (common.flags & !SYNS) | ((count << SYNS.trailing_zeros()) & SYNS);
        count
    }

    /// Notes a packet of `bytes`, after which the flow is in `state` until `expires`.
    pub fn note(&mut self, handle: Handle, state: State, expires: Tick, bytes: u64) {
        self.note_step(handle, state, step(expires), bytes);
    }

    /// The same with a step of the wheel.
    #[inline]
    pub(in crate::packet) fn note_step(
        &mut self,
        handle: Handle,
        state: State,
        expires: u32,
        bytes: u64,
    ) {
        let common = self.common_mut(handle.0);
        common.state = state as u8;
        common.expires = expires;
        common.bytes += bytes;
    }

    /// Its places are paid back.
    pub(in crate::packet) fn set_paid(&mut self, handle: Handle) {
        self.common_mut(handle.0).flags |= PAID;
    }

    /// Number of cells, of both families.
    #[must_use]
    pub fn cells(&self) -> u32 {
        (self.cells4.len() + self.cells6.len()) as u32
    }

    /// The flow in cell `n`, if there is one.
    #[must_use]
    pub fn at(&self, n: u32) -> Option<Handle> {
        let narrow = self.cells4.len() as u32;
        let place = if n < narrow { n } else { (n - narrow) | WIDE };
        let there = n < self.cells() && self.common(place).state != State::Free as u8;
        there.then_some(Handle(place))
    }

    /// Its backend is good by this generation.
    pub fn set_generation(&mut self, handle: Handle, generation: u32) {
        self.common_mut(handle.0).generation = generation;
    }

    /// Every flow, in no order; looks at every cell.
    pub fn iter(&self) -> impl Iterator<Item = FlowView> {
        (0..self.cells()).filter_map(|n| self.at(n)).map(|handle| self.view(handle))
    }

    #[inline]
    pub(super) fn common(&self, place: u32) -> &Common {
        match place & WIDE {
            0 => &self.cells4[index_of(place)].common,
            _ => &self.cells6[index_of(place)].common,
        }
    }

    #[inline]
    pub(super) fn common_mut(&mut self, place: u32) -> &mut Common {
        match place & WIDE {
            0 => &mut self.cells4[index_of(place)].common,
            _ => &mut self.cells6[index_of(place)].common,
        }
    }

    #[inline]
    fn address(&self, place: u32, side: usize) -> IpAddr {
        match place & WIDE {
            0 => v4(self.cells4[index_of(place)].addresses[side]),
            _ => unmapped(self.cells6[index_of(place)].addresses[side]),
        }
    }

    /// Takes the flow of a cell out of the buckets; the cell stays where it is linked.
    pub(super) fn forget(&mut self, place: u32) {
        if self.common(place).state == State::Free as u8 {
            return;
        }
        let flow = self.flow(Handle(place));
        let entries = [(flow.forward(), place), (flow.reply(), place | REPLY)];
        for (tuple, entry) in entries.into_iter().take(1 + usize::from(flow.mode.is_two_way())) {
            if let Some(tuple) = tuple {
                self.leave(self.hash(&tuple), entry);
            }
        }
        self.common_mut(place).state = State::Free as u8;
        let wide = place & WIDE != 0;
        let used = if wide { &mut self.header.used6 } else { &mut self.header.used4 };
        *used -= 1;
    }

    fn write(&mut self, place: u32, flow: &Flow, now: Tick, expires: Tick) {
        let sides = [flow.client, flow.vip, flow.backend, flow.local];
        if place & WIDE == 0 {
            let octets = |side: SocketAddr| match side.ip() {
                IpAddr::V4(ip) => ip.octets(),
                // Such flows have wide cells.
                IpAddr::V6(_) => [0; 4],
            };
            self.cells4[index_of(place)].addresses = sides.map(octets);
        } else {
            self.cells6[index_of(place)].addresses = sides.map(|side| mapped(side.ip()));
        }
        let next = self.common(place).next;
        *self.common_mut(place) = Common {
            ports: sides.map(|side| side.port()),
            protocol: flow.protocol,
            state: State::Opening as u8,
            flags: flags_of(flow),
            service: flow.service.0,
            backend_slot: flow.id.slot,
            backend_epoch: flow.id.epoch.get(),
            expires: step(expires),
            next,
            generation: 0,
            began: step(now),
            bytes: 0,
        };
    }
}

fn take<T: zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::KnownLayout>(
    region: &mut [u8],
    count: u32,
) -> Result<(&mut [T], &mut [u8]), RegionError> {
    let (these, rest) = region.split_at_mut(count as usize * size_of::<T>());
    let these = <[T]>::mut_from_bytes(these).map_err(|_| RegionError::Misaligned)?;
    Ok((these, rest))
}

#[inline]
pub(super) fn index_of(place: u32) -> usize {
    (place & !(WIDE | REPLY)) as usize
}

#[inline]
pub(super) fn tag_of(hash: u64) -> u32 {
    ((hash >> 32) as u32).max(1)
}

fn found(place: u32) -> Found {
    let direction = if place & REPLY == 0 { Direction::Forward } else { Direction::Reply };
    Found { handle: Handle(place & !REPLY), direction }
}
