//! What an idle thread sleeps by: one descriptor that is readable when packets have come.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use dpdk_sys::rte_epoll_event;
use rustix::event::epoll;

use super::port::{Open, RxQueue};

/// Events that are forgotten at a time.
const EVENTS: usize = 16;
/// ENOTSUP.
const ALWAYS_ON: i32 = rustix::io::Errno::NOTSUP.raw_os_error();

/// Queues that wake a thread, if their cards have interrupts, and a bell by which other threads do.
#[derive(Debug)]
pub(crate) struct Waker<'p> {
    /// DPDK's events: it reads what its interrupts count when it is asked for them.
    interrupts: OwnedFd,
    /// These and the bell.
    all: OwnedFd,
    queues: Vec<(Arc<Open<'p>>, u16)>,
}

impl<'p> Waker<'p> {
    /// Woken by a bell alone, an event descriptor that does not block.
    pub(crate) fn new(bell: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let interrupts = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let all = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let none = epoll::EventData::new_u64(0);
        for fd in [Some(interrupts.as_fd()), bell].into_iter().flatten() {
            epoll::add(&all, fd, none, epoll::EventFlags::IN)?;
        }
        Ok(Self { interrupts, all, queues: Vec::new() })
    }

    /// Is woken by a queue, too; false when its card has no interrupts.
    pub(crate) fn add(&mut self, rx: &RxQueue<'p>) -> bool {
        let (open, queue) = rx.place();
        // That a card has no interrupts is no error.
        // SAFETY: a name that ends with zero; its number is asked for, or made.
        let log = unsafe { dpdk_sys::rte_log_register(c"lib.ethdev".as_ptr()) } as u32;
        // SAFETY: numbers.
        let level = unsafe { dpdk_sys::rte_log_get_level(log) };
        // SAFETY: as above.
        unsafe { dpdk_sys::rte_log_set_level(log, dpdk_sys::RTE_LOG_CRIT) };
        let added = self.control(open, queue, dpdk_sys::RTE_INTR_EVENT_ADD);
        // SAFETY: as above.
        unsafe { dpdk_sys::rte_log_set_level(log, level as u32) };
        if added {
            self.queues.push((Arc::clone(open), queue));
        }
        added
    }

    fn control(&self, open: &Open<'_>, queue: u16, change: u32) -> bool {
        let (fd, nobody) = (self.interrupts.as_raw_fd(), std::ptr::null_mut());
        // SAFETY: an open port, and one of its queues; DPDK's events stay with the port, which is
        // open until they are taken out below.
        let code = unsafe {
            dpdk_sys::rte_eth_dev_rx_intr_ctl_q(open.id, queue, fd, change as i32, nobody)
        };
        code == 0
    }

    /// Asks the queues for an interrupt at their next packet; false when one refuses.
    pub(crate) fn arm(&mut self) -> bool {
        self.queues.iter().all(|(open, queue)| {
            // SAFETY: an open port, and one of its queues.
            let code = unsafe { dpdk_sys::rte_eth_dev_rx_intr_enable(open.id, *queue) };
            // Those whose interrupts are always on say that they cannot do this.
            code == 0 || code == -ALWAYS_ON
        })
    }

    /// Forgets what has woken the thread, and asks for no more.
    pub(crate) fn disarm(&mut self) {
        for (open, queue) in &self.queues {
            // SAFETY: as above.
            let _ = unsafe { dpdk_sys::rte_eth_dev_rx_intr_disable(open.id, *queue) };
        }
        let mut events = [rte_epoll_event::default(); EVENTS];
        let (fd, place) = (self.interrupts.as_raw_fd(), events.as_mut_ptr());
        // SAFETY: an epoll descriptor of ours; room for so many; it does not wait.
        unsafe { dpdk_sys::rte_epoll_wait(fd, place, EVENTS as i32, 0) };
    }

    /// The descriptor.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.all.as_fd()
    }
}

impl Drop for Waker<'_> {
    fn drop(&mut self) {
        for (open, queue) in &self.queues {
            self.control(open, *queue, dpdk_sys::RTE_INTR_EVENT_DEL);
        }
    }
}
