//! A lock of one word for a bucket of some cache lines.

use alloc::boxed::Box;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, Ordering};

use zerocopy::FromZeros;

/// Held for some tens of instructions, never across a call out of the module that owns it.
#[derive(Debug, Default, FromZeros)]
pub(crate) struct SpinLock(AtomicBool);

/// So many buckets that are empty, which is all zeros: the system gives memory for them as they are used, if
/// they ask for no wider alignment than its own (they would be written otherwise, some 30 ms of a start).
/// Panics when it has no room for them.
pub(crate) fn empty_buckets<B: FromZeros>(count: usize) -> Box<[B]> {
    <[B]>::new_box_zeroed_with_elems(count).expect("no memory for a table of clients")
}

impl SpinLock {
    pub(crate) fn with<R>(&self, work: impl FnOnce() -> R) -> R {
        while self
            .0
            .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            spin_loop();
        }
        let result = work();
        self.0.store(false, Ordering::Release);
        result
    }
}
