//! Packets in hand: at most a burst of them.

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::{NonNull, null_mut};

use dpdk_sys::{fairway_view, rte_mbuf, rte_mempool};
use fairway_core::packet::{BURST, Frame, TransportChecksum, VlanTag};

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

    /// The packets as frames that came by port number `port`; none is for packets that were passed on,
    /// which know it themselves. No place is empty, and no packet has more than one segment.
    pub(crate) fn frames(&mut self, port: Option<u16>) -> [Frame<'_>; BURST] {
        let views = self.views();
        let mut views = views[..self.count].iter();
        std::array::from_fn(|_| {
            let Some(view) = views.next() else { return Frame::empty() };
            let (start, length) = (usize::from(view.start), usize::from(view.length));
            // SAFETY: the buffer of a packet that is ours alone, and is borrowed with the batch.
            let buffer =
                unsafe { std::slice::from_raw_parts_mut(view.buffer, usize::from(view.size)) };
            let mut frame = Frame::new(buffer, start, start + length);
            frame.port = port.unwrap_or(view.port);
            let has = |flag: u64| view.flags & flag == flag;
            if has(u64::from(dpdk_sys::RTE_MBUF_F_RX_VLAN_STRIPPED)) {
                frame.tag = Some(VlanTag(view.tag));
            }
            if has(u64::from(dpdk_sys::RTE_MBUF_F_RX_L4_CKSUM_NONE)) {
                frame.checksum = TransportChecksum::Partial;
            }
            // Wrong ones are looked at by the engine, and counted there.
            let good = view.flags & u64::from(dpdk_sys::RTE_MBUF_F_RX_IP_CKSUM_MASK);
            frame.header_checked = good == u64::from(dpdk_sys::RTE_MBUF_F_RX_IP_CKSUM_GOOD);
            frame
        })
    }

    fn views(&mut self) -> [fairway_view; BURST] {
        let mut views = [fairway_view::default(); BURST];
        let (packets, count) = (self.packets.as_mut_ptr(), self.count as u16);
        // SAFETY: the first `count` places hold packets that are ours, and there are as many views.
        unsafe { dpdk_sys::fairway_views(packets, views.as_mut_ptr(), count) };
        views
    }

    /// Makes packets whole that lie in several buffers; returns how many would not fit into one and
    /// are gone.
    pub(crate) fn join_segments(&mut self) -> u64 {
        let views = self.views();
        let (mut kept, mut gone) = (0, 0);
        for (n, view) in views[..self.count].iter().enumerate() {
            let packet = std::mem::replace(&mut self.packets[n], null_mut());
            // SAFETY: a packet of ours.
            let whole =
                view.segments == 1 || unsafe { dpdk_sys::rte_pktmbuf_linearize(packet) } == 0;
            if whole {
                self.packets[kept] = packet;
                kept += 1;
            } else {
                // It goes with this batch.
                drop(Self::of_one(packet));
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
        let place = {
            let frames = &mut self.frames(Some(0));
            let Some(frame) = frames.get_mut(n) else { return false };
            if !frame.replace(bytes) {
                return false;
            }
            frame.place()
        };
        // SAFETY: a packet of ours, of one segment, whose buffer has that place.
        unsafe {
            dpdk_sys::fairway_place(self.packets[n], place.start as u16, place.len() as u16, -1);
        }
        true
    }

    /// Takes packet `n` out, if it is there.
    fn take(&mut self, n: usize) -> Option<*mut rte_mbuf> {
        let place = self.packets[..self.count].get_mut(n)?;
        let packet = std::mem::replace(place, null_mut());
        (!packet.is_null()).then_some(packet)
    }

    /// Takes the outer tags off packets that have come, and makes them whole; returns how many are
    /// gone, as they would not fit into one buffer.
    pub(crate) fn arrive(&mut self) -> u64 {
        let (packets, count) = (self.packets.as_mut_ptr(), self.count as u16);
        // SAFETY: the first `count` places hold packets that are ours.
        match unsafe { dpdk_sys::fairway_strip(packets, count) } {
            0 => 0,
            _ => self.join_segments(),
        }
    }

    /// Moves packet `n` to the end of `to`, which has room; it lies at `place` of its buffer from now
    /// on, and its card is to put a tag on, if there is one.
    pub(crate) fn send(
        &mut self,
        n: usize,
        (place, tag): (Range<usize>, Option<VlanTag>),
        to: &mut Batch<'p>,
    ) {
        let Some(packet) = self.take(n) else { return };
        if to.is_full() || place.end > usize::from(u16::MAX) {
            return drop(Self::of_one(packet));
        }
        let (start, length) = (place.start as u16, place.len() as u16);
        let tag = tag.map_or(-1, |tag| tag.0.into());
        // SAFETY: a packet of ours, of one segment, whose buffer has that place: frames end there.
        unsafe { dpdk_sys::fairway_place(packet, start, length, tag) };
        to.packets[to.count] = packet;
        to.count += 1;
    }

    /// Moves packet `n`, which came by port number `port`, to the end of `to`, as it came.
    pub(crate) fn pass(&mut self, n: usize, port: u16, to: &mut Batch<'p>) {
        let Some(packet) = self.take(n) else { return };
        if to.is_full() {
            return drop(Self::of_one(packet));
        }
        // SAFETY: a packet of ours.
        unsafe { dpdk_sys::fairway_mark(packet, port) };
        to.packets[to.count] = packet;
        to.count += 1;
    }

    /// Fills at most `most` places behind the last packet; `fill` writes packets into so many places
    /// from the pointer on, and says how many.
    pub(crate) fn fill(&mut self, most: usize, fill: impl FnOnce(*mut *mut rte_mbuf, u16) -> u16) {
        let free = &mut self.packets[self.count..];
        let room = free.len().min(most) as u16;
        self.count += usize::from(fill(free.as_mut_ptr(), room).min(room));
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
