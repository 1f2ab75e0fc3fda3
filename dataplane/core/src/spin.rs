//! A lock of one word for a bucket of one or two cache lines.

use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, Ordering};

/// Held for some tens of instructions, never across a call out of the module that owns it.
#[derive(Debug, Default)]
pub(crate) struct SpinLock(AtomicBool);

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
