//! A packet's buffer: the fields that are read and written for each packet, where this DPDK has them.

use std::ops::Range;

use dpdk_sys::{
    FAIRWAY_BUF_ADDR, FAIRWAY_BUF_LEN, FAIRWAY_DATA_LEN, FAIRWAY_DATA_OFF, FAIRWAY_NB_SEGS,
    FAIRWAY_OL_FLAGS, FAIRWAY_PKT_LEN, FAIRWAY_PORT, FAIRWAY_VLAN_TCI, rte_mbuf,
};
use fairway_core::packet::{Frame, TransportChecksum, VlanTag};

/// Flags of packets, as wide as their field: the bindings have each as wide as its value in this DPDK.
#[allow(clippy::unnecessary_cast, reason = "some are that wide")]
mod flag {
    /// The card has taken the tag off.
    pub(super) const STRIPPED: u64 = dpdk_sys::RTE_MBUF_F_RX_VLAN_STRIPPED as u64;
    /// It is to put one on.
    pub(super) const INSERT: u64 = dpdk_sys::RTE_MBUF_F_TX_VLAN as u64;
    /// What the card says of the transport's checksum, and that there is none yet.
    pub(super) const TRANSPORT: u64 = dpdk_sys::RTE_MBUF_F_RX_L4_CKSUM_MASK as u64;
    pub(super) const NO_TRANSPORT: u64 = dpdk_sys::RTE_MBUF_F_RX_L4_CKSUM_NONE as u64;
    /// What it says of the header's, and that it is right.
    pub(super) const HEADER: u64 = dpdk_sys::RTE_MBUF_F_RX_IP_CKSUM_MASK as u64;
    pub(super) const GOOD_HEADER: u64 = dpdk_sys::RTE_MBUF_F_RX_IP_CKSUM_GOOD as u64;
    /// Whose the buffer is: some drivers attach their own.
    pub(super) const BELONGS: u64 =
        dpdk_sys::RTE_MBUF_F_EXTERNAL as u64 | dpdk_sys::RTE_MBUF_F_INDIRECT as u64;
}

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

    /// The field at one of the places above, which has the type that is asked for.
    #[inline]
    fn get<T: Copy>(self, at: usize) -> T {
        // SAFETY: within a packet that is ours.
        let field = unsafe { self.0.cast::<u8>().add(at) };
        // SAFETY: a field of the packet's, and as large as said: the bindings see to that.
        unsafe { field.cast::<T>().read() }
    }

    #[inline]
    fn set<T>(self, at: usize, value: T) {
        // SAFETY: within a packet that is ours.
        let field = unsafe { self.0.cast::<u8>().add(at) };
        // SAFETY: as above.
        unsafe { field.cast::<T>().write(value) }
    }

    /// Whether it lies in one buffer.
    #[inline]
    pub(super) fn is_whole(self) -> bool {
        self.get::<u16>(FAIRWAY_NB_SEGS) == 1
    }

    /// Has its first bytes fetched.
    #[inline]
    pub(super) fn prefetch(self) {
        let start = self.get::<u16>(FAIRWAY_DATA_OFF);
        let buffer = self.get::<*mut u8>(FAIRWAY_BUF_ADDR);
        fairway_core::packet::prefetch(buffer.wrapping_add(start.into()));
    }

    /// Its bytes as a frame, without an outer tag.
    ///
    /// # Safety
    /// It lies in one buffer, and is not used otherwise as long as the frame.
    #[inline]
    pub(super) unsafe fn frame<'b>(self) -> Frame<'b> {
        let start = usize::from(self.get::<u16>(FAIRWAY_DATA_OFF));
        let end = start + usize::from(self.get::<u16>(FAIRWAY_DATA_LEN));
        let size = usize::from(self.get::<u16>(FAIRWAY_BUF_LEN));
        let flags = self.get::<u64>(FAIRWAY_OL_FLAGS);
        // SAFETY: its buffer, which is ours with it.
        let buffer = unsafe { std::slice::from_raw_parts_mut(self.get(FAIRWAY_BUF_ADDR), size) };
        let mut frame = Frame::new(buffer, start, end);
        frame.port = self.get(FAIRWAY_PORT);
        if flags & flag::STRIPPED != 0 {
            frame.tag = Some(VlanTag(self.get(FAIRWAY_VLAN_TCI)));
        } else {
            frame.strip_tag();
        }
        if flags & flag::TRANSPORT == flag::NO_TRANSPORT {
            frame.checksum = TransportChecksum::Partial;
        }
        // Wrong ones are looked at by the engine, and counted there.
        frame.header_checked = flags & flag::HEADER == flag::GOOD_HEADER;
        frame
    }

    /// Where it lies from now on, and all that a card is to do: put the tag on, if there is one. The
    /// place is one of its frame's.
    #[inline]
    pub(super) fn leave(self, place: Place) {
        self.lie(place);
        let belongs = self.get::<u64>(FAIRWAY_OL_FLAGS) & flag::BELONGS;
        self.set::<u64>(FAIRWAY_OL_FLAGS, belongs);
        if let Some(tag) = place.tag {
            self.set::<u64>(FAIRWAY_OL_FLAGS, belongs | flag::INSERT);
            self.set::<u16>(FAIRWAY_VLAN_TCI, tag);
        }
    }

    /// Where it lies from now on, with its tag in its bytes, and the number of the port that it came
    /// by, as workers know it.
    #[inline]
    pub(super) fn pass(self, place: Place, port: u16) {
        self.lie(place);
        let flags = self.get::<u64>(FAIRWAY_OL_FLAGS) & !flag::STRIPPED;
        self.set::<u64>(FAIRWAY_OL_FLAGS, flags);
        self.set::<u16>(FAIRWAY_PORT, port);
    }

    #[inline]
    fn lie(self, place: Place) {
        self.set::<u16>(FAIRWAY_DATA_OFF, place.start);
        self.set::<u16>(FAIRWAY_DATA_LEN, place.length);
        self.set::<u32>(FAIRWAY_PKT_LEN, place.length.into());
    }
}
