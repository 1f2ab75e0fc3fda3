//! One direction of a session: bytes that were received and wait to be sent.
//!
//! At most one send is under way, and nothing is received while bytes wait beyond the credit: a
//! slow reader therefore stops its sender, and memory is bounded.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use crate::splice::Pipe;
use crate::sys::{Chunk, Ring};

/// State of one direction.
#[derive(Default)]
pub(crate) struct Direction {
    /// Received, not yet sent, oldest first. While `sending`, the kernel reads the first.
    queue: VecDeque<Chunk>,
    /// Sent and kept for another candidate, oldest first.
    kept: VecDeque<Chunk>,
    /// Bytes in `kept`.
    kept_bytes: u32,
    /// A send is under way.
    pub(crate) sending: bool,
    /// It is a prompt one: see [`Ring::send_promptly`].
    prompt: bool,
    /// The sink had no room for a prompt send: until everything is out, sends wait for room.
    patient: bool,
    /// A receive is under way.
    pub(crate) receiving: bool,
    /// The sink has just said that it has room.
    pub(crate) room: bool,
    /// The source has said that nothing more comes.
    pub(crate) ended: bool,
    /// The sink has been told so.
    pub(crate) told: bool,
    /// The sink takes nothing any more; what comes is thrown away.
    pub(crate) broken: bool,
    /// Bytes moved.
    pub(crate) bytes: u64,
    /// Bytes that came in large pieces, less what came in small ones: see [`Self::is_bulk`].
    run: u64,
    /// Set while the direction is spliced.
    pub(crate) pipe: Option<Pipe>,
}

impl Direction {
    /// Back to the start, keeping the memory of its lists. Chunks go back to the pool.
    pub(crate) fn reset(&mut self, ring: &mut Ring) {
        self.discard(ring);
        let (queue, kept) = (std::mem::take(&mut self.queue), std::mem::take(&mut self.kept));
        *self = Self { queue, kept, ..Self::default() };
    }

    /// Gives every chunk back. Only while no send is under way.
    pub(crate) fn discard(&mut self, ring: &mut Ring) {
        for chunk in self.queue.drain(..).chain(self.kept.drain(..)) {
            ring.buffers().release(chunk);
        }
        self.kept_bytes = 0;
    }

    /// Takes note of a receive of `bytes` into a buffer of `room`.
    pub(crate) fn note_receive(&mut self, bytes: u32, room: u32) {
        self.run = if bytes >= room / 2 {
            self.run + u64::from(bytes)
        } else {
            self.run.saturating_sub(u64::from(room / 2))
        };
    }

    /// Whether the source has been sending faster than we receive, for `after` bytes. Many small
    /// answers are no bulk, however many they are: splicing them costs more than copying.
    pub(crate) fn is_bulk(&self, after: u64) -> bool {
        self.run >= after
    }

    /// Begins to count anew how much has come in large pieces.
    pub(crate) fn no_bulk(&mut self) {
        self.run = 0;
    }

    /// Adds what was received; joins it with the chunk before when both fit one buffer, so that
    /// a peer that sends byte by byte does not hold a buffer for each.
    pub(crate) fn push(&mut self, ring: &mut Ring, chunk: Chunk) {
        if self.broken || chunk.len() == 0 {
            ring.buffers().release(chunk);
            return;
        }
        let joinable = self.queue.len() > usize::from(self.sending);
        let chunk = match self.queue.back_mut().filter(|_| joinable) {
            Some(last) => match ring.buffers().append(last, chunk) {
                Ok(()) => return,
                Err(chunk) => chunk,
            },
            None => chunk,
        };
        self.queue.push_back(chunk);
    }

    /// The first `most` bytes that wait.
    pub(crate) fn peek(&self, ring: &Ring, most: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for chunk in &self.queue {
            let room = most - bytes.len();
            bytes.extend(ring.bytes(chunk).iter().take(room));
        }
        bytes
    }

    /// Drops the first `count` bytes that wait. Only while no send is under way.
    pub(crate) fn skip(&mut self, ring: &mut Ring, mut count: u32) {
        while count > 0
            && let Some(first) = self.queue.front_mut()
        {
            let step = count.min(first.len());
            first.cut(step);
            count -= step;
            if first.len() == 0
                && let Some(chunk) = self.queue.pop_front()
            {
                ring.buffers().release(chunk);
            }
        }
    }

    /// Sends the chunk that is next. Only while there is one, and no send is under way.
    pub(crate) fn send(&mut self, ring: &mut Ring, fd: BorrowedFd<'_>, token: u64) {
        let Some(chunk) = self.queue.front() else { return };
        self.prompt = !self.patient;
        match self.prompt {
            true => ring.send_promptly(fd, chunk, token),
            false => ring.send(fd, chunk, token),
        }
        self.sending = true;
    }

    /// Whether the end of a prompt send that is under way lets something else begin.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.sending && self.prompt && (self.ended || self.queue.len() > 1)
    }

    /// Whether more may be received: nothing waits to be sent, but for what goes with this submission.
    pub(crate) fn has_room(&self) -> bool {
        let goes = self.sending && self.prompt && self.queue.len() == 1;
        !self.ended && !self.receiving && (goes || self.is_flushed())
    }

    /// The sink is to say when it has room, which counts as sending.
    pub(crate) fn waits_for_room(&mut self) {
        (self.sending, self.prompt) = (true, false);
    }

    /// The sink has no room. Whether a send may be tried that waits for it, in place of one that did not.
    pub(crate) fn gets_patient(&mut self) -> bool {
        !std::mem::replace(&mut self.patient, true)
    }

    /// Whether the sink had no room for what was sent last.
    pub(crate) fn is_patient(&self) -> bool {
        self.patient
    }

    /// Whether the send that completes now has waited for room.
    pub(crate) fn was_patient(&self) -> bool {
        !self.prompt
    }

    /// Bytes that have been received and not sent.
    pub(crate) fn waiting(&self) -> u64 {
        self.queue.iter().map(|chunk| u64::from(chunk.len())).sum()
    }

    /// Whether nothing has been received that is still here.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether nothing waits to be sent.
    pub(crate) fn is_flushed(&self) -> bool {
        self.queue.is_empty() && !self.sending && self.pipe.as_ref().is_none_or(Pipe::is_empty)
    }

    /// The source has ended and everything has been sent.
    pub(crate) fn is_done(&self) -> bool {
        self.ended && self.is_flushed()
    }

    /// `sent` bytes of the first chunk are out. With `keep`, finished chunks are kept as long as
    /// they are at most that many bytes together; false when the keeping had to stop.
    pub(crate) fn sent(&mut self, ring: &mut Ring, sent: u32, keep: Option<u32>) -> bool {
        self.bytes += u64::from(sent);
        let Some(first) = self.queue.front_mut() else {
            return true;
        };
        first.advance(sent);
        if first.len() > 0 {
            // What is left of it needs room first.
            self.patient = true;
            return true;
        }
        self.patient &= self.queue.len() > 1;
        let Some(mut chunk) = self.queue.pop_front() else {
            return true;
        };
        let Some(most) = keep else {
            ring.buffers().release(chunk);
            return true;
        };
        chunk.rewind();
        self.kept_bytes += chunk.len();
        // Joined as received bytes are: a client that sends byte by byte pins no buffer for each.
        let chunk = match self.kept.back_mut() {
            Some(last) => ring.buffers().append(last, chunk).err(),
            None => Some(chunk),
        };
        self.kept.extend(chunk);
        if self.kept_bytes > most {
            self.forget(ring);
            return false;
        }
        true
    }

    /// Gives back what was kept.
    pub(crate) fn forget(&mut self, ring: &mut Ring) {
        for chunk in self.kept.drain(..) {
            ring.buffers().release(chunk);
        }
        self.kept_bytes = 0;
    }

    /// Makes everything that was kept unsent again, for the next candidate.
    pub(crate) fn replay(&mut self) {
        if let Some(first) = self.queue.front_mut() {
            first.rewind();
        }
        while let Some(chunk) = self.kept.pop_back() {
            self.queue.push_front(chunk);
        }
        self.bytes = 0;
        self.kept_bytes = 0;
        (self.sending, self.patient) = (false, false);
        self.told = false;
        self.broken = false;
    }

    /// Whether anything has been received in this direction.
    pub(crate) fn has_moved(&self) -> bool {
        self.bytes > 0 || !self.queue.is_empty()
    }

    /// Whether anything of this direction has been handed to the sink.
    pub(crate) fn has_sent(&self) -> bool {
        self.bytes > 0 || self.sending
    }
}
