//! Packets in hand: at most a burst of them.

use std::marker::PhantomData;
use std::ptr::{NonNull, null_mut};

use dpdk_sys::{rte_mbuf, rte_mempool};
use fairway_core::packet::{BURST, Frame};

use super::packet::{Packet, Place};

/// Packets, and the memory that they lie in, which goes back to its pool with them.
#[derive(Debug)]
pub struct Batch<'p> {
    /// The first `count`; null where a packet has gone elsewhere.
    packets: [*mut rte_mbuf; BURST],
    count: usize,
    pool: PhantomData<&'p ()>,
}

// SAFETY: packets belong to whoever has the batch, and to no thread.
unsafe impl Send for Batch<'_> {}

impl<'p> Batch<'p> {
    /// No packets.
    #[must_use]
    pub fn new() -> Self {
        Self { packets: [null_mut(); BURST], count: 0, pool: PhantomData }
    }

    /// Empty packets of a pool; none when it has fewer than `count`.
    pub(crate) fn of_pool(pool: NonNull<rte_mempool>, count: usize) -> Self {
        let mut batch = Self::new();
        let count = count.min(BURST);
        let place = batch.packets.as_mut_ptr();
        // SAFETY: the pool is its owner's, and `place` has room for so many.
        let done = unsafe { dpdk_sys::rte_pktmbuf_alloc_bulk(pool.as_ptr(), place, count as u32) };
        batch.count = if done == 0 { count } else { 0 };
        batch
    }

    /// Number of packets, and of places from which one has gone.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are no places.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether no further packet has room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.count == BURST
    }

    /// Gives all packets back to their pool.
    pub fn clear(&mut self) {
        if self.count > 0 {
            // SAFETY: these packets are ours alone; places of others are null, which is passed over.
            unsafe {
                dpdk_sys::rte_pktmbuf_free_bulk(self.packets.as_mut_ptr(), self.count as u32);
            }
        }
        self.count = 0;
    }

    /// The packets as frames, of which the first are there, and came by `port` if that is told. No
    /// place is empty, and no packet has more than one segment.
    #[inline]
    pub(crate) fn frames(&mut self, port: Option<u16>) -> [Frame<'_>; BURST] {
        std::array::from_fn(|n| {
            if n >= self.count {
                return Frame::empty();
            }
            // SAFETY: a packet of ours, which is borrowed with the batch.
            let mut frame = unsafe { packet(self.packets[n]).frame() };
            frame.port = port.unwrap_or(frame.port);
            frame
        })
    }

    /// Packet `n` as a frame.
    pub(crate) fn frame(&mut self, n: usize) -> Option<Frame<'_>> {
        let at = self.packets[..self.count].get(n).filter(|packet| !packet.is_null())?;
        // SAFETY: as in `frames`.
        Some(unsafe { packet(*at).frame() })
    }

    /// Makes packets whole that lie in several buffers, and has their first bytes fetched; returns how
    /// many would not fit into one and are gone.
    #[inline]
    pub(crate) fn arrive(&mut self) -> u64 {
        let mut whole = true;
        // Nothing has gone from a batch that has just come.
        for at in &self.packets[..self.count] {
            let packet = packet(*at);
            packet.prefetch();
            whole &= packet.is_whole();
        }
        if whole { 0 } else { self.join_segments() }
    }

    #[cold]
    fn join_segments(&mut self) -> u64 {
        let (mut kept, mut gone) = (0, 0);
        for n in 0..self.count {
            let at = std::mem::replace(&mut self.packets[n], null_mut());
            // SAFETY: a packet of ours.
            if packet(at).is_whole() || unsafe { dpdk_sys::rte_pktmbuf_linearize(at) } == 0 {
                self.packets[kept] = at;
                kept += 1;
            } else {
                // It goes with this batch.
                drop(Self::of_one(at));
                gone += 1;
            }
        }
        self.count = kept;
        gone
    }

    fn of_one(packet: *mut rte_mbuf) -> Self {
        let mut batch = Self::new();
        (batch.packets[0], batch.count) = (packet, 1);
        batch
    }

    /// Writes `bytes` as packet `n`; false when there is no such packet, or no room in it.
    pub fn write(&mut self, n: usize, bytes: &[u8]) -> bool {
        let Some(mut frame) = self.frame(n) else { return false };
        if bytes.len() > usize::from(u16::MAX) || !frame.replace(bytes) {
            return false;
        }
        let place = Place::of(frame.place(), None);
        packet(self.packets[n]).leave(place);
        true
    }

    /// Takes packet `n` out, if it is there.
    #[inline]
    fn take(&mut self, n: usize) -> Option<*mut rte_mbuf> {
        let place = self.packets[..self.count].get_mut(n)?;
        let packet = std::mem::replace(place, null_mut());
        (!packet.is_null()).then_some(packet)
    }

    /// Moves packet `n`, which came by port number `port`, to the end of `to`; its tag is in its bytes.
    pub(crate) fn pass(&mut self, n: usize, (place, port): (Place, u16), to: &mut Batch<'p>) {
        let Some(at) = self.take(n) else { return };
        if to.is_full() {
            return drop(Self::of_one(at));
        }
        packet(at).pass(place, port);
        to.packets[to.count] = at;
        to.count += 1;
    }

    /// Fills at most `most` places behind the last packet; `fill` writes packets into so many places
    /// from the pointer on, and says how many.
    pub(crate) fn fill(&mut self, most: usize, fill: impl FnOnce(*mut *mut rte_mbuf, u16) -> u16) {
        let free = &mut self.packets[self.count..];
        let room = free.len().min(most) as u16;
        self.count += usize::from(fill(free.as_mut_ptr(), room).min(room));
    }

    /// Lets go of the first packet.
    pub(crate) fn drop_first(&mut self) {
        if let Some(first) = self.take(0) {
            drop(Self::of_one(first));
            self.packets.copy_within(1..self.count, 0);
            self.count -= 1;
        }
    }

    /// Hands packets from the first on to somebody who takes them over, and says how many; the rest
    /// stays.
    pub(crate) fn hand_over(&mut self, take: impl FnOnce(*mut *mut rte_mbuf, u16) -> u16) {
        let taken = usize::from(take(self.packets.as_mut_ptr(), self.count as u16));
        let taken = taken.min(self.count);
        self.packets.copy_within(taken..self.count, 0);
        self.count -= taken;
    }
}

/// A packet of a batch, in a place where one is.
#[inline]
fn packet(at: *mut rte_mbuf) -> Packet {
    // SAFETY: packets of a batch are its own alone.
    unsafe { Packet::new(at) }
}

/// Packets that are to leave, of one segment each.
#[derive(Debug)]
pub(crate) struct Leaving<'p> {
    batch: Batch<'p>,
    places: [Place; BURST],
}

impl<'p> Leaving<'p> {
    /// None.
    pub(crate) fn new() -> Self {
        Self { batch: Batch::new(), places: [Place::default(); BURST] }
    }

    /// Number of packets.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.batch.count
    }

    /// Whether no further packet has room.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.batch.is_full()
    }

    /// Moves packet `n` of a batch to its end, while it has room. The place is one of the packet's
    /// frame.
    #[inline]
    pub(crate) fn push(&mut self, from: &mut Batch<'p>, n: usize, place: Place) {
        let Some(packet) = from.take(n) else { return };
        if self.is_full() {
            return drop(Batch::of_one(packet));
        }
        let count = self.batch.count;
        (self.batch.packets[count], self.places[count]) = (packet, place);
        self.batch.count += 1;
    }

    /// Moves all packets of a batch to its end, each to its place, if there is room for all and all
    /// have one; else it does nothing.
    #[inline]
    pub(crate) fn push_all(&mut self, from: &mut Batch<'p>, places: &[Option<Place>; BURST]) {
        let (own, count) = (self.batch.count, from.count);
        let Some(free) = self.batch.packets.get_mut(own..own + count) else { return };
        for (to, place) in self.places[own..own + count].iter_mut().zip(places) {
            let Some(place) = place else { return };
            *to = *place;
        }
        free.copy_from_slice(&from.packets[..count]);
        self.batch.count += count;
        from.count = 0;
    }

    /// The packets, as they are to leave.
    #[inline]
    pub(crate) fn ready(&mut self) -> &mut Batch<'p> {
        let packets = &self.batch.packets[..self.batch.count];
        for (at, place) in packets.iter().zip(&self.places) {
            packet(*at).leave(*place);
        }
        &mut self.batch
    }
}

impl Default for Batch<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}
