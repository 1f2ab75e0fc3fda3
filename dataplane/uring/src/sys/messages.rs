//! Packet sockets without rings, for measurements: many frames a system call.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use libc::{iovec, mmsghdr};

use super::packet::{bind, open, option};

/// Frames of a call.
const BATCH: usize = 32;

/// A socket and what it has received last.
pub(crate) struct Messages {
    socket: OwnedFd,
    size: usize,
    buffers: Box<[u8]>,
    /// Lengths of the frames that are to go on; zero for those that are not.
    lengths: [usize; BATCH],
}

impl Messages {
    pub(crate) fn open(interface: u32, size: usize) -> io::Result<Self> {
        let socket = open()?;
        option(&socket, libc::PACKET_IGNORE_OUTGOING, 1)?;
        bind(&socket, interface, true)?;
        let buffers = vec![0; size * BATCH].into();
        Ok(Self { socket, size, buffers, lengths: [0; BATCH] })
    }

    /// Waits until one of two has frames.
    pub(crate) fn wait(both: [&Self; 2]) -> io::Result<()> {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut polls = both.map(|one| PollFd::new(&one.socket, PollFlags::IN));
        poll(&mut polls, None)?;
        Ok(())
    }

    fn headers(&mut self, which: impl Fn(usize) -> usize) -> (Vec<iovec>, Vec<mmsghdr>) {
        let places = self.buffers.chunks_exact_mut(self.size).enumerate();
        let mut vectors: Vec<iovec> = places
            .map(|(n, place)| (which(n), place))
            .filter(|(length, _)| *length > 0)
            .map(|(length, place)| iovec { iov_base: place.as_mut_ptr().cast(), iov_len: length })
            .collect();
        let headers = vectors
            .iter_mut()
            .map(|vector| {
                // SAFETY: a header is plain integers and pointers, for which zeros are values.
                let mut header: mmsghdr = unsafe { std::mem::zeroed() };
                header.msg_hdr.msg_iov = vector;
                header.msg_hdr.msg_iovlen = 1;
                header
            })
            .collect();
        (vectors, headers)
    }

    /// Receives frames and keeps those that `wanted` says; false when there are none.
    pub(crate) fn receive(&mut self, wanted: impl Fn(&mut [u8]) -> bool) -> io::Result<bool> {
        let size = self.size;
        let (_vectors, mut headers) = self.headers(|_| size);
        let (fd, count) = (self.socket.as_raw_fd(), BATCH as u32);
        let (start, flags) = (headers.as_mut_ptr(), libc::MSG_DONTWAIT);
        // SAFETY: the headers point to vectors and buffers that live until this returns.
        let received = unsafe { libc::recvmmsg(fd, start, count, flags, std::ptr::null_mut()) };
        let Ok(received) = usize::try_from(received) else { return Ok(false) };
        self.lengths = [0; BATCH];
        let places = self.buffers.chunks_exact_mut(size);
        for ((header, place), length) in
            headers[..received].iter().zip(places).zip(&mut self.lengths)
        {
            let got = header.msg_len as usize;
            if wanted(&mut place[..got]) {
                *length = got;
            }
        }
        Ok(received > 0)
    }

    /// Sends what was kept by another socket.
    pub(crate) fn send_by(&mut self, other: &Self) {
        let lengths = self.lengths;
        let (_vectors, mut headers) = self.headers(|n| lengths[n]);
        let (fd, count) = (other.socket.as_raw_fd(), headers.len() as u32);
        let start = headers.as_mut_ptr();
        // SAFETY: as above.
        let _ = unsafe { libc::sendmmsg(fd, start, count, libc::MSG_DONTWAIT) };
    }
}
