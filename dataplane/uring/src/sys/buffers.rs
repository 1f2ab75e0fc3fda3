//! Receive buffers: a pool in one mapping, of which a few lie in the kernel's ring at a time.
//!
//! The pool is last in, first out, so that a lightly loaded worker touches few pages however
//! large the pool is. Pages are taken from the system when first touched.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Buffers that lie ready for the kernel. Few, so that they stay in the cache.
const READY: u16 = 128;

/// A part of a pool buffer that holds received bytes. One owner; give it back to the pool.
#[derive(Debug)]
#[must_use = "a chunk that is not released is lost to the pool"]
pub(crate) struct Chunk {
    id: u16,
    /// Where its bytes begin.
    origin: u32,
    /// Where those begin that are still to be sent.
    start: u32,
    end: u32,
}

impl Chunk {
    pub(crate) fn len(&self) -> u32 {
        self.end - self.start
    }

    /// Takes `sent` bytes off the front.
    pub(crate) fn advance(&mut self, sent: u32) {
        self.start = (self.start + sent).min(self.end);
    }

    /// Takes `count` bytes off the front for good: they are not made unsent again.
    pub(crate) fn cut(&mut self, count: u32) {
        self.advance(count);
        self.origin = self.start;
    }

    /// Keeps `len` bytes from `offset` on.
    pub(super) fn narrow(&mut self, offset: u32, len: u32) {
        self.cut(offset);
        self.end = (self.start + len).min(self.end);
    }

    /// Makes all bytes unsent again.
    pub(crate) fn rewind(&mut self) {
        self.start = self.origin;
    }
}

pub(crate) struct Buffers {
    memory: NonNull<u8>,
    size: u32,
    count: u16,
    free: Vec<u16>,
    entries: NonNull<BufRingEntry>,
    tail: u16,
    ready: u16,
}

impl Buffers {
    /// Maps `count` buffers of `size` bytes.
    pub(crate) fn map(count: u16, size: u32) -> io::Result<Self> {
        let memory = map(usize::from(count) * size as usize, MapFlags::NORESERVE)?;
        let entries = match map(ring_bytes(), MapFlags::empty()) {
            Ok(entries) => entries.cast(),
            Err(error) => {
                // SAFETY: mapped above with this length, and nothing refers to it yet.
                let _ =
                    unsafe { munmap(memory.as_ptr().cast(), usize::from(count) * size as usize) };
                return Err(error);
            }
        };
        Ok(Self {
            memory,
            size,
            count,
            free: (0..count).rev().collect(),
            entries,
            tail: 0,
            ready: 0,
        })
    }

    /// Address and number of entries, for the registration with the kernel.
    pub(crate) fn ring(&self) -> (u64, u16) {
        (self.entries.as_ptr() as u64, READY)
    }

    /// Lays buffers out for the kernel until the ring is full or the pool empty.
    pub(crate) fn refill(&mut self) {
        let before = self.tail;
        while self.ready < READY {
            let Some(id) = self.free.pop() else { break };
            let address = self.memory.as_ptr() as u64 + u64::from(id) * u64::from(self.size);
            let index = usize::from(self.tail & (READY - 1));
            // SAFETY: the mapping holds READY entries and the index is below READY.
            let mut entry = unsafe { self.entries.add(index) };
            // SAFETY: the kernel does not look at entries behind the tail, where this one is.
            let entry = unsafe { entry.as_mut() };
            entry.set_addr(address);
            entry.set_len(self.size);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            self.ready += 1;
        }
        if self.tail != before {
            // SAFETY: `entries` is the start of a mapped ring, whose first entry is initialised.
            let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
            // SAFETY: the kernel reads this aligned field with acquire order and nothing else
            // writes it; the release store makes the entries visible first.
            let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
            tail.store(self.tail, Ordering::Release);
        }
    }

    /// Takes over buffer `id`, into which the kernel has put `len` bytes.
    pub(crate) fn received(&mut self, id: u16, len: u32) -> Chunk {
        self.ready -= 1;
        Chunk { id, origin: 0, start: 0, end: len.min(self.size) }
    }

    pub(crate) fn release(&mut self, chunk: Chunk) {
        self.free.push(chunk.id);
    }

    /// The bytes of `chunk`, to be read by the kernel.
    pub(crate) fn bytes(&self, chunk: &Chunk) -> (*const u8, u32) {
        let offset = chunk.id as usize * self.size as usize + chunk.start as usize;
        // SAFETY: a chunk's id is below `count` and its start at most `size`.
        (unsafe { self.memory.add(offset) }.as_ptr(), chunk.len())
    }

    /// Moves the bytes of `from` behind those of `onto` when they fit; gives `from` back if not.
    pub(crate) fn append(&mut self, onto: &mut Chunk, from: Chunk) -> Result<(), Chunk> {
        if onto.end + from.len() > self.size {
            return Err(from);
        }
        let (source, len) = self.bytes(&from);
        let offset = onto.id as usize * self.size as usize + onto.end as usize;
        // SAFETY: the space behind `onto` lies in its own buffer, as was just checked.
        let target = unsafe { self.memory.add(offset) };
        // SAFETY: two chunks never share a buffer, so the ranges do not overlap; both are mapped,
        // and the kernel fills neither: it has handed both over.
        unsafe { std::ptr::copy_nonoverlapping(source, target.as_ptr(), len as usize) };
        onto.end += len;
        self.release(from);
        Ok(())
    }

    /// Buffers that neither hold data nor lie in the kernel's ring.
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    /// Bytes of a buffer.
    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// All buffers.
    pub(crate) fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// Whether the kernel would find no buffer.
    pub(crate) fn is_starved(&self) -> bool {
        self.ready == 0 && self.free.is_empty()
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        let bytes = usize::from(self.count) * self.size as usize;
        // SAFETY: mapped in `map` with this length; the ring that used it is gone (field order of
        // its owner).
        let _ = unsafe { munmap(self.memory.as_ptr().cast(), bytes) };
        // SAFETY: likewise.
        let _ = unsafe { munmap(self.entries.as_ptr().cast(), ring_bytes()) };
    }
}

fn ring_bytes() -> usize {
    usize::from(READY) * size_of::<BufRingEntry>()
}

fn map(bytes: usize, flags: MapFlags) -> io::Result<NonNull<u8>> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new private mapping at an address of the kernel's choice touches nothing else.
    let memory = unsafe {
        mmap_anonymous(std::ptr::null_mut(), bytes, protection, MapFlags::PRIVATE | flags)
    }?;
    NonNull::new(memory.cast()).ok_or_else(|| io::Error::other("mmap returned null"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(buffers: &Buffers, chunk: &Chunk) -> Vec<u8> {
        let (start, len) = buffers.bytes(chunk);
        // SAFETY: the chunk's bytes are mapped and owned here.
        unsafe { std::slice::from_raw_parts(start, len as usize) }.to_vec()
    }

    fn filled(buffers: &mut Buffers, id: u16, bytes: &[u8]) -> Chunk {
        let chunk = buffers.received(id, bytes.len() as u32);
        let (start, _) = buffers.bytes(&chunk);
        // SAFETY: the buffer is mapped, large enough and owned by `chunk`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.cast_mut(), bytes.len()) };
        chunk
    }

    #[test]
    fn small_chunks_are_joined_while_they_fit() {
        let mut buffers = Buffers::map(4, 8).unwrap();
        buffers.refill();
        assert_eq!(buffers.free(), 0, "all four lie in the ring");
        let mut first = filled(&mut buffers, 0, b"abcde");
        let second = filled(&mut buffers, 1, b"fgh");
        buffers.append(&mut first, second).unwrap();
        assert_eq!(text(&buffers, &first), b"abcdefgh");
        let third = filled(&mut buffers, 2, b"i");
        let third = buffers.append(&mut first, third).unwrap_err();
        first.advance(3);
        assert_eq!(text(&buffers, &first), b"defgh");
        first.rewind();
        assert_eq!(text(&buffers, &first), b"abcdefgh");
        assert_eq!(buffers.free(), 1);
        buffers.release(first);
        buffers.release(third);
        assert_eq!(buffers.free(), 3);
        assert!(!buffers.is_starved());
    }
}
