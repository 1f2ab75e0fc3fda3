//! Memory of our own and memory that is shared with the kernel.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
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

/// Bytes of a huge page, of which memory for flows is a multiple.
const HUGE: usize = 2 << 20;

/// Memory for a flow table of so many bytes, which outlives the process with its descriptor; with `huge`,
/// of reserved huge pages if there are enough.
pub fn flow_memory(bytes: usize, huge: bool) -> io::Result<OwnedFd> {
    let length = bytes.next_multiple_of(HUGE) as u64;
    let make = |flags| {
        let memory = memfd_create("fairway-flows", MemfdFlags::CLOEXEC | flags)?;
        ftruncate(&memory, length)?;
        Ok::<_, io::Error>(memory)
    };
    if huge {
        let reserved = make(MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB);
        // Pages are reserved when they are mapped.
        let there = |memory: &OwnedFd| Mapping::new(length as usize, Some(memory.as_fd())).is_ok();
        if let Ok(memory) = reserved
            && there(&memory)
        {
            return Ok(memory);
        }
    }
    make(MemfdFlags::empty())
}

/// Memory with a flow table.
pub(crate) struct Region(Mapping);

impl Region {
    /// All of what [`flow_memory`] made, for the worker that has its flows there.
    pub(crate) fn shared(memory: BorrowedFd<'_>) -> io::Result<Self> {
        let length = usize::try_from(fstat(memory)?.st_size).unwrap_or(0);
        let mapping = Mapping::new(length, Some(memory))?;
        // SAFETY: the mapping is ours, and the advice changes nothing that it holds.
        let _ = unsafe { madvise(mapping.start.as_ptr().cast(), length, Advice::LinuxHugepage) };
        Ok(Self(mapping))
    }

    /// A copy of what another process has left there: nobody else sees what becomes of it.
    pub(crate) fn copy(memory: BorrowedFd<'_>) -> io::Result<Self> {
        let length = usize::try_from(fstat(memory)?.st_size).unwrap_or(0);
        let (protection, null) = (ProtFlags::READ | ProtFlags::WRITE, std::ptr::null_mut());
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing else.
        let start = unsafe { mmap(null, length, protection, MapFlags::PRIVATE, memory, 0) }?;
        let start = NonNull::new(start.cast());
        let start = start.ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(Self(Mapping { start, length }))
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the memory is initialised with zeros or by a table, is mapped here alone but for
        // processes that have ended or stand still, and is borrowed as long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.0.start.as_ptr(), self.0.length) }
    }
}
