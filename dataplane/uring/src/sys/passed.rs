//! Descriptors that were open when this process began, by agreement with whoever started it.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// The first of them (sd_listen_fds(3)).
const FIRST: RawFd = 3;

/// `CLOSE_RANGE_CLOEXEC`.
const CLOSE_ON_EXEC: u32 = 1 << 2;

/// Takes over `count` descriptors from number 3 on, as service managers pass them; programs that this
/// process starts do not get them. Those that are not open are left out. Once in the life of a process,
/// at its very start; nothing after that.
pub fn passed_descriptors(count: u32) -> Vec<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Relaxed) {
        return Vec::new();
    }
    let own = |number: RawFd| {
        // SAFETY: at the start of the process nothing but these is open from 3 on, so nobody else owns
        // the number; where it is not open, the owner below is forgotten and closes nothing.
        let owner = unsafe { OwnedFd::from_raw_fd(number) };
        match fcntl_getfd(&owner).and_then(|flags| fcntl_setfd(&owner, flags | FdFlags::CLOEXEC)) {
            Ok(()) => Some(owner),
            Err(_) => {
                std::mem::forget(owner);
                None
            }
        }
    };
    let count = RawFd::try_from(count).unwrap_or(0).min(1 << 20);
    (FIRST..FIRST + count).filter_map(own).collect()
}

/// Has no program that this process starts get a descriptor that is open now: for libraries that do not see
/// to that themselves. Fails before Linux 5.11.
pub fn keep_descriptors() -> std::io::Result<()> {
    let (first, last) = (FIRST.unsigned_abs(), u32::MAX);
    // SAFETY: numbers; no descriptor is closed here.
    let code = unsafe { libc::syscall(libc::SYS_close_range, first, last, CLOSE_ON_EXEC) };
    if code == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
