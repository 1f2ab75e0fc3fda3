//! Frames that came to another worker than the one that has their flow: fragments, mostly.
//!
//! The way for a few; what comes often is divided rightly by the kernel. So they are copied.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crossbeam_channel::{Receiver, Sender, bounded};
use fairway_core::packet::{Frame, TransportChecksum, VlanTag};
use rustix::event::{EventfdFlags, eventfd};

/// Frames that may wait for a worker.
const MOST: usize = 1024;

/// A frame on its way to another worker.
struct Passed {
    bytes: Box<[u8]>,
    port: u16,
    tag: Option<VlanTag>,
    checksum: TransportChecksum,
}

/// Where frames for one worker lie.
struct Inbox {
    sender: Sender<Passed>,
    receiver: Receiver<Passed>,
    wake: OwnedFd,
}

/// Those of all workers.
pub struct Inboxes(Box<[Inbox]>);

impl std::fmt::Debug for Inboxes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Inboxes({})", self.0.len())
    }
}

impl Inboxes {
    /// For so many workers.
    pub fn new(workers: usize) -> io::Result<Self> {
        let inbox = |_| {
            let (sender, receiver) = bounded(MOST);
            let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            Ok(Inbox { sender, receiver, wake })
        };
        (0..workers).map(inbox).collect::<io::Result<_>>().map(Self)
    }

    /// Passes a frame to a worker; false when its inbox is full.
    pub(super) fn pass(&self, worker: u16, frame: &Frame<'_>) -> bool {
        let Some(inbox) = self.0.get(usize::from(worker)) else { return false };
        let passed = Passed {
            bytes: frame.bytes().into(),
            port: frame.port,
            tag: frame.tag,
            checksum: frame.checksum,
        };
        let fits = inbox.sender.try_send(passed).is_ok();
        // The only failure is a full counter, which wakes it too.
        let _ = rustix::io::write(&inbox.wake, &1_u64.to_ne_bytes());
        fits
    }

    /// The next frame for a worker, written into `frame`.
    pub(super) fn take(&self, worker: u16, frame: &mut Frame<'_>) -> bool {
        let inbox = &self.0[usize::from(worker)];
        while let Ok(passed) = inbox.receiver.try_recv() {
            if frame.replace(&passed.bytes) {
                (frame.port, frame.tag) = (passed.port, passed.tag);
                frame.checksum = passed.checksum;
                return true;
            }
        }
        false
    }

    /// Ready when there is something for a worker.
    pub(super) fn wake(&self, worker: u16) -> BorrowedFd<'_> {
        self.0[usize::from(worker)].wake.as_fd()
    }

    /// Makes it unready.
    pub(super) fn heard(&self, worker: u16) {
        // The value only says "look".
        let _ = rustix::io::read(&self.0[usize::from(worker)].wake, &mut [0_u8; 8]);
    }
}
