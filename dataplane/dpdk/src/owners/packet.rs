//! A packet's buffer: the fields that are read and written for each packet, where this DPDK has them.

use std::ops::Range;

use dpdk_sys::{
    FAIRWAY_BUF_ADDR, FAIRWAY_BUF_LEN, FAIRWAY_DATA_LEN, FAIRWAY_DATA_OFF, FAIRWAY_NB_SEGS,
    FAIRWAY_OL_FLAGS, FAIRWAY_PKT_LEN, FAIRWAY_PORT, FAIRWAY_VLAN_TCI, rte_mbuf,
};
use fairway_core::packet::{Frame, TransportChecksum, VlanTag};

/// The card has taken the tag off.
const STRIPPED: u64 = dpdk_sys::RTE_MBUF_F_RX_VLAN_STRIPPED as u64;
/// Whose the buffer is: some drivers attach their own.
const BELONGS: u64 = dpdk_sys::RTE_MBUF_F_EXTERNAL as u64 | dpdk_sys::RTE_MBUF_F_INDIRECT as u64;

/// Where a packet lies in its buffer, and the tag that its card is to put on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Place {
    start: u16,
    length: u16,
    tag: Option<u16>,
}

impl Place {
    /// At `bytes` of the buffer: part of a frame's, which has 65535 at most.
    #[inline]
    pub(crate) fn of(bytes: Range<usize>, tag: Option<VlanTag>) -> Self {
        let tag = tag.map(|tag| tag.0);
        Self { start: bytes.start as u16, length: bytes.len() as u16, tag }
    }
}

/// A packet that is ours alone. Not its owner: [`super::Batch`] is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet(*mut rte_mbuf);

impl Packet {
    /// # Safety
    /// A packet of DPDK's that the caller alone has, as long as this is used.
    #[inline]
    pub(super) unsafe fn new(packet: *mut rte_mbuf) -> Self {
        Self(packet)
    }

    /// # Safety
    /// A field of type `T` is at `at`.
    #[inline]
    unsafe fn get<T: Copy>(self, at: usize) -> T {
        // SAFETY: within a packet that is ours.
        unsafe { self.0.cast::<u8>().add(at).cast::<T>().read() }
    }

    /// # Safety
    /// As of [`Self::get`], and `value` is one that DPDK may find there.
    #[inline]
    unsafe fn set<T>(self, at: usize, value: T) {
        // SAFETY: within a packet that is ours.
        unsafe { self.0.cast::<u8>().add(at).cast::<T>().write(value) }
    }

    /// Whether it lies in one buffer.
    #[inline]
    pub(super) fn is_whole(self) -> bool {
        // SAFETY: the field's type; the bindings see to sizes.
        unsafe { self.get::<u16>(FAIRWAY_NB_SEGS) == 1 }
    }

    /// Has its first bytes fetched.
    #[inline]
    pub(super) fn prefetch(self) {
        // SAFETY: the fields' types.
        let (buffer, start) =
            unsafe { (self.get::<*mut u8>(FAIRWAY_BUF_ADDR), self.get::<u16>(FAIRWAY_DATA_OFF)) };
        fairway_core::packet::prefetch(buffer.wrapping_add(start.into()));
    }

    /// Its bytes as a frame, without an outer tag.
    ///
    /// # Safety
    /// It lies in one buffer, and is not used otherwise as long as the frame.
    #[inline]
    pub(super) unsafe fn frame<'b>(self) -> Frame<'b> {
        // SAFETY: the fields' types.
        let (buffer, size, start, length, flags) = unsafe {
            (
                self.get::<*mut u8>(FAIRWAY_BUF_ADDR),
                usize::from(self.get::<u16>(FAIRWAY_BUF_LEN)),
                usize::from(self.get::<u16>(FAIRWAY_DATA_OFF)),
                usize::from(self.get::<u16>(FAIRWAY_DATA_LEN)),
                self.get::<u64>(FAIRWAY_OL_FLAGS),
            )
        };
        // SAFETY: its buffer, which is ours with it.
        let buffer = unsafe { std::slice::from_raw_parts_mut(buffer, size) };
        let mut frame = Frame::new(buffer, start, start + length);
        // SAFETY: as above.
        frame.port = unsafe { self.get(FAIRWAY_PORT) };
        if flags & STRIPPED != 0 {
            // SAFETY: as above.
            frame.tag = Some(VlanTag(unsafe { self.get(FAIRWAY_VLAN_TCI) }));
        } else {
            frame.strip_tag();
        }
        let transport = flags & u64::from(dpdk_sys::RTE_MBUF_F_RX_L4_CKSUM_MASK);
        if transport == u64::from(dpdk_sys::RTE_MBUF_F_RX_L4_CKSUM_NONE) {
            frame.checksum = TransportChecksum::Partial;
        }
        // Wrong ones are looked at by the engine, and counted there.
        let header = flags & u64::from(dpdk_sys::RTE_MBUF_F_RX_IP_CKSUM_MASK);
        frame.header_checked = header == u64::from(dpdk_sys::RTE_MBUF_F_RX_IP_CKSUM_GOOD);
        frame
    }

    /// Where it lies from now on, and all that a card is to do: put the tag on, if there is one.
    ///
    /// # Safety
    /// It lies in one buffer, which has that place.
    #[inline]
    pub(super) unsafe fn leave(self, place: Place) {
        // SAFETY: the caller's word, and the fields' types.
        unsafe {
            self.lie(place);
            let belongs = self.get::<u64>(FAIRWAY_OL_FLAGS) & BELONGS;
            self.set::<u64>(FAIRWAY_OL_FLAGS, belongs);
            if let Some(tag) = place.tag {
                let insert = u64::from(dpdk_sys::RTE_MBUF_F_TX_VLAN);
                self.set::<u64>(FAIRWAY_OL_FLAGS, belongs | insert);
                self.set::<u16>(FAIRWAY_VLAN_TCI, tag);
            }
        }
    }

    /// Where it lies from now on, with its tag in its bytes, and the number of the port that it came
    /// by, as workers know it.
    ///
    /// # Safety
    /// As of [`Self::leave`].
    #[inline]
    pub(super) unsafe fn pass(self, place: Place, port: u16) {
        // SAFETY: the caller's word, and the fields' types.
        unsafe {
            self.lie(place);
            let flags = self.get::<u64>(FAIRWAY_OL_FLAGS) & !STRIPPED;
            self.set::<u64>(FAIRWAY_OL_FLAGS, flags);
            self.set::<u16>(FAIRWAY_PORT, port);
        }
    }

    /// # Safety
    /// As of [`Self::leave`].
    #[inline]
    unsafe fn lie(self, place: Place) {
        // SAFETY: the caller's word, and the fields' types.
        unsafe {
            self.set::<u16>(FAIRWAY_DATA_OFF, place.start);
            self.set::<u16>(FAIRWAY_DATA_LEN, place.length);
            self.set::<u32>(FAIRWAY_PKT_LEN, place.length.into());
        }
    }
}
