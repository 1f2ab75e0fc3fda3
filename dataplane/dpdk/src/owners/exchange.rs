//! Rings by which workers pass packets to each other, without a copy.

use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use dpdk_sys::rte_ring;
use rustix::event::{EventfdFlags, eventfd};

use super::batch::Batch;
use super::eal::{Eal, last_error};

/// Packets that may wait for a worker: a power of two.
const MOST: u32 = 1024;

/// Rings, one for each worker.
#[derive(Debug)]
struct Rings<'e> {
    rings: Vec<NonNull<rte_ring>>,
    beds: Vec<Bed>,
    eal: PhantomData<&'e Eal>,
}

/// Where a worker sleeps.
#[derive(Debug)]
struct Bed {
    /// It sleeps, or is about to, and wants to be woken.
    asleep: AtomicBool,
    bell: OwnedFd,
}

// SAFETY: DPDK's rings are made for several threads; that each is emptied by one alone is seen to by
// `Exchange`, of which there is one for each ring.
unsafe impl Send for Rings<'_> {}
// SAFETY: as above.
unsafe impl Sync for Rings<'_> {}

impl Drop for Rings<'_> {
    fn drop(&mut self) {
        for ring in &self.rings {
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
        let mut rings = Rings { rings: Vec::new(), beds: Vec::new(), eal: PhantomData };
        for worker in 0..workers {
            let name = CString::new(format!("fairway-passed-{worker}"))
                .map_err(|_| "a zero byte in a name".to_owned())?;
            // SAFETY: the EAL runs; the name ends with zero and is copied.
            let ring = unsafe {
                dpdk_sys::rte_ring_create(name.as_ptr(), MOST, -1, dpdk_sys::RING_F_SC_DEQ)
            };
            rings.rings.push(NonNull::new(ring).ok_or_else(last_error)?);
            let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(|error| format!("no event descriptor: {error}"))?;
            rings.beds.push(Bed { asleep: AtomicBool::new(false), bell });
        }
        let rings = Arc::new(rings);
        let end = |worker| Self { rings: Arc::clone(&rings), worker };
        Ok((0..workers).map(end).collect())
    }

    /// Number of workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.rings.rings.len()
    }

    /// Gives packets of `batch` to a worker, from the first on; those that have no room stay.
    pub fn send(&mut self, to: usize, batch: &mut Batch<'p>) {
        let Some(ring) = self.rings.rings.get(to) else { return };
        batch.hand_over(|first, count| {
            let (first, none) = (first.cast::<*mut c_void>(), null_mut());
            // SAFETY: a ring that lives; so many packets, which it takes over.
            let taken = unsafe {
                dpdk_sys::rte_ring_enqueue_burst(ring.as_ptr(), first, count.into(), none)
            };
            taken as u16
        });
        // Either it sees the packets, or it is seen to sleep: see `sleep`.
        fence(Ordering::SeqCst);
        let bed = &self.rings.beds[to];
        if bed.asleep.load(Ordering::Relaxed) && bed.asleep.swap(false, Ordering::Relaxed) {
            // The only failure is a full counter, which wakes it too.
            let _ = rustix::io::write(&bed.bell, &1_u64.to_ne_bytes());
        }
    }

    /// What is readable once a packet has come for a worker that sleeps.
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.rings.beds[self.worker].bell.as_fd()
    }

    /// Wants to be woken from now on. The caller looks once more whether packets have come.
    pub fn sleep(&mut self) {
        self.rings.beds[self.worker].asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Is awake.
    pub fn rise(&mut self) {
        let bed = &self.rings.beds[self.worker];
        bed.asleep.store(false, Ordering::Relaxed);
        // Nothing to be read is as good.
        let _ = rustix::io::read(&bed.bell, &mut [0; 8]);
    }

    /// Adds packets that others have given us to `batch`, as far as it has room.
    pub fn receive(&mut self, batch: &mut Batch<'p>) {
        let ring = self.rings.rings[self.worker];
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
