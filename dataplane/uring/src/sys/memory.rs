//! Memory of our own and memory that is shared with the kernel.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// A mapping, taken back when it is dropped.
pub(super) struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

impl Mapping {
    /// Maps `length` bytes of what `fd` shares, or of memory of our own.
    pub(super) fn new(length: usize, fd: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let null = std::ptr::null_mut();
        let start = match fd {
            // SAFETY: a new mapping at an address of the kernel's choice touches nothing else.
            Some(fd) => unsafe { mmap(null, length, protection, MapFlags::SHARED, fd, 0) },
            // SAFETY: likewise.
            None => unsafe { mmap_anonymous(null, length, protection, MapFlags::PRIVATE) },
        }?;
        let start = NonNull::new(start.cast());
        let start = start.ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(Self { start, length })
    }

    /// A pointer to `offset`, which lies in the mapping.
    pub(super) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.length, "an offset lies in its mapping");
        // SAFETY: just checked.
        unsafe { self.start.add(offset) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; owners hand out nothing that outlives them.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}

// SAFETY: the mapping has one owner; that it may be shared with the kernel does not tie it to a
// thread.
unsafe impl Send for Mapping {}

/// Memory for a flow table, in huge pages where the kernel has some.
pub(crate) struct Region(Mapping);

impl Region {
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        let mapping = Mapping::new(length, None)?;
        // SAFETY: the mapping is ours, and the advice changes nothing that it holds.
        let _ = unsafe { madvise(mapping.start.as_ptr().cast(), length, Advice::LinuxHugepage) };
        Ok(Self(mapping))
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: anonymous memory is initialised with zeros, is ours alone, and is borrowed as
        // long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.0.start.as_ptr(), self.0.length) }
    }
}
