//! The scheduler's time slice of a thread.

use libc::{SYS_sched_getattr, SYS_sched_setattr, sched_attr};

/// Nanoseconds: the shortest that the kernel takes.
const SHORT: u64 = 100_000;
/// The calling thread.
const OWN: i32 = 0;
const NO_FLAGS: u32 = 0;

/// Has the calling thread run in slices of 100 µs, where the scheduler takes such a wish (EEVDF, Linux 6.12). It
/// gets no more of a core, but when it wakes it does not wait for another thread's slice of some milliseconds to
/// end. No error: it only tunes.
pub(crate) fn short_slice() {
    // Another policy than the usual one is somebody's choice.
    let usual = |attributes: &sched_attr| attributes.sched_policy == libc::SCHED_OTHER as u32;
    let Some(mut attributes) = attributes().filter(usual) else { return };
    attributes.sched_runtime = SHORT;
    // SAFETY: the kernel reads `size` bytes, which are those of `attributes`.
    let _ = unsafe { libc::syscall(SYS_sched_setattr, OWN, &raw const attributes, NO_FLAGS) };
}

/// How the calling thread is scheduled.
fn attributes() -> Option<sched_attr> {
    let mut attributes = sched_attr {
        size: size_of::<sched_attr>() as u32,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    let (size, pointer) = (attributes.size, &raw mut attributes);
    // SAFETY: the kernel writes `size` bytes at most, into `attributes`, whose fields are all integers.
    let got = unsafe { libc::syscall(SYS_sched_getattr, OWN, pointer, size, NO_FLAGS) };
    (got == 0).then_some(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_short_and_nothing_else_changes() {
        let before = attributes().unwrap();
        short_slice();
        let after = attributes().unwrap();
        assert_eq!(
            (after.sched_policy, after.sched_nice),
            (before.sched_policy, before.sched_nice)
        );
        // Kernels that know nothing of it tell none.
        assert!([0, SHORT].contains(&after.sched_runtime));
        assert!(before.sched_runtime == 0 || after.sched_runtime == SHORT);
    }
}
