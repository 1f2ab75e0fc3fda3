//! Rings by which workers pass packets to each other, without a copy.

use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use dpdk_sys::rte_ring;

use super::batch::Batch;
use super::eal::{Eal, last_error};

/// Packets that may wait for a worker: a power of two.
const MOST: u32 = 1024;

/// Rings, one for each worker.
#[derive(Debug)]
struct Rings<'e>(Vec<NonNull<rte_ring>>, PhantomData<&'e Eal>);

// SAFETY: DPDK's rings are made for several threads; that each is emptied by one alone is seen to by
// `Exchange`, of which there is one for each ring.
unsafe impl Send for Rings<'_> {}
// SAFETY: as above.
unsafe impl Sync for Rings<'_> {}

impl Drop for Rings<'_> {
    fn drop(&mut self) {
        for ring in &self.0 {
            let mut left: [*mut c_void; 32] = [null_mut(); 32];
            loop {
                let (place, none) = (left.as_mut_ptr(), null_mut());
                // SAFETY: a ring of ours that nobody else has any more; room for so many.
                let count =
                    unsafe { dpdk_sys::rte_ring_dequeue_burst(ring.as_ptr(), place, 32, none) };
                if count == 0 {
                    break;
                }
                // SAFETY: rings hold packets alone, and these are nobody's.
                unsafe { dpdk_sys::rte_pktmbuf_free_bulk(place.cast(), count) };
            }
            // SAFETY: as above.
            unsafe { dpdk_sys::rte_ring_free(ring.as_ptr()) };
        }
    }
}

/// One worker's end of the rings.
#[derive(Debug)]
pub struct Exchange<'p> {
    rings: Arc<Rings<'p>>,
    worker: usize,
}

impl<'p> Exchange<'p> {
    /// An end for each of `workers`.
    pub fn between(_eal: &'p Eal, workers: usize) -> Result<Vec<Self>, String> {
        let mut rings = Rings(Vec::with_capacity(workers), PhantomData);
        for worker in 0..workers {
            let name = CString::new(format!("fairway-passed-{worker}"))
                .map_err(|_| "a zero byte in a name".to_owned())?;
            // SAFETY: the EAL runs; the name ends with zero and is copied.
            let ring = unsafe {
                dpdk_sys::rte_ring_create(name.as_ptr(), MOST, -1, dpdk_sys::RING_F_SC_DEQ)
            };
            rings.0.push(NonNull::new(ring).ok_or_else(last_error)?);
        }
        let rings = Arc::new(rings);
        let end = |worker| Self { rings: Arc::clone(&rings), worker };
        Ok((0..workers).map(end).collect())
    }

    /// Number of workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.rings.0.len()
    }

    /// Gives packets of `batch` to a worker, from the first on; those that have no room stay.
    pub fn send(&mut self, to: usize, batch: &mut Batch<'p>) {
        let Some(ring) = self.rings.0.get(to) else { return };
        batch.hand_over(|first, count| {
            let (first, none) = (first.cast::<*mut c_void>(), null_mut());
            // SAFETY: a ring that lives; so many packets, which it takes over.
            let taken = unsafe {
                dpdk_sys::rte_ring_enqueue_burst(ring.as_ptr(), first, count.into(), none)
            };
            taken as u16
        });
    }

    /// Adds packets that others have given us to `batch`, as far as it has room.
    pub fn receive(&mut self, batch: &mut Batch<'p>) {
        let ring = self.rings.0[self.worker];
        batch.fill(usize::MAX, |place, room| {
            let (place, none) = (place.cast::<*mut c_void>(), null_mut());
            // SAFETY: our ring, which nobody else empties; it holds packets alone, and there is room
            // for so many.
            let count = unsafe {
                dpdk_sys::rte_ring_dequeue_burst(ring.as_ptr(), place, room.into(), none)
            };
            count as u16
        });
    }
}
