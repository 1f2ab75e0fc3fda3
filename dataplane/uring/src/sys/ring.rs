//! The ring: one method a request, completions as plain values.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode};
use socket2::SockAddr;

use super::buffers::{Buffers, Chunk};
use super::datagram::{BUFFER_BYTES, Datagram, Outbox, Parcel, Shape};
use super::{Features, SetupError};

const SUBMISSIONS: u32 = 1024;
const COMPLETIONS: u32 = 16_384;
/// The group of the buffers for streams.
const GROUP: u16 = 0;
/// The group of the buffers for datagrams.
const DATAGRAMS: u16 = 1;
/// Buffers for datagrams: each is in use from its receive to its send.
const DATAGRAM_BUFFERS: u16 = 512;
/// Set in the tokens of requests that receive datagrams.
pub(crate) const DATAGRAM_TOKEN: u64 = 1 << 63;
/// Set in what the kernel is told of prompt sends.
const PROMPT_TOKEN: u64 = 1 << 62;
/// Completions of requests that nobody waits for.
const NOBODY: u64 = u64::MAX;
/// How long the ends of prompt sends may go unnoticed while nothing else happens. It is longer than the kernel's
/// tick, so that no wait has a timer of its own programmed.
const LINGER: Duration = Duration::from_millis(20);

/// What the kernel says of a request.
#[derive(Debug)]
pub(crate) struct Completion {
    /// The token that the request was given.
    pub(crate) token: u64,
    /// Bytes, or what the request returns.
    pub(crate) result: Result<u32, i32>,
    /// Whether the request goes on and will complete again.
    pub(crate) more: bool,
    /// The received bytes of a receive.
    pub(crate) chunk: Option<Chunk>,
    /// What a receive of datagrams brought.
    pub(crate) datagram: Option<Datagram>,
}

/// A ring of one thread, with its receive buffers.
pub(crate) struct Ring {
    // Dropped before the buffers that its requests may write to.
    ring: IoUring,
    buffers: Buffers,
    datagrams: Buffers,
    shape: Shape,
    outbox: Outbox,
    /// Addresses of connects since the last submission; the kernel copies them when submitted.
    addresses: Vec<SockAddr>,
    /// Prompt sends of which nothing was heard: see [`Ring::send_promptly`].
    prompt: Vec<Prompt>,
    /// Somebody waits for the end of a prompt send.
    hurried: bool,
    features: Features,
}

/// A send that is over with the submission that takes it to the kernel, and completes only when it
/// could not do all.
struct Prompt {
    token: u64,
    len: u32,
}

impl Ring {
    /// A ring with `buffers` receive buffers of `size` bytes. Call it on the thread that uses it.
    pub(crate) fn new(buffers: u16, size: u32, features: Features) -> Result<Self, SetupError> {
        let ring = build(SUBMISSIONS, COMPLETIONS)?;
        let provide = |count, size, group| {
            let mut buffers = Buffers::map(count, size).map_err(SetupError::Resources)?;
            let (address, entries) = buffers.ring();
            // SAFETY: the mapping lives in `buffers`, which is dropped after the ring.
            unsafe { ring.submitter().register_buf_ring_with_flags(address, entries, group, 0) }
                .map_err(|error| SetupError::of(error, "provided buffer rings"))?;
            buffers.refill();
            Ok(buffers)
        };
        let buffers = provide(buffers, size, GROUP)?;
        let datagrams = provide(DATAGRAM_BUFFERS, BUFFER_BYTES, DATAGRAMS)?;
        Ok(Self {
            ring,
            buffers,
            datagrams,
            shape: Shape::new(),
            outbox: Outbox::default(),
            addresses: Vec::with_capacity(SUBMISSIONS as usize),
            prompt: Vec::with_capacity(SUBMISSIONS as usize),
            hurried: false,
            features,
        })
    }

    /// Accepts on `fd`: one connection or, with `many` and the feature, any number.
    pub(crate) fn accept(&mut self, fd: BorrowedFd<'_>, many: bool, token: u64) {
        let fd = Fd(fd.as_raw_fd());
        let entry = if many && self.features.multishot_accept {
            opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build()
        } else {
            let null = std::ptr::null_mut();
            opcode::Accept::new(fd, null, null.cast()).flags(libc::SOCK_CLOEXEC).build()
        };
        self.push(entry.user_data(token));
    }

    /// Receives from `fd`: up to `credit` bytes in any number of completions, or once.
    pub(crate) fn receive(&mut self, fd: BorrowedFd<'_>, credit: u32, token: u64) {
        let fd = Fd(fd.as_raw_fd());
        let entry = if self.features.capped_receive {
            let mut entry = opcode::RecvMulti::new(fd, GROUP).build();
            cap(&mut entry, credit);
            entry
        } else {
            let null = std::ptr::null_mut();
            opcode::Recv::new(fd, null, 0).buf_group(GROUP).build().flags(Flags::BUFFER_SELECT)
        };
        self.push(entry.user_data(token));
    }

    /// Sends all of `chunk`, however long that takes. The caller keeps it, unchanged, until the
    /// completion.
    pub(crate) fn send(&mut self, fd: BorrowedFd<'_>, chunk: &Chunk, token: u64) {
        let (start, len) = self.buffers.bytes(chunk);
        let entry = opcode::Send::new(Fd(fd.as_raw_fd()), start, len)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build();
        self.push(entry.user_data(token));
    }

    /// Sends what the socket has room for of `chunk`, which is mostly all. Its end comes with the submission
    /// and needs no completion, so it ends no wait; [`Self::settled`] tells of it afterwards. What was not
    /// sent is told by a completion with a short result, or `EAGAIN`. The caller keeps the chunk until it is
    /// told, and calls [`Self::hurry`] when it cannot wait for that.
    pub(crate) fn send_promptly(&mut self, fd: BorrowedFd<'_>, chunk: &Chunk, token: u64) {
        let (start, len) = self.buffers.bytes(chunk);
        // With MSG_WAITALL a short send is no success, and is told of.
        let entry = opcode::Send::new(Fd(fd.as_raw_fd()), start, len)
            .flags(libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build();
        self.push_prompt(entry, token, len);
    }

    /// Somebody can go on when the prompt sends are over: the next wait only submits.
    pub(crate) fn hurry(&mut self) {
        self.hurried = true;
    }

    /// Receives datagrams from `fd`, any number of them, until the completion that has no `more`.
    /// The token must have [`DATAGRAM_TOKEN`] set.
    pub(crate) fn receive_datagrams(&mut self, fd: BorrowedFd<'_>, token: u64) {
        let fd = Fd(fd.as_raw_fd());
        let entry = opcode::RecvMsgMulti::new(fd, self.shape.as_ptr(), DATAGRAMS).build();
        self.push(entry.user_data(token));
    }

    /// Sends a datagram or drops it: it never waits for room. `token` makes the request's token
    /// of the number under which [`Self::sent_datagram`] gives the parcel back.
    pub(crate) fn send_datagram(
        &mut self,
        fd: BorrowedFd<'_>,
        parcel: Parcel,
        token: impl FnOnce(u32) -> u64,
    ) {
        let (number, header) = self.outbox.put(&self.datagrams, parcel);
        let entry = opcode::SendMsg::new(Fd(fd.as_raw_fd()), header)
            .flags((libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u32)
            .build();
        // A datagram is sent whole or not at all: how long it was is nobody's question.
        self.push_prompt(entry, token(number), 0);
    }

    /// The parcel of a completed send.
    pub(crate) fn sent_datagram(&mut self, number: u32) -> Option<Parcel> {
        self.outbox.take(number)
    }

    /// The bytes of a datagram.
    pub(crate) fn datagram_bytes(&self, chunk: &Chunk) -> &[u8] {
        let (start, len) = self.datagrams.bytes(chunk);
        // SAFETY: the bytes are mapped, and the kernel writes to them no more: the chunk is ours.
        unsafe { std::slice::from_raw_parts(start, len as usize) }
    }

    /// Gives the buffer of a datagram back.
    pub(crate) fn release_datagram(&mut self, chunk: Chunk) {
        self.datagrams.release(chunk);
    }

    /// Whether a datagram would find no buffer.
    pub(crate) fn lacks_datagram_buffers(&self) -> bool {
        self.datagrams.is_starved()
    }

    /// Connects `fd` to `to`.
    pub(crate) fn connect(&mut self, fd: BorrowedFd<'_>, to: SocketAddr, token: u64) {
        // The list must neither grow nor be cleared before this request is submitted.
        while self.addresses.len() == SUBMISSIONS as usize || self.ring.submission().is_full() {
            self.submit();
        }
        self.addresses.push(SockAddr::from(to));
        let Some(address) = self.addresses.last() else {
            return;
        };
        let (pointer, len) = (address.as_ptr().cast(), address.len());
        let entry = opcode::Connect::new(Fd(fd.as_raw_fd()), pointer, len).build();
        self.push(entry.user_data(token));
    }

    /// Ends every request on `fd`; they complete with an error, or with what they had.
    pub(crate) fn cancel(&mut self, fd: BorrowedFd<'_>) {
        let builder = CancelBuilder::fd(Fd(fd.as_raw_fd())).all();
        self.push(opcode::AsyncCancel2::new(builder).build().user_data(NOBODY));
    }

    /// Closes `fd`, with the next submission.
    pub(crate) fn close(&mut self, fd: OwnedFd) {
        let entry = opcode::Close::new(Fd(fd.into_raw_fd())).build();
        self.push(entry.flags(Flags::SKIP_SUCCESS).user_data(NOBODY));
    }

    /// Waits until `fd` is ready for one of `events` (`POLLIN`, …).
    pub(crate) fn poll(&mut self, fd: BorrowedFd<'_>, events: i16, token: u64) {
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), events as u16 as u32).build();
        self.push(entry.user_data(token));
    }

    /// Tells the kernel that frames are to go out of a packet socket's ring; completes when that
    /// failed only.
    pub(crate) fn tell(&mut self, fd: BorrowedFd<'_>, token: u64) {
        let entry = opcode::Send::new(Fd(fd.as_raw_fd()), std::ptr::null(), 0)
            .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            .build();
        self.push(entry.flags(Flags::SKIP_SUCCESS).user_data(token));
    }

    /// Has the kernel take every request now.
    pub(crate) fn flush(&mut self) {
        self.submit();
    }

    /// Submits everything and waits for a completion, for `timeout` at most.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.buffers.refill();
        self.datagrams.refill();
        if std::mem::take(&mut self.hurried) && !self.prompt.is_empty() {
            self.submit_only();
            return Ok(());
        }
        let timeout = match self.prompt.is_empty() {
            true => timeout,
            false => Some(timeout.map_or(LINGER, |timeout| timeout.min(LINGER))),
        };
        let spec = timeout.map(Timespec::from);
        let mut args = SubmitArgs::new();
        if let Some(spec) = &spec {
            args = args.timespec(spec);
        }
        let outcome = self.ring.submitter().submit_with_args(1, &args);
        self.forget_addresses();
        match outcome {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Moves what has completed to `out`. Prompt sends that did all are told by [`Self::settled`] alone.
    pub(crate) fn completions(&mut self, out: &mut Vec<Completion>) {
        let Self { ring, buffers, datagrams, shape, prompt, .. } = self;
        let mut short = 0;
        for cqe in ring.completion() {
            let mut token = cqe.user_data();
            if token == NOBODY {
                continue;
            }
            if token & PROMPT_TOKEN != 0 {
                token &= !PROMPT_TOKEN;
                // They complete in the order in which they were submitted.
                let later = prompt.iter().skip(short).position(|sent| sent.token == token);
                if let Some(found) = later {
                    short += found;
                    prompt[short].token = NOBODY;
                }
            }
            let result = u32::try_from(cqe.result()).map_err(|_| -cqe.result());
            let len = *result.as_ref().unwrap_or(&0);
            let buffer = cqueue::buffer_select(cqe.flags());
            let (mut chunk, mut datagram) = (None, None);
            match buffer {
                Some(id) if token & DATAGRAM_TOKEN != 0 => {
                    let received = datagrams.received(id, len);
                    match shape.open(datagrams, received) {
                        Ok(opened) => datagram = Some(opened),
                        Err(chunk) => datagrams.release(chunk),
                    }
                }
                Some(id) => chunk = Some(buffers.received(id, len)),
                None => {}
            }
            let more = cqueue::more(cqe.flags());
            out.push(Completion { token, result, more, chunk, datagram });
        }
    }

    /// Moves the prompt sends that did all to `out`. To be called after [`Self::completions`], which knows of
    /// the others, and obeyed before what that has brought, which came later.
    pub(crate) fn settled(&mut self, out: &mut Vec<Completion>) {
        // What is still queued has not been sent.
        if !self.ring.submission().is_empty() {
            return;
        }
        let all = self.prompt.drain(..).filter(|sent| sent.token != NOBODY);
        out.extend(all.map(|Prompt { token, len }| Completion {
            token,
            result: Ok(len),
            more: false,
            chunk: None,
            datagram: None,
        }));
    }

    /// What a receive may bring: `full`, or one buffer when more than half of the pool is in use,
    /// so that readers who have stalled leave something for the others.
    pub(crate) fn credit(&self, full: u32) -> u32 {
        let plenty = self.buffers.free() * 2 >= self.buffers.count();
        if plenty { full } else { self.buffers.size().min(full) }
    }

    /// Whether less than a quarter of the receive buffers is left.
    pub(crate) fn is_low(&self) -> bool {
        self.buffers.free() * 4 < self.buffers.count()
    }

    /// The bytes of a chunk that are still to be sent.
    pub(crate) fn bytes(&self, chunk: &Chunk) -> &[u8] {
        let (start, len) = self.buffers.bytes(chunk);
        // SAFETY: the bytes are mapped and filled, and the kernel writes to them no more.
        unsafe { std::slice::from_raw_parts(start, len as usize) }
    }

    /// The receive buffers.
    pub(crate) fn buffers(&mut self) -> &mut Buffers {
        &mut self.buffers
    }

    pub(crate) fn features(&self) -> Features {
        self.features
    }

    fn push_prompt(&mut self, entry: Entry, token: u64, len: u32) {
        self.push(entry.flags(Flags::SKIP_SUCCESS).user_data(token | PROMPT_TOKEN));
        self.prompt.push(Prompt { token, len });
    }

    fn push(&mut self, entry: Entry) {
        // SAFETY: what entries point to outlives them: chunks are kept by their owner until the
        // completion and lie in a mapping that outlives the ring, addresses until the submission;
        // descriptors are closed only after their requests completed.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.submit();
        }
    }

    fn submit(&mut self) {
        // A full completion queue (EBUSY) empties into our list at the next batch; the kernel
        // keeps what does not fit (feature NODROP).
        let _ = self.ring.submit();
        self.forget_addresses();
    }

    /// Has the kernel take every request, and say what has completed, without waiting.
    fn submit_only(&mut self) {
        let queued = self.ring.submission().len() as u32;
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: it names no argument; what the requests point to is as `push` says.
        let _ = unsafe { self.ring.submitter().enter::<()>(queued, 0, flags, None) };
        self.forget_addresses();
    }

    /// Addresses may go once the kernel has taken every request that points to one.
    fn forget_addresses(&mut self) {
        if self.ring.submission().is_empty() {
            self.addresses.clear();
        }
    }
}

/// Takes over the descriptor that an accept returned.
pub(crate) fn accepted(fd: u32) -> OwnedFd {
    // SAFETY: called once for each successful accept, whose descriptor nobody else has seen.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

pub(super) fn build(submissions: u32, completions: u32) -> Result<IoUring, SetupError> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .setup_cqsize(completions)
        .build(submissions)
        .map_err(|error| SetupError::of(error, "IORING_SETUP_DEFER_TASKRUN"))
}

/// Sets the total of a multishot receive: `optlen`, a u32 at byte 44 of the entry, which the
/// `io-uring` crate has no name for.
pub(super) fn cap(entry: &mut Entry, bytes: u32) {
    let start: *mut Entry = entry;
    // SAFETY: an entry is 64 bytes of plain integers, so the field lies within it.
    let field = unsafe { start.cast::<u8>().add(44) };
    // SAFETY: the field is exclusively borrowed through `entry`.
    unsafe { field.cast::<u32>().write_unaligned(bytes) };
}
