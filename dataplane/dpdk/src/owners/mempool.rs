//! Packet memory.

use std::ffi::CString;
use std::marker::PhantomData;
use std::ptr::NonNull;

use dpdk_sys::rte_mempool;

use super::batch::Batch;
use super::eal::{Eal, last_error};

/// Buffers that each thread keeps at hand.
const CACHE: u32 = 256;

/// A pool of packet buffers. Shared by all threads of the process.
#[derive(Debug)]
pub struct Mempool<'e> {
    pool: NonNull<rte_mempool>,
    size: u32,
    eal: PhantomData<&'e Eal>,
}

// SAFETY: DPDK's pools are made to be used by all threads at once.
unsafe impl Send for Mempool<'_> {}
// SAFETY: as above.
unsafe impl Sync for Mempool<'_> {}

/// No such pool.
#[derive(Debug, thiserror::Error)]
#[error(
    "no memory for {count} packets of {bytes} bytes ({error}): raise `dataplane.packet.dpdk.memory`, \
     or have fewer workers"
)]
pub struct MempoolError {
    count: u32,
    bytes: u16,
    error: String,
}

impl<'e> Mempool<'e> {
    /// A pool `name` of `count` buffers with room for `bytes` of a packet each, besides the headers
    /// that may be put before it.
    pub fn new(_eal: &'e Eal, name: &str, count: u32, bytes: u16) -> Result<Self, MempoolError> {
        let refused = |error: String| MempoolError { count, bytes, error };
        let text = CString::new(name).map_err(|_| refused("a zero byte in its name".into()))?;
        let room = u32::from(bytes) + dpdk_sys::RTE_PKTMBUF_HEADROOM;
        let room = u16::try_from(room).map_err(|_| refused("the packets are too large".into()))?;
        // SAFETY: the EAL runs; the name ends with zero, and is copied.
        let pool =
            unsafe { dpdk_sys::rte_pktmbuf_pool_create(text.as_ptr(), count, CACHE, 0, room, -1) };
        let pool = NonNull::new(pool).ok_or_else(|| refused(last_error()))?;
        Ok(Self { pool, size: count, eal: PhantomData })
    }

    /// Buffers that nobody uses.
    #[must_use]
    pub fn available(&self) -> u32 {
        // SAFETY: a pool of ours, until it is dropped.
        unsafe { dpdk_sys::rte_mempool_avail_count(self.pool.as_ptr()) }
    }

    /// All buffers.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Empty packets; fewer than `count` when the pool has no more, and at most as many as a batch
    /// has room for.
    pub fn take(&self, count: usize) -> Batch<'_> {
        Batch::of_pool(self.pool, count)
    }

    pub(crate) fn as_ptr(&self) -> *mut rte_mempool {
        self.pool.as_ptr()
    }
}

impl Drop for Mempool<'_> {
    fn drop(&mut self) {
        // SAFETY: queues and packets that borrowed from it are gone.
        unsafe { dpdk_sys::rte_mempool_free(self.pool.as_ptr()) };
    }
}
