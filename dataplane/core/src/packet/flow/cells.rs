//! What a flow table's memory is made of: plain bytes, so that it can lie in huge pages or in a
//! memfd that outlives the process.

use alloc::vec::Vec;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Entries of a bucket.
pub(super) const WAYS: usize = 7;

/// No cell.
pub(super) const NONE: u32 = u32::MAX;

/// Entries whose hashes lead here: one cache line.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub(super) struct Bucket {
    /// Parts of their hashes; zero is no entry.
    pub tags: [u32; WAYS],
    /// Entries that belong here and found no room.
    pub overflowed: u32,
    /// Their cells.
    pub places: [u32; WAYS],
    pub unused: u32,
}

/// A flow, apart from its addresses.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub(in crate::packet) struct Common {
    /// Of the client, the VIP, the backend and our side towards it.
    pub ports: [u16; 4],
    pub protocol: u8,
    /// A [`super::State`].
    pub state: u8,
    /// [`super::Flags`].
    pub flags: u16,
    pub service: u32,
    pub backend_slot: u32,
    pub backend_epoch: u32,
    /// In steps of the wheel.
    pub expires: u32,
    /// The next cell of its list: a slot of the wheel, or the free ones.
    pub next: u32,
    /// Of the snapshot by which its backend was last found good.
    pub generation: u32,
    /// When it began, in steps of the wheel.
    pub began: u32,
    /// In both directions; while something is to go before the client's first byte, the upper half is
    /// that byte's number ([`super::head`]).
    pub bytes: u64,
}

/// A flow whose addresses are all IPv4: one cache line.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub(in crate::packet) struct Cell4 {
    /// In the order of the ports.
    pub addresses: [[u8; 4]; 4],
    pub common: Common,
}

/// A flow with an IPv6 address; IPv4 ones are mapped.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub(in crate::packet) struct Cell6 {
    pub addresses: [[u8; 16]; 4],
    pub common: Common,
    pub unused: [u8; 16],
}

/// What the memory holds, so that another process can tell whether it can go on with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub(super) struct Header {
    pub magic: [u8; 8],
    pub version: u32,
    pub buckets: u32,
    pub cells4: u32,
    pub cells6: u32,
    pub free4: u32,
    pub free6: u32,
    pub used4: u32,
    pub used6: u32,
    /// The step up to which the wheel was turned.
    pub turned: u32,
    pub unused: u32,
    /// Keys of the hash.
    pub seeds: [u64; 2],
}

/// Memory on the heap for a flow table; huge pages are for callers that have some.
#[derive(Debug)]
pub struct HeapRegion(Vec<Line>);

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl HeapRegion {
    /// At least so many bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self(alloc::vec![Line([0; 64]); bytes.div_ceil(64)])
    }

    /// The memory, from a cache line on.
    #[must_use]
    pub fn bytes(&mut self) -> &mut [u8] {
        self.0.as_mut_slice().as_mut_bytes()
    }
}

const _: () = {
    assert!(size_of::<Bucket>() == 64 && size_of::<Cell4>() == 64 && size_of::<Cell6>() == 128);
    assert!(size_of::<Header>() == 64);
};
